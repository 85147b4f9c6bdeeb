//! Looks through whole volumes: bodies, and whether two nodes at one position hold the same state.
use crate::disk::{Disk, Image};
use bytes::Bytes;
use prost::Message;
use sealane_state::Table;
use sealane_store::{
    LogPosition,
    inspect::{self, Record},
};
use sealane_types::GroupId;
use sealane_wire::v1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen so far.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Of each group and position, a digest of the state and who had it first.
    states: BTreeMap<(GroupId, u64), (u64, String)>,
    /// Bodies whose digest was right: of a node, a group, a message.
    verified: BTreeSet<(String, Vec<u8>)>,
    /// The membership that each node applied last.
    members: BTreeMap<(String, GroupId), v1::Membership>,
    looks: u64,
    compared: u64,
}

/// FNV-1a.
fn mix(mut hash: u64, octets: &[u8]) -> u64 {
    for b in octets {
        hash = (hash ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash
}

fn group_of(key: &[u8]) -> GroupId {
    let four = key.first_chunk().copied().unwrap_or_default();
    GroupId(u32::from_be_bytes(four))
}

/// One group on one volume.
#[derive(Default)]
struct Found {
    applied: Option<LogPosition>,
    purged: u64,
    installing: bool,
    digest: u64,
    messages: Vec<(Vec<u8>, v1::MessageRecord)>,
    /// Log indexes of bodies that something refers to.
    referred: BTreeSet<u64>,
    bodies: BTreeMap<u64, Bytes>,
}

fn found(image: &Image) -> Result<BTreeMap<GroupId, (Found, Option<v1::Membership>)>, String> {
    let mut groups: BTreeMap<GroupId, (Found, Option<v1::Membership>)> = BTreeMap::new();
    for family in [inspect::METAS, inspect::ROWS, inspect::BODIES] {
        for (key, value) in image.get(family).into_iter().flatten() {
            let group = groups.entry(group_of(key)).or_default();
            let f = &mut group.0;
            if family == inspect::ROWS {
                f.digest = mix(mix(f.digest, key), value);
                let table = key.get(4).copied().unwrap_or_default();
                if table != Table::Message as u8 && table != Table::Upload as u8 {
                    continue;
                }
            }
            let (_, record) =
                inspect::record(family, key, value).map_err(|e| format!("I7: {e}"))?;
            match record {
                Record::Applied(a) => {
                    f.applied = a.last;
                    group.1 = v1::Membership::decode(a.membership).ok();
                }
                Record::Purged(p) => f.purged = p.index,
                Record::Installing => f.installing = true,
                Record::Body(index, octets) => drop(f.bodies.insert(index, octets)),
                Record::Row(t, key, value) if t == Table::Message as u8 => {
                    let m = v1::MessageRecord::decode(value).map_err(|e| e.to_string())?;
                    f.referred.extend(m.body.iter().map(|p| p.log_index));
                    f.messages.push((key.to_vec(), m));
                }
                Record::Row(_, _, value) => {
                    let u = v1::UploadRecord::decode(value).map_err(|e| e.to_string())?;
                    f.referred.extend(u.part.map(|p| p.log_index));
                }
                _ => {}
            }
        }
    }
    Ok(groups)
}

impl Found {
    fn body(&self, m: &v1::MessageRecord) -> Result<(), String> {
        let mut digest = Sha256::new();
        for part in &m.body {
            let octets = self
                .bodies
                .get(&part.log_index)
                .ok_or_else(|| format!("the body part {} is missing", part.log_index))?;
            digest.update(octets);
        }
        if digest.finalize().as_slice() == m.sha256.as_ref() {
            Ok(())
        } else {
            Err("the body is another one".into())
        }
    }
}

fn hex(octets: &[u8]) -> String {
    octets.iter().map(|b| format!("{b:02x}")).collect()
}

impl Audit {
    /// Volumes, and states compared.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.looks, self.compared)
    }

    /// The process of a node is gone: what it had and did not sync may be gone.
    pub(crate) fn died(&mut self, node: &str) {
        self.verified.retain(|(n, _)| n != node);
    }

    /// A group has all its voters, by the word of every one of them.
    pub(crate) fn settled(&self, group: u32, replicas: usize) -> bool {
        let seen = self
            .members
            .iter()
            .filter(|((_, g), _)| *g == GroupId(group));
        let whole = seen.filter(|(_, m)| {
            m.configs.len() == 1 && m.configs.iter().all(|c| c.voters.len() == replicas)
        });
        whole.count() >= replicas
    }

    /// Looks through a volume as its process sees it; what is wrong.
    pub(crate) fn look(&mut self, node: &str, disk: &Disk) -> Vec<String> {
        self.looks += 1;
        let volume = disk.lock();
        if volume.counts.flips > 0 {
            return Vec::new();
        }
        let groups = match found(&volume.live) {
            Ok(g) => g,
            Err(e) => return vec![format!("{node}: {e}")],
        };
        drop(volume);
        let mut wrong = Vec::new();
        for (id, (group, members)) in groups {
            if let Some(m) = members {
                self.members.insert((node.to_owned(), id), m);
            }
            if group.installing {
                continue;
            }
            self.bodies(node, id, &group, &mut wrong);
            let Some(at) = group.applied else { continue };
            match self.states.get(&(id, at.index)) {
                Some((digest, _)) if *digest == group.digest => self.compared += 1,
                Some((_, first)) => wrong.push(format!(
                    "I7: at {} of group {id} the state of {node} differs from that of {first}",
                    at.index
                )),
                None => {
                    let state = (group.digest, node.to_owned());
                    self.states.insert((id, at.index), state);
                }
            }
        }
        wrong
    }

    /// Every live message has its body, and no body is left that nobody needs.
    fn bodies(&mut self, node: &str, id: GroupId, group: &Found, wrong: &mut Vec<String>) {
        for (message, record) in &group.messages {
            let key = (node.to_owned(), message.clone());
            if self.verified.contains(&key) {
                let missing = record
                    .body
                    .iter()
                    .any(|p| !group.bodies.contains_key(&p.log_index));
                if missing {
                    wrong.push(format!(
                        "I7: {node} lost the body of {} in group {id}",
                        hex(message)
                    ));
                }
                continue;
            }
            match group.body(record) {
                Ok(()) => drop(self.verified.insert(key)),
                Err(e) => wrong.push(format!("I7: {} in group {id} on {node}: {e}", hex(message))),
            }
        }
        let left = group
            .bodies
            .keys()
            .filter(|i| **i <= group.purged && !group.referred.contains(i));
        for index in left {
            wrong.push(format!(
                "body rule: {node} keeps the body of entry {index} in group {id}, purged to {}",
                group.purged
            ));
        }
    }

    /// The messages that a volume holds with their bodies.
    pub(crate) fn whole(disk: &Disk) -> BTreeSet<Vec<u8>> {
        let volume = disk.lock();
        let Ok(groups) = found(&volume.live) else {
            return BTreeSet::new();
        };
        let mut whole = BTreeSet::new();
        for (group, _) in groups.values() {
            let messages = group.messages.iter();
            whole.extend(
                messages
                    .filter(|(_, record)| group.body(record).is_ok())
                    .map(|(id, _)| id.clone()),
            );
        }
        whole
    }
}
