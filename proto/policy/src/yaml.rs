//! YAML documents. Errors name file, line, document and field.
use crate::{document::Document, document_key, hash_password};
use sealane_wire::v1::{self, document::Kind, tls_requirement::Level};
use sealane_yaml::{ConfigSpan, YamlError, line_of};
use serde::{Deserialize, Serialize};

/// Where a policy file is wrong, and why. Nothing of it was applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {document}{reason}")]
pub struct PolicyError {
    /// As given.
    pub file: String,
    /// From 1.
    pub line: u64,
    document: String,
    reason: String,
}

/// What is read first of a document. The document is then read again as its own type: an enum tagged
/// by `kind` would lose the positions of errors.
#[derive(Debug, Deserialize)]
struct YamlKind {
    kind: KindName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum KindName {
    Domain,
    Submitter,
    Destination,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlDomain {
    kind: KindName,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recipients: Option<Recipients>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<YamlRoute>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlSubmitter {
    kind: KindName,
    name: String,
    #[serde(default, skip_serializing)]
    password: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password_verifier: Option<String>,
    senders: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlDestination {
    kind: KindName,
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<YamlRoute>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls: Option<YamlTls>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retry: Option<YamlRetry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limits: Option<YamlLimits>,
}

/// A document by its kind.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Yaml {
    Domain(YamlDomain),
    Submitter(YamlSubmitter),
    Destination(YamlDestination),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Recipients {
    Any(String),
    These(Vec<String>),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlRoute {
    host: String,
    #[serde(default)]
    port: u32,
    #[serde(default)]
    implicit_tls: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlTls {
    level: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    names: Vec<String>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    roots_pem: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pins: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlRetry {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    delays: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lifetime: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tls_lifetime: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct YamlLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connections: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages_per_connection: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    messages_per_minute: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    connections_per_minute: Option<u32>,
}

const LEVELS: [(&str, Level); 6] = [
    ("encrypt", Level::Encrypt),
    ("secure", Level::Secure),
    ("fingerprint", Level::Fingerprint),
    ("verified", Level::Verified),
    ("dane-only", Level::DaneOnly),
    ("peer", Level::Peer),
];

/// Parses a file of documents separated by `---`; `salt` gives a random salt for each `password`.
pub fn parse_yaml(
    text: &str,
    file: &str,
    salt: &mut dyn FnMut() -> [u8; 16],
) -> Result<Vec<Document>, PolicyError> {
    let mut out: Vec<Document> = Vec::new();
    let mut first_line = 1usize;
    for part in text.split("\n---") {
        // "---" alone begins a document; what stands behind it on the line belongs to the separator.
        let part_body = part.strip_prefix("---").unwrap_or(part);
        // Lines are counted in the file.
        let body = format!("{}{part_body}", "\n".repeat(first_line - 1));
        first_line += part.matches('\n').count() + 1;
        if part_body
            .lines()
            .all(|l| l.trim().is_empty() || l.trim_start().starts_with('#'))
        {
            continue;
        }
        let at = |line: Option<u64>, document: &str, reason: String| PolicyError {
            file: file.to_owned(),
            line: line.unwrap_or(1),
            document: document.to_owned(),
            reason,
        };
        let yaml = Yaml::read(&body).map_err(|e| at(e.line, "", e.to_string()))?;
        let label = yaml.label();
        let wrong =
            |field: &str, reason: String| at(line_of(&body, field), &format!("{label}: "), reason);
        let wire = yaml
            .into_wire(salt)
            .map_err(|(field, reason)| wrong(&field, format!("{field}: {reason}")))?;
        let document = Document::from_wire(&wire).map_err(|e| wrong(&e.field, e.to_string()))?;
        if out
            .iter()
            .any(|d| document_key(d.wire()) == document_key(&wire))
        {
            return Err(wrong("name", "stands in this file twice".to_owned()));
        }
        out.push(document);
    }
    if out.is_empty() {
        return Err(PolicyError {
            file: file.to_owned(),
            line: 1,
            document: String::new(),
            reason: "no document".into(),
        });
    }
    Ok(out)
}

type Wrong = (String, String);

fn wrong<T>(field: &str, reason: impl ToString) -> Result<T, Wrong> {
    Err((field.to_owned(), reason.to_string()))
}

fn span(field: &str, s: &str) -> Result<u64, Wrong> {
    let span: ConfigSpan = s.parse().or_else(|e| wrong(field, e))?;
    Ok(u64::try_from(span.0.as_millis()).unwrap_or(u64::MAX))
}

impl Yaml {
    fn read(body: &str) -> Result<Self, YamlError> {
        let YamlKind { kind } = sealane_yaml::parse(body)?;
        Ok(match kind {
            KindName::Domain => Self::Domain(sealane_yaml::parse(body)?),
            KindName::Submitter => Self::Submitter(sealane_yaml::parse(body)?),
            KindName::Destination => Self::Destination(sealane_yaml::parse(body)?),
        })
    }

    fn label(&self) -> String {
        match self {
            Yaml::Domain(d) => format!("Domain {:?}", d.name),
            Yaml::Submitter(s) => format!("Submitter {:?}", s.name),
            Yaml::Destination(d) => format!("Destination {:?}", d.name),
        }
    }

    fn into_wire(self, salt: &mut dyn FnMut() -> [u8; 16]) -> Result<v1::Document, Wrong> {
        let kind = match self {
            Yaml::Domain(YamlDomain {
                kind: _,
                name,
                recipients,
                route,
            }) => {
                let recipients = match recipients {
                    None => Vec::new(),
                    Some(Recipients::Any(a)) if a == "any" => Vec::new(),
                    Some(Recipients::Any(a)) => {
                        return wrong("recipients", format!("{a:?}: write any or a list"));
                    }
                    Some(Recipients::These(l)) if l.is_empty() => {
                        return wrong(
                            "recipients",
                            "an empty list would accept nobody: leave it out for any",
                        );
                    }
                    Some(Recipients::These(l)) => l,
                };
                Kind::Domain(v1::DomainDocument {
                    name,
                    recipients,
                    route: route.map(YamlRoute::into_wire),
                })
            }
            Yaml::Submitter(YamlSubmitter {
                kind: _,
                name,
                password,
                password_verifier,
                senders,
            }) => {
                let password_verifier = match (password, password_verifier) {
                    (Some(p), None) => {
                        hash_password(&p, &salt()).or_else(|e| wrong("password", e))?
                    }
                    (None, Some(v)) => v,
                    _ => return wrong("password", "give either password or passwordVerifier"),
                };
                Kind::Submitter(v1::SubmitterDocument {
                    name,
                    password_verifier,
                    senders,
                })
            }
            Yaml::Destination(YamlDestination {
                kind: _,
                name,
                route,
                tls,
                retry,
                limits,
            }) => Kind::Destination(v1::DestinationDocument {
                name,
                route: route.map(YamlRoute::into_wire),
                tls: tls.map(YamlTls::into_wire).transpose()?,
                retry: retry.map(YamlRetry::into_wire).transpose()?,
                limits: limits.map(|l| v1::Limits {
                    connections: l.connections.unwrap_or(20),
                    messages_per_connection: l.messages_per_connection.unwrap_or(100),
                    messages_per_minute: l.messages_per_minute,
                    connections_per_minute: l.connections_per_minute,
                }),
            }),
        };
        Ok(v1::Document { kind: Some(kind) })
    }
}

impl YamlRoute {
    fn into_wire(self) -> v1::Route {
        v1::Route {
            host: self.host,
            port: self.port,
            implicit_tls: self.implicit_tls,
        }
    }
}

impl YamlTls {
    fn into_wire(self) -> Result<v1::TlsRequirement, Wrong> {
        let level = match LEVELS.iter().find(|(n, _)| *n == self.level) {
            Some((_, l)) => *l,
            None if matches!(self.level.as_str(), "none" | "may") => {
                return wrong(
                    "tls.level",
                    format!(
                        "{:?}: plaintext has no spelling here; encrypt, the default, is the least",
                        self.level
                    ),
                );
            }
            None => {
                let names = LEVELS.map(|(n, _)| n).join(", ");
                return wrong(
                    "tls.level",
                    format!("{:?} is unknown; one of {names}", self.level),
                );
            }
        };
        let mut pins = Vec::new();
        for p in self.pins {
            let clean = p.replace(':', "").to_ascii_lowercase();
            let pin = data_encoding::HEXLOWER.decode(clean.as_bytes());
            pins.push(
                pin.or_else(|e| wrong("tls.pins", format!("{p:?}: {e}")))?
                    .into(),
            );
        }
        Ok(v1::TlsRequirement {
            level: level.into(),
            names: self.names,
            roots_pem: self.roots_pem,
            pins,
        })
    }
}

impl YamlRetry {
    fn into_wire(self) -> Result<v1::RetrySchedule, Wrong> {
        let default = crate::RetrySchedule::default();
        let delays_ms = self
            .delays
            .iter()
            .map(|d| span("retry.delays", d))
            .collect::<Result<_, _>>()?;
        let lifetime_ms = self
            .lifetime
            .map_or(Ok(default.lifetime_ms), |l| span("retry.lifetime", &l))?;
        let tls_lifetime_ms = self.tls_lifetime.map_or(Ok(default.tls_lifetime_ms), |l| {
            span("retry.tlsLifetime", &l)
        })?;
        Ok(v1::RetrySchedule {
            delays_ms,
            lifetime_ms,
            tls_lifetime_ms,
        })
    }
}

fn ms(n: u64) -> String {
    for (unit, size) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if n.is_multiple_of(size) {
            return format!("{}{unit}", n / size);
        }
    }
    format!("{n}ms")
}

/// The documents as people write them.
pub fn readable(documents: &[v1::Document]) -> Vec<impl Serialize> {
    let route = |r: &v1::Route| YamlRoute {
        host: r.host.clone(),
        port: r.port,
        implicit_tls: r.implicit_tls,
    };
    documents
        .iter()
        .filter_map(|d| {
            Some(match d.kind.as_ref()? {
                Kind::Domain(x) => Yaml::Domain(YamlDomain {
                    kind: KindName::Domain,
                    name: x.name.clone(),
                    recipients: Some(if x.recipients.is_empty() {
                        Recipients::Any("any".into())
                    } else {
                        Recipients::These(x.recipients.clone())
                    }),
                    route: x.route.as_ref().map(route),
                }),
                Kind::Submitter(x) => Yaml::Submitter(YamlSubmitter {
                    kind: KindName::Submitter,
                    name: x.name.clone(),
                    password: None,
                    password_verifier: Some(x.password_verifier.clone()),
                    senders: x.senders.clone(),
                }),
                Kind::Destination(x) => Yaml::Destination(YamlDestination {
                    kind: KindName::Destination,
                    name: x.name.clone(),
                    route: x.route.as_ref().map(route),
                    tls: x.tls.as_ref().map(|t| YamlTls {
                        level: LEVELS
                            .iter()
                            .find(|(_, l)| *l == t.level())
                            .map_or("encrypt", |(n, _)| n)
                            .to_owned(),
                        names: t.names.clone(),
                        roots_pem: t.roots_pem.clone(),
                        pins: t
                            .pins
                            .iter()
                            .map(|p| data_encoding::HEXLOWER.encode(p))
                            .collect(),
                    }),
                    retry: x.retry.as_ref().map(|r| YamlRetry {
                        delays: r.delays_ms.iter().map(|d| ms(*d)).collect(),
                        lifetime: Some(ms(r.lifetime_ms)),
                        tls_lifetime: Some(ms(r.tls_lifetime_ms)),
                    }),
                    limits: x.limits.as_ref().map(|l| YamlLimits {
                        connections: Some(l.connections),
                        messages_per_connection: Some(l.messages_per_connection),
                        messages_per_minute: l.messages_per_minute,
                        connections_per_minute: l.connections_per_minute,
                    }),
                }),
            })
        })
        .collect()
}

/// The documents as YAML that [`parse_yaml`] reads back to the same.
pub fn to_yaml(documents: &[v1::Document]) -> String {
    let parts: Vec<String> = readable(documents)
        .iter()
        .filter_map(|d| serde_saphyr::to_string(d).ok())
        .collect();
    parts.join("---\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn salt() -> [u8; 16] {
        [9; 16]
    }

    #[test]
    fn documents_survive_yaml() {
        let v = hash_password("p", &[1; 16]).unwrap();
        let text = format!(
            "kind: Domain\nname: served.example\nrecipients: [a, b]\nroute: {{ host: 127.0.0.1, port: 2600 }}\n---\n\
             kind: Submitter\nname: demo\npasswordVerifier: '{v}'\nsenders: ['*']\n---\n\
             # comment\nkind: Destination\nname: '*'\ntls: {{ level: fingerprint, pins: ['{}'] }}\n\
             retry: {{ delays: [1m, 90s], lifetime: 5d }}\nlimits: {{ connections: 2, messagesPerMinute: 90, connectionsPerMinute: 7 }}\n",
            "ab".repeat(32)
        );
        let once: Vec<_> = parse_yaml(&text, "a", &mut salt)
            .unwrap()
            .iter()
            .map(|d| d.wire().clone())
            .collect();
        assert_eq!(once.len(), 3);
        let Some(Kind::Destination(d)) = &once[2].kind else {
            panic!("{:?}", once[2]);
        };
        let limits = d.limits.unwrap();
        assert_eq!(
            (limits.messages_per_minute, limits.connections_per_minute),
            (Some(90), Some(7))
        );
        let twice: Vec<_> = parse_yaml(&to_yaml(&once), "b", &mut salt)
            .unwrap()
            .iter()
            .map(|d| d.wire().clone())
            .collect();
        assert_eq!(once, twice);
    }

    #[test]
    fn errors_name_file_line_and_field() {
        for (text, expected) in [
            (
                "kind: Domain\nname: a.example\n---\nkind: Destination\nname: '*'\ntls:\n  level: may\n",
                "p:7: Destination \"*\": tls.level: \"may\": plaintext",
            ),
            ("kind: Domain\nname: a..b\n", "p:2: Domain \"a..b\": name:"),
            (
                "kind: Domain\nname: a.example\n---\nkind: Domain\nname: b.example\ncolour: red\n",
                "p:6: colour: unknown field `colour`",
            ),
            (
                "---\nkind: Domain\nname: a.example\nroute:\n  host: b.example\n  port: many\n",
                "p:6: port: ",
            ),
            (
                "kind: Domain\nname: a.example\n\n---\nkind: Domain\nname: b.example\ncolour: red\n",
                "p:7: colour: unknown field `colour`",
            ),
            ("kind: Server\nname: a\n", "p:1: kind: "),
            ("name: a.example\n", "missing field `kind`"),
            (
                "kind: Submitter\nname: a\nsenders: ['*']\n",
                "Submitter \"a\": password:",
            ),
            (
                "kind: Destination\nname: '*'\nretry: { delays: [soon] }\n",
                "p:3: Destination \"*\": retry.delays: \"soon\"",
            ),
            (
                "kind: Destination\nname: '*'\nlimits:\n  connections: 3\n  messagesPerMinute: 0\n",
                "p:5: Destination \"*\": limits.messagesPerMinute: 0 would stop all mail",
            ),
            (
                "kind: Destination\nname: '*'\nlimits: { connectionsPerMinute: 9999999 }\n",
                "limits.connectionsPerMinute: is above 1000000",
            ),
            (
                "kind: Domain\nname: a.example\n---\nkind: Domain\nname: a.example\n",
                "twice",
            ),
            ("", "no document"),
        ] {
            let e = parse_yaml(text, "p", &mut salt).unwrap_err().to_string();
            assert!(e.contains(expected), "{e} does not contain {expected}");
        }
    }
}
