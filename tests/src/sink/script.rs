//! What the sink does wrong on purpose.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// Where in a session a rule applies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Instead of the greeting.
    Greeting,
    StartTls,
    Mail,
    Rcpt,
    Data,
    /// After the final dot.
    Dot,
}

/// What to do there.
#[derive(Debug, Clone)]
pub enum Act {
    /// Say this instead, for example `450 4.2.1 busy`. After [`Stage::Dot`] nothing is kept.
    Reply(String),
    /// Close the connection without a word.
    Drop,
    /// [`Stage::Dot`] only: keep the message, then close without a reply.
    KeepAndDrop,
    /// Wait, then go on as usual.
    Delay(Duration),
}

/// Applies `act` at `stage`, `times` times, to command lines that contain `containing`.
#[derive(Debug, Clone)]
pub struct Rule {
    pub stage: Stage,
    /// Part of the command line, or of the recipients at [`Stage::Dot`]; empty: any.
    pub containing: String,
    pub act: Act,
    /// How often; `None`: always.
    pub times: Option<u32>,
}

/// The rules in force; the first that fits is taken.
#[derive(Debug)]
pub struct Script {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    rules: Vec<Rule>,
    offers_starttls: bool,
    /// Sent in clear in one write with the 220 to STARTTLS.
    injection: Option<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                rules: Vec::new(),
                offers_starttls: true,
                injection: None,
            }),
        }
    }
}

impl Script {
    pub fn add(&self, rule: Rule) {
        self.lock().rules.push(rule);
    }

    /// Forgets all rules: the sink accepts everything again.
    pub fn clear(&self) {
        let mut state = self.lock();
        state.rules.clear();
        state.offers_starttls = true;
        state.injection = None;
    }

    pub fn offer_starttls(&self, yes: bool) {
        self.lock().offers_starttls = yes;
    }

    pub fn inject_behind_starttls(&self, octets: &str) {
        self.lock().injection = Some(octets.to_owned());
    }

    pub(super) fn offers_starttls(&self) -> bool {
        self.lock().offers_starttls
    }

    pub(super) fn injection(&self) -> Option<String> {
        self.lock().injection.clone()
    }

    /// The act for this moment, if a rule fits; uses it up.
    pub(super) fn take(&self, stage: Stage, line: &str) -> Option<Act> {
        let mut state = self.lock();
        let rule = state.rules.iter_mut().find(|rule| {
            rule.stage == stage && rule.times != Some(0) && line.contains(&rule.containing)
        })?;
        if let Some(left) = &mut rule.times {
            *left -= 1;
        }
        Some(rule.act.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
