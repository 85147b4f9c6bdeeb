//! One policy revision, ready for lookups.
use crate::document::{Document, FieldError};
use sealane_types::{DomainName, Mailbox, ReversePath};
use sealane_wire::v1::{self, document::Kind};
use std::collections::BTreeMap;

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// When to try again and when to give up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetrySchedule {
    /// After the first, second, … attempt; the last repeats.
    pub delays_ms: Vec<u64>,
    /// Give-up age.
    pub lifetime_ms: u64,
    /// Give-up age if missing or failing TLS is the cause.
    pub tls_lifetime_ms: u64,
}

impl Default for RetrySchedule {
    fn default() -> Self {
        Self {
            delays_ms: vec![
                MINUTE,
                5 * MINUTE,
                15 * MINUTE,
                30 * MINUTE,
                HOUR,
                HOUR,
                2 * HOUR,
                4 * HOUR,
            ],
            lifetime_ms: 5 * DAY,
            tls_lifetime_ms: DAY,
        }
    }
}

/// How fast mail goes to one destination, over the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, idle ones counted.
    pub connections: u32,
    /// Before a connection is closed.
    pub messages_per_connection: u32,
    /// Messages that begin within a minute; `None`: as fast as they are taken.
    pub messages_per_minute: Option<u32>,
    /// Connections that are opened within a minute; `None`: as many as are needed.
    pub connections_per_minute: Option<u32>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20,
            messages_per_connection: 100,
            messages_per_minute: None,
            connections_per_minute: None,
        }
    }
}

/// Everything about mail for one domain, defaults filled in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Destination {
    /// Static next hop; `None`: the domain's MX records.
    pub route: Option<v1::Route>,
    /// Level and its parameters.
    pub tls: v1::TlsRequirement,
    /// Schedule.
    pub retry: RetrySchedule,
    /// Limits.
    pub limits: Limits,
}

/// One revision.
#[derive(Debug, Clone, Default)]
pub struct PolicySnapshot {
    revision: u64,
    domains: BTreeMap<String, v1::DomainDocument>,
    submitters: BTreeMap<String, v1::SubmitterDocument>,
    destinations: BTreeMap<String, v1::DestinationDocument>,
}

impl PolicySnapshot {
    /// Validates the whole set.
    pub fn from_wire(set: &v1::PolicySet) -> Result<Self, FieldError> {
        let mut out = Self {
            revision: set.revision,
            ..Self::default()
        };
        for d in &set.documents {
            Document::from_wire(d)?;
            match d.kind.clone() {
                Some(Kind::Domain(x)) => drop(out.domains.insert(x.name.clone(), x)),
                Some(Kind::Submitter(x)) => drop(out.submitters.insert(x.name.clone(), x)),
                Some(Kind::Destination(x)) => drop(out.destinations.insert(x.name.clone(), x)),
                None => {}
            }
        }
        Ok(out)
    }

    /// Its number.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether mail for this domain is taken on the MX listener.
    pub fn serves(&self, domain: &DomainName) -> bool {
        self.domains.contains_key(domain.as_str())
    }

    /// Whether this recipient is taken on the MX listener.
    pub fn accepts(&self, mailbox: &Mailbox) -> bool {
        let Some(d) = mailbox.domain().and_then(|d| self.domains.get(d.as_str())) else {
            return false;
        };
        let local = mailbox.local_part_unquoted();
        d.recipients.is_empty()
            || local.eq_ignore_ascii_case("postmaster")
            || d.recipients.iter().any(|r| r.eq_ignore_ascii_case(&local))
    }

    /// The first served domain: where bare `postmaster` lives.
    pub fn home(&self) -> Option<&str> {
        self.domains.keys().next().map(String::as_str)
    }

    /// The password verifier of a submitter.
    pub fn verifier(&self, name: &str) -> Option<&str> {
        self.submitters
            .get(name)
            .map(|s| s.password_verifier.as_str())
    }

    /// Whether the submitter may use this reverse-path. Everyone may use the null one (RFC 6409 section 3.2).
    pub fn may_send_as(&self, name: &str, path: &ReversePath) -> bool {
        let Some(s) = self.submitters.get(name) else {
            return false;
        };
        let Some(m) = path.mailbox() else { return true };
        let text = m.to_string();
        let domain = m.domain().map_or("", DomainName::as_str);
        s.senders.iter().any(|p| match p.strip_prefix('@') {
            Some(d) => d.eq_ignore_ascii_case(domain),
            None => p == "*" || p.eq_ignore_ascii_case(&text),
        })
    }

    /// What applies to `domain`: each part from the most specific document that has it; a served domain's route wins.
    pub fn destination(&self, domain: &str) -> Destination {
        let domain = domain.to_ascii_lowercase();
        let mut chain: Vec<&v1::DestinationDocument> = Vec::new();
        chain.extend(self.destinations.get(&domain));
        let mut rest = domain.as_str();
        while let Some((_, parent)) = rest.split_once('.') {
            chain.extend(self.destinations.get(&format!(".{parent}")));
            rest = parent;
        }
        chain.extend(self.destinations.get("*"));
        let served = self.domains.get(&domain).and_then(|d| d.route.clone());
        let retry = chain.iter().find_map(|d| d.retry.as_ref()).map(|r| {
            let default = RetrySchedule::default();
            RetrySchedule {
                delays_ms: if r.delays_ms.is_empty() {
                    default.delays_ms
                } else {
                    r.delays_ms.clone()
                },
                lifetime_ms: r.lifetime_ms,
                tls_lifetime_ms: r.tls_lifetime_ms,
            }
        });
        let limits = chain
            .iter()
            .find_map(|d| d.limits.as_ref())
            .map(|l| Limits {
                connections: l.connections,
                messages_per_connection: l.messages_per_connection,
                messages_per_minute: l.messages_per_minute,
                connections_per_minute: l.connections_per_minute,
            });
        Destination {
            route: served.or_else(|| chain.iter().find_map(|d| d.route.clone())),
            tls: chain.iter().find_map(|d| d.tls.clone()).unwrap_or_default(),
            retry: retry.unwrap_or_default(),
            limits: limits.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::parse_yaml;

    fn snapshot(yaml: &str) -> PolicySnapshot {
        let documents = parse_yaml(yaml, "t", &mut || [9; 16])
            .unwrap()
            .into_iter()
            .map(|d| d.wire().clone())
            .collect();
        PolicySnapshot::from_wire(&v1::PolicySet {
            revision: 3,
            documents,
        })
        .unwrap()
    }

    #[test]
    fn the_most_specific_destination_wins_part_by_part() {
        let s = snapshot(
            "kind: Destination\nname: '*'\nroute: {host: a.example}\nlimits: {connections: 3}\n---\n\
             kind: Destination\nname: .big.example\ntls: {level: verified}\n---\n\
             kind: Domain\nname: served.example\nrecipients: [bob]\nroute: {host: 127.0.0.1, port: 2600}\n",
        );
        let d = s.destination("mx.Big.example");
        assert_eq!(
            (
                d.route.unwrap().host.as_str(),
                d.limits.connections,
                d.tls.level
            ),
            ("a.example", 3, 4)
        );
        assert_eq!(s.destination("served.example").route.unwrap().port, 2600);
        assert!(s.accepts(&Mailbox::parse("BOB@served.example").unwrap()));
        assert!(s.accepts(&Mailbox::parse("postmaster@served.example").unwrap()));
        assert!(!s.accepts(&Mailbox::parse("eve@served.example").unwrap()));
        assert!(!s.accepts(&Mailbox::parse("bob@other.example").unwrap()));
        assert_eq!(s.destination("x.example").retry, RetrySchedule::default());
    }

    #[test]
    fn submitters_send_only_as_themselves() {
        let v = crate::hash_password("p", &[1; 16]).unwrap();
        let s = snapshot(&format!(
            "kind: Submitter\nname: a\npasswordVerifier: '{v}'\nsenders: ['@a.example', 'x@b.example']\n"
        ));
        for (path, ok) in [
            ("any@a.example", true),
            ("x@b.example", true),
            ("y@b.example", false),
            ("", true),
        ] {
            assert_eq!(
                s.may_send_as("a", &ReversePath::parse(path).unwrap()),
                ok,
                "{path}"
            );
        }
        assert!(!s.may_send_as("nobody", &ReversePath::parse("").unwrap()));
    }
}
