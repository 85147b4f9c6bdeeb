//! A short slice of the simulation for every test run. `make sim SEEDS=200` is the long one.
use std::process::{Command, Output};

fn simulate(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sealane-sim"))
        .args(arguments)
        .output()
        .expect("the simulator starts")
}

fn text(out: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    )
}

/// Seeds that once failed, then new ones; each twice with the same hash. The first seed is chosen by the
/// clock and printed.
#[test]
fn a_cluster_keeps_what_it_accepted_whatever_happens() {
    let regressions = concat!(env!("CARGO_MANIFEST_DIR"), "/regressions.seeds");
    let out = simulate(&["--seeds", "8", "--regressions", regressions]);
    assert!(out.status.success(), "{}", text(&out));
    println!("{}", text(&out));
}

/// The judge is calibrated: disks that acknowledge a sync and do not do it are noticed.
#[test]
fn a_lying_sync_is_noticed() {
    let out = simulate(&["--seeds", "1", "--first", "3", "--lies"]);
    let said = text(&out);
    assert!(!out.status.success(), "{said}");
    assert!(said.contains("on disk"), "{said}");
}
