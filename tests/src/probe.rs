//! One message through a relay that is in use, and out again: what `helm test` runs.
//!
//! ```text
//!   probe ── SMTP, STARTTLS ──▶ relay ──▶ queue ──▶ relay ── SMTP, STARTTLS ──▶ sink of the probe
//! ```
//!
//! The relay needs a policy that takes mail for the recipient and routes it to where the probe listens.
//! It may not have it yet when the probe starts, so refusals are tried again until the time is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use tokio::net::lookup_host;
use tokio::time::sleep;

use crate::ledger::{Ledger, Offer, Outcome};
use crate::load::{content, token};
use crate::sink::{Sink, SinkConfig};
use crate::smtp::Client;

/// Between attempts.
const PAUSE: Duration = Duration::from_secs(1);
/// Octets of the message.
const SIZE: usize = 2000;

/// Sends a message to a relay over TLS and waits until it comes out of it, over TLS, here.
#[derive(Parser, Debug)]
#[command(version)]
pub struct Cli {
    /// The relay's MX listener, host:port.
    #[arg(long)]
    pub relay: String,
    /// Recipient and sender. The relay's policy must route it to where this listens.
    #[arg(long)]
    pub to: String,
    /// Where the relay delivers it: a listener of this process.
    #[arg(long, default_value = "0.0.0.0:2526")]
    pub listen: SocketAddr,
    /// Seconds until it must have come.
    #[arg(long, default_value_t = 120)]
    pub timeout: u64,
}

/// Says how it went on standard output.
///
/// # Errors
/// When the message is not taken, does not come in time, comes changed, or without TLS.
pub async fn main(cli: &Cli) -> Result<()> {
    let folder = tempfile::tempdir().context("a folder for what arrives")?;
    let sink = Sink::start(SinkConfig::at(cli.listen, folder.path().to_owned())).await?;
    let began = Instant::now();
    let limit = Duration::from_secs(cli.timeout);
    println!("listening on {}, sending to {}", sink.address(), cli.relay);

    let ledger = Arc::new(Ledger::default());
    let token = token();
    let to = vec![cli.to.clone()];
    let message = content(&token, &cli.to, &to, SIZE);
    ledger.offer(Offer::of(&token, &cli.to, &to, &message));

    let mut last = String::new();
    loop {
        let outcome = attempt(&cli.relay, &cli.to, &to, &message).await;
        ledger.outcome(&token, outcome.clone());
        let why = match outcome {
            Outcome::Accepted => break,
            Outcome::Temporary(why)
            | Outcome::Permanent(why)
            | Outcome::Unknown(why)
            | Outcome::Broken(why) => why,
        };
        if why != last {
            println!("not taken yet: {why}");
            last = why;
        }
        if began.elapsed() >= limit {
            bail!(
                "{} did not take it within {} s: {last}",
                cli.relay,
                cli.timeout
            );
        }
        sleep(PAUSE).await;
    }
    let taken = began.elapsed();
    println!(
        "taken over TLS after {:.1} s: it is synced on a majority",
        taken.as_secs_f32()
    );

    let verdict = ledger
        .settle(sink.store(), limit.saturating_sub(taken))
        .await?;
    ensure!(
        verdict.lost.is_empty(),
        "it did not come within {} s: can relay nodes connect to {}?",
        cli.timeout,
        sink.address()
    );
    ensure!(
        verdict.damaged.is_empty(),
        "it came damaged: {:?}",
        verdict.damaged
    );
    let received = sink.store().list()?;
    let envelope = &received.first().context("the message that came")?.envelope;
    println!(
        "came after {:.1} s from {} over {}, unchanged",
        began.elapsed().as_secs_f32(),
        envelope.peer,
        envelope.tls_version
    );
    Ok(())
}

async fn attempt(relay: &str, from: &str, to: &[String], message: &[u8]) -> Outcome {
    let before_the_dot = async {
        let address = lookup_host(relay)
            .await?
            .next()
            .context("it has no address")?;
        anyhow::Ok(Client::starttls(address).await?.0)
    };
    let mut client = match before_the_dot.await {
        Ok(client) => client,
        Err(error) => return Outcome::Broken(format!("connecting to {relay}: {error:#}")),
    };
    match client.transaction(from, to, message).await {
        Ok(reply) if reply.code == 250 => {
            client.quit().await;
            Outcome::Accepted
        }
        Ok(reply) if reply.code < 500 => Outcome::Temporary(reply.to_string()),
        Ok(reply) => Outcome::Permanent(reply.to_string()),
        Err(error) => Outcome::Unknown(format!("{error:#}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_nobody_takes_is_an_error_that_says_why() {
        let nobody = crate::ports::free().unwrap();
        let cli = Cli {
            relay: nobody.to_string(),
            to: "probe@helm-test.invalid".to_owned(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            timeout: 0,
        };
        let error = main(&cli).await.unwrap_err().to_string();
        assert!(
            error.contains("did not take it") && error.contains("connecting"),
            "{error}"
        );
    }

    /// Straight into its own sink: it comes, but no relay wrote a Received header.
    #[tokio::test]
    async fn what_passed_no_relay_is_noticed() {
        let here = crate::ports::free().unwrap();
        let cli = Cli {
            relay: here.to_string(),
            to: "probe@helm-test.invalid".to_owned(),
            listen: here,
            timeout: 20,
        };
        let error = main(&cli).await.unwrap_err().to_string();
        assert!(error.contains("damaged"), "{error}");
    }
}
