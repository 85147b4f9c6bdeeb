//! The store's promises, by pitfall.
use crate::*;
use bytes::Bytes;
use proptest::prelude::*;
use sealane_state::{ReadTables, Table, WriteTables};
use sealane_types::GroupId;
use sha2::{Digest, Sha256};
use std::{
    path::Path,
    sync::{Arc, Mutex, mpsc},
};

fn open(dir: &Path) -> Store {
    let options = Options {
        on_fatal: Arc::new(|_| ()),
        cache: 1 << 20,
        write_buffers: 16 << 20,
        ..Options::default()
    };
    Store::open(dir, options).unwrap()
}

fn identity() -> NodeIdentity {
    NodeIdentity {
        cluster_id: "c".into(),
        cluster_name: "n".into(),
        node_id: 1,
        shards: 2,
        replicas: 3,
    }
}

fn at(index: u64) -> LogPosition {
    LogPosition {
        term: 1,
        node: 1,
        index,
    }
}

fn entry(index: u64, body: &'static [u8]) -> StoredEntry {
    let payload = StoredPayload::Command {
        header: Bytes::from_static(b"header"),
        body: Bytes::from_static(body),
    };
    StoredEntry {
        position: at(index),
        payload,
    }
}

/// Appends and waits for the sync.
fn append(g: &GroupStore, entries: Vec<StoredEntry>) {
    let (tx, rx) = mpsc::channel();
    g.append(entries, Box::new(move |r| tx.send(r).unwrap()))
        .unwrap();
    rx.recv().unwrap().unwrap();
}

fn vote(g: &GroupStore, term: u64) {
    let (tx, rx) = mpsc::channel();
    g.save_vote(
        VoteRecord {
            term,
            node: 1,
            committed: true,
        },
        Box::new(move |r| tx.send(r).unwrap()),
    )
    .unwrap();
    rx.recv().unwrap().unwrap();
}

#[test]
fn everything_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let s = open(dir.path());
        s.set_identity(&identity()).unwrap();
        assert_eq!(s.incarnation([7; 16]).unwrap(), [7; 16]);
        let g = s.group(GroupId(1));
        vote(&g, 3);
        append(
            &g,
            vec![entry(1, b"one"), entry(2, b""), entry(3, b"three")],
        );
        s.shutdown();
    }
    let s = open(dir.path());
    assert_eq!(s.identity().unwrap(), Some(identity()));
    assert_eq!(
        s.incarnation([8; 16]).unwrap(),
        [7; 16],
        "an incarnation is made once"
    );
    let g = s.group(GroupId(1));
    assert_eq!(g.read_vote().unwrap().unwrap().term, 3);
    assert_eq!(
        g.read_entries(1, 4, usize::MAX).unwrap(),
        [entry(1, b"one"), entry(2, b""), entry(3, b"three")]
    );
    assert_eq!(
        g.log_state().unwrap(),
        LogState {
            purged: None,
            last: Some(at(3))
        }
    );
    assert_eq!(
        s.group(GroupId(2)).log_state().unwrap(),
        LogState::default()
    );
}

#[test]
fn p3_callbacks_run_in_the_order_of_submission_over_all_groups() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let order = Arc::new(Mutex::new(Vec::new()));
    let (tx, rx) = mpsc::channel();
    for n in 0..200u64 {
        let (order, tx) = (order.clone(), tx.clone());
        let g = s.group(GroupId(u32::try_from(n % 3).unwrap()));
        g.append(
            vec![entry(n / 3 + 1, b"x")],
            Box::new(move |r| {
                r.unwrap();
                order.lock().unwrap().push(n);
                tx.send(()).unwrap();
            }),
        )
        .unwrap();
    }
    (0..200).for_each(|_| rx.recv().unwrap());
    assert_eq!(*order.lock().unwrap(), (0..200).collect::<Vec<_>>());
}

#[test]
fn p4_after_a_failure_nothing_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let fatal = Arc::new(Mutex::new(0));
    let seen = fatal.clone();
    let options = Options {
        on_fatal: Arc::new(move |_| *seen.lock().unwrap() += 1),
        ..Options::default()
    };
    let s = Store::open(dir.path(), options).unwrap();
    s.core.syncer.poison(&StoreError::Io("disk is gone".into()));
    s.core.syncer.poison(&StoreError::Io("again".into()));
    let g = s.group(GroupId(1));
    assert!(matches!(
        g.append(vec![entry(1, b"x")], Box::new(|_| ())),
        Err(StoreError::Poisoned(_))
    ));
    assert!(matches!(
        g.transaction().commit(),
        Err(StoreError::Poisoned(_))
    ));
    assert_eq!(*fatal.lock().unwrap(), 1);
}

#[test]
fn p10_truncate_and_purge_leave_a_log_without_holes() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, (1..=10).map(|i| entry(i, b"body")).collect());
    g.truncate_after(Some(7)).unwrap();
    assert_eq!(g.log_state().unwrap().last, Some(at(7)));
    assert_eq!(g.read_body(8).unwrap(), None);
    g.purge(at(3)).unwrap();
    assert_eq!(
        g.log_state().unwrap(),
        LogState {
            purged: Some(at(3)),
            last: Some(at(7))
        }
    );
    assert_eq!(g.read_entries(4, 8, usize::MAX).unwrap().len(), 4);
    g.purge(at(7)).unwrap();
    assert_eq!(
        g.log_state().unwrap(),
        LogState {
            purged: Some(at(7)),
            last: None
        }
    );
    append(&g, vec![entry(8, b"next")]);
    assert_eq!(g.log_state().unwrap().last, Some(at(8)));
}

#[test]
fn p18_reads_are_bounded_by_octets_but_never_empty() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, (1..=5).map(|i| entry(i, b"0123456789")).collect());
    // From memory, then from the database.
    for two in [300, 120] {
        assert_eq!(g.read_entries(1, 6, 1).unwrap().len(), 1);
        assert_eq!(g.read_entries(1, 6, two).unwrap().len(), 2);
        assert_eq!(g.read_entries(1, 6, usize::MAX).unwrap().len(), 5);
        assert!(g.read_entries(6, 9, 1).unwrap().is_empty());
        forget_recent(&g);
    }
}

/// From now on the database is read.
fn forget_recent(g: &GroupStore) {
    *g.shared.recent.lock().unwrap() = Default::default();
}

#[test]
fn a_body_lives_until_it_is_released_and_its_entry_is_purged() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, (1..=4).map(|i| entry(i, b"body")).collect());
    let release = |index| {
        let mut t = g.transaction();
        t.release_body(index);
        t.commit().unwrap();
    };
    release(1);
    assert!(
        g.read_body(1).unwrap().is_some(),
        "a follower may still need the entry"
    );
    g.purge(at(2)).unwrap();
    assert!(g.read_body(1).unwrap().is_none(), "released and purged");
    assert!(
        g.read_body(2).unwrap().is_some(),
        "purged, but a message refers to it"
    );
    release(2);
    assert!(g.read_body(2).unwrap().is_none());
}

#[test]
fn transactions_read_their_own_writes() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    let mut t = g.transaction();
    t.put(Table::Message, b"a", b"1");
    t.put(Table::Message, b"b", b"2");
    t.commit().unwrap();
    let mut t = g.transaction();
    t.delete(Table::Message, b"a");
    t.put(Table::Message, b"c", b"3");
    assert_eq!(t.get(Table::Message, b"a").unwrap(), None);
    let keys: Vec<Bytes> = t
        .scan(Table::Message, b"", b"", 10)
        .unwrap()
        .into_iter()
        .map(|(k, _)| k)
        .collect();
    assert_eq!(keys, ["b", "c"]);
    assert_eq!(t.scan(Table::Message, b"", b"", 1).unwrap().len(), 1);
    assert!(t.scan(Table::Recipient, b"", b"", 10).unwrap().is_empty());
    drop(t);
    assert!(
        g.reader().get(Table::Message, b"a").unwrap().is_some(),
        "dropped, not committed"
    );
}

#[test]
fn p6_a_volume_that_forgot_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    let live = dir.path().join("live");
    {
        let s = open(&live);
        s.set_identity(&identity()).unwrap();
        vote(&s.group(GroupId(1)), 1);
        append(&s.group(GroupId(1)), vec![entry(1, b"x")]);
        s.shutdown();
    }
    // An old image of the database is put back behind the node's newest promise.
    assert!(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(live.join("db"))
            .arg(&copy)
            .status()
            .unwrap()
            .success()
    );
    {
        let s = open(&live);
        append(&s.group(GroupId(1)), vec![entry(2, b"y")]);
        s.shutdown();
    }
    std::fs::remove_dir_all(live.join("db")).unwrap();
    std::fs::rename(&copy, live.join("db")).unwrap();
    let options = Options {
        on_fatal: Arc::new(|_| ()),
        ..Options::default()
    };
    let e = Store::open(&live, options).unwrap_err();
    assert!(matches!(e, StoreError::Lost { group: 1, .. }), "{e}");
    assert!(e.to_string().contains("must not vote"), "{e}");
}

#[test]
fn a_truncated_log_is_not_mistaken_for_a_lost_one() {
    let dir = tempfile::tempdir().unwrap();
    {
        let s = open(dir.path());
        s.set_identity(&identity()).unwrap();
        let g = s.group(GroupId(1));
        vote(&g, 1);
        append(&g, (1..=5).map(|i| entry(i, b"x")).collect());
        g.truncate_after(Some(2)).unwrap();
        s.shutdown();
    }
    assert_eq!(
        open(dir.path()).group(GroupId(1)).log_state().unwrap().last,
        Some(at(2))
    );
}

#[test]
fn a_forgotten_replica_is_empty_keeps_its_vote_and_can_be_filled_again() {
    let dir = tempfile::tempdir().unwrap();
    let (store, applied) = filled(dir.path());
    store.set_identity(&identity()).unwrap();
    let g = store.group(GroupId(1));
    vote(&g, 7);
    let kept = g.read_vote().unwrap();
    append(&store.group(GroupId(2)), vec![entry(1, b"other")]);
    assert_ne!(applied, Applied::default());
    g.forget().unwrap();
    let check = |store: &Store| {
        let g = store.group(GroupId(1));
        assert_eq!(g.log_state().unwrap(), LogState::default());
        assert_eq!(g.applied().unwrap(), Applied::default());
        assert_eq!(g.read_vote().unwrap(), kept);
        assert_eq!(g.read_body(1).unwrap(), None);
        let rows = Table::ALL.map(|t| g.reader().scan(t, b"", b"", 10).unwrap().len());
        assert_eq!(rows.iter().sum::<usize>(), 0);
        let other = store.group(GroupId(2)).log_state().unwrap();
        assert_eq!(other.last, Some(at(1)), "of this group only");
    };
    check(&store);
    store.shutdown();
    drop((g, store));
    let store = open(dir.path());
    check(&store);
    let g = store.group(GroupId(1));
    append(&g, vec![entry(1, b"a"), entry(2, b"b")]);
    assert_eq!(g.read_entries(1, 3, usize::MAX).unwrap().len(), 2);
}

#[test]
fn a_first_start_that_ended_early_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("FORMAT"), b"").unwrap();
    drop(open(dir.path()));
    std::fs::write(dir.path().join("FORMAT"), b"").unwrap();
    let again = Store::open(dir.path(), Options::default());
    assert!(matches!(again, Err(StoreError::Format { found: 0, .. })));
}

/// Where the owner of the store drives the syncer, the rules are those of the thread.
#[test]
fn without_a_thread_callbacks_wait_for_the_sync_too() {
    let dir = tempfile::tempdir().unwrap();
    let woken = Arc::new(Mutex::new(0));
    let wakes = woken.clone();
    let options = Options {
        on_fatal: Arc::new(|_| ()),
        drive: Drive::Pump(Arc::new(move || *wakes.lock().unwrap() += 1)),
        ..Options::default()
    };
    let s = Store::open(dir.path(), options).unwrap();
    let mut pump = s.pump().unwrap();
    let g = s.group(GroupId(1));
    let done = Arc::new(Mutex::new(Vec::new()));
    let note = |n: u64| -> Flushed {
        let done = done.clone();
        Box::new(move |r| done.lock().unwrap().push((n, r.is_ok())))
    };
    assert_eq!(pump.turn(), Next::Idle);
    g.append(vec![entry(1, b"x")], note(1)).unwrap();
    g.append(vec![entry(2, b"y")], note(2)).unwrap();
    assert_eq!(*woken.lock().unwrap(), 2);
    assert_eq!(pump.turn(), Next::Sync);
    // It comes too late for this sync.
    g.append(vec![entry(3, b"z")], note(3)).unwrap();
    assert!(done.lock().unwrap().is_empty());
    pump.sync();
    assert_eq!(*done.lock().unwrap(), [(1, true), (2, true)]);
    assert!(matches!(pump.turn(), Next::Rest(_)), "a crowd was there");
    assert_eq!(pump.turn(), Next::Sync);
    // Whoever has to wait for the disk does not wait for the owner.
    g.truncate_after(Some(2)).unwrap();
    assert_eq!(done.lock().unwrap().last(), Some(&(3, true)));
    pump.sync();
    s.shutdown();
    assert_eq!(pump.turn(), Next::Closed);
}

#[test]
fn p2_a_vote_is_answered_after_its_sync() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        drive: Drive::Pump(Arc::new(|| ())),
        ..Options::default()
    };
    let s = Store::open(dir.path(), options).unwrap();
    let mut pump = s.pump().unwrap();
    let (tx, rx) = mpsc::channel();
    let vote = VoteRecord {
        term: 1,
        node: 1,
        committed: false,
    };
    s.group(GroupId(1))
        .save_vote(vote, Box::new(move |r| tx.send(r).unwrap()))
        .unwrap();
    assert_eq!(pump.turn(), Next::Sync);
    assert!(rx.try_recv().is_err(), "answered before the sync");
    pump.sync();
    rx.recv().unwrap().unwrap();
}

#[test]
fn a_flipped_bit_in_a_record_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, vec![entry(1, b"x")]);
    let key = crate::layout::index_key(GroupId(1), 1);
    let mut value = s.core.engine.get("raft_log", &key).unwrap().unwrap();
    value[9] ^= 1;
    s.core
        .write_once(|b| {
            b.put("raft_log", &key, &value);
            Ok(())
        })
        .unwrap();
    forget_recent(&g);
    assert!(matches!(
        g.read_entries(1, 2, 100),
        Err(StoreError::Corrupt { .. })
    ));
    // It takes no more part, and it does not come back.
    assert!(matches!(
        g.append(vec![entry(2, b"y")], Box::new(|_| ())),
        Err(StoreError::Poisoned(_))
    ));
    drop((g, s));
    let again = Store::open(dir.path(), Options::default()).unwrap_err();
    assert!(matches!(again, StoreError::Damaged(_)), "{again}");
    assert!(
        again.to_string().contains("sealane node replace"),
        "{again}"
    );
}

#[test]
fn what_was_synced_last_is_in_the_high_water_mark_when_nothing_is_left_to_sync() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    s.set_identity(&identity()).unwrap();
    let g = s.group(GroupId(1));
    let mark = dir.path().join("high-water");
    let before = std::fs::read(&mark).unwrap();
    append(&g, vec![entry(1, b"x")]);
    // Long before the next write that is due by time.
    let deadline = std::time::Instant::now() + std::time::Duration::from_millis(500);
    while std::fs::read(&mark).unwrap() == before {
        assert!(std::time::Instant::now() < deadline, "not written");
        std::thread::yield_now();
    }
}

/// The WAL of a store that was closed after 50 entries, all of them in the high-water mark.
fn closed_with_wal(dir: &Path) -> (std::path::PathBuf, Vec<u8>) {
    let s = open(dir);
    s.set_identity(&identity()).unwrap();
    let g = s.group(GroupId(1));
    for index in 1..=50 {
        append(&g, vec![entry(index, &[b'x'; 1000])]);
    }
    s.shutdown();
    drop((g, s));
    let files = std::fs::read_dir(dir.join("db")).unwrap();
    let logs = files.map(|f| f.unwrap().path());
    let wal = logs
        .filter(|f| f.extension().is_some_and(|e| e == "log"))
        .max_by_key(|f| std::fs::metadata(f).unwrap().len())
        .unwrap();
    let octets = std::fs::read(&wal).unwrap();
    assert!(octets.len() > 50_000);
    (wal, octets)
}

fn open_again(dir: &Path) -> Result<Store, StoreError> {
    let options = Options {
        on_fatal: Arc::new(|_| ()),
        ..Options::default()
    };
    Store::open(dir, options)
}

#[test]
fn damage_behind_all_that_was_promised_ends_the_wal_as_a_power_loss_does() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, mut octets) = closed_with_wal(dir.path());
    // Whole records whose checksum is wrong: sectors of an unsynced write that came out of order.
    for _ in 0..10 {
        octets.extend_from_slice(&[1, 2, 3, 4, 100, 0, 1]);
        octets.extend_from_slice(&[7; 100]);
    }
    std::fs::write(&wal, octets).unwrap();
    let s = open_again(dir.path()).unwrap();
    let last = s.group(GroupId(1)).log_state().unwrap().last;
    assert_eq!(last, Some(at(50)));
}

#[test]
fn damage_before_something_promised_is_refused_and_refused_again() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, mut octets) = closed_with_wal(dir.path());
    let middle = octets.len() / 2;
    octets[middle] ^= 1;
    std::fs::write(&wal, octets).unwrap();
    let first = open_again(dir.path()).unwrap_err();
    assert!(matches!(first, StoreError::Lost { .. }), "{first}");
    let second = open_again(dir.path()).unwrap_err();
    assert!(matches!(second, StoreError::Damaged(_)), "{second}");
}

#[test]
fn a_volume_without_its_high_water_mark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (wal, mut octets) = closed_with_wal(dir.path());
    let mark = dir.path().join("high-water");
    std::fs::write(&mark, b"").unwrap();
    for wal_too in [false, true] {
        if wal_too {
            let end = octets.len() - 500;
            octets[end] ^= 1;
            std::fs::write(&wal, &octets).unwrap();
            std::fs::remove_file(&mark).unwrap();
        }
        let refused = open_again(dir.path()).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("high-water") && said.contains("sealane node replace"),
            "{said}"
        );
    }
}

/// A store whose bodies were moved to blob files, and one of these.
fn with_cold_bodies(dir: &Path) -> std::path::PathBuf {
    let s = open(dir);
    s.set_identity(&identity()).unwrap();
    let g = s.group(GroupId(1));
    for index in 1..=20 {
        append(&g, vec![entry(index, &[b'x'; 200_000])]);
    }
    s.shutdown();
    drop((g, s));
    // What the WAL holds becomes tables and blob files now.
    drop(open(dir));
    let files = std::fs::read_dir(dir.join("db")).unwrap();
    let mut blobs = files
        .map(|f| f.unwrap().path())
        .filter(|f| f.extension().is_some_and(|e| e == "blob"));
    blobs.next().unwrap()
}

#[test]
fn scrubbing_a_sound_volume_reads_all_of_it_and_finds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    with_cold_bodies(dir.path());
    let s = open(dir.path());
    let mut pass = s.scrub();
    let mut pieces = Vec::new();
    while let Some(octets) = pass.next_piece().unwrap() {
        pieces.push(octets);
    }
    assert!(pieces.iter().sum::<u64>() > 20 * 200_000, "{pieces:?}");
    assert!(
        pieces.iter().all(|octets| *octets < 1_500_000),
        "{pieces:?}"
    );
}

#[test]
fn a_flipped_bit_in_a_body_that_nobody_reads_is_found_by_scrubbing_and_ends_the_volume() {
    let dir = tempfile::tempdir().unwrap();
    let blob = with_cold_bodies(dir.path());
    let mut octets = std::fs::read(&blob).unwrap();
    let middle = octets.len() / 2;
    octets[middle] ^= 4;
    std::fs::write(&blob, octets).unwrap();
    let ended = Arc::new(Mutex::new(None));
    let end = ended.clone();
    let options = Options {
        on_fatal: Arc::new(move |e| *end.lock().unwrap() = Some(e.to_string())),
        ..Options::default()
    };
    let s = Store::open(dir.path(), options).unwrap();
    assert_eq!(*ended.lock().unwrap(), None, "its start does not see it");
    let mut pass = s.scrub();
    while let Ok(piece) = pass.next_piece() {
        assert!(piece.is_some(), "it came to its end");
    }
    let said = ended.lock().unwrap().clone().unwrap();
    assert!(said.contains("sealane node replace"), "{said}");
    drop(s);
    let refused = open_again(dir.path()).unwrap_err();
    assert!(matches!(refused, StoreError::Damaged(_)), "{refused}");
}

#[test]
fn what_was_said_of_a_replica_before_it_was_emptied_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, vec![entry(1, b"x"), entry(2, b"y")]);
    let witnessed = std::collections::BTreeMap::from([(4, at(2)), (7, at(1))]);
    g.save_witnessed(&witnessed).unwrap();
    assert_eq!(g.read_witnessed().unwrap(), witnessed);
    s.check_against(GroupId(1), at(2)).unwrap();
    g.forget().unwrap();
    assert!(g.read_witnessed().unwrap().is_empty());
    s.check_against(GroupId(1), at(2)).unwrap();
    assert!(s.check_against(GroupId(1), at(3)).is_err());
    // Emptied once more, with nothing in it.
    g.forget().unwrap();
    s.check_against(GroupId(1), at(2)).unwrap();
}

#[test]
fn a_volume_behind_what_a_peer_was_given_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    append(&g, vec![entry(1, b"x"), entry(2, b"y")]);
    s.check_against(GroupId(1), at(2)).unwrap();
    let refused = s.check_against(GroupId(1), at(3)).unwrap_err();
    assert!(
        matches!(refused, StoreError::Lost { group: 1, .. }),
        "{refused}"
    );
    assert!(
        refused.to_string().contains("sealane node replace"),
        "{refused}"
    );
}

#[test]
fn records_are_as_in_the_disk_format() {
    let hex = |b: &[u8]| crate::layout::hex(b);
    assert_eq!(
        hex(&crate::layout::index_key(GroupId(3), 258)),
        "000000030000000000000102"
    );
    assert_eq!(
        hex(&crate::layout::sm_key(GroupId(3), 2, b"k")),
        "00000003026b"
    );
    assert_eq!(
        hex(&crate::layout::frame(&[b"payload"])),
        "017061796c6f6164b0ccc98a"
    );
    assert_eq!(
        hex(&crate::log::encode_entry_prefix(&entry(9, b"abc"))),
        "00000000000000010000000000000001000000000000000902000000 03".replace(' ', "")
    );
}

fn filled(dir: &Path) -> (Store, Applied) {
    let s = open(dir);
    let g = s.group(GroupId(1));
    append(
        &g,
        (1..=20)
            .map(|i| entry(i, b"a body of some length"))
            .collect(),
    );
    let applied = Applied {
        last: Some(at(15)),
        membership_at: Some(at(1)),
        membership: Bytes::from_static(b"m"),
    };
    let mut t = g.transaction();
    (0..50u8).for_each(|n| t.put(Table::Message, &[n], &[n; 9]));
    t.release_body(4);
    t.set_applied(applied.clone());
    t.commit().unwrap();
    (s, applied)
}

fn transfer(from: &GroupStore, to: &GroupStore) -> (StagedSnapshot, Applied) {
    let (mut stage, mut applied, mut done) = (Some(to.stage_snapshot().unwrap()), None, None);
    from.export::<StoreError>(|part| {
        match part {
            Export::Start(a) => applied = Some(a),
            Export::Batch(records, crc) => stage.as_mut().unwrap().write(&records, crc)?,
            Export::End(n, sha) => done = Some(stage.take().unwrap().finish(n, &sha)?),
        }
        Ok(())
    })
    .unwrap();
    (done.unwrap(), applied.unwrap())
}

#[test]
fn p11_a_snapshot_carries_state_and_live_bodies() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, applied) = filled(a.path());
    let to = open(b.path());
    let g = to.group(GroupId(1));
    append(&g, vec![entry(1, b"stale")]);
    let (staged, carried) = transfer(&from.group(GroupId(1)), &g);
    assert_eq!(carried, applied);
    g.install(staged, carried).unwrap();
    assert_eq!(g.applied().unwrap(), applied);
    assert_eq!(
        g.reader()
            .scan(Table::Message, b"", b"", 100)
            .unwrap()
            .len(),
        50
    );
    assert_eq!(g.read_body(3).unwrap().unwrap(), "a body of some length");
    assert!(
        g.read_body(4).unwrap().is_none(),
        "released bodies are not sent"
    );
    assert!(
        g.read_body(16).unwrap().is_none(),
        "not applied: the log brings it"
    );
}

#[test]
fn p11_an_interrupted_install_is_finished_at_the_next_start() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, applied) = filled(a.path());
    {
        let to = open(b.path());
        to.set_identity(&identity()).unwrap();
        let g = to.group(GroupId(1));
        let (staged, carried) = transfer(&from.group(GroupId(1)), &g);
        g.mark_installing(&staged, &carried).unwrap();
        // Killed here: marker durable, nothing loaded.
    }
    let to = open(b.path());
    let g = to.group(GroupId(1));
    assert_eq!(g.applied().unwrap(), applied);
    assert_eq!(
        g.reader()
            .scan(Table::Message, b"", b"", 100)
            .unwrap()
            .len(),
        50
    );
    let left = std::fs::read_dir(b.path()).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with("snapshot-")
    });
    assert_eq!(left.count(), 0);
}

#[test]
fn an_installed_snapshot_answers_for_the_log_that_it_replaced() {
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, applied) = filled(a.path());
    let last = applied.last.unwrap();
    let to = open(b.path());
    let g = to.group(GroupId(1));
    let (staged, carried) = transfer(&from.group(GroupId(1)), &g);
    g.install(staged, carried).unwrap();
    drop((g, to));
    // The process ended before the log was purged up to it.
    let again = open(b.path());
    assert_eq!(again.group(GroupId(1)).log_state().unwrap().last, None);
    again.check_against(GroupId(1), last).unwrap();
    let beyond = LogPosition {
        index: last.index + 1,
        ..last
    };
    again.check_against(GroupId(1), beyond).unwrap_err();
}

#[test]
fn two_snapshots_that_come_at_once_do_not_mix() {
    let (a, b, c) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let (full, applied) = filled(a.path());
    let empty = open(b.path());
    let to = open(c.path());
    let g = to.group(GroupId(1));
    let (first, carried) = transfer(&full.group(GroupId(1)), &g);
    let (second, _) = transfer(&empty.group(GroupId(1)), &g);
    g.install(first, carried).unwrap();
    assert_eq!(g.applied().unwrap(), applied);
    assert_eq!(
        g.reader().scan(Table::Message, b"", b"", 100).unwrap(),
        full.group(GroupId(1))
            .reader()
            .scan(Table::Message, b"", b"", 100)
            .unwrap()
    );
    drop(second);
}

#[test]
fn a_damaged_snapshot_is_refused_before_anything_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let s = open(dir.path());
    let g = s.group(GroupId(1));
    let record = SnapshotRecord {
        table: 1,
        key: Bytes::from_static(b"k"),
        value: Bytes::from_static(b"v"),
    };
    assert!(
        g.stage_snapshot()
            .unwrap()
            .write(std::slice::from_ref(&record), 1)
            .is_err()
    );
    let staged = || {
        let mut stage = g.stage_snapshot().unwrap();
        let crc = crate::snapshot::checksum(std::slice::from_ref(&record));
        stage.write(std::slice::from_ref(&record), crc).unwrap();
        stage
    };
    let digest = Sha256::digest(crate::snapshot::encode(std::slice::from_ref(&record)));
    assert!(staged().finish(1, &[0; 32]).is_err(), "another digest");
    assert!(staged().finish(2, &digest).is_err(), "another number");
    assert!(staged().finish(1, &digest).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Appends, truncations and purges against a vector.
    #[test]
    fn the_log_is_a_vector(steps in prop::collection::vec((0u8..3, 0u64..12), 1..30)) {
        let dir = tempfile::tempdir().unwrap();
        let s = open(dir.path());
    let g = s.group(GroupId(1));
        let (mut first, mut next) = (1u64, 1u64);
        for (what, n) in steps {
            match what {
                0 => {
                    append(&g, (next..=next + n % 4).map(|i| entry(i, b"b")).collect());
                    next += n % 4 + 1;
                }
                1 if next > first => {
                    let keep = first + n % (next - first);
                    g.truncate_after(Some(keep)).unwrap();
                    next = keep + 1;
                }
                2 if next > first => {
                    let upto = first + n % (next - first);
                    g.purge(at(upto)).unwrap();
                    first = upto + 1;
                }
                _ => {}
            }
            let got: Vec<u64> = g.read_entries(first, next, usize::MAX).unwrap().iter().map(|e| e.position.index).collect();
            prop_assert_eq!(got, (first..next).collect::<Vec<_>>());
            let state = g.log_state().unwrap();
            prop_assert_eq!(state.purged.map_or(0, |p| p.index) + 1, first);
            prop_assert_eq!(state.last.map(|l| l.index), (next > first).then_some(next - 1));
        }
    }
}
