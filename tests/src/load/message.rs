//! Random messages that a ledger can recognise.

use std::fmt::Write;

use data_encoding::HEXLOWER;
use rand::Rng;

use crate::ledger::TOKEN_HEADER;

/// A fresh random token.
#[must_use]
pub fn token() -> String {
    HEXLOWER.encode(&rand::rng().random::<[u8; 16]>())
}

/// A message of about `size` octets: headers, the token, and lines of random length, some of them
/// of dots only.
#[must_use]
pub fn content(token: &str, from: &str, to: &[String], size: usize) -> Vec<u8> {
    let mut text = format!(
        "Date: Mon, 23 Nov 2026 12:00:00 +0000\r\nFrom: <{from}>\r\nTo: <{}>\r\nSubject: load {token}\r\nMessage-ID: <{token}@client.example>\r\n{TOKEN_HEADER}{token}\r\n\r\n",
        to.join(">, <")
    );
    let mut random = rand::rng();
    let mut number = 0_u64;
    while text.len() + 4 < size {
        number += 1;
        let left = size - text.len() - 2;
        match random.random_range(0..12) {
            0 => text.push('.'),
            1 => text.push_str(".."),
            2 => text.push_str(".leading dot"),
            3 => {}
            _ => {
                let length = random.random_range(10..=900).min(left);
                let start = text.len();
                let _infallible = write!(text, "{number} {token} ");
                while text.len() < start + length {
                    text.push_str("the quick brown fox jumps over the lazy dog ");
                }
                text.truncate(start + length);
            }
        }
        text.push_str("\r\n");
    }
    text.into_bytes()
}
