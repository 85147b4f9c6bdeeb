//! Random logs of every shard command against a naive reference, then a drain: every recipient
//! that was accepted reaches one end, and nothing stays behind.
use super::*;
use crate::REMEMBER_MS;
use sealane_wire::v1::dedupe_record::Fate;

#[derive(Debug, Clone)]
enum Do {
    Enqueue {
        n: u8,
        recipients: usize,
        leased: bool,
    },
    EnqueueChunks {
        n: u8,
        chunks: u32,
        size: u64,
    },
    Chunk {
        n: u8,
        seq: u32,
    },
    Abort {
        n: u8,
    },
    Lease {
        items: Vec<(u8, Vec<u32>)>,
    },
    Renew {
        n: u8,
        stale: bool,
        other: bool,
    },
    Report {
        n: u8,
        stale: bool,
        results: Vec<(u32, u8)>,
        dsn: bool,
    },
    Expire {
        n: u8,
        recipients: Vec<u32>,
        dsn: bool,
    },
    Release {
        n: u8,
        stale: bool,
        expired: bool,
    },
    Hold {
        n: u8,
        on: bool,
    },
    Sweep {
        age: u64,
    },
    Repeat,
}

fn step() -> impl Strategy<Value = Do> {
    let n = || 1u8..5;
    let r = || 0u32..4;
    let rs = || prop::collection::vec(r(), 1..4);
    prop_oneof![
        3 => (n(), 1usize..4, any::<bool>()).prop_map(|(n, recipients, leased)| Do::Enqueue { n, recipients, leased }),
        1 => (n(), 1u32..4, 0u64..14).prop_map(|(n, chunks, size)| Do::EnqueueChunks { n, chunks, size }),
        1 => (n(), 1u32..4).prop_map(|(n, c)| Do::EnqueueChunks { n, chunks: c, size: u64::from(c) * 4 }),
        3 => (n(), 0u32..3).prop_map(|(n, seq)| Do::Chunk { n, seq }),
        1 => n().prop_map(|n| Do::Abort { n }),
        4 => prop::collection::vec((n(), rs()), 1..3).prop_map(|items| Do::Lease { items }),
        1 => (n(), any::<bool>(), any::<bool>()).prop_map(|(n, stale, other)| Do::Renew { n, stale, other }),
        4 => (n(), prop::bool::weighted(0.2), prop::collection::vec((r(), 0u8..3), 1..4), any::<bool>())
            .prop_map(|(n, stale, results, dsn)| Do::Report { n, stale, results, dsn }),
        1 => (n(), rs(), any::<bool>()).prop_map(|(n, recipients, dsn)| Do::Expire { n, recipients, dsn }),
        2 => (n(), prop::bool::weighted(0.2), any::<bool>()).prop_map(|(n, stale, expired)| Do::Release { n, stale, expired }),
        1 => (n(), any::<bool>()).prop_map(|(n, on)| Do::Hold { n, on }),
        1 => (0u64..3_000).prop_map(|age| Do::Sweep { age }),
        1 => Just(Do::Repeat),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Waiting { due: u64 },
    Leased { epoch: u64, until: u64 },
    Held,
    Over,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Mail {
    /// State, attempts, holders that went silent.
    recipients: Vec<(Is, u32, u32)>,
    bodies: Vec<u64>,
    hold: bool,
    index: u64,
    expires: u64,
}

impl Mail {
    fn wait(&mut self, r: usize, due: u64) {
        self.recipients[r].0 = if self.hold {
            Is::Held
        } else {
            Is::Waiting { due }
        };
    }
}

/// The shard, in the simplest words.
#[derive(Debug, Default)]
struct Model {
    now: u64,
    index: u64,
    mail: BTreeMap<u8, Mail>,
    fate: BTreeMap<u8, (Fate, u64)>,
    uploads: BTreeMap<(u8, u32), (u64, u64)>,
    accepted: u64,
    ended: u64,
}

impl Model {
    fn accept(&mut self, n: u8, recipients: usize, bodies: Vec<u64>, leased: bool) {
        let one = if leased {
            let (epoch, until) = (self.index, self.now + 500);
            (Is::Leased { epoch, until }, 1, 0)
        } else {
            (Is::Waiting { due: self.now }, 0, 0)
        };
        self.accepted += recipients as u64;
        let mail = Mail {
            recipients: vec![one; recipients],
            bodies,
            hold: false,
            index: self.index,
            expires: self.now.max(1_000_000),
        };
        self.mail.insert(n, mail);
    }

    fn known(&self, n: u8) -> bool {
        self.mail.contains_key(&n) || self.fate.contains_key(&n)
    }

    /// Old ids are not remembered.
    fn set_fate(&mut self, n: u8, fate: Fate) {
        if id(n).time_ms() + REMEMBER_MS >= self.now {
            self.fate.insert(n, (fate, self.now));
        }
    }

    fn recipient(&mut self, n: u8, r: u32) -> Option<&mut (Is, u32, u32)> {
        self.mail.get_mut(&n)?.recipients.get_mut(r as usize)
    }

    /// Some epoch under which a recipient of `n` is leased.
    fn epoch(&self, n: u8) -> u64 {
        let recipients = self
            .mail
            .get(&n)
            .map(|m| m.recipients.as_slice())
            .unwrap_or_default();
        recipients
            .iter()
            .find_map(|(is, ..)| match is {
                Is::Leased { epoch, .. } => Some(*epoch),
                _ => None,
            })
            .unwrap_or(1_000_000)
    }

    fn finish(&mut self, n: u8) {
        if self
            .mail
            .get(&n)
            .is_some_and(|m| m.recipients.iter().all(|(is, ..)| *is == Is::Over))
        {
            self.mail.remove(&n);
            self.set_fate(n, Fate::Finished);
        }
    }

    /// The step happens at `index`; the expected answer, shortly.
    fn step(&mut self, s: &Do, op: &Op) -> Option<u32> {
        match s {
            Do::Enqueue {
                n,
                recipients,
                leased,
            } => {
                // Pieces of it, if there are any, wait for the sweep.
                if !self.known(*n) {
                    self.accept(*n, *recipients, vec![self.index], *leased);
                }
                None
            }
            Do::EnqueueChunks { n, chunks, size } => {
                let have: Vec<(u32, u64)> = self
                    .uploads
                    .iter()
                    .filter(|((m, _), _)| m == n)
                    .map(|((_, s), (i, _))| (*s, *i))
                    .collect();
                let complete =
                    have.iter().map(|(s, _)| *s).eq(0..*chunks) && *size == have.len() as u64 * 4;
                if !self.known(*n) && complete {
                    self.uploads.retain(|(m, _), _| m != n);
                    self.accept(*n, 1, have.into_iter().map(|(_, i)| i).collect(), false);
                }
                None
            }
            Do::Chunk { n, seq } => {
                if !self.known(*n) {
                    self.uploads
                        .entry((*n, *seq))
                        .or_insert((self.index, self.now));
                }
                None
            }
            Do::Abort { n } => {
                let known = self.known(*n);
                let untouched = self.mail.get(n).is_some_and(|m| {
                    let all = &m.recipients;
                    let first =
                        |is: &Is| matches!(is, Is::Leased { epoch, .. } if *epoch == m.index);
                    all.iter().all(|(is, ..)| first(is)) && all[0].1 == 1
                        || all.iter().all(|(is, attempts, _)| {
                            matches!(is, Is::Waiting { .. }) && *attempts == 0
                        })
                });
                if untouched {
                    self.ended += self.mail.remove(n).map_or(0, |m| m.recipients.len() as u64);
                }
                if !known {
                    self.uploads.retain(|(m, _), _| m != n);
                }
                if untouched || !known {
                    self.set_fate(*n, Fate::Aborted);
                }
                None
            }
            Do::Lease { items } => {
                let (now, index) = (self.now, self.index);
                for (n, rs) in items {
                    for r in rs {
                        if let Some((is, attempts, _)) = self.recipient(*n, *r)
                            && matches!(is, Is::Waiting { .. })
                        {
                            *is = Is::Leased {
                                epoch: index,
                                until: now + 500,
                            };
                            *attempts += 1;
                        }
                    }
                }
                None
            }
            Do::Renew { .. } | Do::Release { .. } => {
                let (leases, holder, until) = match op {
                    Op::Renew(o) => (&o.leases, o.holder.as_str(), Some(o.until_ms)),
                    Op::Release(o) => (&o.leases, "r", None),
                    other => panic!("{other:?}"),
                };
                let expired = matches!(op, Op::Release(o) if o.expired);
                let (n, at) = (number(&leases[0].id), leases[0].epoch);
                let now = self.now;
                let Some(m) = self.mail.get_mut(&n) else {
                    return Some(0);
                };
                let mut any = false;
                for r in 0..m.recipients.len() {
                    let Is::Leased { epoch, until: end } = m.recipients[r].0 else {
                        continue;
                    };
                    if epoch != at || holder != "r" {
                        continue;
                    }
                    if let Some(until) = until {
                        if m.expires > now {
                            any = true;
                            let until = until.max(end + 1);
                            m.recipients[r].0 = Is::Leased { epoch, until };
                        }
                        continue;
                    }
                    any = true;
                    if expired {
                        m.recipients[r].2 += 1;
                        m.hold |= m.recipients[r].2 >= 5;
                    } else {
                        m.recipients[r].1 -= 1;
                    }
                    m.wait(r, now);
                }
                Some(u32::from(any))
            }
            Do::Hold { n, on } => {
                let now = self.now;
                let Some(m) = self.mail.get_mut(n) else {
                    return Some(0);
                };
                m.hold = *on;
                for r in &mut m.recipients {
                    r.0 = match r.0 {
                        Is::Waiting { .. } if *on => Is::Held,
                        Is::Held if !*on => Is::Waiting { due: now },
                        other => other,
                    };
                    if !*on {
                        r.2 = 0;
                    }
                }
                Some(1)
            }
            Do::Report { n, .. } | Do::Expire { n, .. } => {
                let Op::Results(o) = op else { panic!() };
                let mut changes: BTreeMap<u32, Outcome> = BTreeMap::new();
                let over = self.mail.get(n).is_some_and(|m| m.expires <= self.now);
                for result in &o.results {
                    let current = match self.recipient(*n, result.recipient) {
                        Some((Is::Leased { epoch, .. }, ..)) => *epoch == o.epoch,
                        Some((Is::Waiting { .. } | Is::Held, ..)) => o.epoch == 0 && over,
                        _ => false,
                    };
                    if current {
                        changes.entry(result.recipient).or_insert(result.outcome());
                    }
                }
                if o.epoch == 0 && changes.len() < o.results.len() {
                    return Some(0);
                }
                for (r, outcome) in &changes {
                    let due = self.now + 200;
                    if let Some(m) = self.mail.get_mut(n) {
                        let r = *r as usize;
                        m.recipients[r].2 = 0;
                        if *outcome == Outcome::Deferred {
                            m.wait(r, due);
                        } else {
                            m.recipients[r].0 = Is::Over;
                            self.ended += 1;
                        }
                    }
                }
                self.finish(*n);
                if let Some(dsn) = &o.dsn
                    && changes.values().any(|o| *o == Outcome::Failed)
                {
                    self.accept(number(&dsn.id), 1, vec![self.index], false);
                }
                Some(changes.len() as u32)
            }
            Do::Sweep { age } => {
                let before = self.now.saturating_sub(*age);
                let old: Vec<(u8, u32)> = self
                    .uploads
                    .iter()
                    .filter(|(_, (_, at))| *at < before)
                    .map(|(k, _)| *k)
                    .collect();
                for key in &old {
                    self.uploads.remove(key);
                    if !self.known(key.0) {
                        self.set_fate(key.0, Fate::Aborted);
                    }
                }
                let fates = self.fate.len();
                let before = before.min(self.now.saturating_sub(REMEMBER_MS));
                self.fate.retain(|n, _| id(*n).time_ms() >= before);
                Some((old.len() + fates - self.fate.len()) as u32)
            }
            Do::Repeat => None,
        }
    }
}

fn number(raw: &[u8]) -> u8 {
    raw[15]
}

/// What the step proposes, and how many octets ride along.
fn op(s: &Do, model: &Model, dsn_id: &mut u8) -> (Op, usize) {
    let epoch = |n: u8, stale: bool| if stale { 7_000_000 } else { model.epoch(n) };
    let reference = |n, stale| {
        vec![v1::LeaseRef {
            id: raw(n),
            epoch: epoch(n, stale),
            until_ms: 0,
        }]
    };
    let mut report = |wanted: bool| {
        let Op::Enqueue(o) = enqueue(*dsn_id, 1, 7, 0) else {
            panic!()
        };
        *dsn_id += u8::from(wanted);
        wanted.then_some(o)
    };
    match s {
        Do::Enqueue {
            n,
            recipients,
            leased,
        } => {
            let Op::Enqueue(mut o) = enqueue(*n, *recipients, 5, 0) else {
                panic!()
            };
            if *leased {
                o.holder = "r".into();
                o.lease_until_ms = model.now + 500;
            }
            (Op::Enqueue(o), 5)
        }
        Do::EnqueueChunks { n, chunks, size } => (enqueue(*n, 1, *size, *chunks), 0),
        Do::Chunk { n, seq } => (
            Op::Chunk(v1::BodyChunkOp {
                id: raw(*n),
                seq: *seq,
                length: 4,
            }),
            4,
        ),
        Do::Abort { n } => (Op::Abort(v1::AbortOp { id: raw(*n) }), 0),
        Do::Lease { items } => {
            let items = items
                .iter()
                .map(|(n, r)| v1::LeaseItem {
                    id: raw(*n),
                    recipients: r.clone(),
                })
                .collect();
            (
                Op::Lease(v1::LeaseOp {
                    holder: "r".into(),
                    until_ms: model.now + 500,
                    items,
                }),
                0,
            )
        }
        Do::Renew { n, stale, other } => {
            let holder = if *other { "q" } else { "r" };
            let leases = reference(*n, *stale);
            (
                Op::Renew(v1::RenewOp {
                    holder: holder.into(),
                    until_ms: model.now + 900,
                    leases,
                }),
                0,
            )
        }
        Do::Release { n, stale, expired } => (
            Op::Release(v1::ReleaseOp {
                leases: reference(*n, *stale),
                expired: *expired,
            }),
            0,
        ),
        Do::Hold { n, on } => (
            Op::Hold(v1::HoldOp {
                ids: vec![raw(*n)],
                reason: if *on { "why" } else { "" }.into(),
                actor: "someone".into(),
            }),
            0,
        ),
        Do::Report {
            n,
            stale,
            results,
            dsn,
        } => {
            let results = results
                .iter()
                .map(|(r, o)| v1::RecipientResult {
                    recipient: *r,
                    outcome: [Outcome::Delivered, Outcome::Failed, Outcome::Deferred][*o as usize]
                        .into(),
                    retry_at_ms: model.now + 200,
                    ..Default::default()
                })
                .collect();
            let dsn = report(*dsn);
            let body = if dsn.is_some() { 7 } else { 0 };
            (
                Op::Results(v1::ResultsOp {
                    id: raw(*n),
                    epoch: epoch(*n, *stale),
                    results,
                    dsn,
                }),
                body,
            )
        }
        Do::Expire { n, recipients, dsn } => {
            let results = recipients
                .iter()
                .map(|r| v1::RecipientResult {
                    recipient: *r,
                    outcome: Outcome::Failed.into(),
                    expired: true,
                    ..Default::default()
                })
                .collect();
            let dsn = report(*dsn);
            let body = if dsn.is_some() { 7 } else { 0 };
            (
                Op::Results(v1::ResultsOp {
                    id: raw(*n),
                    epoch: 0,
                    results,
                    dsn,
                }),
                body,
            )
        }
        Do::Sweep { age } => {
            let before = model.now.saturating_sub(*age);
            let sweep = v1::SweepOp {
                dedupe_before_ms: before,
                upload_before_ms: before,
                limit: 10_000,
            };
            (Op::Sweep(sweep), 0)
        }
        Do::Repeat => panic!("resolved by the caller"),
    }
}

/// The tables say what the model says.
fn compare(log: &Log, model: &Model) -> Result<(), TestCaseError> {
    let mail: BTreeMap<u8, Mail> = queries::list(&log.tables, None, usize::MAX, None)
        .unwrap()
        .into_iter()
        .map(|m| {
            let recipients = m
                .recipients
                .iter()
                .map(|r| {
                    let is = match r.state() {
                        State::Waiting => Is::Waiting { due: r.due_ms },
                        State::Leased => Is::Leased {
                            epoch: r.epoch,
                            until: r.lease_until_ms,
                        },
                        State::Held => Is::Held,
                        _ => Is::Over,
                    };
                    (is, r.attempts, r.lost_holders)
                })
                .collect();
            let bodies = m.record.body.iter().map(|p| p.log_index).collect();
            let mail = Mail {
                recipients,
                bodies,
                hold: !m.record.hold.is_empty(),
                index: m.record.log_index,
                expires: m.record.expires_at_ms,
            };
            (number(m.id.as_bytes()), mail)
        })
        .collect();
    prop_assert_eq!(&mail, &model.mail);
    let fates: BTreeMap<u8, (Fate, u64)> = log
        .tables
        .scan(Table::Dedupe, b"", b"", usize::MAX)
        .unwrap()
        .into_iter()
        .map(|(k, v)| {
            let record = v1::DedupeRecord::decode(v).unwrap();
            (number(&k), (record.fate(), record.at_ms))
        })
        .collect();
    prop_assert_eq!(&fates, &model.fate);
    let uploads = log
        .tables
        .scan(Table::Upload, b"", b"", usize::MAX)
        .unwrap()
        .len();
    prop_assert_eq!(uploads, model.uploads.len());
    Ok(())
}

struct Pair {
    log: Log,
    twin: Log,
    model: Model,
}

impl Pair {
    fn commit(&mut self, s: &Do, op: Op, body: usize) -> Result<(), TestCaseError> {
        self.model.index += 1;
        (self.log.now, self.twin.now) = (self.model.now, self.model.now);
        let answer = self.log.commit(op.clone(), body);
        prop_assert_eq!(&self.twin.commit(op.clone(), body), &answer);
        if let Some(expected) = self.model.step(s, &op) {
            match &answer {
                Answer::Counted(c) => prop_assert_eq!(c.effective, expected),
                other => prop_assert!(false, "{other:?}"),
            }
        }
        compare(&self.log, &self.model)
    }

    /// Time passes, leases run out, everything is delivered, everything is forgotten.
    fn drain(&mut self) -> Result<(), TestCaseError> {
        for n in self.model.mail.keys().copied().collect::<Vec<_>>() {
            while self.model.epoch(n) != 1_000_000 {
                let s = Do::Release {
                    n,
                    stale: false,
                    expired: false,
                };
                let (op, body) = op(&s, &self.model, &mut 0);
                self.commit(&s, op, body)?;
            }
        }
        for n in self.model.mail.keys().copied().collect::<Vec<_>>() {
            let s = Do::Hold { n, on: false };
            let (op, body) = op(&s, &self.model, &mut 0);
            self.commit(&s, op, body)?;
        }
        self.model.now += 10_000;
        for n in self.model.mail.keys().copied().collect::<Vec<_>>() {
            let all: Vec<u32> = (0..4).collect();
            let lease = Do::Lease {
                items: vec![(n, all.clone())],
            };
            let (o, body) = op(&lease, &self.model, &mut 0);
            self.commit(&lease, o, body)?;
            let results = all.into_iter().map(|r| (r, 0)).collect();
            let report = Do::Report {
                n,
                stale: false,
                results,
                dsn: false,
            };
            let (o, body) = op(&report, &self.model, &mut 0);
            self.commit(&report, o, body)?;
        }
        for _ in 0..6 {
            // Further than an hour at once would be a claim.
            self.model.now += REMEMBER_MS / 2;
            let sweep = Do::Sweep { age: 1 };
            let (o, body) = op(&sweep, &self.model, &mut 0);
            self.commit(&sweep, o, body)?;
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_accepted_recipient_reaches_one_end_and_nothing_stays(
        steps in prop::collection::vec((step(), 0u64..400), 0..70),
        // Young ids in the first case, old ones in the second.
        start in prop_oneof![Just(1_000), Just(REMEMBER_MS)],
    ) {
        let mut pair = Pair { log: Log::default(), twin: Log::default(), model: Model::default() };
        pair.model.now = start;
        let mut dsn_id = 100;
        let mut last: Option<(Do, Op, usize)> = None;
        for (s, wait) in steps {
            pair.model.now += wait;
            let (s, o, body) = match s {
                // A proposal that was committed twice. (A report's id is new in every proposal but this one.)
                Do::Repeat => match last.take() {
                    Some((s, Op::Results(o), body)) if o.dsn.is_none() => (s, Op::Results(o), body),
                    Some((_, Op::Results(_), _)) | None => continue,
                    Some(other) => other,
                },
                s => {
                    let (o, body) = op(&s, &pair.model, &mut dsn_id);
                    (s, o, body)
                }
            };
            let s = match (&s, &o) {
                // The cut-off of a repeated sweep is the first one's.
                (Do::Sweep { .. }, Op::Sweep(o)) => Do::Sweep { age: pair.model.now - o.dedupe_before_ms },
                // Nor is the end of a repeated lease.
                (Do::Enqueue { .. }, Op::Enqueue(o)) if !o.holder.is_empty() && o.lease_until_ms != pair.model.now + 500 => continue,
                (Do::Lease { .. }, Op::Lease(o)) if o.until_ms != pair.model.now + 500 => continue,
                _ => s,
            };
            last = Some((s.clone(), o.clone(), body));
            pair.commit(&s, o, body)?;
        }
        pair.drain()?;
        prop_assert_eq!(pair.model.accepted, pair.model.ended);
        prop_assert!(pair.model.mail.is_empty() && pair.model.fate.is_empty());
        let mut rows = 0;
        for t in Table::ALL.into_iter().filter(|t| !matches!(t, Table::Clock | Table::Audit)) {
            rows += pair.log.tables.scan(t, b"", b"", usize::MAX).unwrap().len();
        }
        prop_assert_eq!(rows, 0, "rows left");
        prop_assert_eq!(&pair.log.tables.released, &pair.log.bodies, "bodies left");
        prop_assert_eq!(&pair.log.tables, &pair.twin.tables);
    }
}
