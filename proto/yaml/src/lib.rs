//! YAML that people write: errors with line and field, sizes and lengths of time with units.
#![forbid(unsafe_code)]

mod units;

pub use units::{ByteSize, ConfigSpan};

use serde::de::DeserializeOwned;

/// What is wrong with a text, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{reason}", .field.as_ref().map_or_else(String::new, |f| format!("{f}: ")))]
pub struct YamlError {
    /// From 1.
    pub line: Option<u64>,
    /// The key whose value is wrong, where that can be told.
    pub field: Option<String>,
    /// Says line and column again.
    pub reason: String,
}

/// Reads one document.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, YamlError> {
    serde_saphyr::from_str(text).map_err(|e| {
        let at = e.location();
        YamlError {
            line: at.map(|l| l.line()),
            field: at.and_then(|l| field_at(text, l.line(), l.column())),
            reason: e.without_snippet().to_string(),
        }
    })
}

/// The line, from 1, of the first key with the last name of a dotted `field`.
pub fn line_of(text: &str, field: &str) -> Option<u64> {
    let name = field.rsplit('.').next().unwrap_or(field);
    let key = format!("{name}:");
    let begins = |line: &str| line.trim_start().trim_start_matches("- ").starts_with(&key);
    let within = |line: &str| line.contains(&key);
    let found = text
        .lines()
        .position(begins)
        .or_else(|| text.lines().position(within));
    found.map(|n| n as u64 + 1)
}

/// The key whose value stands at a position (both from 1): the last `key:` on that line that begins there or before.
fn field_at(text: &str, line: u64, column: u64) -> Option<String> {
    let line = text
        .lines()
        .nth(usize::try_from(line).ok()?.checked_sub(1)?)?;
    let column = usize::try_from(column).ok()?;
    let mut found = None;
    for (at, _) in line.match_indices(':') {
        let begin = line[..at]
            .rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .map_or(0, |n| n + 1);
        let name = &line[begin..at];
        if !name.is_empty() && begin < column && line[at + 1..].starts_with([' ', '\t']) {
            found = Some(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Example {
        size: ByteSize,
        route: Option<Route>,
    }
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only parsed")]
    struct Route {
        port: u16,
    }

    #[test]
    fn errors_have_line_and_field() {
        for (text, line, field) in [
            ("size: 1\nroute: { port: 99999 }\n", 2, "port"),
            ("size: 1\nroute:\n  port: many\n", 3, "port"),
            ("\nsize: much\n", 2, "size"),
            ("size: 1\ncolour: red\n", 2, "colour"),
            ("size: [1]\n", 1, "size"),
        ] {
            let e = parse::<Example>(text).unwrap_err();
            assert_eq!(
                (e.line, e.field.as_deref()),
                (Some(line), Some(field)),
                "{text}{e:?}"
            );
        }
        assert!(
            parse::<Example>("size: 1\n\tx: 2")
                .unwrap_err()
                .line
                .is_some()
        );
    }

    #[test]
    fn a_key_is_found_before_its_mention() {
        let text = "a: 'name: x'\nb:\n  - name: y\nc: { port: 3 }\n";
        assert_eq!(line_of(text, "b.name"), Some(3));
        assert_eq!(line_of(text, "port"), Some(4));
        assert_eq!(line_of(text, "none"), None);
    }
}
