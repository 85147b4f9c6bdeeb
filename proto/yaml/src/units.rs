//! Sizes and lengths of time.
use serde::{Deserialize, Deserializer};
use std::{str::FromStr, time::Duration};

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
mod tests {
    use super::*;

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
}
