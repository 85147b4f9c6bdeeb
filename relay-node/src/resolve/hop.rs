//! One address to dial.
use std::net::{IpAddr, SocketAddr};

/// One address of one host of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Hop {
    /// Lower-case host name, or the address as text where there is no name. The identity that a
    /// certificate is compared with.
    pub host: String,
    /// What is dialled.
    pub address: SocketAddr,
    /// TLS from the first octet instead of STARTTLS (RFC 8314 section 3.3).
    pub implicit_tls: bool,
    /// Who named it.
    pub source: HopSource,
}

/// Who named a hop. Only the operator may name inner addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HopSource {
    /// The policy.
    Route,
    /// The recipient's address literal.
    Literal,
    /// DNS.
    Exchange,
}

/// A next hop that the operator configured.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StaticRoute {
    /// Name or address, brackets allowed.
    pub host: String,
    /// 0: 25, or 465 with implicit TLS.
    pub port: u16,
    /// TLS from the first octet.
    pub implicit_tls: bool,
}

impl StaticRoute {
    /// The port with the default filled in.
    pub fn effective_port(&self) -> u16 {
        match (self.port, self.implicit_tls) {
            (0, false) => 25,
            (0, true) => 465,
            (port, _) => port,
        }
    }
    /// The address, if the host is one: `192.0.2.1`, `[192.0.2.1]`, `[IPv6:2001:db8::1]`, `2001:db8::1`.
    pub fn address(&self) -> Option<IpAddr> {
        let host = self
            .host
            .strip_prefix('[')
            .and_then(|h| h.strip_suffix(']'))
            .unwrap_or(&self.host);
        let host = match host.get(..5) {
            Some(prefix) if prefix.eq_ignore_ascii_case("ipv6:") => &host[5..],
            _ => host,
        };
        host.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_host_may_be_any_form_of_address() {
        for (host, ip) in [
            ("192.0.2.1", Some("192.0.2.1")),
            ("[192.0.2.1]", Some("192.0.2.1")),
            ("[IPv6:2001:db8::1]", Some("2001:db8::1")),
            ("[2001:db8::1]", Some("2001:db8::1")),
            ("2001:db8::1", Some("2001:db8::1")),
            ("mx.example", None),
            ("", None),
        ] {
            let route = StaticRoute {
                host: host.to_owned(),
                port: 0,
                implicit_tls: false,
            };
            assert_eq!(
                route.address(),
                ip.map(|ip| ip.parse().expect("address")),
                "{host}"
            );
        }
    }

    #[test]
    fn the_default_port_follows_the_kind_of_tls() {
        let route = |port, implicit_tls| {
            StaticRoute {
                host: String::new(),
                port,
                implicit_tls,
            }
            .effective_port()
        };
        assert_eq!(
            (route(0, false), route(0, true), route(2600, true)),
            (25, 465, 2600)
        );
    }
}
