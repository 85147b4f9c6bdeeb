//! Whom the mail is for, and what the next hop does with it.

use rand::Rng;
use rand::seq::IndexedRandom;

use crate::sink::{Act, Rule, Script, Stage};

/// What the next hop does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mail {
    /// It takes it.
    Welcome,
    /// 550 to the only recipient.
    RefusedAtRcpt,
    /// One recipient is taken, the other hears 550.
    HalfRefused,
    /// 554 to DATA.
    RefusedAtData,
    /// 554 behind the dot.
    RefusedAtDot,
    /// 450 to the recipient, once.
    LaterAtRcpt,
    /// 451 behind the dot, once.
    LaterAtDot,
    /// One recipient is taken, the other hears 450 once.
    HalfLater,
}

impl Mail {
    /// Mostly welcome, and a little of everything.
    #[must_use]
    pub fn everything() -> Vec<Self> {
        let mut all = vec![Self::Welcome; 25];
        all.extend([
            Self::RefusedAtRcpt,
            Self::HalfRefused,
            Self::RefusedAtData,
            Self::RefusedAtDot,
            Self::LaterAtRcpt,
            Self::LaterAtDot,
            Self::HalfLater,
        ]);
        all
    }

    /// Recipients of one of these messages: all, and those that are refused for good.
    pub(super) fn recipients(all: &[Self], domain: &str) -> (Vec<String>, Vec<String>) {
        let mut rng = rand::rng();
        let user = format!("user{}@{domain}", rng.random_range(0..100));
        let mut own = |what: &str| format!("{what}{:016x}@{domain}", rng.random::<u64>());
        let (to, fails) = match all.choose(&mut rand::rng()).unwrap_or(&Self::Welcome) {
            Self::Welcome => (vec![user], false),
            Self::RefusedAtRcpt => (vec![own(NO_RCPT)], true),
            Self::HalfRefused => (vec![own(NO_RCPT), user], true),
            Self::RefusedAtData => (vec![own(NO_DATA)], true),
            Self::RefusedAtDot => (vec![own(NO_DOT)], true),
            Self::LaterAtRcpt => (vec![own(LATER_RCPT)], false),
            Self::LaterAtDot => (vec![own(LATER_DOT)], false),
            Self::HalfLater => (vec![own(LATER_RCPT), user], false),
        };
        let failing = to.iter().take(usize::from(fails)).cloned().collect();
        (to, failing)
    }

    /// The next hop behaves like this from now on.
    pub fn stand(script: &Script) {
        let reply = |text: &str| Act::Reply(text.to_owned());
        let later = |text: &str| Act::Greylist(text.to_owned());
        for (stage, containing, act) in [
            (Stage::Rcpt, NO_RCPT, reply("550 5.1.1 no such user")),
            (Stage::Data, NO_DATA, reply("554 5.7.1 not from you")),
            (Stage::Dot, NO_DOT, reply("554 5.6.0 not this")),
            (Stage::Rcpt, LATER_RCPT, later("450 4.2.0 greylisted")),
            (Stage::Dot, LATER_DOT, later("451 4.7.1 greylisted")),
        ] {
            script.stand(Rule {
                stage,
                containing: containing.to_owned(),
                act,
                times: None,
            });
        }
    }
}

const NO_RCPT: &str = "no-rcpt-";
const NO_DATA: &str = "no-data-";
const NO_DOT: &str = "no-dot-";
const LATER_RCPT: &str = "later-rcpt-";
const LATER_DOT: &str = "later-dot-";
