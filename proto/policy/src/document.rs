//! One validation for every way in.
use sealane_types::{DomainName, ReversePath};
use sealane_wire::v1::{self, document::Kind, tls_requirement::Level};

/// A document whose every field was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Document(v1::Document);

/// The wrong field, as spelt in YAML, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct FieldError {
    /// Path of the field.
    pub field: String,
    /// What is wrong.
    pub reason: String,
}

/// Of a limit: far beyond what a destination takes.
const MOST: u32 = 1_000_000;

fn err<T>(field: &str, reason: impl ToString) -> Result<T, FieldError> {
    Err(FieldError {
        field: field.to_owned(),
        reason: reason.to_string(),
    })
}

/// "Kind/name".
pub fn document_key(d: &v1::Document) -> String {
    match &d.kind {
        Some(Kind::Domain(x)) => format!("Domain/{}", x.name),
        Some(Kind::Submitter(x)) => format!("Submitter/{}", x.name),
        Some(Kind::Destination(x)) => format!("Destination/{}", x.name),
        None => "unknown".to_owned(),
    }
}

impl Document {
    /// Checks every field.
    pub fn from_wire(d: &v1::Document) -> Result<Self, FieldError> {
        match &d.kind {
            None => {
                return err(
                    "kind",
                    "missing or unknown: Domain, Submitter or Destination",
                );
            }
            Some(Kind::Domain(x)) => domain(x)?,
            Some(Kind::Submitter(x)) => submitter(x)?,
            Some(Kind::Destination(x)) => destination(x)?,
        }
        Ok(Self(d.clone()))
    }

    /// For the wire.
    pub fn wire(&self) -> &v1::Document {
        &self.0
    }
}

fn name_is_domain(field: &str, name: &str) -> Result<(), FieldError> {
    let parsed = DomainName::parse(name).or_else(|e| err(field, format!("{name:?}: {e}")))?;
    if parsed.as_str() != name {
        return err(
            field,
            format!("{name:?}: write it as {:?}", parsed.as_str()),
        );
    }
    Ok(())
}

fn domain(x: &v1::DomainDocument) -> Result<(), FieldError> {
    name_is_domain("name", &x.name)?;
    for r in &x.recipients {
        if r.is_empty() || r.contains('@') || r.len() > 64 {
            return err("recipients", format!("{r:?} is no local part"));
        }
    }
    x.route.as_ref().map_or(Ok(()), route)
}

fn route(r: &v1::Route) -> Result<(), FieldError> {
    let literal = r.host.parse::<std::net::IpAddr>().is_ok();
    if !literal && DomainName::parse(&r.host).is_err() {
        return err(
            "route.host",
            format!("{:?} is neither a host name nor an address", r.host),
        );
    }
    if r.port > u32::from(u16::MAX) {
        return err("route.port", format!("{} is above 65535", r.port));
    }
    Ok(())
}

fn submitter(x: &v1::SubmitterDocument) -> Result<(), FieldError> {
    if x.name.is_empty() || x.name.len() > 255 || x.name.chars().any(char::is_control) {
        return err("name", "needs 1 to 255 printable characters");
    }
    if !x.password_verifier.starts_with("$argon2id$") {
        return err("passwordVerifier", "needs an argon2id PHC string");
    }
    let verifier = argon2::password_hash::PasswordHash::new(&x.password_verifier)
        .or_else(|e| err("passwordVerifier", e))?;
    if verifier.salt.is_none() || verifier.hash.is_none() {
        return err("passwordVerifier", "needs a salt and a hash");
    }
    // Whoever tries a password makes the relay pay this.
    for (parameter, most) in [("m", 262_144), ("t", 16), ("p", 16)] {
        if verifier
            .params
            .get_decimal(parameter)
            .is_some_and(|value| value > most)
        {
            return err("passwordVerifier", format!("{parameter} is above {most}"));
        }
    }
    if x.senders.is_empty() {
        return err("senders", "names nobody: this submitter could not send");
    }
    for s in &x.senders {
        let ok = s == "*"
            || match s.strip_prefix('@') {
                Some(domain) => DomainName::parse(domain).is_ok(),
                None => ReversePath::parse(s)
                    .is_ok_and(|p| p.mailbox().is_some_and(|m| m.domain().is_some())),
            };
        if !ok {
            return err(
                "senders",
                format!("{s:?} is neither user@domain, @domain nor \"*\""),
            );
        }
    }
    Ok(())
}

fn destination(x: &v1::DestinationDocument) -> Result<(), FieldError> {
    if x.name != "*" {
        name_is_domain("name", x.name.strip_prefix('.').unwrap_or(&x.name))?;
    }
    if let Some(r) = &x.route {
        route(r)?;
    }
    if let Some(t) = &x.tls {
        tls(t)?;
    }
    if let Some(r) = &x.retry {
        if r.delays_ms.contains(&0) {
            return err("retry.delays", "a delay of 0 would try without pause");
        }
        if r.lifetime_ms == 0 || r.tls_lifetime_ms == 0 {
            return err("retry.lifetime", "must not be 0");
        }
    }
    x.limits.as_ref().map_or(Ok(()), limits)
}

fn limits(l: &v1::Limits) -> Result<(), FieldError> {
    for (field, value) in [
        ("limits.connections", Some(l.connections)),
        (
            "limits.messagesPerConnection",
            Some(l.messages_per_connection),
        ),
        ("limits.messagesPerMinute", l.messages_per_minute),
        ("limits.connectionsPerMinute", l.connections_per_minute),
    ] {
        if value == Some(0) {
            return err(field, "0 would stop all mail");
        }
        if value.is_some_and(|n| n > MOST) {
            return err(field, format!("is above {MOST}"));
        }
    }
    Ok(())
}

fn tls(t: &v1::TlsRequirement) -> Result<(), FieldError> {
    let level = Level::try_from(t.level).or_else(|_| err("tls.level", "unknown"))?;
    if level == Level::Fingerprint && t.pins.is_empty() {
        return err("tls.pins", "fingerprint needs at least one pin");
    }
    if t.pins.iter().any(|p| p.len() != 32) {
        return err(
            "tls.pins",
            "a pin is the SHA-256 of the public key: 64 hexadecimal digits",
        );
    }
    for n in &t.names {
        DomainName::parse(n).or_else(|e| err("tls.names", format!("{n:?}: {e}")))?;
    }
    Ok(())
}
