//! The file system that loses power is judged before it judges: what is known to be wrong loses there,
//! what is known to be right does not.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rocksdb::{DB, DBRecoveryMode, Options, WriteOptions};
use sealane_tests::ledger::{Ledger, Verdict};
use sealane_tests::load::{self, Kind, Load, Target};
use sealane_tests::postfix::Postfix;
use sealane_tests::powerloss::{Disk, PowerLoss};
use sealane_tests::sink::{Act, Rule, Sink, SinkConfig, Stage};
use sealane_tests::wait;

const RECORDS: usize = 200;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Program {
    /// Writes and acknowledges.
    Careless,
    /// Syncs the file it renames, but not what the rename did: the classic of atomic replacement.
    ForgetsTheFolder,
    SyncsFile,
    SyncsFileAndFolder,
    WritesSynchronously,
}

/// Keeps `RECORDS` numbers as `program` does; gives those that are not there after a power loss.
fn acknowledged_and_lost(program: Program) -> Result<usize> {
    let scratch = tempfile::tempdir()?;
    let disk = Disk::mount(&scratch.path().join("disk"))?;
    let root = disk.path();
    for number in 0..RECORDS {
        let (path, text) = (root.join(number.to_string()), number.to_string());
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        if program == Program::WritesSynchronously {
            const O_SYNC: i32 = 0o4_010_000;
            options.custom_flags(O_SYNC);
        }
        let new = root.join(format!("{number}.new"));
        let first = if program == Program::ForgetsTheFolder {
            File::create(&path)?.sync_all()?;
            &new
        } else {
            &path
        };
        let mut file = options.open(first)?;
        file.write_all(text.as_bytes())?;
        match program {
            Program::Careless | Program::WritesSynchronously => {}
            Program::SyncsFile => file.sync_data()?,
            Program::SyncsFileAndFolder => {
                file.sync_all()?;
                File::open(root)?.sync_all()?;
            }
            Program::ForgetsTheFolder => {
                file.sync_all()?;
                fs::rename(&new, &path)?;
            }
        }
    }
    let at_stake = disk.statistics()?;
    let after = disk.lose_power(PowerLoss::Clean)?;
    let lost = (0..RECORDS)
        .filter(|number| {
            fs::read(root.join(number.to_string())).ok() != Some(number.to_string().into_bytes())
        })
        .count();
    println!("{program:?}: {RECORDS} acknowledged, {lost} lost; {at_stake:?} then {after:?}");
    Ok(lost)
}

#[test]
fn who_does_not_sync_loses_and_who_syncs_does_not() -> Result<()> {
    for (program, lost) in [
        (Program::Careless, RECORDS),
        (Program::ForgetsTheFolder, RECORDS),
        (Program::SyncsFile, 0),
        (Program::SyncsFileAndFolder, 0),
        (Program::WritesSynchronously, 0),
    ] {
        ensure!(acknowledged_and_lost(program)? == lost, "{program:?}");
    }
    Ok(())
}

fn database(at: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_write_buffer_size(256 << 10);
    Ok(DB::open(&options, at)?)
}

/// Keeps numbers in a RocksDB until the power goes; gives those that are not there afterwards.
fn rocksdb_lost(sync: bool, how: PowerLoss) -> Result<usize> {
    let scratch = tempfile::tempdir()?;
    let disk = Disk::mount(&scratch.path().join("disk"))?;
    let folder = disk.path().join("db");
    let db = database(&folder)?;
    // The database itself is there before the work begins.
    disk.tell("sync")?;
    let mut options = WriteOptions::default();
    options.set_sync(sync);
    for number in 0..RECORDS * 5 {
        let value = number.to_string().repeat(500);
        db.put_opt(number.to_string(), value, &options)?;
    }
    disk.tell("cut")?;
    drop(db);
    disk.tell("on")?;
    // The first power loss took everything; the other kinds are of what comes now.
    if !matches!(how, PowerLoss::Clean) {
        let db = database(&folder)?;
        for number in 0..RECORDS {
            db.put_opt(format!("more {number}"), "x".repeat(900), &options)?;
        }
        disk.lose_power(how)?;
        drop(db);
    }
    let db = database(&folder)?;
    let mut lost = 0;
    for number in 0..RECORDS * 5 {
        lost += usize::from(db.get(number.to_string())?.is_none());
    }
    println!(
        "RocksDB, sync {sync}, {how:?}: {} acknowledged, {lost} lost; {:?}",
        RECORDS * 5,
        disk.statistics()?
    );
    Ok(lost)
}

#[test]
fn a_rocksdb_that_syncs_keeps_all_and_one_that_does_not_loses() -> Result<()> {
    ensure!(
        rocksdb_lost(false, PowerLoss::Clean)? > 0,
        "it lost nothing"
    );
    for how in [
        PowerLoss::Clean,
        PowerLoss::Torn(1),
        PowerLoss::Reordered(2),
    ] {
        ensure!(rocksdb_lost(true, how)? == 0, "{how:?}");
    }
    Ok(())
}

/// Debian's Postfix takes mail, cannot deliver it, and loses power while more comes in.
async fn postfix_after_a_power_loss(line: &str) -> Result<Verdict> {
    let scratch = tempfile::tempdir()?;
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = Sink::start(SinkConfig::at(anywhere, scratch.path().join("sink"))).await?;
    sink.script().add(Rule {
        stage: Stage::Mail,
        containing: String::new(),
        act: Act::Reply("451 4.3.0 not now".to_owned()),
        times: None,
    });
    let folder = scratch.path().join("postfix");
    fs::create_dir_all(&folder)?;
    let disk = Disk::mount(&folder.join("queue"))?;
    let postfix = Postfix::start(&folder, sink.address(), "")?;
    disk.tell("sync")?;
    disk.tell(line)?;

    let ledger = Arc::new(Ledger::default());
    let target = Target {
        address: postfix.address,
        kind: Kind::Mx,
    };
    let mut load = Load::new(vec![target], 6);
    load.domain = "remote.example".to_owned();
    let running = load::start(load, &ledger);
    wait::until("mail accepted", Duration::from_secs(60), || async {
        let accepted = ledger.accepted();
        ensure!(accepted >= 100, "{accepted}");
        Ok(())
    })
    .await
    .with_context(|| postfix.log())?;
    let master = postfix.master()?;
    disk.tell("cut")?;
    postfix.crash(master)?;
    let before = ledger.accepted();
    ensure!(
        sink.store().count()? == 0,
        "delivered before the power loss"
    );
    disk.tell("lie off")?;
    disk.tell("on")?;
    sink.script().clear();
    postfix.start_again()?;
    wait::until("mail accepted again", Duration::from_secs(60), || async {
        let accepted = ledger.accepted();
        ensure!(accepted >= before + 20, "{accepted}");
        Ok(())
    })
    .await
    .with_context(|| postfix.log())?;
    running.stop().await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(20)).await?;
    println!(
        "Postfix, {line}: {before} accepted before the power loss; {verdict}; {:?}",
        disk.statistics()?
    );
    Ok(verdict)
}

#[tokio::test(flavor = "multi_thread")]
async fn postfix_keeps_what_it_accepted_unless_the_disk_lies() -> Result<()> {
    let honest = postfix_after_a_power_loss("lie off").await?;
    honest.holds()?;
    let lying = postfix_after_a_power_loss("lie on").await?;
    ensure!(lying.lost.len() >= 100, "nothing was lost: {lying}");
    Ok(())
}
