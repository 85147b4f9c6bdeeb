//! Next hops that behave badly.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::seq::IndexedRandom;

use super::{RECOVERY, Run};
use crate::ledger::Offer;
use crate::load::{self, Kind, Load};
use crate::policy::{HOLE, SERVED};
use crate::sink::{Act, Counts, Rule, Stage, now_ms};
use crate::{awake, wait};

/// How often a script answers at most.
const TIMES: u16 = 40;
/// How long others are watched beside a black hole, and before it.
const WATCHED: Duration = Duration::from_secs(12);
/// Messages for the hole: more than both relay nodes may have in the air.
const SWALLOWED: usize = 250;

impl Run {
    pub(super) async fn rude_peer(&mut self) -> Result<String> {
        let reply = |text: &str| Act::Reply(text.to_owned());
        let acts = [
            (Stage::Greeting, reply("421 4.3.2 not now")),
            (Stage::Greeting, Act::Drop),
            (Stage::StartTls, reply("454 4.7.0 not now")),
            (Stage::StartTls, Act::Drop),
            (Stage::Mail, reply("451 4.3.0 not now")),
            (Stage::Mail, Act::Drop),
            (Stage::Rcpt, reply("450 4.2.1 busy")),
            (Stage::Rcpt, Act::Drop),
            (Stage::Data, reply("451 4.3.0 not now")),
            (Stage::Data, Act::Drop),
            (Stage::Dot, reply("452 4.3.1 full")),
            (Stage::Dot, Act::Drop),
            (Stage::Dot, Act::KeepAndDrop),
            (Stage::Dot, Act::KeepAndDrop),
            (Stage::Mail, Act::Delay(Duration::from_secs(3))),
            (Stage::Dot, Act::Delay(Duration::from_secs(4))),
        ];
        let mut done = Vec::new();
        // Connections live on: a script for their beginning may wait for one in vain.
        while done.len() < 3 {
            let (stage, act) = acts.choose(&mut self.rng).cloned().context("an act")?;
            let before = Counts::get(&self.cluster.sink.counts().scripted);
            let said = format!("{stage:?} {act:?}");
            let keeps = matches!(act, Act::KeepAndDrop);
            self.cluster.sink.script().add(Rule {
                stage,
                containing: String::new(),
                act,
                times: Some(u32::from(TIMES)),
            });
            self.pause(2000..4000).await;
            self.cluster.sink.script().clear();
            let times = Counts::get(&self.cluster.sink.counts().scripted) - before;
            if keeps {
                // What it kept without a word comes again.
                self.quantities.kept_and_dropped += usize::from(TIMES);
            }
            if times > 0 {
                done.push(format!("{said} {times} times"));
            }
        }
        Ok(done.join(", "))
    }

    /// Mail to one destination stands still, mail to the others does not notice.
    pub(super) async fn black_hole(&mut self) -> Result<String> {
        let quiet = (Instant::now(), now_ms());
        tokio::time::sleep(WATCHED).await;
        let (closed, held) = ((Instant::now(), now_ms()), self.hole.held());
        self.hole.close();
        let swallowed = Load::new(self.cluster.targets(Kind::Submission), 4)
            .to_domain(HOLE)
            .messages(SWALLOWED);
        load::run(swallowed, &self.ledger).await;
        let full = now_ms();
        tokio::time::sleep(WATCHED).await;
        let end = now_ms();
        let held = self.hole.held() - held;
        // The last ones of each time get their chance.
        tokio::time::sleep(Duration::from_secs(2)).await;
        self.ledger.judge(self.cluster.sink.store())?;
        let ordinary = |offer: &Offer| {
            let to = offer.recipients.as_slice();
            let is = |one: &String| one.starts_with("user") && one.ends_with(SERVED);
            to.len() == 1 && to.iter().all(is) && offer.octets < 10_000
        };
        let before = self.ledger.delays(quiet.1, closed.1, ordinary);
        let beside = self.ledger.delays(full, end, ordinary);
        self.hole.open();
        ensure!(held > 0, "the hole held no connection");
        wait::until("what the hole held is delivered", RECOVERY, || async {
            self.ledger.judge(self.cluster.sink.store())?;
            let open = |offer: &Offer| {
                let to = offer.recipients.first();
                to.is_some_and(|one| one.ends_with(HOLE))
            };
            let far = u64::MAX;
            let waiting = self.ledger.delays(closed.1, far, open);
            let missing = waiting.iter().filter(|time| **time > far / 2).count();
            ensure!(missing == 0, "{missing} are missing");
            Ok(())
        })
        .await?;
        let (p99, p99_beside) = (percentile(&before), percentile(&beside));
        let numbers = format!(
            "{held} connections held; p99 of the others {p99} ms before ({}), {p99_beside} ms beside it ({})",
            before.len(),
            beside.len()
        );
        if awake::frozen(quiet.0, Instant::now()).is_zero() {
            ensure!(
                before.len() > 50 && beside.len() > 50,
                "hardly any mail: {numbers}"
            );
            ensure!(
                p99_beside <= (3 * p99).max(1500),
                "a black hole slows others: {numbers}"
            );
        }
        Ok(numbers)
    }
}

/// The 99th of a hundred of these sorted numbers.
fn percentile(sorted: &[u64]) -> u64 {
    let at = (sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
