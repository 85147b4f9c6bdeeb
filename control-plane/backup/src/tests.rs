//! What is written is read; what is not what was written is refused.
use super::*;
use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use sealane_state::Table;
use sealane_types::{MessageId, ShardId};
use sealane_wire::v1;
use sha2::{Digest as _, Sha256};
use std::{io::Cursor, sync::Arc};

type Records = Vec<(u8, Vec<u8>, Vec<u8>)>;

fn header(shards: u32) -> v1::BackupHeader {
    v1::BackupHeader {
        cluster_id: "c-1".into(),
        cluster_name: "c".into(),
        shards,
        replicas: 3,
        created_at_ms: 5,
        software: "0.1.0".into(),
    }
}

fn sealed(records: &Records) -> Vec<u8> {
    let mut payload = Vec::new();
    for (table, key, value) in records {
        rows::encode(&mut payload, *table, key, value).unwrap();
    }
    Sha256::digest(payload).to_vec()
}

fn group(writer: &mut Writer<Vec<u8>>, number: u32, records: &Records, per_frame: usize) {
    let position = v1::BackupGroup {
        group: number,
        term: 2,
        index: 300,
    };
    writer.group(&position).unwrap();
    for batch in records.chunks(per_frame) {
        let batch = batch
            .iter()
            .map(|(t, k, v)| (*t, k.as_slice(), v.as_slice()));
        writer.records(batch).unwrap();
    }
    writer
        .end_group(records.len() as u64, &sealed(records))
        .unwrap();
}

fn write(groups: &[Records], per_frame: usize) -> Vec<u8> {
    let shards = u32::try_from(groups.len() - 1).unwrap();
    let mut writer = Writer::new(Vec::new(), &header(shards)).unwrap();
    for (records, number) in groups.iter().zip(0..) {
        group(&mut writer, number, records, per_frame);
    }
    writer.finish().unwrap().0
}

fn read(octets: &[u8]) -> Result<Catalog, BackupError> {
    Catalog::read(&mut &octets[..], |_| {})
}

fn id(n: u8) -> MessageId {
    MessageId::new(ShardId::new(1).unwrap(), u64::from(n), [n; 9])
}

fn recipient_key(id: MessageId, n: u16) -> Vec<u8> {
    [id.as_bytes().as_slice(), &n.to_be_bytes()].concat()
}

/// Shard 1 with two messages, of which the second has a body in two pieces.
fn shard() -> Records {
    let mailbox = |m: &str| v1::Recipient {
        mailbox: m.into(),
        ..Default::default()
    };
    let record = |parts: &[(u64, u32)], to: &[&str]| {
        let m = v1::MessageRecord {
            envelope: Some(v1::Envelope {
                recipients: to.iter().map(|m| mailbox(m)).collect(),
                ..Default::default()
            }),
            body: parts
                .iter()
                .map(|(log_index, length)| v1::BodyPart {
                    log_index: *log_index,
                    length: *length,
                })
                .collect(),
            ..Default::default()
        };
        m.encode_to_vec()
    };
    let attempts = |attempts| {
        let r = v1::RecipientRecord {
            attempts,
            ..Default::default()
        };
        r.encode_to_vec()
    };
    let body = |n: u64| n.to_be_bytes().to_vec();
    vec![
        (
            1,
            id(1).as_bytes().to_vec(),
            record(&[(3, 5)], &["a@b.example"]),
        ),
        (
            1,
            id(2).as_bytes().to_vec(),
            record(&[(4, 2), (9, 3)], &["a@b.example", "c@d.example"]),
        ),
        (2, recipient_key(id(1), 0), attempts(7)),
        (2, recipient_key(id(2), 0), attempts(1)),
        (2, recipient_key(id(2), 1), attempts(2)),
        (5, Vec::new(), b"clock".to_vec()),
        (0, body(3), b"hello".to_vec()),
        (0, body(4), b"wo".to_vec()),
        (0, body(9), b"rld".to_vec()),
    ]
}

fn small() -> Vec<u8> {
    write(&[vec![(8, Vec::new(), vec![0; 8])], shard()], 2)
}

fn messages(octets: Vec<u8>) -> Result<Vec<(Message, Vec<Bytes>)>, BackupError> {
    let catalog = Arc::new(read(&octets)?);
    let mut archive = Archive::new(Cursor::new(octets), catalog);
    let mut all = archive.messages(1)?;
    let mut out = Vec::new();
    while let Some(m) = all.next(&mut archive)? {
        let parts = m.parts();
        let body = parts
            .iter()
            .map(|p| archive.piece(m.id, p))
            .collect::<Result<_, _>>()?;
        out.push((m, body));
    }
    Ok(out)
}

#[test]
fn messages_are_found_with_recipients_and_bodies_however_they_are_framed() {
    for per_frame in 1..12 {
        let octets = write(&[Vec::new(), shard()], per_frame);
        let found = messages(octets).unwrap();
        let [(first, one), (second, two)] = &found[..] else {
            panic!("{found:?}")
        };
        assert_eq!((first.id, second.id), (id(1), id(2)));
        let attempts = |m: &Message| m.recipients.iter().map(|r| r.attempts).collect::<Vec<_>>();
        assert_eq!((attempts(first), attempts(second)), (vec![7], vec![1, 2]));
        assert_eq!(
            (one.concat(), two.concat()),
            (b"hello".to_vec(), b"world".to_vec())
        );
    }
}

#[test]
fn one_flipped_octet_anywhere_is_refused() {
    let whole = small();
    assert!(read(&whole).is_ok());
    for at in 0..whole.len() {
        for bits in [1, 0x80, 0xff] {
            let mut flipped = whole.clone();
            flipped[at] ^= bits;
            assert!(
                read(&flipped).is_err(),
                "octet {at} ^ {bits:#x} was not noticed"
            );
        }
    }
}

#[test]
fn cut_anywhere_or_longer_by_one_octet_it_is_refused() {
    let whole = small();
    for length in 0..whole.len() {
        assert!(read(&whole[..length]).is_err(), "cut to {length} octets");
    }
    assert!(read(&[whole.as_slice(), &[0]].concat()).is_err());
    assert!(read(&[whole.as_slice(), &whole].concat()).is_err());
}

#[test]
fn frames_that_were_moved_lost_or_repeated_are_refused() {
    let whole = small();
    let mut frames = Vec::new();
    let (mut rest, mut at) = (&whole[12..], 12);
    while let Some(f) = frame::read(&mut rest, at).unwrap() {
        at += f.raw.len() as u64;
        frames.push(f.raw.to_vec());
    }
    let build = |frames: &[Vec<u8>]| [whole[..12].to_vec(), frames.concat()].concat();
    assert_eq!(build(&frames), whole);
    for n in 0..frames.len() {
        let mut without = frames.clone();
        without.remove(n);
        assert!(read(&build(&without)).is_err(), "without frame {n}");
        let mut twice = frames.clone();
        twice.insert(n, frames[n].clone());
        assert!(read(&build(&twice)).is_err(), "frame {n} twice");
        if n > 0 {
            let mut moved = frames.clone();
            moved.swap(n - 1, n);
            assert!(read(&build(&moved)).is_err(), "frame {n} moved");
        }
    }
}

#[test]
fn what_a_length_claims_is_not_allocated() {
    let mut octets = frame::preamble().to_vec();
    octets.push(1);
    octets.extend_from_slice(&u32::MAX.to_be_bytes());
    assert!(matches!(
        read(&octets),
        Err(BackupError::Damaged { at: 12, .. })
    ));
    assert_eq!(
        read(b"PK\x03\x04 something else"),
        Err(BackupError::Foreign)
    );
    let mut newer = small();
    newer[11] = 2;
    assert_eq!(read(&newer), Err(BackupError::Version(2)));
}

#[test]
fn a_group_is_ended_only_by_what_its_leader_counted() {
    let records = shard();
    for (count, digest) in [(8, sealed(&records)), (9, vec![0; 32])] {
        let mut writer = Writer::new(Vec::new(), &header(0)).unwrap();
        writer.group(&v1::BackupGroup::default()).unwrap();
        let rows = records
            .iter()
            .map(|(t, k, v)| (*t, k.as_slice(), v.as_slice()));
        writer.records(rows).unwrap();
        assert!(writer.end_group(count, &digest).is_err());
    }
}

#[test]
fn a_group_that_broke_off_is_written_again() {
    let mut writer = Writer::new(Vec::new(), &header(1)).unwrap();
    group(&mut writer, 0, &vec![(8, Vec::new(), vec![0; 8])], 2);
    let mark = writer.mark();
    writer
        .group(&v1::BackupGroup {
            group: 1,
            ..Default::default()
        })
        .unwrap();
    writer
        .records([(1, b"half".as_slice(), b"".as_slice())])
        .unwrap();
    let out = writer.back_to(&mark);
    out.truncate(usize::try_from(mark.offset()).unwrap());
    group(&mut writer, 1, &shard(), 2);
    assert_eq!(writer.finish().unwrap().0, small());
}

#[test]
fn a_backup_without_all_its_groups_cannot_be_finished() {
    let mut writer = Writer::new(Vec::new(), &header(1)).unwrap();
    assert!(
        writer
            .group(&v1::BackupGroup {
                group: 1,
                ..Default::default()
            })
            .is_err()
    );
    group(&mut writer, 0, &Vec::new(), 1);
    assert!(writer.finish().is_err());
}

#[test]
fn a_state_that_does_not_hold_together_is_named() {
    // Whole by every checksum, but a recipient, a piece of a body, a message is missing.
    for missing in [3, 4, 6, 8, 0] {
        let mut records = shard();
        records.remove(missing);
        let found = messages(write(&[Vec::new(), records], 3));
        assert!(
            matches!(found, Err(BackupError::Inconsistent { group: 1, .. })),
            "{missing}: {found:?}"
        );
    }
}

#[test]
fn a_backup_is_written_as_ever() {
    let octets = write(&[vec![(8, b"k".to_vec(), b"v".to_vec())]], 1);
    assert_eq!(data_encoding::HEXLOWER.encode(&octets), GOLDEN);
}

const GOLDEN: &str = "5345414c424b55500000000101000000130a03632d31120163200328053205302e312e30bc748a2f0200000005100218ac02e303e7cb030000000b08000000016b0000000176d394ad0d040000002800000000000000019de6f58beeac523cbf9dedcfc780cabf52ba43208684922bd1539f82279615ee825703a605000000280000000000000004a6d0710d15ec93e5e19057b18f8d9ff03bc298423541c8dd1a7095c8a6461029dc8b5b5f";

fn records() -> impl Strategy<Value = Records> {
    let row = (
        0u8..10,
        prop::collection::vec(any::<u8>(), 0..20),
        prop::collection::vec(any::<u8>(), 0..200),
    );
    prop::collection::vec(row, 0..30).prop_map(|mut all| {
        let place =
            |r: &(u8, Vec<u8>, Vec<u8>)| (if r.0 == 0 { u8::MAX } else { r.0 }, r.1.clone());
        all.sort_by_key(place);
        all.dedup_by_key(|r| place(r));
        all
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read(groups in prop::collection::vec(records(), 1..4), per_frame in 1usize..9) {
        let octets = write(&groups, per_frame);
        let catalog = Arc::new(read(&octets).unwrap());
        prop_assert_eq!(catalog.octets, octets.len() as u64);
        let mut archive = Archive::new(Cursor::new(octets), catalog);
        for (expected, number) in groups.iter().zip(0..) {
            let mut found = Vec::new();
            for table in Table::ALL.into_iter().map(Some).chain([None]) {
                let mut scan = archive.scan(number, table, b"").unwrap();
                while let Some(row) = scan.next(&mut archive).unwrap() {
                    found.push((row.table.map_or(0, |t| t as u8), row.key.to_vec(), row.value.to_vec()));
                }
            }
            prop_assert_eq!(&found, expected);
        }
    }

    #[test]
    fn no_other_octets_are_taken_for_it(
        groups in prop::collection::vec(records(), 1..3),
        at in any::<prop::sample::Index>(),
        bits in 1u8..,
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = write(&groups, 3);
        let mut flipped = whole.clone();
        flipped[at.index(whole.len())] ^= bits;
        prop_assert!(read(&flipped).is_err());
        prop_assert!(read(&whole[..cut.index(whole.len())]).is_err());
    }

    #[test]
    fn garbage_is_refused_without_a_panic(octets in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(read(&octets).is_err());
        let framed = [frame::preamble().to_vec(), octets].concat();
        prop_assert!(read(&framed).is_err());
    }
}
