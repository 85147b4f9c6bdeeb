//! Joins what was offered and answered with what arrived.

use std::collections::{BTreeSet, HashMap};

use super::arrival::{Arrival, Report};
use super::{Book, Entry, Outcome, Verdict};

/// Deliveries of one message, by recipient.
type Deliveries<'a> = HashMap<&'a str, usize>;

pub(super) fn judge(book: &Book) -> Verdict {
    let mut verdict = Verdict {
        offered: book.entries.len(),
        ..Verdict::default()
    };
    let mut deliveries: HashMap<&str, Deliveries<'_>> = HashMap::new();
    let mut reports: HashMap<&str, Vec<&Report>> = HashMap::new();
    let mut known = BTreeSet::new();
    for (file, arrival) in &book.files {
        match arrival {
            Arrival::Report(report) => {
                verdict.dsns += 1;
                if report.id.is_empty() || known.insert(report.id.as_str()) {
                    reports.entry(&report.token).or_default().push(report);
                } else {
                    verdict.duplicates += 1;
                }
            }
            Arrival::NoToken | Arrival::Message { .. } => {
                verdict.phantoms.push(file.display().to_string());
            }
            Arrival::Checked {
                token,
                recipients,
                problem,
                ..
            } => {
                if let Some(problem) = problem {
                    let damage = format!("{}: {problem}", file.display());
                    verdict.damaged.push(damage);
                }
                let of_token = deliveries.entry(token).or_default();
                for recipient in recipients {
                    *of_token.entry(recipient).or_default() += 1;
                }
            }
        }
    }
    for (token, entry) in &book.entries {
        let arrived = deliveries.remove(token.as_str()).unwrap_or_default();
        let reported = reports.remove(token.as_str()).unwrap_or_default();
        one(entry, &arrived, &reported, &mut verdict);
    }
    let phantoms = deliveries.keys().map(|token| (*token).to_owned());
    verdict.phantoms.extend(phantoms);
    verdict
}

fn one(entry: &Entry, arrived: &Deliveries<'_>, reported: &[&Report], verdict: &mut Verdict) {
    let (offer, unknown) = (&entry.offer, verdict.unknown);
    let accepted = count_outcomes(entry, verdict);
    let unknown = verdict.unknown - unknown;
    let deliverable = |one: &&String| !offer.failing.contains(one);
    let complete = {
        let mut all = offer.recipients.iter().filter(deliverable);
        all.all(|one| arrived.contains_key(one.as_str()))
    };
    let mut missing = accepted > 0 && !complete;
    for failing in &offer.failing {
        // Each 250 is a message of its own in the queue, and so may be each unknown answer.
        let naming = || reported.iter().filter(|one| one.failed.contains(failing));
        let originals: BTreeSet<&str> = naming().map(|one| one.original.as_str()).collect();
        missing |= originals.len() < accepted;
        verdict.reported += originals.len();
        if naming().count() > originals.len() {
            let text = format!("{}: <{failing}> is reported twice", offer.token);
            verdict.false_reports.push(text);
        }
        if entry.is_answered() && originals.len() > accepted + unknown {
            let text = format!(
                "{}: <{failing}> failed more often than it was accepted",
                offer.token
            );
            verdict.false_reports.push(text);
        }
        if arrived.contains_key(failing.as_str()) {
            verdict.phantoms.push(offer.token.clone());
        }
    }
    for report in reported {
        let wrong = |one: &&String| !offer.failing.contains(one);
        for recipient in report.failed.iter().filter(wrong) {
            let text = format!("{}: <{recipient}> did not fail", offer.token);
            verdict.false_reports.push(text);
        }
    }
    verdict.delivered += usize::from(complete && !arrived.is_empty());
    let beyond = |times: &usize| times.saturating_sub(accepted.max(1));
    verdict.duplicates += arrived.values().map(beyond).sum::<usize>();
    if missing {
        verdict.lost.push(offer.token.clone());
    }
    if accepted == 0 && !(arrived.is_empty() && reported.is_empty()) {
        let all = |is: fn(&Outcome) -> bool| entry.is_answered() && entry.outcomes.iter().all(is);
        if all(|o| matches!(o, Outcome::Permanent(_))) {
            verdict.phantoms.push(offer.token.clone());
        } else if all(|o| !matches!(o, Outcome::Unknown(_))) {
            verdict.refused_arrivals.push(offer.token.clone());
        } else {
            verdict.unanswered_arrivals += 1;
        }
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
