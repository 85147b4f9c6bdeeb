//! From what a session showed to what happens to the message.
use crate::{Checks, HopRequirement, OnFailure, Row, Status};

/// What a connection showed before any MAIL command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionFacts {
    /// The state of TLS.
    pub tls: TlsSession,
    /// The EHLO reply inside TLS lists REQUIRETLS.
    pub offers_require_tls: bool,
}

/// How far TLS came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsSession {
    /// No connection was made.
    NotTried,
    /// STARTTLS is not offered, or is refused.
    NotOffered,
    /// The handshake failed, or the protocol around it was violated (D21: never retried without TLS).
    HandshakeFailed,
    /// TLS 1.2 or better stands; these checks pass.
    Established(Checks),
}

/// The verdict on one hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Judgement {
    /// MAIL may be sent.
    Deliver(Level),
    /// Nothing of the message may be sent.
    Refuse {
        /// Status of this attempt; class 5 is a failure now.
        status: Status,
        /// Status when the lifetime ends.
        at_limit: Status,
        /// The shorter TLS lifetime applies.
        tls_caused: bool,
        /// Another host of the destination may be tried first.
        next_host: bool,
    },
}

/// What a delivery proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Level {
    /// TLS, certificate not enforced.
    Encrypted,
    /// DANE under an insecure MX.
    DaneHost,
    /// DANE with everything secure.
    Dane,
    /// MTA-STS.
    Sts,
    /// DANE and MTA-STS.
    DaneAndSts,
    /// Secure MX and WebPKI.
    SecureMx,
    /// Configured names and roots.
    Secure,
    /// Configured public key.
    Fingerprint,
    /// Mutual.
    Peer,
}

/// Says whether the session meets the requirement.
pub fn judge(requirement: HopRequirement, session: SessionFacts) -> Judgement {
    if !requirement.connects() {
        return refuse(requirement, OTHER);
    }
    match session.tls {
        TlsSession::NotOffered => refuse(requirement, NO_TLS),
        TlsSession::NotTried | TlsSession::HandshakeFailed => refuse(requirement, OTHER),
        TlsSession::Established(passed) if !covers(passed, requirement.checks) => {
            refuse(requirement, OTHER)
        }
        TlsSession::Established(_) if requirement.require_tls && !session.offers_require_tls => {
            Judgement::Refuse {
                status: (5, 7, 30),
                at_limit: (5, 7, 30),
                tls_caused: true,
                next_host: true,
            }
        }
        TlsSession::Established(_) => Judgement::Deliver(level(requirement)),
    }
}

/// Detail of X.7.4 (security features not supported, RFC 3463).
const NO_TLS: u16 = 4;
/// Detail of X.7.5 (cryptographic failure, RFC 3463).
const OTHER: u16 = 5;

fn refuse(requirement: HopRequirement, detail: u16) -> Judgement {
    let (status, at_limit, tls_caused, next_host) = match requirement.on_failure {
        OnFailure::DeferDns => ((4, 4, 3), (5, 4, 3), false, false),
        OnFailure::NextHostDns => ((4, 4, 3), (5, 4, 3), false, true),
        OnFailure::BounceNoDomain => ((5, 1, 2), (5, 1, 2), false, false),
        OnFailure::BounceNullMx => ((5, 1, 10), (5, 1, 10), false, false),
        OnFailure::BounceRequireTls => ((5, 7, 30), (5, 7, 30), true, false),
        OnFailure::NextHostRefetch | OnFailure::NextHostTls => ((4, 7, 5), (5, 7, 5), true, true),
        OnFailure::DeferTls => ((4, 7, 5), (5, 7, 5), true, requirement.connects()),
        OnFailure::DeferNoTls | OnFailure::NextHost => ((4, 7, detail), (5, 7, detail), true, true),
    };
    let at_limit = if requirement.require_tls {
        (5, 7, 30)
    } else {
        at_limit
    };
    Judgement::Refuse {
        status,
        at_limit,
        tls_caused,
        next_host,
    }
}

fn covers(passed: Checks, wanted: Checks) -> bool {
    (passed.dane || !wanted.dane)
        && (passed.webpki || !wanted.webpki)
        && (passed.secure || !wanted.secure)
        && (passed.fingerprint || !wanted.fingerprint)
        && (passed.peer || !wanted.peer)
}

fn level(requirement: HopRequirement) -> Level {
    match requirement.row {
        Row::D4 => Level::Dane,
        Row::D5 => Level::DaneAndSts,
        Row::D9 | Row::D13 => Level::Sts,
        Row::D7 | Row::D11 => Level::SecureMx,
        Row::D12 => Level::DaneHost,
        Row::D19 if requirement.checks.peer => Level::Peer,
        Row::D19 if requirement.checks.fingerprint => Level::Fingerprint,
        Row::D19 => Level::Secure,
        _ => Level::Encrypted,
    }
}
