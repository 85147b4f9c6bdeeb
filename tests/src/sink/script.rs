//! What the sink does wrong on purpose.

use std::collections::BTreeSet;
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
    /// Say this to a line (or to recipients) the first time, and go on as usual from then on.
    Greylist(String),
    /// Wait, then go on as usual.
    Delay(Duration),
}

/// Applies `act` at `stage`, `times` times, to command lines that contain `containing`.
#[derive(Debug, Clone)]
pub struct Rule {
    pub stage: Stage,
    /// Part of the command line, or of the recipients at [`Stage::Data`] and [`Stage::Dot`]; empty: any.
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
    /// In force for ever, behind the others.
    standing: Vec<Rule>,
    /// What was said to whom by [`Act::Greylist`].
    greylisted: BTreeSet<(String, String)>,
    offers_starttls: bool,
    /// Sent in clear in one write with the 220 to STARTTLS.
    injection: Option<String>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                rules: Vec::new(),
                standing: Vec::new(),
                greylisted: BTreeSet::new(),
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

    /// Adds a rule that [`Self::clear`] leaves in force.
    pub fn stand(&self, rule: Rule) {
        self.lock().standing.push(rule);
    }

    /// Forgets all rules but the standing ones: the sink accepts everything else again.
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
        let state = &mut *self.lock();
        let mut rules = state.rules.iter_mut().chain(&mut state.standing);
        let rule = rules.find(|rule| {
            rule.stage == stage && rule.times != Some(0) && line.contains(&rule.containing)
        })?;
        if let Some(left) = &mut rule.times {
            *left -= 1;
        }
        match rule.act.clone() {
            Act::Greylist(reply) => {
                let first = state.greylisted.insert((reply.clone(), line.to_owned()));
                first.then_some(Act::Reply(reply))
            }
            act => Some(act),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(stage: Stage, containing: &str, act: Act) -> Rule {
        Rule {
            stage,
            containing: containing.to_owned(),
            act,
            times: None,
        }
    }

    #[test]
    fn standing_rules_outlive_clear_and_come_behind_the_others() {
        let script = Script::default();
        script.stand(rule(Stage::Rcpt, "no-", Act::Reply("550".to_owned())));
        script.add(rule(Stage::Rcpt, "", Act::Drop));
        assert!(matches!(script.take(Stage::Rcpt, "no-1"), Some(Act::Drop)));
        script.clear();
        assert!(matches!(
            script.take(Stage::Rcpt, "no-1"),
            Some(Act::Reply(_))
        ));
        assert!(script.take(Stage::Rcpt, "yes-1").is_none());
    }

    #[test]
    fn who_is_greylisted_is_refused_once() {
        let script = Script::default();
        script.stand(rule(Stage::Dot, "", Act::Greylist("451".to_owned())));
        for line in ["a", "b"] {
            assert!(matches!(script.take(Stage::Dot, line), Some(Act::Reply(_))));
            assert!(script.take(Stage::Dot, line).is_none());
        }
    }
}
