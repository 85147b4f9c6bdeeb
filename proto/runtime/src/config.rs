//! YAML configuration, validated whole before anything binds.
pub use sealane_yaml::{ByteSize, ConfigSpan};
use serde::de::DeserializeOwned;
use std::path::Path;

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

/// Reads and parses `path`, changes what the command line says otherwise, and validates the whole.
pub fn load<T: DeserializeOwned + Validate>(
    path: &Path,
    adjust: impl FnOnce(&mut T) -> Result<(), ConfigError>,
) -> Result<T, ConfigError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError {
        file: Some(file.clone()),
        line: None,
        field: String::new(),
        reason: e.to_string(),
    })?;
    parse_and(&text, &file, adjust)
}

/// Parses and validates what is said to be the contents of `file`.
pub fn parse<T: DeserializeOwned + Validate>(text: &str, file: &str) -> Result<T, ConfigError> {
    parse_and(text, file, |_| Ok(()))
}

fn parse_and<T: DeserializeOwned + Validate>(
    text: &str,
    file: &str,
    adjust: impl FnOnce(&mut T) -> Result<(), ConfigError>,
) -> Result<T, ConfigError> {
    let mut value: T = sealane_yaml::parse(text).map_err(|e| ConfigError {
        file: Some(file.to_owned()),
        line: e.line,
        field: String::new(),
        reason: e.to_string(),
    })?;
    adjust(&mut value)?;
    value.validate().map_err(|e| ConfigError {
        file: Some(file.to_owned()),
        line: sealane_yaml::line_of(text, e.field.trim_end_matches(": ")),
        ..e
    })?;
    Ok(value)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde::Deserialize;

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
    fn what_the_command_line_says_is_validated_with_the_file() {
        let with = |lease: u64| {
            let said = ConfigSpan(std::time::Duration::from_secs(lease));
            let text = "bodyBudget: 1MiB\nlease: 3s\n";
            parse_and::<Example>(text, "f.yaml", |c| {
                c.lease = said;
                Ok(())
            })
        };
        assert_eq!(with(5).unwrap().lease.0.as_secs(), 5);
        assert!(with(0).is_err());
        let refused = |_: &mut Example| Err(ConfigError::field("--lease", "too long"));
        let e = parse_and("bodyBudget: 1MiB\nlease: 3s\n", "f.yaml", refused).unwrap_err();
        assert_eq!(e.to_string(), "configuration error: --lease: too long");
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
