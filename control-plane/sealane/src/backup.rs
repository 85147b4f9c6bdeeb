//! `sealane backup create` and `inspect`.
use crate::{
    Connection, Output,
    leaders::{Nodes, Stop},
    show::{age, date, now_ms, print, table},
    survey::{self, Progress, Survey, size},
};
use anyhow::{Context, bail};
use clap::Subcommand;
use data_encoding::HEXLOWER;
use sealane_backup::{Digest, Mark, Writer};
use sealane_wire::v1::{self, backup_client::BackupClient, export_frame::Frame};
use serde_json::json;
use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::transport::Channel;

/// The next piece of a group comes within this.
const PIECE: Duration = Duration::from_secs(60);
/// Most octets of one message of the stream.
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Subcommand, Debug)]
pub(crate) enum BackupCommand {
    /// Copy everything into a file while mail flows. Role admin; audited.
    ///
    /// Each shard is copied as it is when its turn comes: everything that was accepted before the command
    /// began is in the file, unless it was delivered meanwhile. The file holds message bodies and password
    /// verifiers: keep it as you keep the volumes. It appears under its name only when it is complete.
    ///
    /// Example: sealane backup create --to /backups/$(date +%F).sealane
    Create {
        /// The file to write; must not exist.
        #[arg(long, value_name = "FILE")]
        to: PathBuf,
    },
    /// Verify a backup file whole, and say what is in it. Needs no cluster.
    ///
    /// Example: sealane backup inspect /backups/2026-11-24.sealane -o json
    Inspect {
        /// As `backup create` wrote it.
        file: PathBuf,
    },
}

pub(crate) async fn run(
    command: BackupCommand,
    connection: &Connection,
    output: Output,
) -> anyhow::Result<()> {
    match command {
        BackupCommand::Create { to } => create(connection, output, &to).await,
        BackupCommand::Inspect { file } => inspect(output, &file),
    }
}

// ---- create

/// A file under a temporary name, removed unless it is finished.
#[derive(Debug)]
struct Draft {
    path: PathBuf,
    kept: bool,
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn folder(path: &Path) -> &Path {
    path.parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or_else(|| Path::new("."))
}

impl Draft {
    /// Beside `to`, so that the last step is a rename.
    fn open(to: &Path) -> anyhow::Result<(Self, File)> {
        let name = to.file_name().context("--to needs the name of a file")?;
        if to.exists() {
            bail!(
                "{} exists: name another file, or remove it first",
                to.display()
            );
        }
        let hidden = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        let path = folder(to).join(hidden);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        Ok((Self { path, kept: false }, file))
    }

    /// Durable under its name.
    fn keep(mut self, file: &File, to: &Path) -> anyhow::Result<()> {
        file.sync_all()?;
        std::fs::rename(&self.path, to).with_context(|| to.display().to_string())?;
        self.kept = true;
        File::open(folder(to))?.sync_all()?;
        Ok(())
    }
}

/// The backup as far as it is written.
#[derive(Debug)]
struct Copying {
    /// Until the first group says what it is a backup of.
    file: Option<File>,
    writer: Option<Writer<BufWriter<File>>>,
    /// Behind the last whole group.
    mark: Option<Mark>,
    header: v1::BackupHeader,
    progress: Progress,
    /// Of the group under way.
    group: Copied,
}

/// A group that was copied.
#[derive(Debug, Default, Clone)]
struct Copied {
    position: v1::BackupGroup,
    records: u64,
    messages: u64,
    octets: u64,
}

impl Copying {
    /// One group from a node, as far as it comes.
    async fn take(&mut self, channel: Channel, group: u32) -> Result<Copied, Stop> {
        self.go_back()?;
        let mut client = BackupClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let call = client.export(v1::ExportRequest { group });
        let late = |_| Stop::again("no answer");
        let mut frames = tokio::time::timeout(PIECE, call)
            .await
            .map_err(late)??
            .into_inner();
        loop {
            let next = tokio::time::timeout(PIECE, frames.message())
                .await
                .map_err(late)??;
            match next.and_then(|f| f.frame) {
                Some(Frame::Elsewhere(e)) => return Err(Stop::elsewhere(e)),
                Some(Frame::Start(s)) => self.begin(group, s)?,
                Some(Frame::Records(batch)) => self.records(&batch)?,
                Some(Frame::End(end)) => {
                    let writer = self.writer.as_mut().ok_or_else(out_of_order)?;
                    writer
                        .end_group(end.records, &end.sha256)
                        .map_err(|e| Stop::again(e.to_string()))?;
                    self.mark = Some(writer.mark());
                    return Ok(std::mem::take(&mut self.group));
                }
                None => return Err(Stop::again("the stream ended early")),
            }
        }
    }

    fn begin(&mut self, group: u32, s: v1::ExportStart) -> Result<(), Stop> {
        let header = s.cluster.unwrap_or_default();
        let position = s.group.unwrap_or_default();
        if position.group != group {
            return Err(Stop::again(format!("group {} was sent", position.group)));
        }
        if let Some(file) = self.file.take() {
            let out = BufWriter::with_capacity(1 << 20, file);
            let writer = Writer::new(out, &header).map_err(anyhow::Error::from)?;
            self.mark = Some(writer.mark());
            self.writer = Some(writer);
            self.header = header;
        } else if header.cluster_id != self.header.cluster_id {
            let what = anyhow::anyhow!("nodes of different clusters answer: see --control");
            return Err(what.into());
        }
        self.group = Copied {
            position,
            ..Copied::default()
        };
        let writer = self.writer.as_mut().ok_or_else(out_of_order)?;
        Ok(writer.group(&position).map_err(anyhow::Error::from)?)
    }

    fn records(&mut self, batch: &v1::SnapshotRecords) -> Result<(), Stop> {
        let writer = self.writer.as_mut().ok_or_else(out_of_order)?;
        let rows = batch.records.iter().map(|r| {
            let table = u8::try_from(r.table).unwrap_or(u8::MAX);
            (table, r.key.as_ref(), r.value.as_ref())
        });
        let crc = writer.records(rows).map_err(anyhow::Error::from)?;
        if crc != batch.crc32c {
            return Err(Stop::again("octets changed on their way"));
        }
        let group = &mut self.group;
        group.records += batch.records.len() as u64;
        for r in &batch.records {
            group.messages += u64::from(r.table == u32::from(sealane_backup::Table::Message as u8));
            group.octets += (r.key.len() + r.value.len()) as u64;
        }
        let line = || {
            let (n, all) = (group.position.group, self.header.shards);
            format!("copying: group {n} of {all}, {} of it", size(group.octets))
        };
        self.progress.show(line);
        Ok(())
    }

    /// Forgets the part of a group that came before its leader broke off.
    fn go_back(&mut self) -> anyhow::Result<()> {
        if let (Some(writer), Some(mark)) = (&mut self.writer, &self.mark) {
            let out = writer.back_to(mark);
            out.seek(SeekFrom::Start(mark.offset()))?;
            out.get_ref().set_len(mark.offset())?;
        }
        Ok(())
    }
}

fn out_of_order() -> Stop {
    Stop::again("frames out of order")
}

async fn create(connection: &Connection, output: Output, to: &Path) -> anyhow::Result<()> {
    let nodes = Nodes::find(connection).await?;
    let (draft, file) = Draft::open(to)?;
    let mut copying = Copying {
        file: Some(file),
        writer: None,
        mark: None,
        header: v1::BackupHeader::default(),
        progress: Progress::new(),
        group: Copied::default(),
    };
    let mut groups = Vec::new();
    let mut next = 0;
    while next == 0 || next <= copying.header.shards {
        let what = format!("group {next}");
        let take = async |channel| copying.take(channel, next).await;
        groups.push(nodes.at_leader(&what, take).await?);
        next += 1;
    }
    let header = copying.header.clone();
    let writer = copying.writer.take().context("nothing was copied")?;
    drop(copying);
    let (out, digest) = writer.finish()?;
    let file = out.into_inner().map_err(|e| e.into_error())?;
    draft.keep(&file, to)?;
    report(output, to, file.metadata()?.len(), digest, &header, &groups);
    Ok(())
}

fn report(
    output: Output,
    to: &Path,
    octets: u64,
    digest: Digest,
    header: &v1::BackupHeader,
    groups: &[Copied],
) {
    let messages: u64 = groups.iter().map(|g| g.messages).sum();
    let value = json!({
        "file": to.display().to_string(), "octets": octets, "sha256": HEXLOWER.encode(&digest),
        "clusterId": header.cluster_id, "createdAt": date(header.created_at_ms), "messages": messages,
        "groups": groups.iter().map(|g| json!({
            "group": g.position.group, "term": g.position.term, "index": g.position.index,
            "records": g.records, "messages": g.messages,
        })).collect::<Vec<_>>(),
    });
    print(output, &value, || {
        format!(
            "{}: {messages} messages in {} shards, {}\nbackup {}",
            to.display(),
            header.shards,
            size(octets),
            HEXLOWER.encode(&digest)
        )
    });
}

// ---- inspect

fn inspect(output: Output, file: &Path) -> anyhow::Result<()> {
    let found = survey::read(file)?;
    let c = &found.catalog;
    let value = json!({
        "file": file.display().to_string(), "octets": c.octets, "sha256": HEXLOWER.encode(&c.digest),
        "clusterId": c.header.cluster_id, "clusterName": c.header.cluster_name, "shards": c.header.shards,
        "replicas": c.header.replicas, "createdAt": date(c.header.created_at_ms), "software": c.header.software,
        "messages": found.messages(), "bodyOctets": found.octets(),
        "policyRevision": found.policy.revision, "documents": found.documents,
        "nodes": found.nodes.iter().map(|n| json!({ "id": n.id, "name": n.name, "address": n.address }))
            .collect::<Vec<_>>(),
        "groups": found.shards.iter().map(|s| json!({
            "shard": s.position.group, "term": s.position.term, "index": s.position.index,
            "messages": s.messages, "held": s.held, "openRecipients": s.open_recipients,
            "leasedRecipients": s.leased_recipients, "bodyOctets": s.octets,
            "oldestAt": if s.oldest_ms == 0 { String::new() } else { date(s.oldest_ms) },
        })).collect::<Vec<_>>(),
    });
    print(output, &value, || page(file, &found));
    Ok(())
}

fn page(file: &Path, found: &Survey) -> String {
    let header = &found.catalog.header;
    let mut shards = table(&[
        "SHARD",
        "INDEX",
        "MESSAGES",
        "HELD",
        "RECIPIENTS",
        "BODIES",
        "OLDEST",
    ]);
    for s in &found.shards {
        let oldest = if s.oldest_ms == 0 {
            "-".to_owned()
        } else {
            age(now_ms().saturating_sub(s.oldest_ms))
        };
        shards.add_row([
            s.position.group.to_string(),
            s.position.index.to_string(),
            s.messages.to_string(),
            s.held.to_string(),
            s.open_recipients.to_string(),
            size(s.octets),
            oldest,
        ]);
    }
    let nodes: Vec<&str> = found.nodes.iter().map(|n| n.name.as_str()).collect();
    format!(
        "{}: whole and undamaged, {}\nbackup {}\ncluster {} ({}), {} shards, {} copies, made {} with {}\n\
         nodes at that time: {}\npolicy revision {}: {}\n\n{shards}\n{} messages, {}",
        file.display(),
        size(found.catalog.octets),
        HEXLOWER.encode(&found.catalog.digest),
        header.cluster_id,
        header.cluster_name,
        header.shards,
        header.replicas,
        date(header.created_at_ms),
        header.software,
        nodes.join(", "),
        found.policy.revision,
        found.documents.join(", "),
        found.messages(),
        size(found.octets()),
    )
}
