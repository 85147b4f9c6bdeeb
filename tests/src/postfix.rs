//! Debian's Postfix as the peer and as the anchor: an instance of its own, TLS required both ways.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

use crate::{ports, tls, tools};

const SERVICES: &str = "\
postlog unix-dgram n - n - 1 postlogd
pickup unix n - n 1 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
local unix - n n - - local
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
tlsproxy unix - - n - 0 tlsproxy
";

/// A Postfix of this test's own; stopped when dropped.
#[derive(Debug)]
pub struct Postfix {
    config: PathBuf,
    folder: PathBuf,
    /// Its SMTP listener.
    pub address: SocketAddr,
}

impl Postfix {
    /// Starts one in `folder` that sends everything to `relay_to`; `extra` is added to its `main.cf`.
    ///
    /// # Errors
    /// When it is not installed or does not start; the error shows its log.
    pub fn start(folder: &Path, relay_to: SocketAddr, extra: &str) -> Result<Self> {
        let config = folder.join("etc");
        for name in ["etc", "queue", "data", "mail"] {
            fs::create_dir_all(folder.join(name))?;
        }
        // Its daemons give up root and still have to get here.
        let parents = folder
            .ancestors()
            .take_while(|path| *path != Path::new("/tmp") && *path != Path::new("/"));
        for path in parents {
            fs::set_permissions(path, Permissions::from_mode(0o755))?;
        }
        tools::run(
            Command::new("chown")
                .arg("postfix:")
                .args([folder.join("data"), folder.join("mail")]),
        )?;
        let id = String::from_utf8(tools::run(Command::new("id").args(["-u", "postfix"]))?.stdout)?
            .trim()
            .to_owned();
        let (certificate, key) = tls::self_signed_pem(&["postfix.example".to_owned()])?;
        fs::write(config.join("tls.pem"), format!("{key}{certificate}"))?;
        let address = ports::free()?;
        let place = folder.display();
        fs::write(
            config.join("main.cf"),
            format!(
                "compatibility_level = 3.6\nqueue_directory = {place}/queue\ndata_directory = {place}/data\n\
                 command_directory = /usr/sbin\ndaemon_directory = /usr/lib/postfix/sbin\nshlib_directory = /usr/lib/postfix\n\
                 mail_owner = postfix\nsetgid_group = postdrop\nmyhostname = postfix.example\nmydestination =\n\
                 inet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmynetworks = 127.0.0.0/8\nalias_maps =\nalias_database =\n\
                 maillog_file = {place}/mail.log\nmaillog_file_prefixes = {place}\n\
                 relayhost = [{}]:{}\nsmtp_tls_security_level = encrypt\nsmtp_tls_loglevel = 1\n\
                 smtpd_tls_security_level = encrypt\nsmtpd_tls_loglevel = 1\nsmtpd_tls_received_header = yes\n\
                 smtpd_tls_chain_files = {place}/etc/tls.pem\nsmtpd_relay_restrictions = permit_mynetworks, reject\n\
                 virtual_mailbox_domains = postfix.example\nvirtual_mailbox_base = {place}/mail\nvirtual_mailbox_maps = static:inbox/\n\
                 virtual_uid_maps = static:{id}\nvirtual_gid_maps = static:{id}\nminimal_backoff_time = 2s\nqueue_run_delay = 2s\n{extra}",
                relay_to.ip(),
                relay_to.port()
            ),
        )?;
        fs::write(
            config.join("master.cf"),
            format!("{address} inet n - n - - smtpd\n{SERVICES}"),
        )?;
        let postfix = Self {
            config,
            folder: folder.to_owned(),
            address,
        };
        postfix.start_again()?;
        Ok(postfix)
    }

    /// Starts what [`Self::crash`] ended.
    ///
    /// # Errors
    /// When it does not start; the error shows its log.
    pub fn start_again(&self) -> Result<()> {
        let started = tools::run(self.control().arg("start"));
        started.with_context(|| self.log()).map(|_| ())
    }

    /// SIGKILL to every process of it.
    ///
    /// # Errors
    /// When it does not run.
    pub fn crash(&self, master: u32) -> Result<()> {
        // The master leads the process group of its daemons.
        signal::killpg(Pid::from_raw(i32::try_from(master)?), Signal::SIGKILL)?;
        Ok(())
    }

    fn control(&self) -> Command {
        let program = tools::find("postfix").unwrap_or_else(|| PathBuf::from("postfix"));
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).stdin(Stdio::null());
        command
    }

    /// What it logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("mail.log")).unwrap_or_default()
    }

    /// Hands a message to its `sendmail` command.
    ///
    /// # Errors
    /// When that fails.
    pub fn inject(&self, from: &str, to: &str, message: &str) -> Result<()> {
        let program = tools::find("sendmail").context("sendmail of Postfix")?;
        let mut child = Command::new(program)
            .arg("-C")
            .arg(&self.config)
            .args(["-i", "-f", from, to])
            .stdin(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("stdin")?
            .write_all(message.as_bytes())?;
        ensure!(child.wait()?.success(), "sendmail");
        Ok(())
    }

    /// The process that is the parent of all its others.
    ///
    /// # Errors
    /// When it does not run.
    pub fn master(&self) -> Result<u32> {
        let file = self.folder.join("queue/pid/master.pid");
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        text.trim().parse().context("pid of master")
    }

    /// Messages in its mailbox.
    #[must_use]
    pub fn inbox(&self) -> Vec<String> {
        let files = fs::read_dir(self.folder.join("mail/inbox/new"))
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter_map(|entry| fs::read(entry.path()).ok())
            .map(|o| String::from_utf8_lossy(&o).into_owned())
            .collect()
    }
}

impl Drop for Postfix {
    fn drop(&mut self) {
        let _stopped = self.control().arg("stop").output();
    }
}
