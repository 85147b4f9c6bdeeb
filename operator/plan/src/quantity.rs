//! Amounts as Kubernetes writes them.

/// Octets of an amount such as `10Gi`, `500M`, `1e9` or `1.5Gi`; rounded up. `None`: no amount, negative, or beyond 2^63.
pub fn octets(s: &str) -> Option<u64> {
    let s = s.trim();
    let split = s
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(s.len());
    let (number, unit) = s.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || fraction.len() > 18 {
        return None;
    }
    let digits: u128 = match format!("{whole}{fraction}").parse() {
        Ok(n) => n,
        Err(_) => return None,
    };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let (factor, divisor) = factor(unit)?;
    let product = digits.checked_mul(factor)?;
    let octets = product.div_ceil(scale.checked_mul(divisor)?);
    u64::try_from(octets).ok().filter(|n| *n < 1 << 63)
}

/// Multiply by the first, divide by the second.
fn factor(unit: &str) -> Option<(u128, u128)> {
    let binary = |n: u32| Some((1u128 << (10 * n), 1));
    let decimal = |n: u32| Some((10u128.checked_pow(n)?, 1));
    match unit {
        "" => Some((1, 1)),
        "m" => Some((1, 1000)),
        "u" => Some((1, 1_000_000)),
        "n" => Some((1, 1_000_000_000)),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let exponent = unit.strip_prefix(['e', 'E'])?;
            let exponent = exponent.strip_prefix('+').unwrap_or(exponent);
            match exponent.strip_prefix('-') {
                Some(n) => Some((1, 10u128.checked_pow(n.parse().ok()?)?)),
                None => decimal(exponent.parse().ok().filter(|n| *n <= 18)?),
            }
        }
    }
}

/// `a` is less than `b`; false if either is no amount.
pub fn is_less(a: &str, b: &str) -> bool {
    matches!((octets(a), octets(b)), (Some(a), Some(b)) if a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_octets() {
        for (text, n) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("10Gi", Some(10 << 30)),
            ("500M", Some(500_000_000)),
            ("1.5Gi", Some(3 << 29)),
            ("1e9", Some(1_000_000_000)),
            ("1E3", Some(1000)),
            ("2E", Some(2_000_000_000_000_000_000)),
            ("1500m", Some(2)),
            (".5Ki", Some(512)),
            ("100e-2", Some(1)),
            ("", None),
            (".", None),
            ("Gi", None),
            ("-1", None),
            ("1GiB", None),
            ("1.2.3", None),
            ("8Ei", None),
            ("99999999999999999999999999999999999999999", None),
            ("1e99", None),
        ] {
            assert_eq!(octets(text), n, "{text}");
        }
    }

    #[test]
    fn spelling_does_not_matter_for_what_is_less() {
        assert!(is_less("1Gi", "1025Mi"));
        assert!(!is_less("1Gi", "1024Mi"));
        assert!(!is_less("much", "1Gi"));
    }
}
