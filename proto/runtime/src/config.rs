//! YAML configuration, validated whole before anything binds.
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use std::{path::Path, str::FromStr, time::Duration};

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("configuration error{}: {field}{reason}", location(.file, .line))]
pub struct ConfigError {
    file: Option<String>,
    line: Option<u64>,
    field: String,
    reason: String,
}

fn location(file: &Option<String>, line: &Option<u64>) -> String {
    match (file, line) {
        (Some(f), Some(l)) => format!(" in {f} line {l}"),
        (Some(f), None) => format!(" in {f}"),
        _ => String::new(),
    }
}

impl ConfigError {
    /// A well-formed file with a wrong value in `field` (as spelt in the file).
    pub fn field(field: &str, reason: impl ToString) -> Self {
        Self {
            file: None,
            line: None,
            field: format!("{field}: "),
            reason: reason.to_string(),
        }
    }
}

/// Checks that go beyond one field's type.
pub trait Validate {
    /// Names the first wrong field.
    fn validate(&self) -> Result<(), ConfigError>;
}

/// Reads, parses and validates `path`.
pub fn load<T: DeserializeOwned + Validate>(path: &Path) -> Result<T, ConfigError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
        file: Some(file.clone()),
        line: None,
        field: String::new(),
        reason: e.to_string(),
    })?;
    parse(&text, &file)
}

fn parse<T: DeserializeOwned + Validate>(text: &str, file: &str) -> Result<T, ConfigError> {
    let value: T = serde_saphyr::from_str(text).map_err(|e| {
        let at = e.location();
        let field = at
            .and_then(|l| field_at(text, l.line(), l.column()))
            .map(|f| format!("{f}: "))
            .unwrap_or_default();
        ConfigError {
            file: Some(file.to_owned()),
            line: at.map(|l| l.line()),
            field,
            reason: e.without_snippet().to_string(),
        }
    })?;
    value.validate().map_err(|e| {
        let name = e
            .field
            .trim_end_matches(": ")
            .rsplit('.')
            .next()
            .unwrap_or_default()
            .to_owned();
        let line = text.lines().position(|l| {
            l.trim_start()
                .trim_start_matches("- ")
                .starts_with(&format!("{name}:"))
        });
        ConfigError {
            file: Some(file.to_owned()),
            line: line.map(|n| n as u64 + 1),
            ..e
        }
    })?;
    Ok(value)
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

/// Octets: `1024`, `64KiB`, `256MiB`, `1GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let s = s.trim();
        let split = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(split);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => {
                return Err(format!(
                    "{s:?} is no size: write 1024, 64KiB, 256MiB or 1GiB"
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("{s:?} is no size: write 64KiB or 256MiB"))?;
        number
            .checked_mul(factor)
            .map(Self)
            .ok_or_else(|| format!("{s:?} is too large"))
    }
}

/// A length of time: `500ms`, `30s`, `5m`, `1h`, `5d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigSpan(pub Duration);

impl FromStr for ConfigSpan {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let s = s.trim();
        let split = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let (number, unit) = s.split_at(split);
        let factor: u64 = match unit.trim() {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => {
                return Err(format!(
                    "{s:?} is no length of time: write 500ms, 30s, 5m, 1h or 5d"
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("{s:?} is no length of time: write 30s or 5m"))?;
        number
            .checked_mul(factor)
            .map(|ms| Self(Duration::from_millis(ms)))
            .ok_or_else(|| format!("{s:?} is too long"))
    }
}

macro_rules! from_text {
    ($t:ty) => {
        impl<'de> Deserialize<'de> for $t {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                String::deserialize(d)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }
    };
}
from_text!(ByteSize);
from_text!(ConfigSpan);

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Example {
        #[allow(dead_code, reason = "only parsed")]
        body_budget: ByteSize,
        lease: ConfigSpan,
    }
    impl Validate for Example {
        fn validate(&self) -> Result<(), ConfigError> {
            if self.lease.0.is_zero() {
                Err(ConfigError::field("lease", "must not be 0"))
            } else {
                Ok(())
            }
        }
    }

    #[test]
    fn sizes_and_spans_have_units() {
        assert_eq!("256MiB".parse(), Ok(ByteSize(256 << 20)));
        assert_eq!(
            "5d".parse(),
            Ok(ConfigSpan(Duration::from_secs(5 * 86_400)))
        );
        for bad in ["", "MiB", "1MB", "-1s", "99999999999999999999GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
            assert!(bad.parse::<ConfigSpan>().is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_name_field_and_line() {
        let e = parse::<Example>("bodyBudget: 1MiB\nlease: 0s\n", "f.yaml")
            .unwrap_err()
            .to_string();
        assert_eq!(
            e,
            "configuration error in f.yaml line 2: lease: must not be 0"
        );
        let e = parse::<Example>("bodyBudget: 1MiB\nlese: 3s\n", "f.yaml")
            .unwrap_err()
            .to_string();
        assert!(e.contains("line 2") && e.contains("lese"), "{e}");
        let e = parse::<Example>("bodyBudget: much\nlease: 3s\n", "f.yaml")
            .unwrap_err()
            .to_string();
        assert!(
            e.contains("line 1: bodyBudget: ") && e.contains("much"),
            "{e}"
        );
        let e = parse::<Example>("{ bodyBudget: 1MiB, lease: soon }\n", "f.yaml")
            .unwrap_err()
            .to_string();
        assert!(e.contains("line 1: lease: ") && e.contains("soon"), "{e}");
    }
}
