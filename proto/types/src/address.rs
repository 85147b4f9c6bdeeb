//! Addresses of RFC 5321 section 4.1.2, parsed once and kept exact.
use std::fmt;

/// Not an address or domain name; says what is wrong, safe to show to the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(pub &'static str);

/// A domain name in lower case without a trailing dot; or an address literal in brackets, as given.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DomainName(String);

impl DomainName {
    /// At most 255 octets, labels of 1..=63 letters, digits, hyphens (not at the ends) and, as seen in the wild,
    /// underscores; or `[...]` with an IPv4 address or `IPv6:` and an address.
    pub fn parse(s: &str) -> Result<Self, AddressError> {
        if let Some(inner) = s.strip_prefix('[').and_then(|s| s.strip_suffix(']')) {
            let ok = match inner.get(..5) {
                Some(p) if p.eq_ignore_ascii_case("ipv6:") => {
                    inner[5..].parse::<std::net::Ipv6Addr>().is_ok()
                }
                _ => inner.parse::<std::net::Ipv4Addr>().is_ok(),
            };
            return if ok {
                Ok(Self(s.to_ascii_lowercase()))
            } else {
                Err(AddressError("bad address literal"))
            };
        }
        let s = s.strip_suffix('.').unwrap_or(s);
        if s.is_empty() || s.len() > 253 {
            return Err(AddressError("bad domain length"));
        }
        for label in s.split('.') {
            let b = label.as_bytes();
            if b.is_empty() || b.len() > 63 {
                return Err(AddressError("bad domain label length"));
            }
            if !b
                .iter()
                .all(|c| c.is_ascii_alphanumeric() || *c == b'-' || *c == b'_')
                || b[0] == b'-'
                || b[b.len() - 1] == b'-'
            {
                return Err(AddressError("bad character in domain"));
            }
        }
        Ok(Self(s.to_ascii_lowercase()))
    }
    /// Lower-case text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
    /// The address of a literal such as `[192.0.2.1]` or `[IPv6:2001:db8::1]`.
    pub fn literal(&self) -> Option<std::net::IpAddr> {
        let inner = self.0.strip_prefix('[')?.strip_suffix(']')?;
        match inner.strip_prefix("ipv6:") {
            Some(v6) => v6.parse().ok().map(std::net::IpAddr::V6),
            None => inner.parse().ok().map(std::net::IpAddr::V4),
        }
    }
    /// Has at least two labels, or is a literal (RFC 6409 section 4.2).
    pub fn is_fully_qualified(&self) -> bool {
        self.0.contains('.') || self.0.starts_with('[')
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `local-part@domain`, or bare `postmaster`. The local part is kept exactly as given, quotes included.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Mailbox {
    local: String,
    domain: Option<DomainName>,
}

impl Mailbox {
    /// Parses the inside of `<...>`. Source routes (`@a:b@c`) are refused; `%` and `!` are ordinary characters.
    pub fn parse(s: &str) -> Result<Self, AddressError> {
        if s.len() > 320 {
            return Err(AddressError("address too long"));
        }
        if s.eq_ignore_ascii_case("postmaster") {
            return Ok(Self {
                local: s.to_owned(),
                domain: None,
            });
        }
        if s.starts_with('@') {
            return Err(AddressError("source routes are not accepted"));
        }
        let at = if s.starts_with('"') {
            quoted_end(s)?
        } else {
            s.find('@').ok_or(AddressError("no domain"))?
        };
        let (local, rest) = s.split_at(at);
        let domain = rest.strip_prefix('@').ok_or(AddressError("no domain"))?;
        if local.is_empty() || local.len() > 64 {
            return Err(AddressError("bad local part length"));
        }
        if !local.starts_with('"') {
            let dots = local.starts_with('.') || local.ends_with('.') || local.contains("..");
            if dots || !local.bytes().all(|b| is_atext(b) || b == b'.') {
                return Err(AddressError("bad character in local part"));
            }
        }
        Ok(Self {
            local: local.to_owned(),
            domain: Some(DomainName::parse(domain)?),
        })
    }
    /// As given, quotes included.
    pub fn local_part(&self) -> &str {
        &self.local
    }
    /// The local part with quotes and backslashes undone, for comparison.
    pub fn local_part_unquoted(&self) -> String {
        match self
            .local
            .strip_prefix('"')
            .and_then(|s| s.strip_suffix('"'))
        {
            None => self.local.clone(),
            Some(inner) => {
                let mut out = String::new();
                let mut chars = inner.chars();
                while let Some(c) = chars.next() {
                    out.push(if c == '\\' {
                        chars.next().unwrap_or('\\')
                    } else {
                        c
                    });
                }
                out
            }
        }
    }
    /// `None` only for bare `postmaster`.
    pub fn domain(&self) -> Option<&DomainName> {
        self.domain.as_ref()
    }
}

/// Index just behind the closing quote of a quoted local part.
fn quoted_end(s: &str) -> Result<usize, AddressError> {
    let b = s.as_bytes();
    let mut i = 1;
    while i < b.len() {
        match b[i] {
            b'"' if i == 1 => return Err(AddressError("empty quoted local part")),
            b'"' => return Ok(i + 1),
            b'\\' if matches!(b.get(i + 1), Some(0x20..=0x7e)) => i += 2,
            0x20..=0x7e if b[i] != b'\\' => i += 1,
            _ => return Err(AddressError("bad character in quoted local part")),
        }
    }
    Err(AddressError("unterminated quoted local part"))
}

fn is_atext(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-/=?^_`{|}~".contains(&b)
}

impl fmt::Display for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.domain {
            Some(d) => write!(f, "{}@{d}", self.local),
            None => f.write_str(&self.local),
        }
    }
}

/// The address for failure reports; `None` inside is the null reverse-path `<>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ReversePath(Option<Mailbox>);

impl ReversePath {
    /// The inside of `<...>`; empty is the null reverse-path.
    pub fn parse(s: &str) -> Result<Self, AddressError> {
        if s.is_empty() {
            Ok(Self(None))
        } else {
            let mailbox = Mailbox::parse(s)?;
            // Only recipients may be a bare `postmaster` (RFC 5321 section 4.1.1.3).
            match mailbox.domain {
                Some(_) => Ok(Self(Some(mailbox))),
                None => Err(AddressError("domain is missing")),
            }
        }
    }
    /// `None` for `<>`.
    pub fn mailbox(&self) -> Option<&Mailbox> {
        self.0.as_ref()
    }
    /// `<>`.
    pub fn is_null(&self) -> bool {
        self.0.is_none()
    }
}

impl fmt::Display for ReversePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_ref().map_or(Ok(()), |m| m.fmt(f))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_mailboxes_print_as_given() {
        for (text, local, domain) in [
            ("a@b.example", "a", "b.example"),
            ("A.b+c%d!e@B.Example", "A.b+c%d!e", "b.example"),
            (r#""a b\"@c"@d.example"#, r#""a b\"@c""#, "d.example"),
            ("u@[192.0.2.1]", "u", "[192.0.2.1]"),
            ("u@[IPv6:2001:db8::1]", "u", "[ipv6:2001:db8::1]"),
        ] {
            let m = Mailbox::parse(text).expect(text);
            assert_eq!(m.local_part(), local);
            assert_eq!(m.domain().map(DomainName::as_str), Some(domain));
        }
        assert!(
            Mailbox::parse("Postmaster")
                .expect("RFC 5321 section 4.5.1")
                .domain()
                .is_none()
        );
    }

    #[test]
    fn bad_mailboxes_are_refused() {
        for text in [
            "",
            "a",
            "@b",
            "a@",
            "a b@c.example",
            "a..b@c.example",
            ".a@c.example",
            "a.@c.example",
            "@x:a@b.example",
            "a@b@c.example",
            "\"\"@d.example",
            "\"a@d.example",
            "\"a\"b@d.example",
            "a@-b.example",
            "a@b..example",
            "a@[1.2.3]",
            "a\r@b.example",
            "ü@b.example",
            "a@b.exa mple",
            "a@b.example\0",
        ] {
            assert!(Mailbox::parse(text).is_err(), "{text:?}");
        }
        assert!(Mailbox::parse(&format!("{}@b.example", "a".repeat(65))).is_err());
        assert!(DomainName::parse(&"a.".repeat(130)).is_err());
    }

    #[test]
    fn null_reverse_path_is_empty() {
        assert!(ReversePath::parse("").expect("null").is_null());
        assert_eq!(ReversePath::parse("").expect("null").to_string(), "");
    }
}
