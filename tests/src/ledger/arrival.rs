//! What a file of the sink says.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{Entry, Offer, TOKEN_HEADER};
use crate::sink::Received;

/// One file of the sink, as far as the ledger cares.
#[derive(Debug, Clone)]
pub(super) enum Arrival {
    /// Null reverse-path.
    Report(Report),
    NoToken,
    Message {
        token: String,
        reverse_path: String,
        recipients: Vec<String>,
        octets: Vec<u8>,
        at_ms: u64,
        bare_line_ends: bool,
        tls: bool,
    },
    /// Looked at: content is not kept.
    Checked {
        token: String,
        recipients: Vec<String>,
        /// When it came, by the clock of the sink.
        at_ms: u64,
        problem: Option<String>,
    },
}

impl Arrival {
    pub(super) fn is_right(&self) -> bool {
        matches!(self, Self::Report(_) | Self::Checked { problem: None, .. })
    }
}

/// What a report says. A field that is missing is empty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Its own Message-ID: a second delivery of it is the same report.
    pub(super) id: String,
    /// The queue's id of the message that failed.
    pub(super) original: String,
    /// The token of that message, from its header.
    pub(super) token: String,
    /// Recipients that failed.
    pub(super) failed: Vec<String>,
}

impl Report {
    pub(super) fn read(octets: &[u8]) -> Self {
        let text = String::from_utf8_lossy(octets);
        let all = |name: &str| -> Vec<String> {
            let lines = text.lines().filter_map(|line| line.strip_prefix(name));
            lines.map(|value| value.trim().to_owned()).collect()
        };
        let first = |name: &str| all(name).into_iter().next().unwrap_or_default();
        Self {
            id: first("Message-ID:"),
            original: first("X-Sealane-Message-Id:"),
            token: first(TOKEN_HEADER),
            failed: all("Final-Recipient: rfc822;"),
        }
    }
}

pub(super) fn arrival(received: &Received) -> Result<Arrival> {
    let envelope = &received.envelope;
    let octets = received.octets()?;
    if envelope.reverse_path.is_empty() {
        return Ok(Arrival::Report(Report::read(&octets)));
    }
    let Some(token) = token(&octets) else {
        return Ok(Arrival::NoToken);
    };
    Ok(Arrival::Message {
        token,
        reverse_path: envelope.reverse_path.clone(),
        recipients: envelope.recipients.clone(),
        at_ms: envelope.received_at_ms,
        bare_line_ends: envelope.bare_line_ends,
        tls: !envelope.tls_version.is_empty(),
        octets,
    })
}

pub(super) fn check(arrival: Arrival, entries: &HashMap<String, Entry>) -> Arrival {
    let Arrival::Message {
        token,
        reverse_path,
        recipients,
        octets,
        at_ms,
        bare_line_ends,
        tls,
    } = arrival
    else {
        return arrival;
    };
    let problem = entries.get(&token).and_then(|entry| {
        let offer = &entry.offer;
        if bare_line_ends {
            return Some("bare CR or LF".to_owned());
        }
        if !tls {
            return Some("came in clear".to_owned());
        }
        if reverse_path != offer.reverse_path
            || !recipients.iter().all(|one| offer.recipients.contains(one))
        {
            return Some(format!("envelope <{reverse_path}> {recipients:?}"));
        }
        behind_trace(&octets, offer)
            .err()
            .map(|error| error.to_string())
    });
    Arrival::Checked {
        token,
        recipients,
        at_ms,
        problem,
    }
}

/// The token of a message, if it carries one.
#[must_use]
pub fn token(octets: &[u8]) -> Option<String> {
    let at = octets
        .windows(TOKEN_HEADER.len())
        .position(|window| window == TOKEN_HEADER.as_bytes())?;
    let rest = octets.get(at + TOKEN_HEADER.len()..)?;
    let end = rest.iter().position(|octet| octet.is_ascii_whitespace())?;
    Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
}

/// Checks that `octets` are trace headers and then exactly the content of the offer.
///
/// # Errors
/// Says what differs.
pub fn behind_trace(octets: &[u8], offer: &Offer) -> Result<()> {
    ensure!(
        octets.len() > offer.octets,
        "{} octets arrived of {}",
        octets.len(),
        offer.octets
    );
    let (trace, content) = octets.split_at(octets.len() - offer.octets);
    let digest: [u8; 32] = Sha256::digest(content).into();
    ensure!(digest == offer.sha256, "content differs");
    let trace = std::str::from_utf8(trace)?;
    ensure!(
        trace.starts_with("Received: ") && trace.ends_with("\r\n"),
        "no Received header in front: {trace:?}"
    );
    for line in trace.split_terminator("\r\n") {
        ensure!(
            line.starts_with("Received: ") || line.starts_with([' ', '\t']),
            "{line:?} in front of the content is no trace header"
        );
    }
    Ok(())
}
