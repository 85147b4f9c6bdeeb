//! Tokens of one holder.
use std::collections::VecDeque;

/// Tokens with the time when they are gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tokens(VecDeque<(u64, u32)>);

impl Tokens {
    /// `n` more, until then.
    pub fn add(&mut self, n: u32, until_ms: u64) {
        if n > 0 {
            self.0.push_back((until_ms, n));
        }
    }

    /// Spends one; false if there is none.
    pub fn take(&mut self, now_ms: u64) -> bool {
        if self.left(now_ms) == 0 {
            return false;
        }
        if let Some((_, n)) = self.0.front_mut() {
            *n -= 1;
        }
        true
    }

    /// How many there are.
    pub fn left(&mut self, now_ms: u64) -> u32 {
        self.0.retain(|(until, n)| *n > 0 && *until > now_ms);
        self.0.iter().fold(0, |sum, (_, n)| sum.saturating_add(*n))
    }
}
