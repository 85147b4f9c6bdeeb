//! The other mail servers. What a recipient's server says in the end depends on the recipient only, so
//! that nobody can be both delivered and refused.
use sealane_wire::v1;
use std::collections::BTreeMap;

/// What a server says about a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// 250 after the final dot.
    Accepts,
    /// 450.
    Defers,
    /// 550.
    Refuses,
}

impl Verdict {
    /// As a relay reports it.
    pub(crate) fn outcome(self) -> v1::Outcome {
        match self {
            Self::Accepts => v1::Outcome::Delivered,
            Self::Defers => v1::Outcome::Deferred,
            Self::Refuses => v1::Outcome::Failed,
        }
    }
    /// The last words.
    pub(crate) fn reply(self) -> v1::Reply {
        let (code, enhanced) = match self {
            Self::Accepts => (250, "2.0.0"),
            Self::Defers => (450, "4.2.1"),
            Self::Refuses => (550, "5.1.1"),
        };
        v1::Reply {
            code,
            enhanced: enhanced.into(),
            text: "simulated".into(),
            remote: "sink".into(),
        }
    }
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    /// Attempts at recipients that are deferred at first.
    asked: BTreeMap<String, u32>,
    /// The black hole answers.
    pub(crate) open: bool,
}

impl Sink {
    /// A destination, by a number below 100.
    pub(crate) fn destination(n: u64) -> &'static str {
        match n {
            0..60 => "good.example",
            60..80 => "grey.example",
            80..90 => "unknown.example",
            _ => "hole.example",
        }
    }

    /// What the server says now. Reports are always taken.
    pub(crate) fn ask(&mut self, mailbox: &str, ours: bool) -> Verdict {
        let domain = mailbox.rsplit_once('@').map_or("", |(_, d)| d);
        let times = self.asked.entry(mailbox.to_owned()).or_insert(0);
        *times += 1;
        match domain {
            _ if !ours => Verdict::Accepts,
            "grey.example" if *times == 1 => Verdict::Defers,
            "unknown.example" => Verdict::Refuses,
            "hole.example" if !self.open => Verdict::Defers,
            _ => Verdict::Accepts,
        }
    }
}
