//! Rules of the node registry.
use super::*;
use sealane_wire::v1::{change_node_op::Action, node_record::State};

const META: GroupId = GroupId::META;

/// A founded cluster of three copies and two shards.
fn founded() -> Log {
    let mut log = Log::default();
    let op = Op::InitCluster(v1::InitClusterOp {
        cluster_id: "c".into(),
        shards: 2,
        replicas: 3,
        first: Some(v1::NodeRecord {
            id: 1,
            name: "a".into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    log.index = 10;
    log.commit_in(META, op, 0);
    log
}

impl Log {
    fn joins(&mut self, name: &str, volume: u8) -> Answer {
        let op = Op::AllocateNode(v1::AllocateNodeOp {
            name: name.into(),
            address: format!("{name}:1"),
            incarnation: vec![volume; 16].into(),
        });
        self.commit_in(META, op, 0)
    }
    /// The new node's id.
    fn join(&mut self, name: &str, volume: u8) -> u64 {
        match self.joins(name, volume) {
            Answer::Node(n) => n.node_id,
            other => panic!("{other:?}"),
        }
    }
    fn ask(&mut self, action: Action, node: &str, with: &str) -> Answer {
        let op = Op::ChangeNode(v1::ChangeNodeOp {
            action: action.into(),
            node: node.into(),
            with: with.into(),
            actor: "admin".into(),
        });
        self.commit_in(META, op, 0)
    }
    /// The id that holds the places afterwards.
    fn change(&mut self, action: Action, node: &str, with: &str) -> u64 {
        match self.ask(action, node, with) {
            Answer::Node(n) => n.node_id,
            other => panic!("{other:?}"),
        }
    }
    fn refuses(&mut self, action: Action, node: &str, with: &str) -> String {
        match self.ask(action, node, with) {
            Answer::Refused(r) => r.reason,
            other => panic!("{other:?}"),
        }
    }
    fn state(&self, id: u64) -> State {
        let nodes = queries::nodes(&self.tables).unwrap();
        nodes.iter().find(|n| n.id == id).unwrap().state()
    }
    fn placed(&self) -> v1::PlacementRecord {
        queries::placement(&self.tables).unwrap()
    }
    /// Nodes that have a place anywhere.
    fn placed_on(&self) -> BTreeSet<u64> {
        self.placed()
            .groups
            .iter()
            .flat_map(|g| g.nodes.clone())
            .collect()
    }
    /// The leader of every group says that it is where it is to be.
    fn all_report(&mut self) {
        let placed = self.placed();
        for g in placed.groups {
            let known = queries::group_reports(&self.tables).unwrap();
            let last = known
                .get(&GroupId(g.group))
                .map_or(0, |r| r.membership_index);
            let report = v1::GroupReport {
                term: 1,
                leader: g.nodes[0],
                membership_index: last + 1,
                voters: g.nodes,
                revision: placed.revision,
                ..Default::default()
            };
            self.report(g.group, report);
        }
    }
    fn report(&mut self, group: u32, report: v1::GroupReport) -> Answer {
        let op = Op::GroupReport(v1::GroupReportOp {
            group,
            report: Some(report),
        });
        self.commit_in(META, op, 0)
    }
}

/// Three active nodes: their ids, a first.
fn three() -> (Log, [u64; 3]) {
    let mut log = founded();
    let (b, c) = (log.join("b", 2), log.join("c", 3));
    (log, [1, b, c])
}

#[test]
fn the_first_nodes_are_active_and_later_ones_are_spares() {
    let (mut log, [a, b, c]) = three();
    assert!([a, b, c].iter().all(|n| log.state(*n) == State::Active));
    assert_eq!(log.placed_on(), BTreeSet::from([a, b, c]));
    let before = log.placed();
    let d = log.join("d", 4);
    assert_eq!(log.state(d), State::Spare);
    assert_eq!(log.placed().groups, before.groups, "a spare moves nothing");
    assert!(log.placed().revision > before.revision);
}

#[test]
fn an_added_spare_gets_replicas_and_a_second_request_changes_nothing() {
    let (mut log, _) = three();
    let d = log.join("d", 4);
    assert_eq!(log.change(Action::Add, "d", ""), d);
    assert_eq!(log.state(d), State::Active);
    let placed = log.placed();
    assert!(placed.groups.iter().any(|g| g.nodes.contains(&d)));
    assert_eq!(log.change(Action::Add, "d", ""), d);
    assert_eq!(log.placed(), placed);
    assert!(log.refuses(Action::Add, "nobody", "").contains("nobody"));
}

#[test]
fn a_node_leaves_when_every_leader_knew_of_it_and_none_names_it() {
    let (mut log, [a, ..]) = three();
    log.join("d", 4);
    log.change(Action::Add, "d", "");
    log.all_report();
    assert_eq!(log.change(Action::Remove, "a", ""), a);
    assert_eq!(log.state(a), State::Leaving);
    assert!(!log.placed_on().contains(&a));
    let placed = log.placed();
    // The metadata group and one shard have moved; the other still names it, then is reported by a leader that lags.
    let report = |g: &v1::GroupPlacement, more: &[u64], index, revision| v1::GroupReport {
        term: 1,
        leader: g.nodes[0],
        membership_index: index,
        voters: [&g.nodes[..], more].concat(),
        revision,
        ..Default::default()
    };
    let [meta, first, second] = &placed.groups[..] else {
        panic!()
    };
    log.report(0, report(meta, &[], 50, placed.revision));
    log.report(1, report(first, &[], 50, placed.revision));
    log.report(2, report(second, &[a], 50, placed.revision));
    assert_eq!(log.state(a), State::Leaving);
    log.report(2, report(second, &[], 51, placed.revision - 1));
    assert_eq!(
        log.state(a),
        State::Leaving,
        "a leader that did not know of it"
    );
    log.report(2, report(second, &[], 51, placed.revision));
    assert_eq!(log.state(a), State::Removed);
    assert!(
        log.placed().revision > placed.revision,
        "everybody hears of it"
    );
    assert!(log.refuses(Action::Add, "a", "").contains("was removed"));
    assert_eq!(log.change(Action::Remove, "a", ""), a, "asked again");
}

#[test]
fn as_many_active_nodes_stay_as_there_are_copies() {
    let (mut log, [a, ..]) = three();
    assert!(
        log.refuses(Action::Remove, "a", "")
            .contains("2 active nodes would be left")
    );
    let d = log.join("d", 4);
    log.change(Action::Remove, "d", "");
    assert_eq!(log.state(d), State::Removed, "a spare holds nothing");
    let e = log.join("e", 5);
    log.change(Action::Add, "e", "");
    log.change(Action::Remove, "a", "");
    assert!(
        log.refuses(Action::Remove, "e", "")
            .contains("add one first")
    );
    assert_eq!(log.change(Action::Add, "a", ""), a, "it may stay after all");
    assert_eq!(log.state(a), State::Active);
    log.change(Action::Remove, "e", "");
    assert_eq!(log.state(e), State::Leaving);
}

#[test]
fn a_replacement_takes_exactly_the_places_of_the_lost_one() {
    let (mut log, [_, b, _]) = three();
    let d = log.join("d", 4);
    let before = log.placed();
    assert_eq!(log.change(Action::Replace, "b", "d"), d);
    assert_eq!(
        (log.state(b), log.state(d)),
        (State::Removed, State::Active)
    );
    let leader_and_all = |g: v1::GroupPlacement| {
        let nodes = g.nodes.into_iter().map(|n| if n == b { d } else { n });
        let nodes: Vec<u64> = nodes.collect();
        (
            g.group,
            nodes[0],
            nodes.into_iter().collect::<BTreeSet<_>>(),
        )
    };
    let of = |p: v1::PlacementRecord| p.groups.into_iter().map(leader_and_all).collect::<Vec<_>>();
    assert_eq!(of(log.placed()), of(before));
    assert_eq!(log.change(Action::Replace, "b", "d"), d, "asked again");
    assert!(
        log.refuses(Action::Replace, "a", "b")
            .contains("is no spare")
    );
}

#[test]
fn a_lost_node_waits_for_the_next_that_joins() {
    let (mut log, [_, b, _]) = three();
    let before = log.placed();
    assert_eq!(log.change(Action::Replace, "b", ""), b);
    assert_eq!(log.state(b), State::Lost);
    assert_eq!(log.placed().groups, before.groups, "its places are kept");
    assert!(log.refuses(Action::Add, "b", "").contains("declared lost"));
    let d = log.join("d", 4);
    assert_eq!(
        (log.state(b), log.state(d)),
        (State::Removed, State::Active)
    );
    assert!(!log.placed_on().contains(&b));
}

#[test]
fn without_a_name_the_oldest_spare_takes_the_places() {
    let (mut log, [_, b, _]) = three();
    let (d, e) = (log.join("d", 4), log.join("e", 5));
    assert_eq!(
        log.change(Action::Replace, &b.to_string(), ""),
        d,
        "named by its id"
    );
    assert_eq!(log.state(e), State::Spare);
}

#[test]
fn p7_a_wiped_volume_takes_the_places_under_a_new_id_and_the_old_one_is_never_valid_again() {
    let (mut log, [_, _, c]) = three();
    let new = log.join("c", 9);
    assert!(new > c);
    assert_eq!(
        (log.state(c), log.state(new)),
        (State::Removed, State::Active)
    );
    assert!(!log.placed_on().contains(&c));
    let Answer::Refused(r) = log.joins("c", 3) else {
        panic!("the old volume joined");
    };
    assert!(r.reason.contains("was removed"), "{}", r.reason);
    assert!(
        log.refuses(Action::Add, &c.to_string(), "")
            .contains("was removed")
    );
}

#[test]
fn a_majority_of_every_group_is_listened_to() {
    let (mut log, _) = three();
    log.join("d", 4);
    log.join("e", 5);
    log.all_report();
    log.change(Action::Replace, "b", "d");
    let refusal = log.refuses(Action::Replace, "c", "e");
    assert!(refusal.contains("no majority"), "{refusal}");
    log.all_report();
    log.change(Action::Replace, "c", "e");
}

#[test]
fn a_report_of_an_older_term_is_not_believed() {
    let (mut log, _) = three();
    let report = |term, index, leader| v1::GroupReport {
        term,
        leader,
        membership_index: index,
        ..Default::default()
    };
    log.report(1, report(2, 5, 1));
    log.report(1, report(1, 9, 2));
    let known = queries::group_reports(&log.tables).unwrap();
    assert_eq!(known[&GroupId(1)].leader, 1);
    assert!(
        matches!(log.report(3, report(9, 9, 1)), Answer::Refused(_)),
        "no such group"
    );
}

#[test]
fn a_replica_is_forgotten_once_every_member_knows_that_it_is_none() {
    let (mut log, [a, b, c]) = three();
    let d = log.join("d", 4);
    let may = |log: &mut Log, group, node| {
        let op = Op::ForgetReplica(v1::ForgetReplicaOp { group, node });
        log.commit_in(META, op, 0)
            == Answer::Counted(v1::Counted {
                effective: 1,
                accepted: vec![],
            })
    };
    let report = |everywhere, voters: &[u64]| v1::GroupReport {
        term: 1,
        membership_index: voters.iter().sum(),
        voters: voters.to_vec(),
        everywhere,
        ..Default::default()
    };
    assert!(!may(&mut log, 1, d), "nothing is known of the shard");
    log.report(1, report(true, &[a, b, c]));
    assert!(may(&mut log, 1, d));
    assert!(!may(&mut log, 1, a), "it is placed there");
    log.report(1, report(false, &[a, b, c, 100]));
    assert!(!may(&mut log, 1, d), "a member does not know it yet");
    log.report(1, report(true, &[a, b, c, 100]));
    assert!(may(&mut log, 1, d));
    log.report(0, report(true, &[a, b, c]));
    assert!(!may(&mut log, 0, d), "everybody holds the metadata group");
}

#[test]
fn changes_of_nodes_are_audited() {
    let (mut log, _) = three();
    log.join("d", 4);
    log.change(Action::Add, "d", "");
    log.change(Action::Add, "d", "");
    let audit = log.tables.scan(Table::Audit, b"", b"", 100).unwrap();
    let adds = audit.into_iter().filter(|(_, v)| {
        let r = v1::AuditRecord::decode(v.clone()).unwrap();
        (r.actor.as_str(), r.action.as_str()) == ("admin", "node.add")
    });
    assert_eq!(adds.count(), 1, "only what changed something");
}

#[test]
fn records_from_before_there_were_states_get_one() {
    let mut log = founded();
    log.tables = MemoryTables::default();
    let record = v1::ClusterRecord {
        cluster_id: "c".into(),
        shards: 2,
        replicas: 3,
        ..Default::default()
    };
    crate::records::put(&mut log.tables, Table::Cluster, b"", &record);
    for (id, name) in [(1u64, "a"), (14, "b"), (15, "c"), (30, "d"), (40, "b")] {
        let node = v1::NodeRecord {
            id,
            name: name.into(),
            ..Default::default()
        };
        crate::records::put(&mut log.tables, Table::Node, &id.to_be_bytes(), &node);
    }
    assert_eq!(
        log.placed_on(),
        BTreeSet::from([1, 15, 40]),
        "before the first change"
    );
    log.index = 50;
    let e = log.join("e", 5);
    let states = [1, 14, 15, 30, 40, e].map(|n| log.state(n));
    use State::{Active, Removed, Spare};
    assert_eq!(states, [Active, Removed, Active, Spare, Active, Spare]);
    assert_eq!(log.placed_on(), BTreeSet::from([1, 15, 40]));
}

#[test]
fn a_second_volume_that_is_lost_before_the_first_is_replaced_everywhere_does_not_join() {
    let (mut log, _) = three();
    log.all_report();
    log.join("b", 12);
    // Not everywhere yet.
    let (nodes, placed) = (queries::nodes(&log.tables).unwrap(), log.placed());
    let refused = |log: &mut Log| match log.joins("c", 13) {
        Answer::Refused(r) => r.reason,
        other => panic!("{other:?}"),
    };
    assert!(refused(&mut log).contains("no majority left"));
    assert_eq!(
        queries::nodes(&log.tables).unwrap(),
        nodes,
        "nothing changed"
    );
    assert_eq!(log.placed(), placed);
    // The first one once more: it counts once.
    log.join("b", 22);
    assert!(refused(&mut log).contains("no majority left"));
    log.all_report();
    log.join("c", 13);
}
