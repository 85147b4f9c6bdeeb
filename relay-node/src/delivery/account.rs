//! What is said about an attempt: span fields, one event per outcome, counters.
use super::{DeliveryMetrics, Lease, metrics::OutcomeKind, report::RecipientOutcome};
use sealane_types::TlsFacts;
use tracing::Span;

/// The session that carries the attempt, into its span.
pub(crate) fn record_session(remote: &str, tls: &TlsFacts) {
    let span = Span::current();
    span.record("remote", remote);
    span.record("tls.version", tls.version.as_str());
    span.record("tls.cipher", tls.cipher.as_str());
    span.record("tls.group", tls.group.as_str());
    span.record("tls.verification", tls.verification.as_str());
}

/// Counts and logs every outcome; the accounting record of the attempt.
pub(crate) fn settle(lease: &Lease, outcomes: &[RecipientOutcome], metrics: &DeliveryMetrics) {
    for outcome in outcomes {
        metrics.recipient(outcome.kind, outcome.tls_caused);
        let mailbox = lease
            .recipients
            .iter()
            .find(|r| r.number == outcome.number)
            .map(|r| r.mailbox.to_string());
        let tls = outcome.tls.as_ref();
        tracing::info!(
            message_id = %lease.key.id,
            recipient = mailbox.unwrap_or_default(),
            destination = %lease.destination,
            attempt = lease.attempt(),
            outcome = word(outcome.kind),
            reply = %outcome.reply,
            remote = outcome.remote,
            tls_version = tls.map_or("", |t| t.version.as_str()),
            tls_cipher = tls.map_or("", |t| t.cipher.as_str()),
            tls_verification = tls.map_or("", |t| t.verification.as_str()),
            tls_caused = outcome.tls_caused,
            "delivery attempt"
        );
    }
    let span = Span::current();
    if let Some(first) = outcomes.first() {
        let mixed = outcomes.iter().any(|o| o.kind != first.kind);
        span.record("outcome", if mixed { "mixed" } else { word(first.kind) });
        span.record("code", first.reply.code);
        if !first.remote.is_empty() {
            span.record("remote", first.remote.as_str());
        }
    }
}

fn word(kind: OutcomeKind) -> &'static str {
    match kind {
        OutcomeKind::Delivered => "delivered",
        OutcomeKind::Deferred => "deferred",
        OutcomeKind::Failed => "failed",
    }
}
