//! Reads the whole volume now and then, slowly: damage that nobody reads would be noticed when the other copies
//! are gone too. What is damaged ends the node, as with any other read.
use crate::{config::ScrubConfig, metrics::Metrics};
use sealane_runtime::blocking;
use sealane_store::Store;
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A node that has just started has better things to do.
const FIRST: Duration = Duration::from_secs(60);

/// Runs until `stop`.
pub(crate) async fn run(
    store: Arc<Store>,
    config: ScrubConfig,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut next = Instant::now() + FIRST.min(config.every.0);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = stop.cancelled() => return,
        }
        next = Instant::now() + config.every.0;
        let mut pass = store.scrub();
        let mut read = 0u64;
        loop {
            let (again, octets) = match blocking::run(move || {
                let octets = pass.next_piece();
                (pass, octets)
            })
            .await
            {
                Ok(done) => done,
                Err(e) => {
                    tracing::error!(error = %e, "scrubbing ended");
                    return;
                }
            };
            pass = again;
            let octets = match octets {
                Ok(Some(octets)) => octets,
                Ok(None) => break,
                // The store has told the process to end.
                Err(e) => {
                    tracing::error!(error = %e, "scrubbing found damage");
                    return;
                }
            };
            read = read.saturating_add(octets);
            metrics.scrubbed(octets);
            // It is never in a hurry: time that it lost is not made good.
            let pause = octets.saturating_mul(1_000) / config.rate.0.max(1);
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(pause)) => {}
                () = stop.cancelled() => return,
            }
        }
        metrics.scrub_passed();
        tracing::info!(octets = read, "the volume was scrubbed: no damage");
    }
}
