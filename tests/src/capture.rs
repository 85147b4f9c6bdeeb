//! A packet capture of an interface, judged by what crossed in clear.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;

use crate::process::Running;
use crate::{tools, wait};

/// A running tcpdump.
#[derive(Debug)]
pub struct Capture {
    process: Running,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    /// Captures TCP on loopback from and to `ports` until stopped.
    ///
    /// # Errors
    /// When tcpdump is missing or may not capture (it needs root).
    pub async fn start(folder: &Path, ports: &[u16]) -> Result<Self> {
        Self::on("lo", folder, ports).await
    }

    /// The same on another interface.
    ///
    /// # Errors
    /// When tcpdump is missing or may not capture (it needs root).
    pub async fn on(interface: &str, folder: &Path, ports: &[u16]) -> Result<Self> {
        let program =
            tools::find("tcpdump").context("tcpdump is missing (make test installs it)")?;
        let (file, log) = (folder.join("capture.pcap"), folder.join("tcpdump.log"));
        let filter: Vec<String> = ports
            .iter()
            .map(|port| format!("tcp port {port}"))
            .collect();
        let child = Command::new(program)
            .args([
                "-i", interface, "-s", "0", "-B", "65536", "-U", "-Z", "root", "-w",
            ])
            .arg(&file)
            .arg(filter.join(" or "))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()
            .context("starting tcpdump")?;
        let capture = Self {
            process: Running::new(child),
            file,
            log,
        };
        wait::until("tcpdump listening", Duration::from_secs(10), || async {
            let said = fs::read_to_string(&capture.log)?;
            ensure!(said.contains("listening on"), "{said}");
            Ok(())
        })
        .await?;
        Ok(capture)
    }

    /// Ends the capture and gives its octets, packet headers included.
    ///
    /// # Errors
    /// When tcpdump dropped packets: then the capture proves nothing.
    pub async fn stop(mut self) -> Result<Vec<u8>> {
        // What the kernel still holds is written before tcpdump ends.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.process.signal(Signal::SIGINT);
        wait::until("tcpdump ended", Duration::from_secs(10), || {
            let ended = self.process.try_wait();
            async move { ended?.context("still running") }
        })
        .await?;
        let said = fs::read_to_string(&self.log)?;
        ensure!(
            said.contains("\n0 packets dropped by kernel"),
            "incomplete capture: {said}"
        );
        Ok(fs::read(&self.file)?)
    }
}

/// How often `needle` (ASCII, any case) occurs in `octets`.
#[must_use]
pub fn occurrences(octets: &[u8], needle: &str) -> usize {
    octets
        .windows(needle.len())
        .filter(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
        .count()
}
