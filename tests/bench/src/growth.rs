//! Nodes added and removed while mail flows: whether it stays 500 messages a second, and nothing is lost or doubled.

use std::time::Duration;

use anyhow::Result;
use sealane_tests::membership;
use serde::Serialize;

use crate::run::runtime;

/// 100 connections that pause between messages offer up to 1,600 a second.
const CONNECTIONS: usize = 100;
const PAUSE: Duration = Duration::from_millis(60);
/// Enough for the steps of a smoke run.
const FEW: usize = 10;

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Figures {
    pub(crate) seconds: f64,
    pub(crate) accepted_per_second: f64,
    pub(crate) accepted: usize,
    pub(crate) delivered: usize,
    pub(crate) lost: usize,
    pub(crate) duplicates: usize,
}

/// Runs it.
///
/// # Errors
/// When mail is lost or doubled, or a step does not end evenly spread.
pub(crate) fn run(smoke: bool) -> Result<Figures> {
    let connections = if smoke { FEW } else { CONNECTIONS };
    let grown = runtime("main", 2)?.block_on(membership::three_five_three(connections, PAUSE))?;
    eprintln!("   {grown}");
    Ok(Figures {
        seconds: grown.seconds,
        accepted_per_second: grown.per_second,
        accepted: grown.verdict.accepted,
        delivered: grown.verdict.delivered,
        lost: grown.verdict.lost.len(),
        duplicates: grown.verdict.duplicates,
    })
}
