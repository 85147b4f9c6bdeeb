//! The external ledger: what was offered, what was answered, what arrived.
//!
//! It joins two things only: what the load generator wrote down before and after each attempt, and
//! the files of the sink. The product's own counters are not asked.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use crate::sink::{Received, Store};

/// The header that carries the token; its value is random and means nothing to the product.
pub const TOKEN_HEADER: &str = "X-Ledger: ";

/// How one attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Accepted,
    Temporary(String),
    Permanent(String),
    /// The connection broke behind the final dot: it may have been accepted.
    Unknown(String),
    /// The connection broke before the final dot was sent: it cannot have been accepted.
    Broken(String),
}

/// One message as offered.
#[derive(Debug, Clone)]
pub struct Offer {
    pub token: String,
    pub reverse_path: String,
    pub recipients: Vec<String>,
    pub octets: usize,
    pub sha256: [u8; 32],
}

impl Offer {
    /// Describes `content`, which must hold the token header.
    #[must_use]
    pub fn of(token: &str, reverse_path: &str, recipients: &[String], content: &[u8]) -> Self {
        Self {
            token: token.to_owned(),
            reverse_path: reverse_path.to_owned(),
            recipients: recipients.to_vec(),
            octets: content.len(),
            sha256: Sha256::digest(content).into(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    offer: Offer,
    outcomes: Vec<Outcome>,
}

#[derive(Debug, Default)]
struct Book {
    entries: HashMap<String, Entry>,
    /// When each 250 was read.
    accepted_at: Vec<Instant>,
    /// What is known about each sink file; files never change.
    files: HashMap<PathBuf, Arrival>,
}

/// One file of the sink, as far as the ledger cares.
#[derive(Debug, Clone)]
enum Arrival {
    /// Null reverse-path: a report.
    Dsn,
    NoToken,
    Message {
        token: String,
        reverse_path: String,
        recipients: Vec<String>,
        octets: Vec<u8>,
        bare_line_ends: bool,
        tls: bool,
    },
    /// Looked at and found right: content is not kept.
    Checked {
        token: String,
        recipients: Vec<String>,
        problem: Option<String>,
    },
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Ledger {
    book: Mutex<Book>,
}

/// What the ledger says at one moment.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Different messages offered.
    pub offered: usize,
    /// Attempts, and how they ended.
    pub attempts: usize,
    pub accepted: usize,
    pub temporary: usize,
    pub permanent: usize,
    pub unknown: usize,
    pub broken: usize,
    /// Different messages that arrived for all their recipients.
    pub delivered: usize,
    /// Deliveries beyond the first (or beyond the number of 250s) of a message to a recipient.
    pub duplicates: usize,
    /// Reports (null reverse-path).
    pub dsns: usize,
    /// Arrived without any 250: the outcome was unknown to the client.
    pub unanswered_arrivals: usize,
    /// Arrived, though every attempt was refused or broke before the final dot: a 4xx that was not true.
    pub refused_arrivals: Vec<String>,
    /// Accepted, not arrived.
    pub lost: Vec<String>,
    /// Arrived, never offered, or only ever refused with 5xx.
    pub phantoms: Vec<String>,
    /// Arrived with other content, another envelope, bare line ends, or without TLS.
    pub damaged: Vec<String>,
    /// Distinct texts of refusals and how often they came.
    pub refusals: BTreeMap<String, usize>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "offered={} attempts={} 250={} 4xx={} 5xx={} unknown={} broken={} delivered={} dups={} dsns={} \
             unanswered-arrivals={} refused-arrivals={} lost={} phantoms={} damaged={}",
            self.offered,
            self.attempts,
            self.accepted,
            self.temporary,
            self.permanent,
            self.unknown,
            self.broken,
            self.delivered,
            self.duplicates,
            self.dsns,
            self.unanswered_arrivals,
            self.refused_arrivals.len(),
            self.lost.len(),
            self.phantoms.len(),
            self.damaged.len()
        )?;
        for (text, times) in self.refusals.iter().take(8) {
            write!(formatter, "\n    {times} x {text}")?;
        }
        Ok(())
    }
}

impl Verdict {
    /// Nothing lost, nothing invented, nothing changed, and something happened at all.
    ///
    /// # Errors
    /// Names the first few messages that break a rule.
    pub fn holds(&self) -> Result<()> {
        ensure!(self.accepted > 0, "vacuous: nothing was accepted: {self}");
        ensure!(
            self.lost.is_empty(),
            "lost after 250: {:?}: {self}",
            first(&self.lost)
        );
        ensure!(
            self.phantoms.is_empty(),
            "delivered but not offered: {:?}: {self}",
            first(&self.phantoms)
        );
        ensure!(
            self.refused_arrivals.is_empty(),
            "delivered, but every answer was a refusal: {:?}: {self}",
            first(&self.refused_arrivals)
        );
        ensure!(
            self.damaged.is_empty(),
            "damaged: {:?}: {self}",
            first(&self.damaged)
        );
        Ok(())
    }
}

fn first(list: &[String]) -> &[String] {
    list.get(..5).unwrap_or(list)
}

impl Ledger {
    /// Writes an offer down, before any octet of it is sent.
    pub fn offer(&self, offer: Offer) {
        let entry = Entry {
            outcomes: Vec::new(),
            offer,
        };
        self.lock().entries.insert(entry.offer.token.clone(), entry);
    }

    /// Writes down how an attempt ended.
    pub fn outcome(&self, token: &str, outcome: Outcome) {
        let mut book = self.lock();
        if outcome == Outcome::Accepted {
            book.accepted_at.push(Instant::now());
        }
        if let Some(entry) = book.entries.get_mut(token) {
            entry.outcomes.push(outcome);
        }
    }

    /// 250s so far.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.lock().accepted_at.len()
    }

    /// 250s read after `moment`.
    #[must_use]
    pub fn accepted_since(&self, moment: Instant) -> usize {
        self.lock()
            .accepted_at
            .iter()
            .filter(|&&at| at > moment)
            .count()
    }

    /// The longest time without a 250 between `from` and `to`.
    #[must_use]
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let mut moments: Vec<Instant> = self
            .lock()
            .accepted_at
            .iter()
            .copied()
            .filter(|&at| at > from && at < to)
            .collect();
        moments.push(to);
        moments.sort();
        let mut last = from;
        let mut longest = Duration::ZERO;
        for moment in moments {
            longest = longest.max(moment - last);
            last = moment;
        }
        longest
    }

    /// Joins offers and outcomes with what is in the sink now.
    ///
    /// # Errors
    /// When a file of the sink cannot be read.
    pub fn judge(&self, sink: &Store) -> Result<Verdict> {
        self.read_files(sink)?;
        let book = self.lock();
        let mut verdict = Verdict {
            offered: book.entries.len(),
            ..Verdict::default()
        };
        let mut deliveries: HashMap<&str, HashMap<&str, usize>> = HashMap::new();
        for (file, arrival) in &book.files {
            match arrival {
                Arrival::Dsn => verdict.dsns += 1,
                Arrival::NoToken | Arrival::Message { .. } => {
                    verdict.phantoms.push(file.display().to_string())
                }
                Arrival::Checked {
                    token,
                    recipients,
                    problem,
                } => {
                    if let Some(problem) = problem {
                        verdict
                            .damaged
                            .push(format!("{}: {problem}", file.display()));
                    }
                    let of_token = deliveries.entry(token).or_default();
                    for recipient in recipients {
                        *of_token.entry(recipient).or_default() += 1;
                    }
                }
            }
        }
        for (token, entry) in &book.entries {
            let accepted = count_outcomes(entry, &mut verdict);
            let arrived = deliveries.remove(token.as_str()).unwrap_or_default();
            let complete = entry
                .offer
                .recipients
                .iter()
                .all(|one| arrived.contains_key(one.as_str()));
            verdict.delivered += usize::from(complete);
            verdict.duplicates += arrived
                .values()
                .map(|times| times.saturating_sub(accepted.max(1)))
                .sum::<usize>();
            if accepted > 0 && !complete {
                verdict.lost.push(token.clone());
            }
            if accepted == 0 && !arrived.is_empty() {
                let all = |is: fn(&Outcome) -> bool| {
                    !entry.outcomes.is_empty() && entry.outcomes.iter().all(is)
                };
                if all(|o| matches!(o, Outcome::Permanent(_))) {
                    verdict.phantoms.push(token.clone());
                } else if all(|o| !matches!(o, Outcome::Unknown(_))) {
                    verdict.refused_arrivals.push(token.clone());
                } else {
                    verdict.unanswered_arrivals += 1;
                }
            }
        }
        verdict
            .phantoms
            .extend(deliveries.keys().map(|token| (*token).to_owned()));
        Ok(verdict)
    }

    /// Judges again and again until nothing accepted is missing or `limit` is over; gives the last verdict.
    ///
    /// # Errors
    /// When a file of the sink cannot be read.
    pub async fn settle(&self, sink: &Store, limit: Duration) -> Result<Verdict> {
        let deadline = Instant::now() + limit;
        loop {
            let verdict = self.judge(sink)?;
            if verdict.lost.is_empty() || Instant::now() >= deadline {
                return Ok(verdict);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    fn read_files(&self, sink: &Store) -> Result<()> {
        for received in sink.list()? {
            if self.lock().files.contains_key(&received.file) {
                continue;
            }
            let arrival = arrival(&received)?;
            let mut book = self.lock();
            let checked = check(arrival, &book.entries);
            book.files.insert(received.file, checked);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Adds an entry's outcomes to the verdict; gives its number of 250s.
fn count_outcomes(entry: &Entry, verdict: &mut Verdict) -> usize {
    let mut accepted = 0;
    for outcome in &entry.outcomes {
        verdict.attempts += 1;
        let text = match outcome {
            Outcome::Accepted => {
                accepted += 1;
                verdict.accepted += 1;
                continue;
            }
            Outcome::Temporary(text) => {
                verdict.temporary += 1;
                text
            }
            Outcome::Permanent(text) => {
                verdict.permanent += 1;
                text
            }
            Outcome::Unknown(text) => {
                verdict.unknown += 1;
                text
            }
            Outcome::Broken(text) => {
                verdict.broken += 1;
                text
            }
        };
        *verdict.refusals.entry(text.clone()).or_default() += 1;
    }
    accepted
}

fn arrival(received: &Received) -> Result<Arrival> {
    let envelope = &received.envelope;
    if envelope.reverse_path.is_empty() {
        return Ok(Arrival::Dsn);
    }
    let octets = received.octets()?;
    let Some(token) = token(&octets) else {
        return Ok(Arrival::NoToken);
    };
    Ok(Arrival::Message {
        token,
        reverse_path: envelope.reverse_path.clone(),
        recipients: envelope.recipients.clone(),
        bare_line_ends: envelope.bare_line_ends,
        tls: !envelope.tls_version.is_empty(),
        octets,
    })
}

fn check(arrival: Arrival, entries: &HashMap<String, Entry>) -> Arrival {
    let Arrival::Message {
        token,
        reverse_path,
        recipients,
        octets,
        bare_line_ends,
        tls,
    } = arrival
    else {
        return arrival;
    };
    let problem = entries.get(&token).and_then(|entry| {
        let offer = &entry.offer;
        if bare_line_ends {
            return Some("bare CR or LF".to_owned());
        }
        if !tls {
            return Some("came in clear".to_owned());
        }
        if reverse_path != offer.reverse_path
            || !recipients.iter().all(|one| offer.recipients.contains(one))
        {
            return Some(format!("envelope <{reverse_path}> {recipients:?}"));
        }
        behind_trace(&octets, offer)
            .err()
            .map(|error| error.to_string())
    });
    Arrival::Checked {
        token,
        recipients,
        problem,
    }
}

/// The token of a message, if it carries one.
#[must_use]
pub fn token(octets: &[u8]) -> Option<String> {
    let at = octets
        .windows(TOKEN_HEADER.len())
        .position(|window| window == TOKEN_HEADER.as_bytes())?;
    let rest = octets.get(at + TOKEN_HEADER.len()..)?;
    let end = rest.iter().position(|octet| octet.is_ascii_whitespace())?;
    Some(String::from_utf8_lossy(rest.get(..end)?).into_owned())
}

/// Checks that `octets` are trace headers and then exactly the content of the offer.
///
/// # Errors
/// Says what differs.
pub fn behind_trace(octets: &[u8], offer: &Offer) -> Result<()> {
    ensure!(
        octets.len() > offer.octets,
        "{} octets arrived of {}",
        octets.len(),
        offer.octets
    );
    let (trace, content) = octets.split_at(octets.len() - offer.octets);
    let digest: [u8; 32] = Sha256::digest(content).into();
    ensure!(digest == offer.sha256, "content differs");
    let trace = std::str::from_utf8(trace)?;
    ensure!(
        trace.starts_with("Received: ") && trace.ends_with("\r\n"),
        "no Received header in front: {trace:?}"
    );
    for line in trace.split_terminator("\r\n") {
        ensure!(
            line.starts_with("Received: ") || line.starts_with([' ', '\t']),
            "{line:?} in front of the content is no trace header"
        );
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn offer(content: &[u8]) -> Offer {
        Offer::of("t1", "a@b.example", &["c@d.example".to_owned()], content)
    }

    fn sink_with(files: &[(&str, &[u8])]) -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path().to_owned()).unwrap();
        for (from, octets) in files {
            let envelope = crate::sink::Envelope {
                reverse_path: (*from).to_owned(),
                mail_parameters: Vec::new(),
                recipients: vec!["c@d.example".to_owned()],
                helo: String::new(),
                peer: String::new(),
                tls_version: "TLSv1_3".to_owned(),
                tls_cipher: String::new(),
                received_at_ms: 1,
                octets: octets.len() as u64,
                bare_line_ends: false,
            };
            store.keep(&envelope, octets).unwrap();
        }
        (folder, store)
    }

    const CONTENT: &[u8] = b"X-Ledger: t1\r\n\r\nhello\r\n";
    const ARRIVED: &[u8] = b"Received: from x\r\n\tby y\r\nX-Ledger: t1\r\n\r\nhello\r\n";

    #[test]
    fn content_behind_received_headers_is_right_and_anything_else_is_not() {
        behind_trace(ARRIVED, &offer(CONTENT)).unwrap();
        behind_trace(
            b"Received: x\r\nX-Ledger: t1\r\n\r\nhellO\r\n",
            &offer(CONTENT),
        )
        .unwrap_err();
        behind_trace(
            b"Received: x\r\nBcc: y\r\nX-Ledger: t1\r\n\r\nhello\r\n",
            &offer(CONTENT),
        )
        .unwrap_err();
        behind_trace(CONTENT, &offer(CONTENT)).unwrap_err();
    }

    #[test]
    fn a_250_without_a_file_is_a_loss() {
        let (_folder, store) = sink_with(&[]);
        let ledger = Ledger::default();
        ledger.offer(offer(CONTENT));
        ledger.outcome("t1", Outcome::Accepted);
        assert!(ledger.judge(&store).unwrap().holds().is_err());
    }

    #[test]
    fn two_files_for_one_250_are_one_duplicate() {
        let (_folder, store) = sink_with(&[("a@b.example", ARRIVED), ("a@b.example", ARRIVED)]);
        let ledger = Ledger::default();
        ledger.offer(offer(CONTENT));
        ledger.outcome("t1", Outcome::Accepted);
        let verdict = ledger.judge(&store).unwrap();
        verdict.holds().unwrap();
        assert_eq!((verdict.delivered, verdict.duplicates), (1, 1));
    }

    #[test]
    fn what_was_not_offered_or_was_refused_is_a_phantom() {
        let (_folder, store) = sink_with(&[("a@b.example", ARRIVED)]);
        let ledger = Ledger::default();
        assert_eq!(ledger.judge(&store).unwrap().phantoms.len(), 1);
        let ledger = Ledger::default();
        ledger.offer(offer(CONTENT));
        ledger.outcome("t1", Outcome::Permanent("550 no".to_owned()));
        assert_eq!(ledger.judge(&store).unwrap().phantoms.len(), 1);
    }

    #[test]
    fn a_451_for_what_arrives_is_a_lie_and_silence_is_not() {
        for (outcome, truthful) in [
            (Outcome::Temporary("451 no".to_owned()), false),
            (Outcome::Broken("reset".to_owned()), false),
            (Outcome::Unknown("closed".to_owned()), true),
        ] {
            let (_folder, store) = sink_with(&[("a@b.example", ARRIVED)]);
            let ledger = Ledger::default();
            ledger.offer(offer(CONTENT));
            ledger.outcome("t1", outcome);
            let verdict = ledger.judge(&store).unwrap();
            assert_eq!(verdict.refused_arrivals.is_empty(), truthful, "{verdict}");
            assert_eq!(verdict.unanswered_arrivals, usize::from(truthful));
        }
    }

    #[test]
    fn a_changed_envelope_or_body_is_damage() {
        let (_folder, store) = sink_with(&[("other@b.example", ARRIVED)]);
        let ledger = Ledger::default();
        ledger.offer(offer(CONTENT));
        ledger.outcome("t1", Outcome::Accepted);
        assert_eq!(ledger.judge(&store).unwrap().damaged.len(), 1);
    }
}
