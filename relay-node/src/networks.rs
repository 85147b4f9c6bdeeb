//! Networks as people write them: an address and the length of its prefix.
use serde::{Deserialize, Deserializer};
use std::{net::IpAddr, str::FromStr};

/// Addresses that share a prefix: `192.0.2.0/24`, `2001:db8::/32`. IPv4 addresses inside of IPv6 ones are IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    base: IpAddr,
    /// Bits.
    prefix: u32,
}

impl Network {
    /// Whether the address is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        let inside = |a: u128, b: u128, width: u32| {
            let rest = width - self.prefix;
            a.checked_shr(rest).unwrap_or(0) == b.checked_shr(rest).unwrap_or(0)
        };
        match (self.base, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => inside(a.to_bits().into(), b.to_bits().into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => inside(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let malformed = || format!("{s:?} is no network: write 192.0.2.0/24 or 2001:db8::/32");
        let (base, length) = s.trim().split_once('/').ok_or_else(malformed)?;
        let base: IpAddr = base.parse().map_err(|_| malformed())?;
        let mut prefix: u32 = length.parse().map_err(|_| malformed())?;
        let canonical = base.to_canonical();
        if canonical != base {
            prefix = prefix.checked_sub(96).ok_or_else(malformed)?;
        }
        let (bits, width): (u128, u32) = match canonical {
            IpAddr::V4(a) => (a.to_bits().into(), 32),
            IpAddr::V6(a) => (a.to_bits(), 128),
        };
        let rest = width.checked_sub(prefix).ok_or_else(malformed)?;
        if bits.trailing_zeros().min(width) < rest {
            return Err(format!("{s:?}: the address has bits behind its prefix"));
        }
        Ok(Self {
            base: canonical,
            prefix,
        })
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_in_a_network_by_its_prefix() {
        for (network, inside, outside) in [
            ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
            ("192.0.2.1/32", "192.0.2.1", "192.0.2.2"),
            ("192.0.2.0/25", "::ffff:192.0.2.127", "192.0.2.128"),
            ("0.0.0.0/0", "203.0.113.7", "2001:db8::1"),
            ("::ffff:10.0.0.0/104", "10.1.1.1", "::1"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::1"),
            ("::1/128", "::1", "::2"),
            ("::/0", "2001:db8::1", "192.0.2.1"),
        ] {
            let n: Network = network.parse().unwrap();
            assert!(n.contains(inside.parse().unwrap()), "{network} {inside}");
            assert!(!n.contains(outside.parse().unwrap()), "{network} {outside}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for bad in [
            "",
            "10.0.0.1",
            "10.0.0.0/",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "::1/64",
            "::/129",
            "a/8",
            "::ffff:1.2.3.4/95",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }
}
