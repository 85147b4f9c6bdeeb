//! What `make run`, `make kill`, `make start` and `make stop` promise, by the commands behind them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use sealane_tests::process::{ProcessId, send};
use sealane_tests::{ports, tools, wait};

/// The flags that choose a port, and how many ports from there on are used.
const PORTS: [(&str, u16); 6] = [
    ("--mx-port", 2),
    ("--submission-port", 2),
    ("--submissions-port", 2),
    ("--control-port", 3),
    ("--metrics-port", 5),
    ("--sink-port", 1),
];

fn free_range(length: u16) -> Result<u16> {
    for _ in 0..1000 {
        let first = ports::free()?.port();
        if (first..first + length).all(ports::is_free) {
            return Ok(first);
        }
    }
    anyhow::bail!("no {length} free ports in a row")
}

fn dev(folder: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(tools::folder()?.join("sealane-dev"));
    command.arg("--dir").arg(folder).args(arguments);
    Ok(command)
}

/// The variables, as a shell reads them.
fn variables(folder: &Path) -> Result<BTreeMap<String, String>> {
    let script = ". \"$1\"/cluster.env && set";
    let output = tools::run(
        Command::new("sh")
            .env_clear()
            .args(["-c", script, "sh"])
            .arg(folder),
    )?;
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.trim_matches('\'').to_owned()))
        .collect())
}

fn pid(folder: &Path, name: &str) -> Result<Option<u32>> {
    let all = variables(folder)?;
    let text = all.get(name).with_context(|| format!("no {name}"))?;
    Ok(if text.is_empty() {
        None
    } else {
        Some(text.parse()?)
    })
}

fn runs(pid: Option<u32>) -> bool {
    pid.is_some_and(|pid| ProcessId::of(pid).is_some_and(ProcessId::is_alive))
}

fn swaks(all: &BTreeMap<String, String>, body: &str) -> Result<Output> {
    let address = |name: &str| -> Result<String> {
        let list = all.get(name).with_context(|| format!("no {name}"))?;
        Ok(list.split(',').next().unwrap_or_default().to_owned())
    };
    tools::run(
        Command::new(tools::find("swaks").context("swaks is missing (make test installs it)")?)
            .args(["--server", &address("SUBMISSION_ADDR")?, "--tls"])
            .args(["--auth", "PLAIN", "--auth-user", &all["SUBMITTER"]])
            .args(["--auth-password", &all["PASSWORD"]])
            .args([
                "--from",
                "demo@served.example",
                "--to",
                "you@remote.example",
            ])
            .args(["--body", body])
            .stdin(Stdio::null()),
    )
}

fn in_sink(folder: &Path, text: &str) -> Result<()> {
    let hit = fs::read_dir(folder)?
        .filter_map(|entry| fs::read(entry.ok()?.path()).ok())
        .any(|octets| String::from_utf8_lossy(&octets).contains(text));
    ensure!(hit, "{text:?} is in no file of {}", folder.display());
    Ok(())
}

/// Ends the cluster when the test fails on its way.
struct Stop<'a>(&'a Path);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        let _over = dev(self.0, &["stop"]).and_then(|mut command| Ok(command.output()?));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_cluster_runs_is_broken_and_mended_and_stops() -> Result<()> {
    let home = tempfile::tempdir()?;
    let folder = home.path().join("my run");
    let mut run = dev(&folder, &["run", "--detach"])?;
    for (flag, count) in PORTS {
        run.args([flag, &free_range(count)?.to_string()]);
    }
    let said = tools::run(&mut run)?;
    let _stop = Stop(&folder);
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    ensure!(
        said.contains("swaks --server") && said.contains("demo-secret"),
        "no command to paste: {said}"
    );

    let all = variables(&folder)?;
    let sink = Path::new(all.get("SINK_DIR").context("no SINK_DIR")?).to_owned();
    for name in [
        "MX_ADDR",
        "SUBMISSIONS_ADDR",
        "CONTROL_ADDRS",
        "ADMIN_CERT",
        "ADMIN_KEY",
        "CA_CERT",
        "SINK_ADDR",
        "DATA_CONTROL_PLANE_3",
        "DATA_RELAY_NODE_2",
        "PID_CONTROL_PLANE_2",
        "PID_RELAY_NODE_1",
        "PID_SINK",
    ] {
        ensure!(all.get(name).is_some_and(|v| !v.is_empty()), "no {name}");
    }
    for file in ["ADMIN_CERT", "ADMIN_KEY", "CA_CERT", "SEALANE"] {
        ensure!(Path::new(&all[file]).is_file(), "{file} is no file");
    }
    swaks(&all, "before the kill")?;
    wait::until("the first message", Duration::from_secs(20), || async {
        in_sink(&sink, "before the kill")
    })
    .await?;

    // SIGKILL of one, and the file knows.
    let victim = pid(&folder, "PID_CONTROL_PLANE_1")?;
    ensure!(runs(victim), "control-plane-1 does not run");
    tools::run(&mut dev(&folder, &["kill", "control-plane-1"])?)?;
    ensure!(!runs(victim), "control-plane-1 survived");
    ensure!(
        pid(&folder, "PID_CONTROL_PLANE_1")?.is_none(),
        "the file names a dead process"
    );
    swaks(&all, "with two of three")?;
    tools::run(&mut dev(&folder, &["start", "control-plane-1"])?)?;
    ensure!(runs(pid(&folder, "PID_CONTROL_PLANE_1")?), "not started");
    let again = dev(&folder, &["start", "control-plane-1"])?.output()?;
    ensure!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("runs already"),
        "started twice"
    );

    // SIGTERM of one.
    let victim = pid(&folder, "PID_RELAY_NODE_2")?;
    tools::run(&mut dev(&folder, &["stop", "relay-node-2"])?)?;
    ensure!(
        !runs(victim) && pid(&folder, "PID_RELAY_NODE_2")?.is_none(),
        "relay-node-2 runs"
    );
    tools::run(&mut dev(&folder, &["start", "relay-node-2"])?)?;

    // A process that somebody else killed is started all the same.
    let victim = pid(&folder, "PID_CONTROL_PLANE_2")?.context("control-plane-2 does not run")?;
    send(victim, Signal::SIGKILL);
    wait::until("its end", Duration::from_secs(10), || async {
        ensure!(!runs(Some(victim)), "runs");
        Ok(())
    })
    .await?;
    tools::run(&mut dev(&folder, &["start", "control-plane-2"])?)?;
    let unknown = dev(&folder, &["kill", "postfix"])?.output()?;
    ensure!(
        !unknown.status.success()
            && String::from_utf8_lossy(&unknown.stderr).contains("control-plane-1"),
        "no list of names"
    );

    wait::until("both messages", Duration::from_secs(20), || async {
        in_sink(&sink, "with two of three")
    })
    .await?;
    let before = variables(&folder)?;
    tools::run(&mut dev(&folder, &["stop"])?)?;
    for (name, value) in before {
        if name.starts_with("PID_") && !value.is_empty() {
            ensure!(!runs(Some(value.parse()?)), "{name} survived make stop");
        }
    }
    in_sink(&sink, "before the kill")
}

/// Ctrl-C in the foreground, and a line per message before it.
#[tokio::test(flavor = "multi_thread")]
async fn in_the_foreground_deliveries_are_shown_and_ctrl_c_stops_all() -> Result<()> {
    let home = tempfile::tempdir()?;
    let folder = home.path().join("run");
    let shown = home.path().join("shown");
    let mut run = dev(&folder, &["run"])?;
    for (flag, count) in PORTS {
        run.args([flag, &free_range(count)?.to_string()]);
    }
    let mut child = run.stdout(fs::File::create(&shown)?).spawn()?;
    let _stop = Stop(&folder);
    let seen = |text: &'static str| {
        let shown = &shown;
        async move {
            ensure!(
                fs::read_to_string(shown)?.contains(text),
                "{text:?} not shown"
            );
            Ok(())
        }
    };
    wait::until("the banner", Duration::from_secs(60), || {
        seen("Send a message")
    })
    .await?;
    let all = variables(&folder)?;
    swaks(&all, "hello")?;
    wait::until("a line per message", Duration::from_secs(20), || {
        seen("delivered")
    })
    .await?;
    send(child.id(), Signal::SIGINT);
    let status = tokio::task::spawn_blocking(move || child.wait()).await??;
    ensure!(status.success(), "ended with {status}");
    for (name, value) in all {
        if name.starts_with("PID_") && !value.is_empty() {
            ensure!(!runs(Some(value.parse()?)), "{name} survived Ctrl-C");
        }
    }
    Ok(())
}
