//! SMTP replies and enhanced status codes (RFC 5321 section 4.2, RFC 3463).
use std::{fmt, str::FromStr};

/// `class.subject.detail` of RFC 3463.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct EnhancedStatus(pub u8, pub u16, pub u16);

impl fmt::Display for EnhancedStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl FromStr for EnhancedStatus {
    type Err = ();
    fn from_str(s: &str) -> Result<Self, ()> {
        let mut it = s.split('.');
        let (Some(a), Some(b), Some(c), None) = (it.next(), it.next(), it.next(), it.next()) else {
            return Err(());
        };
        let part = |s: &str| {
            if (1..=3).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit()) {
                s.parse::<u16>().ok()
            } else {
                None
            }
        };
        match (a, part(b), part(c)) {
            ("2" | "4" | "5", Some(b), Some(c)) => Ok(Self(a.as_bytes()[0] - b'0', b, c)),
            _ => Err(()),
        }
    }
}

/// A reply as said or heard. `text` may hold several lines separated by `\n`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200..=599.
    pub code: u16,
    /// Absent in greetings, EHLO replies and 3xx.
    pub enhanced: Option<EnhancedStatus>,
    /// Printable ASCII.
    pub text: String,
}

impl Reply {
    /// A reply with an enhanced status.
    pub fn new(code: u16, enhanced: (u8, u16, u16), text: impl Into<String>) -> Self {
        Self {
            code,
            enhanced: Some(EnhancedStatus(enhanced.0, enhanced.1, enhanced.2)),
            text: text.into(),
        }
    }
    /// A reply without one.
    pub fn bare(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            enhanced: None,
            text: text.into(),
        }
    }
    /// 2yz.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }
    /// 4yz.
    pub fn is_transient(&self) -> bool {
        self.code / 100 == 4
    }
    /// 5yz.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(e) = self.enhanced {
            write!(f, " {e}")?;
        }
        write!(f, " {}", self.text.replace('\n', " "))
    }
}

/// Makes peer text safe for logs, DSNs and headers: printable ASCII only, everything else becomes
/// `?`, cut to `max` octets.
pub fn sanitize(text: &[u8], max: usize) -> String {
    text.iter()
        .take(max)
        .map(|b| {
            if (0x20..0x7f).contains(b) {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect()
}
