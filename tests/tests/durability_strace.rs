//! Show 4: seen from outside, at least two control-plane nodes end a sync before each 250.
//!
//! TLS hides the octets of the 250, so its moment is when the client read it: later than its write,
//! which makes no difference to a sync that began after the client sent its final dot.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sealane_tests::cluster::Cluster;
use sealane_tests::load::{self, Kind};
use sealane_tests::process::Running;
use sealane_tests::smtp::stuffed;
use sealane_tests::{tools, wait};

struct Trace {
    process: Running,
    file: PathBuf,
}

impl Trace {
    async fn attach(pid: u32, folder: &Path) -> Result<Self> {
        let strace = tools::find("strace").context("strace is missing (make test installs it)")?;
        let (file, log) = (
            folder.join(format!("strace.{pid}")),
            folder.join(format!("strace.{pid}.log")),
        );
        let child = Command::new(strace)
            .args([
                "-f",
                "-ttt",
                "-T",
                "-e",
                "trace=fdatasync,fsync,sync_file_range,sendto,sendmsg,write,writev",
                "-o",
            ])
            .arg(&file)
            .args(["-p", &pid.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        wait::until("strace attached", Duration::from_secs(10), || async {
            let said = fs::read_to_string(&log)?;
            ensure!(said.contains("attached"), "{said}");
            Ok(())
        })
        .await?;
        Ok(Self {
            process: Running::new(child),
            file,
        })
    }

    /// Detaches and gives the completed syncs.
    async fn detach(mut self) -> Result<Vec<Sync>> {
        self.process.signal(Signal::SIGINT);
        wait::until("strace ended", Duration::from_secs(10), || {
            let ended = self.process.try_wait();
            async move { ended?.context("still running") }
        })
        .await?;
        Ok(syncs(&fs::read_to_string(&self.file)?))
    }
}

/// A sync that returned 0: begin and end in seconds since the epoch.
#[derive(Debug, PartialEq)]
struct Sync {
    begin: f64,
    end: f64,
}

/// The completed fdatasync and fsync calls of a `strace -f -ttt -T` output.
fn syncs(text: &str) -> Vec<Sync> {
    let mut begun: HashMap<&str, f64> = HashMap::new();
    let mut done = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(thread), Some(time)) = (words.next(), words.next()) else {
            continue;
        };
        let Ok(time) = time.parse::<f64>() else {
            continue;
        };
        let call = words.collect::<Vec<_>>().join(" ");
        let is_sync = ["fdatasync", "fsync"].iter().any(|name| {
            call.starts_with(&format!("{name}("))
                || call.starts_with(&format!("<... {name} resumed>"))
        });
        if !is_sync {
            continue;
        }
        if call.ends_with("<unfinished ...>") {
            begun.insert(thread, time);
        } else if call.contains(" = 0 ") {
            let took: f64 = call
                .rsplit_once('<')
                .and_then(|(_, tail)| tail.trim_end_matches('>').parse().ok())
                .unwrap_or(0.0);
            done.push(match begun.remove(thread) {
                Some(begin) => Sync {
                    begin,
                    end: begin + took,
                },
                None => Sync {
                    begin: time,
                    end: time + took,
                },
            });
        }
    }
    done
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}

#[test]
fn only_completed_syncs_count() {
    let text = "7 100.0 fdatasync(5) = 0 <0.25>\n\
                8 101.0 fsync(5 <unfinished ...>\n\
                7 101.5 write(3, \"x\", 1) = 1 <0.1>\n\
                8 102.0 <... fsync resumed>) = 0 <1.5>\n\
                9 103.0 fdatasync(6) = -1 EIO (Input/output error) <0.1>\n\
                9 104.0 fdatasync(6 <unfinished ...>\n";
    assert_eq!(
        syncs(text),
        [
            Sync {
                begin: 100.0,
                end: 100.25
            },
            Sync {
                begin: 101.0,
                end: 102.5
            }
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_sync_before_every_250() -> Result<()> {
    let cluster = Cluster::builder().start().await?;
    let mut client = load::connect(cluster.targets(Kind::Mx)[0], "", "").await?;
    // One message untraced: connections are open, files exist.
    let to = vec!["me@served.example".to_owned()];
    let content = load::content(&load::token(), "a@client.example", &to, 3000);
    ensure!(
        client
            .transaction("a@client.example", &to, &content)
            .await?
            .code
            == 250,
        "warm-up"
    );
    tokio::time::sleep(Duration::from_secs(1)).await;

    let mut traces = Vec::new();
    for node in &cluster.layout.control_planes {
        traces.push((
            node.name.clone(),
            Trace::attach(cluster.pid(&node.name)?, &cluster.layout.root).await?,
        ));
    }
    let quiet = now();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut windows = Vec::new();
    for _ in 0..10 {
        for command in [
            "MAIL FROM:<a@client.example>",
            "RCPT TO:<me@served.example>",
        ] {
            client.command_expecting(command, 250).await?;
        }
        client.command_expecting("DATA", 354).await?;
        let content = load::content(&load::token(), "a@client.example", &to, 3000);
        let stuffed = stuffed(&content);
        // The mail is complete only with the last octet: nothing before it can count.
        let (most, last) = stuffed.split_at(stuffed.len() - 1);
        client.send(most).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
        let dot = now();
        client.send(last).await?;
        client.expect(250).await?;
        windows.push((dot, now()));
        // Results and leases of this message settle before the next one is sent.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let mut nodes = Vec::new();
    for (name, trace) in traces {
        nodes.push((name, trace.detach().await?));
    }
    let first = windows.first().map_or(0.0, |window| window.0);
    for (name, syncs) in &nodes {
        let idle = syncs
            .iter()
            .filter(|sync| sync.begin >= quiet && sync.end < first)
            .count();
        println!(
            "{name}: {} syncs in all, {idle} while no mail was sent",
            syncs.len()
        );
    }
    for (number, (dot, replied)) in windows.iter().enumerate() {
        let covering: Vec<&str> = nodes
            .iter()
            .filter(|(_, syncs)| {
                syncs
                    .iter()
                    .any(|sync| sync.begin >= *dot && sync.end <= *replied)
            })
            .map(|(name, _)| name.as_str())
            .collect();
        println!(
            "message {number}: 250 after {:.1} ms, synced before on {covering:?}",
            (replied - dot) * 1000.0
        );
        ensure!(covering.len() >= 2, "250 with a sync on {covering:?} only");
    }
    ensure!(windows.len() == 10, "{} messages", windows.len());
    cluster.pass()
}
