//! What is known about a hop before a connection is made.

/// All inputs of the decision for one host of one destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct HopFacts {
    /// The route demands a check of its own, whatever DNS says.
    pub route: Option<PinnedRoute>,
    /// How the MX lookup ended.
    pub mx: MxSecurity,
    /// How the address lookup of this host ended, and its TLSA records.
    pub host: HostSecurity,
    /// The MTA-STS policy of the destination, seen from this host (RFC 8461).
    pub sts: StsPolicy,
    /// Local policy of the route.
    pub policy: PolicyLevel,
    /// The message carries REQUIRETLS (RFC 8689 section 2).
    pub require_tls: bool,
    /// The message carries `TLS-Required: No` (RFC 8689 section 5).
    pub tls_required_no: bool,
}

/// A route whose certificate check is configured and independent of DNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinnedRoute {
    /// Configured names under configured roots.
    Secure,
    /// Configured public keys.
    Fingerprint,
    /// As `Secure`, and the peer demands our client certificate.
    Peer,
}

/// The MX lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MxSecurity {
    /// Bogus, SERVFAIL or timeout.
    Failed,
    /// The domain does not exist.
    NxDomain,
    /// The domain takes no mail (RFC 7505).
    NullMx,
    /// Validated by DNSSEC.
    Secure,
    /// Answered, not validated.
    Insecure,
}

/// The address lookup of one host. TLSA records exist only below a secure address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HostSecurity {
    /// Bogus, SERVFAIL or timeout.
    Failed,
    /// Answered, not validated: TLSA is not asked for (RFC 7672 section 2.2.2).
    Insecure,
    /// Validated, with what the TLSA lookup gave.
    Secure(Tlsa),
}

/// The TLSA lookup of one host with a secure address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Tlsa {
    /// At least one record that we can use (RFC 7672 section 3).
    Usable,
    /// Records, none of them usable.
    Unusable,
    /// Securely none.
    NoData,
    /// Answered, not validated.
    Insecure,
    /// Bogus, SERVFAIL or timeout.
    Error,
}

/// MTA-STS of the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StsPolicy {
    /// Enforced (fresh or cached), and the host matches a pattern.
    Match,
    /// Enforced (fresh or cached), and the host matches no pattern.
    NoMatch,
    /// Mode `testing`.
    Testing,
    /// None, or not fetchable and none cached.
    None,
}

/// What the route of the destination asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PolicyLevel {
    /// TLS 1.2 or better, any certificate; published policies are enforced.
    Encrypt,
    /// Any verified level.
    Verified,
    /// DANE and nothing else.
    DaneOnly,
}
