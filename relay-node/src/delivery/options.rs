//! Limits and deadlines of delivery.
use sealane_runtime::config::{ConfigError, ConfigSpan};
use serde::Deserialize;
use std::time::Duration;

/// `delivery:` of the configuration. Deadlines of RFC 5321 section 4.5.3.2, shorter where a stuck
/// peer costs us a connection before mail is at stake.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DeliveryOptions {
    /// Leases held at once; the memory and socket bound of delivery. Default 100.
    pub credits: u32,
    /// TCP connection to one address. Default 30 s.
    pub connect_timeout: ConfigSpan,
    /// TLS handshake. Default 30 s.
    pub tls_timeout: ConfigSpan,
    /// Greeting. Default 60 s (RFC: 5 min).
    pub greeting_timeout: ConfigSpan,
    /// Replies to EHLO, STARTTLS, RSET and QUIT. Default 60 s.
    pub command_timeout: ConfigSpan,
    /// Replies to MAIL and RCPT. Default 5 min.
    pub envelope_timeout: ConfigSpan,
    /// Reply to DATA. Default 2 min.
    pub data_timeout: ConfigSpan,
    /// One block of the content to be taken by the peer, or to come from the queue. Default 3 min.
    pub block_timeout: ConfigSpan,
    /// Reply to the final dot. Default 10 min.
    pub final_timeout: ConfigSpan,
    /// How long a connection waits for the next message. Default 10 s.
    pub idle: ConfigSpan,
    /// The final dot is not sent when less than this is left of the lease. Default 2 s.
    pub lease_margin: ConfigSpan,
}

impl Default for DeliveryOptions {
    fn default() -> Self {
        let seconds = |s| ConfigSpan(Duration::from_secs(s));
        Self {
            credits: 100,
            connect_timeout: seconds(30),
            tls_timeout: seconds(30),
            greeting_timeout: seconds(60),
            command_timeout: seconds(60),
            envelope_timeout: seconds(300),
            data_timeout: seconds(120),
            block_timeout: seconds(180),
            final_timeout: seconds(600),
            idle: seconds(10),
            lease_margin: seconds(2),
        }
    }
}

impl DeliveryOptions {
    /// Names the first wrong field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.credits == 0 || self.credits > 10_000 {
            return Err(ConfigError::field("delivery.credits", "needs 1 to 10000"));
        }
        for (name, span) in [
            ("delivery.connectTimeout", self.connect_timeout),
            ("delivery.tlsTimeout", self.tls_timeout),
            ("delivery.greetingTimeout", self.greeting_timeout),
            ("delivery.commandTimeout", self.command_timeout),
            ("delivery.envelopeTimeout", self.envelope_timeout),
            ("delivery.dataTimeout", self.data_timeout),
            ("delivery.blockTimeout", self.block_timeout),
            ("delivery.finalTimeout", self.final_timeout),
        ] {
            if span.0.is_zero() {
                return Err(ConfigError::field(name, "must not be 0"));
            }
        }
        Ok(())
    }
}
