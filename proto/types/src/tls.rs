//! Facts about TLS sessions and traces that travel with a message.

/// What is known about one TLS session; recorded for every hop (RFC 8314 section 4.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFacts {
    /// "TLSv1.3" or "TLSv1.2".
    pub version: String,
    /// IANA name, "TLS_AES_256_GCM_SHA384".
    pub cipher: String,
    /// Key-exchange group, "X25519"; empty if unknown.
    pub group: String,
    /// SNI; empty if none.
    pub server_name: String,
    /// "none", "webpki", "pinned", "secure:<name>", "failed:<why>", "client-cert".
    pub verification: String,
    /// SHA-256 of the peer's end-entity certificate; empty if it sent none.
    pub peer_certificate_sha256: Vec<u8>,
}

/// W3C Trace Context of a span that someone else continues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// `00-<trace id>-<span id>-<flags>`; empty if the sender was not traced.
    pub traceparent: String,
    /// Vendor data, passed on untouched.
    pub tracestate: String,
}
