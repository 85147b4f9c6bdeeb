//! `sealane restore`.
//!
//! 1. Verify the whole file.
//! 2. Begin, in group 0; open every shard: none has a message.
//! 3. Policy, in group 0: from here on the cluster takes new mail too.
//! 4. The messages of every shard, all shards at once, each in the order of ids.
//! 5. End, in group 0.
//!
//! Every step is idempotent, and a shard says how far it is: so to run it again is to go on.
use crate::{
    Connection, Output,
    leaders::{Nodes, Stop},
    show::{date, print},
    survey::{self, Progress, Survey, size},
};
use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use data_encoding::HEXLOWER;
use futures_util::{StreamExt, stream::FuturesUnordered};
use sealane_backup::{Archive, Catalog, Message, Table};
use sealane_types::MessageId;
use sealane_wire::v1::{
    self, admin_client::AdminClient, backup_client::BackupClient, dedupe_record::Fate,
    restore_cluster_op::Step, restore_frame::Frame, restore_record::State,
    restore_reply::Frame as Reply,
};
use serde_json::json;
use std::{
    cell::Cell,
    fs::File,
    io::{BufRead, IsTerminal, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

/// An answer comes within this.
const ANSWER: Duration = Duration::from_secs(60);
/// Frames sent and not answered yet, per shard.
const WINDOW: usize = 8;
/// Ids that are over, per frame.
const FATES: usize = 5_000;
/// Nobody asks for an id that is older, milliseconds (see sealane-state).
const REMEMBERED_MS: u64 = 2 * 3_600_000;

#[derive(Args, Debug)]
pub(crate) struct RestoreArgs {
    /// As `backup create` wrote it.
    file: PathBuf,
    /// Hold everything restored, with this reason: nothing leaves until it is released.
    #[arg(long, value_name = "REASON")]
    hold: Option<String>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

/// What every shard's part needs.
#[derive(Debug)]
struct Job {
    nodes: Nodes,
    file: PathBuf,
    catalog: Arc<Catalog>,
    backup: Bytes,
    open: v1::RestoreOpen,
    /// Messages that are in the cluster.
    done: Cell<u64>,
}

pub(crate) async fn run(
    args: RestoreArgs,
    connection: &Connection,
    output: Output,
) -> anyhow::Result<()> {
    let hold = args.hold.unwrap_or_default();
    let survey = survey::read(&args.file)?;
    let header = &survey.catalog.header;
    let status = connection
        .first(|c| async move {
            AdminClient::new(c)
                .cluster_status(v1::ClusterStatusRequest {})
                .await
        })
        .await?;
    let shards = status.groups.iter().map(|g| g.group).max().unwrap_or(0);
    check(header, &status, shards)?;
    if !args.yes {
        confirm(&survey, &status, &hold)?;
    }
    let backup = Bytes::copy_from_slice(&survey.catalog.digest);
    let step = |step: Step| v1::RestoreClusterRequest {
        step: step.into(),
        backup: backup.clone(),
        ..Default::default()
    };
    let begin = v1::RestoreClusterRequest {
        source_cluster: header.cluster_id.clone(),
        hold,
        ..step(Step::Begin)
    };
    let begun = cluster_step(connection, begin).await?;
    if begun.state() == State::Restored {
        report(output, &survey, &status, &begun, true);
        return Ok(());
    }
    let job = Job {
        nodes: Nodes::find(connection).await?,
        file: args.file,
        catalog: survey.catalog.clone(),
        backup: backup.clone(),
        open: v1::RestoreOpen {
            source_cluster: header.cluster_id.clone(),
            hold: begun.hold.clone(),
        },
        done: Cell::new(0),
    };
    for shard in 1..=shards {
        job.open(shard).await?;
    }
    let policy = v1::RestoreClusterRequest {
        documents: survey.policy.documents.clone(),
        policy_revision: survey.policy.revision,
        ..step(Step::Policy)
    };
    cluster_step(connection, policy).await?;
    job.fill(shards, survey.messages()).await?;
    let end = v1::RestoreClusterRequest {
        messages: survey.messages(),
        ..step(Step::End)
    };
    let ended = cluster_step(connection, end).await?;
    report(output, &survey, &status, &ended, false);
    Ok(())
}

fn check(
    header: &v1::BackupHeader,
    status: &v1::ClusterStatusReply,
    shards: u32,
) -> anyhow::Result<()> {
    if status.cluster_id == header.cluster_id {
        bail!(
            "cluster {} is the one that the backup was made of: restore into a fresh one (empty volumes, founded anew)",
            header.cluster_id
        );
    }
    if shards < header.shards {
        bail!(
            "the backup has {} shards, this cluster has {shards}: message ids carry their shard. Found a cluster with \
             cluster.shards: {} or more",
            header.shards,
            header.shards
        );
    }
    Ok(())
}

fn confirm(survey: &Survey, status: &v1::ClusterStatusReply, hold: &str) -> anyhow::Result<()> {
    let header = &survey.catalog.header;
    let then = if hold.is_empty() {
        "what is due leaves at once"
    } else {
        "everything is held"
    };
    eprintln!(
        "Backup of cluster {} ({}), made {}: {} messages, {}, policy revision {}.\nInto cluster {} ({}); {then}.",
        header.cluster_id,
        header.cluster_name,
        date(header.created_at_ms),
        survey.messages(),
        size(survey.octets()),
        survey.policy.revision,
        status.cluster_id,
        status.cluster_name,
    );
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: add --yes");
    }
    eprint!("Restore it? [yes/no] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if answer.trim() != "yes" {
        bail!("not restored");
    }
    Ok(())
}

async fn cluster_step(
    connection: &Connection,
    request: v1::RestoreClusterRequest,
) -> anyhow::Result<v1::RestoreRecord> {
    let reply = connection
        .first(|c| {
            let request = request.clone();
            async move { BackupClient::new(c).restore_cluster(request).await }
        })
        .await
        .context("not restored; only a fresh cluster is restored into: empty volumes, founded anew, no policy applied")?;
    Ok(reply.record.unwrap_or_default())
}

fn report(
    output: Output,
    survey: &Survey,
    status: &v1::ClusterStatusReply,
    record: &v1::RestoreRecord,
    before: bool,
) {
    let name = HEXLOWER.encode(&survey.catalog.digest);
    let value = json!({
        "backup": name, "sourceClusterId": record.source_cluster, "clusterId": status.cluster_id,
        "messages": record.messages, "policyRevision": survey.policy.revision, "hold": record.hold,
        "endedAt": date(record.ended_at_ms), "restoredBefore": before,
    });
    print(output, &value, || {
        let what = if before {
            format!(
                "nothing to do: it was restored {}",
                date(record.ended_at_ms)
            )
        } else {
            "restored".to_owned()
        };
        let held = if record.hold.is_empty() {
            String::new()
        } else {
            format!(
                "\nheld ({}): sealane queue release lets messages go",
                record.hold
            )
        };
        format!(
            "{what}: {} messages, policy revision {}, into cluster {}\nbackup {name}{held}",
            record.messages, survey.policy.revision, status.cluster_id
        )
    });
}

// ---- a shard

/// A stream to the leader of a shard.
struct Session {
    frames: mpsc::Sender<v1::RestoreFrame>,
    replies: Streaming<v1::RestoreReply>,
    /// Sent, not answered.
    owed: usize,
    /// How far the shard is.
    record: v1::RestoreRecord,
}

impl Session {
    /// The next reply; the record is up to date then.
    async fn reply(&mut self) -> Result<(), Stop> {
        let next = tokio::time::timeout(ANSWER, self.replies.message()).await;
        match next
            .map_err(|_| Stop::again("no answer"))??
            .and_then(|r| r.frame)
        {
            Some(Reply::Record(record)) => self.record = record,
            Some(Reply::Chunk(_)) => {}
            Some(Reply::Elsewhere(e)) => return Err(Stop::elsewhere(e)),
            None => return Err(Stop::again("the stream ended early")),
        }
        self.owed = self.owed.saturating_sub(1);
        Ok(())
    }

    async fn send(&mut self, frame: Frame) -> Result<(), Stop> {
        while self.owed >= WINDOW {
            self.reply().await?;
        }
        let frame = v1::RestoreFrame { frame: Some(frame) };
        if self.frames.send(frame).await.is_err() {
            // The stream is broken: what came last says why.
            loop {
                self.reply().await?;
            }
        }
        self.owed += 1;
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), Stop> {
        while self.owed > 0 {
            self.reply().await?;
        }
        Ok(())
    }
}

impl Job {
    async fn session(&self, channel: Channel, shard: u32) -> Result<Session, Stop> {
        let (frames, rx) = mpsc::channel(1);
        let hello = Frame::Hello(v1::RestoreHello {
            shard,
            backup: self.backup.clone(),
            open: Some(self.open.clone()),
        });
        let first = v1::RestoreFrame { frame: Some(hello) };
        frames.try_send(first).map_err(anyhow::Error::from)?;
        let mut client = BackupClient::new(channel);
        let call = client.restore_shard(ReceiverStream::new(rx));
        let replies = tokio::time::timeout(ANSWER, call)
            .await
            .map_err(|_| Stop::again("no answer"))??
            .into_inner();
        let mut session = Session {
            frames,
            replies,
            owed: 1,
            record: v1::RestoreRecord::default(),
        };
        session.reply().await?;
        Ok(session)
    }

    /// The shard is fresh, and this restore's from now on.
    async fn open(&self, shard: u32) -> anyhow::Result<()> {
        let at = format!("shard {shard}");
        let open = async |channel| self.session(channel, shard).await.map(drop);
        self.nodes.at_leader(&at, open).await
    }

    /// All shards at once.
    async fn fill(&self, shards: u32, messages: u64) -> anyhow::Result<()> {
        let mut progress = Progress::new();
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        let mut parts: FuturesUnordered<_> = (1..=shards).map(|shard| self.shard(shard)).collect();
        loop {
            tokio::select! {
                part = parts.next() => match part {
                    Some(done) => done?,
                    None => return Ok(()),
                },
                _ = ticks.tick() => {
                    progress.show(|| format!("restoring: {} of {messages} messages", self.done.get()));
                }
            }
        }
    }

    async fn shard(&self, shard: u32) -> anyhow::Result<()> {
        // Of this shard, counted in `done`.
        let mut counted = 0;
        let at = format!("shard {shard}");
        let attempt = async |channel| {
            let mut session = self.session(channel, shard).await?;
            let before = session.record.last.clone();
            let ended = self.send(&mut session, shard).await;
            self.done
                .set(self.done.get() - counted + session.record.messages);
            counted = session.record.messages;
            ended.map_err(|stop| {
                if session.record.last == before {
                    stop
                } else {
                    stop.progressed()
                }
            })
        };
        self.nodes.at_leader(&at, attempt).await
    }

    /// Everything behind the last message that the shard has.
    async fn send(&self, session: &mut Session, shard: u32) -> Result<(), Stop> {
        if session.record.state() == State::Restored {
            return Ok(());
        }
        let mut after = Bytes::new();
        if shard <= self.catalog.header.shards {
            let file = survey::open(&self.file)?;
            let mut archive = Archive::new(file, self.catalog.clone());
            let last = session.record.last.clone();
            if last.is_empty() {
                fates(session, &mut archive, shard).await?;
            }
            let mut messages = archive.messages(shard).map_err(anyhow::Error::from)?;
            while let Some(m) = messages.next(&mut archive).map_err(anyhow::Error::from)? {
                let id = Bytes::copy_from_slice(m.id.as_bytes());
                if id > last {
                    message(session, &mut archive, m, after).await?;
                }
                after = id;
            }
        }
        session
            .send(Frame::Close(v1::RestoreClose { after }))
            .await?;
        session.settle().await
    }
}

/// Ids that are over: who still asks for one gets the answer that it got.
async fn fates(session: &mut Session, archive: &mut Archive<File>, shard: u32) -> Result<(), Stop> {
    let oldest = crate::show::now_ms().saturating_sub(REMEMBERED_MS);
    let mut rows = archive
        .scan(shard, Some(Table::Dedupe), b"")
        .map_err(anyhow::Error::from)?;
    let mut batch = v1::RestoredFates::default();
    while let Some(row) = rows.next(archive).map_err(anyhow::Error::from)? {
        let id = MessageId::from_slice(&row.key).map_err(anyhow::Error::from)?;
        if id.time_ms() < oldest {
            continue;
        }
        let fate: v1::DedupeRecord = row.decode().map_err(anyhow::Error::from)?;
        let list = match fate.fate() {
            Fate::Aborted => &mut batch.aborted,
            _ => &mut batch.finished,
        };
        list.push(Bytes::copy_from_slice(&row.key));
        if batch.aborted.len() + batch.finished.len() >= FATES {
            session
                .send(Frame::Fates(std::mem::take(&mut batch)))
                .await?;
        }
    }
    if batch != v1::RestoredFates::default() {
        session.send(Frame::Fates(batch)).await?;
    }
    Ok(())
}

/// A message whose body fits one entry rides with it; others come in the pieces that they had.
async fn message(
    session: &mut Session,
    archive: &mut Archive<File>,
    m: Message,
    after: Bytes,
) -> Result<(), Stop> {
    let parts = m.parts();
    let id = Bytes::copy_from_slice(m.id.as_bytes());
    let mut piece = |part| archive.piece(m.id, part).map_err(anyhow::Error::from);
    let (mut chunks, mut body) = (0, Bytes::new());
    if let [only] = parts.as_slice() {
        body = piece(only)?;
    } else {
        for (part, seq) in parts.iter().zip(0..) {
            chunks = seq + 1;
            let chunk = v1::RestoreChunk {
                id: id.clone(),
                seq,
                data: piece(part)?,
            };
            session.send(Frame::Chunk(chunk)).await?;
        }
    }
    let message = v1::RestoredMessage {
        id,
        after,
        record: Some(v1::MessageRecord {
            body: Vec::new(),
            ..m.record
        }),
        recipients: m.recipients,
        chunks,
    };
    let frame = v1::RestoreMessage {
        message: Some(message),
        body,
    };
    session.send(Frame::Message(frame)).await
}
