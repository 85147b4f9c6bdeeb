//! The rules of a Lease, pure.
//!
//! ```text
//!   candidate ── nobody renewed it for its whole length, as seen from here ──► leader ── renews every `pause`
//!       ▲                                                                        │
//!       └──────────────── the process ends: it never goes back ◄── no renewal within `deadline`, or another holder
//! ```
//!
//! No wall clock is compared with another one's: a candidate waits the whole length of the lease from when it saw the Lease
//! change last, by its own steady clock. A leader counts from before it asked for a renewal, so its deadline is over while
//! others still wait: `deadline` is shorter than `length`, and what is between them is for requests on their way.
use std::time::Duration;

/// Lengths of time of an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terms {
    /// Others leave a Lease alone for this long after its last change.
    pub(crate) length: Duration,
    /// A leader that could not renew for this long stops. Shorter than `length`.
    pub(crate) deadline: Duration,
    /// Between two looks, and between two renewals.
    pub(crate) pause: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            length: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            pause: Duration::from_secs(2),
        }
    }
}

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Empty: it was released.
    pub(crate) holder: String,
    /// Changes with every write.
    pub(crate) version: String,
    /// As its holder wrote it.
    pub(crate) length: Duration,
}

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Move {
    /// There is none: make it.
    Create,
    /// It is free: write ourselves into the version that was read.
    Take,
    /// It is ours.
    Renew,
    /// It is another's.
    Wait,
}

/// One process in the election. Times are those of its steady clock, from any beginning.
#[derive(Debug)]
pub(crate) struct Election {
    identity: String,
    terms: Terms,
    /// Version of another's Lease, and since when it is so.
    watched: Option<(String, Duration)>,
    /// When the last renewal that succeeded was asked for.
    renewed: Option<Duration>,
}

impl Election {
    pub(crate) fn new(identity: String, terms: Terms) -> Self {
        debug_assert!(terms.deadline < terms.length);
        Self {
            identity,
            terms,
            watched: None,
            renewed: None,
        }
    }

    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// What to do about the Lease that was read at `now`; `None`: there is none.
    pub(crate) fn look(&mut self, lease: Option<&Seen>, now: Duration) -> Move {
        let Some(lease) = lease else {
            return Move::Create;
        };
        if lease.holder == self.identity {
            return Move::Renew;
        }
        // Somebody wrote after us: we were away for too long, whatever our clock says.
        self.renewed = None;
        if lease.holder.is_empty() {
            return Move::Take;
        }
        match &self.watched {
            Some((version, since)) if *version == lease.version => {
                if now.saturating_sub(*since) >= lease.length {
                    Move::Take
                } else {
                    Move::Wait
                }
            }
            _ => {
                self.watched = Some((lease.version.clone(), now));
                Move::Wait
            }
        }
    }

    /// A write that was asked for at `asked` succeeded.
    pub(crate) fn wrote(&mut self, asked: Duration) {
        self.renewed = Some(asked);
    }

    /// Whether this process may act.
    pub(crate) fn leads(&self, now: Duration) -> bool {
        !self.left(now).is_zero()
    }

    /// How long this process may act without another renewal.
    pub(crate) fn left(&self, now: Duration) -> Duration {
        let deadline = self.renewed.map(|r| r + self.terms.deadline);
        deadline.map_or(Duration::ZERO, |d| d.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn seen(holder: &str, version: u32) -> Seen {
        Seen {
            holder: holder.to_owned(),
            version: version.to_string(),
            length: s(15),
        }
    }

    fn election(name: &str) -> Election {
        Election::new(name.to_owned(), Terms::default())
    }

    #[test]
    fn an_absent_lease_is_made_and_a_released_one_is_taken_at_once() {
        let mut e = election("a");
        assert_eq!(e.look(None, s(0)), Move::Create);
        assert_eq!(e.look(Some(&seen("", 7)), s(0)), Move::Take);
        assert!(!e.leads(s(0)), "nothing was written yet");
    }

    #[test]
    fn a_lease_is_taken_only_after_its_whole_length_without_a_change() {
        let mut e = election("b");
        assert_eq!(e.look(Some(&seen("a", 1)), s(100)), Move::Wait);
        assert_eq!(e.look(Some(&seen("a", 1)), s(114)), Move::Wait);
        assert_eq!(e.look(Some(&seen("a", 2)), s(115)), Move::Wait, "renewed");
        assert_eq!(e.look(Some(&seen("a", 2)), s(129)), Move::Wait);
        assert_eq!(e.look(Some(&seen("a", 2)), s(130)), Move::Take);
    }

    #[test]
    fn the_length_counts_that_the_holder_wrote() {
        let mut e = election("b");
        let long = Seen {
            length: s(60),
            ..seen("a", 1)
        };
        assert_eq!(e.look(Some(&long), s(0)), Move::Wait);
        assert_eq!(e.look(Some(&long), s(59)), Move::Wait);
        assert_eq!(e.look(Some(&long), s(60)), Move::Take);
    }

    #[test]
    fn a_leader_stops_when_it_could_not_renew_before_anybody_may_follow() {
        let mut e = election("a");
        e.wrote(s(10));
        assert!(e.leads(s(19)));
        assert_eq!(e.left(s(17)), s(3));
        assert!(!e.leads(s(20)));
        // The write was seen at 10 at the earliest, so nobody follows before 25.
        let mut b = election("b");
        assert_eq!(b.look(Some(&seen("a", 1)), s(10)), Move::Wait);
        assert_eq!(b.look(Some(&seen("a", 1)), s(24)), Move::Wait);
        assert_eq!(b.look(Some(&seen("a", 1)), s(25)), Move::Take);
    }

    #[test]
    fn a_leader_that_sees_another_holder_leads_no_more() {
        let mut e = election("a");
        e.wrote(s(10));
        assert_eq!(e.look(Some(&seen("a", 3)), s(12)), Move::Renew);
        assert!(e.leads(s(12)));
        assert_eq!(e.look(Some(&seen("b", 4)), s(13)), Move::Wait);
        assert!(!e.leads(s(13)));
    }

    /// Two processes, a register with compare-and-swap, requests that fail at every combination of moments.
    #[test]
    fn two_never_lead_at_once_whatever_fails() {
        for pattern in 0u32..4096 {
            let mut register: Option<Seen> = None;
            let mut version = 0;
            let mut both = [election("a"), election("b")];
            for step in 0..48u64 {
                let now = s(step * 2);
                for (n, e) in both.iter_mut().enumerate() {
                    // Each process is cut off in some of twelve spans of time.
                    let span = u32::try_from((step / 8) % 6).unwrap_or(0)
                        + 6 * u32::try_from(n).unwrap_or(0);
                    if pattern >> span & 1 == 1 {
                        continue;
                    }
                    let read = register.clone();
                    if e.look(read.as_ref(), now) != Move::Wait {
                        version += 1;
                        let holder = e.identity().to_owned();
                        register = Some(seen(&holder, version));
                        e.wrote(now);
                    }
                }
                for late in [0, 1] {
                    let at = now + s(late);
                    assert!(
                        !(both[0].leads(at) && both[1].leads(at)),
                        "pattern {pattern:b}, step {step}"
                    );
                }
            }
        }
    }
}
