//! The judge: what was offered, answered, delivered. It knows nothing of the product.
use crate::note;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A message id, as octets.
pub(crate) type Id = [u8; 16];

/// What the relay told its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Nothing yet: the relay may have died.
    None,
    /// 250.
    Accepted,
    /// 451 or 452 or 5yz: it must never be delivered.
    Refused,
    /// The same, after the relay had waited for an outcome and withdrew it.
    Withdrawn,
    /// The connection was closed without a word.
    Silence,
}

#[derive(Debug)]
struct Offer {
    answer: Answer,
    digest: [u8; 32],
    recipients: Vec<Recipient>,
}

#[derive(Debug, Default)]
struct Recipient {
    mailbox: String,
    delivered: u32,
    /// Reports that name it as failed, by message id.
    reports: BTreeSet<Id>,
    /// Of them, delivered.
    returned: bool,
    /// The relay told that it failed for good.
    failed: bool,
}

/// A lease as a relay holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Which relay process.
    pub(crate) relay: (usize, u64),
    /// Its epoch.
    pub(crate) epoch: u64,
    /// Until then it may deliver, in simulated milliseconds.
    pub(crate) until_ms: u64,
}

/// Numbers to print.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Messages offered.
    pub(crate) offered: u64,
    /// Answered with 250.
    pub(crate) accepted: u64,
    /// Answered with a refusal.
    pub(crate) refused: u64,
    /// Answered with a refusal, after it had been proposed.
    pub(crate) withdrawn: u64,
    /// Not answered.
    pub(crate) silent: u64,
    /// Recipients delivered at least once.
    pub(crate) delivered: u64,
    /// Deliveries beyond the first.
    pub(crate) duplicates: u64,
    /// Recipients whose failure was reported to the sender.
    pub(crate) returned: u64,
    /// Leases handed out.
    pub(crate) leases: u64,
    /// Reports under an epoch that is over.
    pub(crate) lies: u64,
}

/// Everything that was seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    offers: BTreeMap<Id, Offer>,
    by_mailbox: BTreeMap<String, (Id, usize)>,
    holdings: BTreeMap<(Id, u32), Vec<Holding>>,
    /// The last one of each recipient.
    epochs: BTreeMap<(Id, u32), u64>,
    violations: Vec<String>,
    counts: Counts,
}

/// An id, to print.
pub(crate) fn hex(id: &Id) -> String {
    id.iter().map(|b| format!("{b:02x}")).collect()
}

impl Answer {
    /// The client will bring the message again, or tell its author.
    fn refuses(self) -> bool {
        matches!(self, Self::Refused | Self::Withdrawn)
    }
}

impl Ledger {
    fn broken(&mut self, what: String) {
        note!("VIOLATION {what}");
        self.violations.push(what);
    }

    /// Rules that were broken.
    pub(crate) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// The numbers.
    pub(crate) fn counts(&self) -> Counts {
        let recipients = || self.offers.values().flat_map(|o| &o.recipients);
        Counts {
            offered: self.offers.len() as u64,
            accepted: self.answered(Answer::Accepted),
            refused: self.answered(Answer::Refused),
            withdrawn: self.answered(Answer::Withdrawn),
            silent: self.answered(Answer::Silence) + self.answered(Answer::None),
            delivered: recipients().filter(|r| r.delivered > 0).count() as u64,
            duplicates: recipients()
                .map(|r| u64::from(r.delivered.saturating_sub(1)))
                .sum(),
            returned: recipients().filter(|r| r.returned).count() as u64,
            ..self.counts
        }
    }

    fn answered(&self, a: Answer) -> u64 {
        self.offers.values().filter(|o| o.answer == a).count() as u64
    }

    /// Before the first octet goes to the cluster.
    pub(crate) fn offer(&mut self, id: Id, digest: [u8; 32], mailboxes: Vec<String>) {
        note!("offer {} to {}", hex(&id), mailboxes.join(" "));
        for (n, m) in mailboxes.iter().enumerate() {
            self.by_mailbox.insert(m.clone(), (id, n));
        }
        let recipients = mailboxes.into_iter().map(|mailbox| Recipient {
            mailbox,
            ..Default::default()
        });
        self.offers.insert(
            id,
            Offer {
                answer: Answer::None,
                digest,
                recipients: recipients.collect(),
            },
        );
    }

    /// What the client was told.
    pub(crate) fn answer(&mut self, id: Id, answer: Answer, why: &str) {
        note!("answer {} {answer:?} {why}", hex(&id));
        let Some(o) = self.offers.get_mut(&id) else {
            return;
        };
        o.answer = answer;
        if answer.refuses() && o.recipients.iter().any(|r| r.delivered > 0) {
            self.broken(format!(
                "I3: {} was refused after it was delivered",
                hex(&id)
            ));
        }
    }

    /// A relay has a lease from now on, or has it for longer.
    ///
    /// Returns an epoch that is certainly over by that, once.
    pub(crate) fn leased(&mut self, id: Id, recipient: u32, holding: Holding) -> Option<u64> {
        self.counts.leases += 1;
        let last = self.epochs.entry((id, recipient)).or_insert(holding.epoch);
        let stale = (*last < holding.epoch).then_some(*last);
        *last = (*last).max(holding.epoch);
        if stale.is_some() {
            self.counts.lies += 1;
        }
        let held = self.holdings.entry((id, recipient)).or_default();
        held.retain(|h| (h.relay, h.epoch) != (holding.relay, holding.epoch));
        held.push(holding);
        stale
    }

    /// It gave the lease up or died.
    pub(crate) fn ended(&mut self, id: Id, recipient: u32, relay: (usize, u64), epoch: u64) {
        if let Some(held) = self.holdings.get_mut(&(id, recipient)) {
            held.retain(|h| (h.relay, h.epoch) != (relay, epoch));
        }
    }

    /// The relay process is no more.
    pub(crate) fn died(&mut self, relay: (usize, u64)) {
        for held in self.holdings.values_mut() {
            held.retain(|h| h.relay != relay);
        }
    }

    /// The final dot: the remote server has the message from here on.
    pub(crate) fn deliver(
        &mut self,
        id: Id,
        recipient: u32,
        mailbox: &str,
        by: Holding,
        now_ms: u64,
    ) {
        note!(
            "deliver {} {mailbox} epoch {} by {:?}",
            hex(&id),
            by.epoch,
            by.relay
        );
        let rivals: Vec<Holding> = self
            .holdings
            .get(&(id, recipient))
            .into_iter()
            .flatten()
            .filter(|h| (h.relay, h.epoch) != (by.relay, by.epoch) && h.until_ms > now_ms)
            .copied()
            .collect();
        if !rivals.is_empty() {
            self.broken(format!(
                "I6: {mailbox} of {} is leased twice at {now_ms}: {by:?} and {rivals:?}",
                hex(&id)
            ));
        }
        let Some(o) = self.offers.get_mut(&id) else {
            return;
        };
        let refused = o.answer.refuses();
        let index = usize::try_from(recipient).unwrap_or(usize::MAX);
        match o.recipients.get_mut(index).filter(|r| r.mailbox == mailbox) {
            Some(r) => {
                r.delivered += 1;
                let returned = !r.reports.is_empty();
                if returned {
                    self.broken(format!("DSN: {mailbox} was returned and delivered"));
                }
            }
            None => self.broken(format!(
                "{mailbox} is no recipient {recipient} of {}",
                hex(&id)
            )),
        }
        if refused {
            self.broken(format!(
                "I3: {} was delivered after it was refused",
                hex(&id)
            ));
        }
    }

    /// The octets that a relay fetched.
    pub(crate) fn fetched(&mut self, id: Id, digest: [u8; 32]) {
        if let Some(o) = self.offers.get(&id)
            && o.digest != digest
        {
            self.broken(format!("I2: the body of {} is another one", hex(&id)));
        }
    }

    /// Whether this id was offered by us.
    pub(crate) fn knows(&self, id: &Id) -> bool {
        self.offers.contains_key(id)
    }

    /// The relay said of a recipient that it failed for good.
    pub(crate) fn failed(&mut self, id: Id, recipient: u32) {
        let index = usize::try_from(recipient).unwrap_or(usize::MAX);
        let offer = self.offers.get_mut(&id);
        if let Some(r) = offer.and_then(|o| o.recipients.get_mut(index)) {
            r.failed = true;
        }
    }

    /// A report came, naming a failed recipient; `delivered` to the sender now, or only seen.
    pub(crate) fn report(&mut self, report: Id, mailbox: &str, delivered: bool) {
        let Some((id, n)) = self.by_mailbox.get(mailbox).copied() else {
            return self.broken(format!("a report names {mailbox}, whom nobody wrote to"));
        };
        let Some(r) = self
            .offers
            .get_mut(&id)
            .and_then(|o| o.recipients.get_mut(n))
        else {
            return;
        };
        r.reports.insert(report);
        r.returned |= delivered;
        let (reports, delivered) = (r.reports.len(), r.delivered);
        if reports > 1 {
            self.broken(format!("DSN: {mailbox} failed with {reports} reports"));
        }
        if delivered > 0 {
            self.broken(format!("DSN: {mailbox} was delivered and returned"));
        }
    }

    /// Recipients of accepted messages that are neither delivered nor returned.
    pub(crate) fn open(&self) -> Vec<(Id, String)> {
        let accepted = self
            .offers
            .iter()
            .filter(|(_, o)| o.answer == Answer::Accepted);
        accepted
            .flat_map(|(id, o)| {
                let open = o
                    .recipients
                    .iter()
                    .filter(|r| r.delivered == 0 && !r.returned);
                open.map(|r| (*id, r.mailbox.clone()))
            })
            .collect()
    }

    /// Says that something must not be.
    pub(crate) fn violate(&mut self, what: String) {
        self.broken(what);
    }
}
