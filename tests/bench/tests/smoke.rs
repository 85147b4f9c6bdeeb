//! A bench that does not run measures nothing: every kind of case with hardly any mail, and the peer.
#![forbid(unsafe_code)]

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

#[test]
fn every_kind_of_case_runs_and_reports_what_it_did() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let report = folder.path().join("report.json");
    let output = Command::new(env!("CARGO_BIN_EXE_sealane-bench"))
        .args(["base", "64k-waits", "1-message", "1-node", "1-shard"])
        .args(["failover", "waiting"])
        .args(["--smoke", "--peer", "postfix", "--report"])
        .arg(&report)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
    ensure!(
        report["smoke"] == Value::Bool(true),
        "a smoke run does not say so"
    );
    let rows = report["rows"].as_array().context("rows")?;
    ensure!(rows.len() == 5, "{} rows", rows.len());
    for row in rows {
        let name = &row["case"]["name"];
        for figures in [Some(&row["sealane"]), row.get("peer")]
            .into_iter()
            .flatten()
        {
            ensure!(
                figures["messages"] == row["case"]["messages"],
                "{name}: {figures}"
            );
            ensure!(
                figures["duplicates"] == 0,
                "{name}: duplicates without a fault: {figures}"
            );
            for key in [
                "accepted_per_second",
                "delivered_per_second",
                "cpu_per_1000_total",
            ] {
                let value = figures[key].as_f64().unwrap_or(0.0);
                ensure!(value > 0.0, "{name}: {key} is {value}");
            }
        }
        ensure!(
            row["sealane"]["messages_per_sync"].as_f64().unwrap_or(0.0) > 0.0,
            "{name}: nothing was synced: {row}"
        );
    }
    ensure!(
        rows.iter().any(|row| row.get("delivered_ratio").is_some()),
        "no ratio to the peer"
    );
    ensure!(
        report["failover"]["gaps_ms"]
            .as_array()
            .is_some_and(|gaps| gaps.len() == 1),
        "no leader was killed: {}",
        report["failover"]
    );
    let waiting = &report["waiting"];
    ensure!(waiting["waiting"] == 2_000, "nothing waited: {waiting}");
    ensure!(
        waiting["restart_to_first_250"].as_f64().unwrap_or(0.0) > 0.0,
        "no restart: {waiting}"
    );
    Ok(())
}
