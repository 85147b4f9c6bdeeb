//! Addresses that strangers must not make us dial.
use super::HopSource;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Refuses inner addresses that DNS or a recipient's literal names: a domain owner must not point
/// this relay at services inside its own network.
#[derive(Debug, Clone, Copy)]
pub struct AddressGuard {
    /// `allowPrivateDestinations`: dial them all the same.
    pub allow_private: bool,
}

impl AddressGuard {
    /// May this address be dialled? Routes of the policy always may.
    pub fn permits(self, address: IpAddr, source: HopSource) -> bool {
        source == HopSource::Route || self.allow_private || !is_inner(address)
    }
}

/// Loopback, private, shared, link-local, multicast, reserved or unspecified; also when an IPv4
/// address of these hides inside an IPv6 address.
fn is_inner(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_inner_v4(v4),
        IpAddr::V6(v6) => embedded_v4(v6).map_or_else(|| is_inner_v6(v6), is_inner_v4),
    }
}

fn is_inner_v4(a: Ipv4Addr) -> bool {
    let [first, second, third, _] = a.octets();
    first == 0 // RFC 1122 "this network", with the unspecified address
        || a.is_loopback()
        || a.is_private()
        || a.is_link_local()
        || a.is_multicast()
        || (first == 100 && (64..128).contains(&second)) // RFC 6598 shared address space
        || (first == 192 && second == 0 && third == 0) // RFC 6890 protocol assignments
        || (first == 198 && (18..20).contains(&second)) // RFC 2544 benchmarking
        || first >= 240 // RFC 1112 reserved, with broadcast
}

fn is_inner_v6(a: Ipv6Addr) -> bool {
    let first = a.segments()[0];
    a.is_unspecified()
        || a.is_loopback()
        || a.is_multicast()
        || (first & 0xfe00) == 0xfc00 // RFC 4193 unique local
        || (first & 0xffc0) == 0xfe80 // RFC 4291 link-local
        || (first & 0xffc0) == 0xfec0 // RFC 3879 site-local
        || first == 0x0100 // RFC 6666 discard
}

/// v4-mapped (RFC 4291), v4-compatible, NAT64 (RFC 6052, RFC 8215) and 6to4 (RFC 3056).
fn embedded_v4(a: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = |hi: u16, lo: u16| Ipv4Addr::from((u32::from(hi) << 16) | u32::from(lo));
    match a.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, hi, lo] if hi != 0 || lo > 1 => Some(low(hi, lo)),
        [0, 0, 0, 0, 0, 0xffff, hi, lo] => Some(low(hi, lo)),
        [0x64, 0xff9b, 0 | 1, 0, 0, 0, hi, lo] => Some(low(hi, lo)),
        [0x2002, hi, lo, ..] => Some(low(hi, lo)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INNER: [&str; 24] = [
        "127.0.0.1",
        "127.255.0.9",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.1",
        "192.168.1.1",
        "169.254.169.254",
        "0.0.0.0",
        "0.1.2.3",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:0.0.0.0",
        "::127.0.0.1",
        "fe80::1",
        "fd00::1",
        "ff02::1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
        "fec0::1",
        "198.18.0.1",
    ];

    #[test]
    fn inner_addresses_are_refused_unless_the_operator_named_or_allowed_them() {
        for text in INNER {
            let address = text.parse().expect(text);
            let strict = AddressGuard {
                allow_private: false,
            };
            assert!(!strict.permits(address, HopSource::Exchange), "{text}");
            assert!(!strict.permits(address, HopSource::Literal), "{text}");
            assert!(strict.permits(address, HopSource::Route), "{text}");
            assert!(
                AddressGuard {
                    allow_private: true
                }
                .permits(address, HopSource::Exchange),
                "{text}"
            );
        }
    }

    #[test]
    fn public_addresses_pass() {
        for text in [
            "192.0.2.1",
            "8.8.8.8",
            "172.32.0.1",
            "100.128.0.1",
            "2001:db8::1",
            "2a00:1450::1",
            "::ffff:8.8.8.8",
            "64:ff9b::808:808",
        ] {
            assert!(
                AddressGuard {
                    allow_private: false
                }
                .permits(text.parse().expect(text), HopSource::Exchange),
                "{text}"
            );
        }
    }
}
