//! What processes say while things go wrong has to be true.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;

use super::{RECOVERY, Run};
use crate::capture::{Capture, occurrences};
use crate::cluster::{Cluster, http_ok};
use crate::policy::{PASSWORD, SUBMITTER};
use crate::{awake, wait};

/// What relay nodes had in their sockets when the last node ended may be read for so long.
const IN_SOCKETS: Duration = Duration::from_millis(1000);

impl Run {
    /// There is no quorum: nobody hears 250 for some time (I5).
    pub(super) async fn nobody_is_answered(&mut self, milliseconds: u64) -> Result<String> {
        let began = Instant::now();
        tokio::time::sleep(IN_SOCKETS).await;
        let from = Instant::now();
        tokio::time::sleep(Duration::from_millis(milliseconds)).await;
        if !awake::frozen(began, Instant::now()).is_zero() {
            return Ok("the machine stopped meanwhile: who heard 250 was not judged".to_owned());
        }
        let accepted = self.ledger.accepted_since(from);
        ensure!(
            accepted == 0,
            "{accepted} messages heard 250 without a quorum"
        );
        Ok(format!("no 250 for {milliseconds} ms without a quorum"))
    }

    /// A node that hears nobody does not say that it is ready (I10).
    pub(super) async fn says_that_it_is_not_ready(&self, name: &str) -> Result<()> {
        let metrics = self.cluster.layout.metrics(name).context("metrics")?;
        let what = format!("{name} says that it is not ready");
        wait::until(&what, Duration::from_secs(15), || async {
            let said = http_ok(metrics, "/readyz").await.err();
            let said = said.context("it says that it is")?.to_string();
            ensure!(said.contains(" 503 "), "it does not answer: {said}");
            Ok(())
        })
        .await
    }

    /// Listens to everything between all processes for a moment: nothing of mail is there in clear (I9).
    pub(super) async fn overheard(&mut self) -> Result<()> {
        let layout = &self.cluster.layout;
        let namespaces = self.cluster.namespaces.as_ref().context("namespaces")?;
        let mut ports = vec![
            self.cluster.sink.address().port(),
            self.hole.address().port(),
        ];
        for node in &layout.control_planes {
            ports.extend([node.listen.port(), node.reached_at().port()]);
        }
        for relay in &layout.relays {
            ports.extend([
                relay.mx.port(),
                relay.submission.port(),
                relay.submissions.port(),
            ]);
        }
        let secrets = ["MAIL FROM", "X-Ledger", "quick brown", "@served.", PASSWORD];
        let auth = BASE64.encode(format!("\0{SUBMITTER}\0{PASSWORD}").as_bytes());
        let (octets, sessions) = wait::until("a whole capture", RECOVERY, || async {
            let now = Instant::now();
            let capture = Capture::on(namespaces.bridge(), &layout.root, &ports).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let octets = capture.stop().await?;
            let accepted = self.ledger.accepted_since(now);
            let sessions = occurrences(&octets, "STARTTLS");
            ensure!(
                accepted > 0 && sessions > 0,
                "{accepted} accepted, {sessions} sessions"
            );
            Ok((octets, sessions))
        })
        .await?;
        for secret in secrets.iter().copied().chain([auth.as_str()]) {
            let times = occurrences(&octets, secret);
            ensure!(times == 0, "{secret} is in clear, {times} times");
        }
        println!(
            "       heard {} octets, {sessions} times STARTTLS, nothing in clear",
            octets.len()
        );
        self.quantities.overheard += octets.len();
        Ok(())
    }
}

/// Lines that nobody wants to see in a log, and how often they are there.
pub(super) fn said_by_logs(cluster: &Cluster) -> BTreeMap<String, usize> {
    let mut said = BTreeMap::new();
    for line in ["panicked at", "nobody looked after", " ERROR "] {
        let names = cluster.layout.names().into_iter();
        let counts = names.map(|name| cluster.log(&name).matches(line).count());
        said.insert(line.trim().to_owned(), counts.sum());
    }
    said
}
