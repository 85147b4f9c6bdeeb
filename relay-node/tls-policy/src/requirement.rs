//! The answer of the decision.
use std::fmt;

/// What a host must prove, and what its failure means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HopRequirement {
    /// The row of the table that decided.
    pub row: Row,
    /// REQUIRETLS rides on that row (shown as `D16:<row>`): after TLS the peer must offer REQUIRETLS.
    pub require_tls: bool,
    /// Certificate checks, all of which must pass.
    pub checks: Checks,
    /// What to do when there is no connection, no TLS or a failed check.
    pub on_failure: OnFailure,
}

impl HopRequirement {
    /// A connection may be made. False: the host or the destination is already decided.
    pub fn connects(&self) -> bool {
        !matches!(
            self.row,
            Row::D1 | Row::D2 | Row::D3 | Row::D8 | Row::D16 | Row::D17 | Row::D22
        )
    }
    /// `D15`, or `D16:D9` where REQUIRETLS rides on a row.
    pub fn row_name(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for HopRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.require_tls {
            f.write_str("D16:")?;
        }
        fmt::Debug::fmt(&self.row, f)
    }
}

/// Rows of the decision table that `decide` can name. D20 and D21 modify others and are no answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    /// DNS failed.
    D1,
    /// The domain does not exist.
    D2,
    /// Null MX.
    D3,
    /// DANE.
    D4,
    /// DANE and MTA-STS.
    D5,
    /// Secure MX, TLSA unusable.
    D6,
    /// Secure MX, TLSA unusable, verified by WebPKI.
    D7,
    /// TLSA lookup failed.
    D8,
    /// Secure MX, MTA-STS.
    D9,
    /// Secure MX, nothing published.
    D10,
    /// Secure MX, verified by WebPKI.
    D11,
    /// Insecure MX, DANE of the host.
    D12,
    /// Insecure MX, MTA-STS.
    D13,
    /// Insecure MX, MTA-STS in testing.
    D14,
    /// Insecure MX, nothing published.
    D15,
    /// REQUIRETLS and no verified level in reach.
    D16,
    /// Required level out of reach.
    D17,
    /// `TLS-Required: No`.
    D18,
    /// A route with its own check.
    D19,
    /// Host outside the enforced MTA-STS policy.
    D22,
}

/// Certificate checks. Empty: any certificate, its WebPKI result is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Checks {
    /// TLSA records must match (RFC 7672).
    pub dane: bool,
    /// Valid under WebPKI for the host's name.
    pub webpki: bool,
    /// Valid under configured roots for a configured name.
    pub secure: bool,
    /// Public key is one of the configured ones.
    pub fingerprint: bool,
    /// As `secure`, with our client certificate accepted.
    pub peer: bool,
}

impl Checks {
    /// No certificate check.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }
}

/// The failure column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnFailure {
    /// Defer 4.4.3: the destination's DNS failed.
    DeferDns,
    /// Next host; at the end defer 4.4.3.
    NextHostDns,
    /// Bounce 5.1.2.
    BounceNoDomain,
    /// Bounce 5.1.10.
    BounceNullMx,
    /// Defer 4.7.5, at the TLS lifetime bounce 5.7.5.
    DeferTls,
    /// Defer 4.7.4, at the TLS lifetime bounce 5.7.4.
    DeferNoTls,
    /// Next host after a refresh of the MTA-STS policy; then defer 4.7.5, bounce 5.7.5.
    NextHostRefetch,
    /// Next host; then defer 4.7.5, bounce 5.7.5.
    NextHostTls,
    /// Bounce 5.7.30 now.
    BounceRequireTls,
    /// Next host; then defer 4.7.4 (no STARTTLS) or 4.7.5 (anything else).
    NextHost,
}

/// An enhanced status as `class.subject.detail`.
pub type Status = (u8, u16, u16);
