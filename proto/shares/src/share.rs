//! What one holder has at one destination.
use crate::{Grant, Kind, Need, PerKind, TOKENS_VALID_MS, Tokens};

/// Places of one holder: how many it may use until when, and how many it does use.
#[derive(Debug, Clone, Default)]
pub struct Share {
    places: u32,
    until_ms: u64,
    busy: u32,
    open: u32,
    /// What the dealer was told.
    told: u32,
    connections: Tokens,
    messages: Tokens,
}

impl Share {
    /// Connections that may be open now.
    pub fn allowed(&self, now_ms: u64) -> u32 {
        if now_ms < self.until_ms {
            self.places
        } else {
            0
        }
    }

    /// One attempt begins, if there is room; end it with [`Self::end`].
    pub fn begin(&mut self, now_ms: u64) -> bool {
        let may = self.busy < self.allowed(now_ms);
        self.busy += u32::from(may);
        may
    }

    /// An attempt is over.
    pub fn end(&mut self) {
        self.busy = self.busy.saturating_sub(1);
    }

    /// One connection opens, if there is room; end it with [`Self::close`].
    pub fn open(&mut self, now_ms: u64) -> bool {
        let may = self.open < self.allowed(now_ms);
        self.open += u32::from(may);
        may
    }

    /// A connection is closed.
    pub fn close(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    /// Connections that are to be closed when they are idle.
    pub fn excess(&self, now_ms: u64) -> u32 {
        self.open.saturating_sub(self.allowed(now_ms))
    }

    /// Spends a token.
    pub fn spend(&mut self, kind: Kind, now_ms: u64) -> bool {
        match kind {
            Kind::Connection => self.connections.take(now_ms),
            Kind::Message => self.messages.take(now_ms),
        }
    }

    /// Nothing is under way, nothing is open, and the dealer knows that nothing is held.
    pub fn is_gone(&self) -> bool {
        self.busy == 0 && self.open == 0 && self.places == 0 && self.told == 0
    }

    /// Less is held than the dealer was told: others may have it.
    pub fn holds_less_than_told(&self, now_ms: u64) -> bool {
        self.holds(now_ms) < self.told
    }

    fn holds(&self, now_ms: u64) -> u32 {
        self.allowed(now_ms).max(self.open)
    }

    /// What to ask. Who needs nothing and has nothing open gives everything back, and may begin
    /// nothing before the next answer. `wanted` are the tokens that would be spent now.
    pub fn need(&mut self, waiting: u32, wanted: PerKind, now_ms: u64) -> Need {
        let needs = self.busy.saturating_add(waiting);
        if needs == 0 && self.open == 0 {
            self.places = 0;
        }
        Need {
            holds: self.holds(now_ms),
            needs,
            open: self.open,
            tokens: PerKind {
                connections: lacking(wanted.connections, &mut self.connections, now_ms),
                messages: lacking(wanted.messages, &mut self.messages, now_ms),
                leases: 0,
            },
        }
    }

    /// The answer to the question of `asked_ms`, in which `need` was said.
    pub fn granted(&mut self, asked_ms: u64, valid_ms: u64, need: Need, grant: Grant) {
        self.places = grant.places;
        self.until_ms = asked_ms.saturating_add(valid_ms);
        self.told = need.holds.max(grant.places);
        let until = asked_ms.saturating_add(TOKENS_VALID_MS);
        self.connections.add(grant.tokens.connections, until);
        self.messages.add(grant.tokens.messages, until);
    }
}

fn lacking(wanted: u32, tokens: &mut Tokens, now_ms: u64) -> u32 {
    wanted.saturating_sub(tokens.left(now_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grant(places: u32, connections: u32) -> Grant {
        Grant {
            places,
            tokens: PerKind {
                connections,
                ..PerKind::default()
            },
        }
    }

    #[test]
    fn nothing_begins_without_a_share_or_after_its_time() {
        let mut s = Share::default();
        assert!(!s.begin(0));
        let need = s.need(1, PerKind::default(), 0);
        assert_eq!((need.holds, need.needs), (0, 1));
        s.granted(10, 100, need, grant(1, 1));
        assert!(s.begin(109) && s.open(109) && s.spend(Kind::Connection, 109));
        assert!(!s.begin(109) && !s.open(109) && !s.spend(Kind::Connection, 109));
        s.end();
        assert!(!s.begin(110), "its time is over");
        assert_eq!(s.excess(110), 1);
        assert_eq!(
            s.need(0, PerKind::default(), 110).holds,
            1,
            "what is open is held"
        );
        s.close();
        assert!(s.holds_less_than_told(110));
    }

    #[test]
    fn a_smaller_share_is_held_once_connections_are_closed() {
        let mut s = Share::default();
        s.granted(0, 100, Need::default(), grant(2, 0));
        assert!(s.begin(1) && s.begin(1) && s.open(1) && s.open(1));
        let need = s.need(5, PerKind::default(), 2);
        assert_eq!((need.holds, need.needs, need.open), (2, 7, 2));
        s.granted(2, 100, need, grant(1, 0));
        s.end();
        assert!(!s.begin(3));
        assert_eq!(s.excess(3), 1);
        assert_eq!(s.need(0, PerKind::default(), 3).holds, 2);
        s.close();
        assert_eq!(s.need(0, PerKind::default(), 3).holds, 1);
    }

    #[test]
    fn who_needs_nothing_gives_everything_back_at_once() {
        let mut s = Share::default();
        s.granted(0, 100, Need::default(), grant(3, 0));
        let need = s.need(0, PerKind::default(), 1);
        assert_eq!(need, Need::default());
        assert!(!s.begin(1), "it was given back");
        assert!(!s.is_gone(), "the answer may be lost");
        s.granted(1, 100, need, Grant::default());
        assert!(s.is_gone());
    }
}
