//! The trace header (RFC 5321 section 4.4, RFC 3848, RFC 8314 section 4.3).
use jiff::{Timestamp, fmt::rfc2822, tz::TimeZone};
use sealane_types::{DomainName, MessageId, TlsFacts};
use std::{fmt::Write, net::SocketAddr};

/// What it says.
#[derive(Debug)]
pub(super) struct Received<'a> {
    pub(super) helo: &'a str,
    pub(super) peer: SocketAddr,
    pub(super) hostname: &'a str,
    /// "ESMTPS" or "ESMTPSA".
    pub(super) protocol: &'a str,
    pub(super) tls: &'a TlsFacts,
    pub(super) id: MessageId,
    /// If there is exactly one: a header must not tell recipients of each other.
    pub(super) recipient: Option<&'a str>,
    pub(super) at: Timestamp,
}

/// The header, and where in it the id stands: an id that had to be replaced is written over.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) text: String,
    pub(super) id_at: usize,
}

impl Received<'_> {
    /// Folded, with CRLF line ends, the last one included.
    pub(super) fn header(&self) -> Header {
        let helo = DomainName::parse(self.helo).map_or("unknown", |_| self.helo);
        let mut text = String::with_capacity(320);
        let address = match self.peer.ip().to_canonical() {
            std::net::IpAddr::V4(a) => format!("[{a}]"),
            std::net::IpAddr::V6(a) => format!("[IPv6:{a}]"),
        };
        let _ = write!(
            text,
            "Received: from {helo} ({address})\r\n\tby {} with {}",
            self.hostname, self.protocol
        );
        if !self.tls.cipher.is_empty() {
            let _ = write!(text, "\r\n\ttls {}", self.tls.cipher);
            if !self.tls.group.is_empty() {
                let _ = write!(text, " group {}", self.tls.group);
            }
        }
        text.push_str("\r\n\tid ");
        let id_at = text.len();
        let _ = write!(text, "{}", self.id);
        if let Some(recipient) = self.recipient {
            let _ = write!(text, "\r\n\tfor <{recipient}>");
        }
        let date = rfc2822::to_string(&self.at.to_zoned(TimeZone::UTC)).unwrap_or_default();
        let _ = write!(text, ";\r\n\t{date}\r\n");
        Header { text, id_at }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use sealane_types::ShardId;

    #[test]
    fn says_how_the_message_came() {
        let id = MessageId::new(ShardId::new(3).unwrap(), 1_700_000_000_000, [7; 9]);
        let tls = TlsFacts {
            cipher: "TLS_AES_256_GCM_SHA384".into(),
            group: "X25519".into(),
            ..TlsFacts::default()
        };
        let received = Received {
            helo: "client.example",
            peer: "192.0.2.1:4000".parse().unwrap(),
            hostname: "relay.example",
            protocol: "ESMTPSA",
            tls: &tls,
            id,
            recipient: Some("a@b.example"),
            at: Timestamp::from_millisecond(1_700_000_000_000).unwrap(),
        };
        let header = received.header();
        assert_eq!(
            header.text,
            format!(
                "Received: from client.example ([192.0.2.1])\r\n\tby relay.example with ESMTPSA\r\n\t\
                 tls TLS_AES_256_GCM_SHA384 group X25519\r\n\tid {id}\r\n\tfor <a@b.example>;\r\n\t\
                 Tue, 14 Nov 2023 22:13:20 +0000\r\n"
            )
        );
        assert_eq!(
            &header.text[header.id_at..header.id_at + 26],
            id.to_string()
        );
        let other = Received {
            helo: "a)b?",
            peer: "[2001:db8::1]:1".parse().unwrap(),
            recipient: None,
            ..received
        };
        assert!(
            other
                .header()
                .text
                .starts_with("Received: from unknown ([IPv6:2001:db8::1])\r\n")
        );
    }
}
