//! Show 2: Debian's Postfix relays into the MX listener and receives from the cluster, over TLS.
#![forbid(unsafe_code)]

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::cluster::Cluster;
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load, Target};
use sealane_tests::policy::{PASSWORD, SUBMITTER};
use sealane_tests::sink::{Sink, SinkConfig};
use sealane_tests::{ledger, ports, tls, tools, wait};

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
";

/// A Postfix of this test's own; stopped when dropped.
struct Postfix {
    config: PathBuf,
    folder: PathBuf,
    address: SocketAddr,
}

impl Postfix {
    fn start(folder: &Path, relay_to: SocketAddr) -> Result<Self> {
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
                 virtual_uid_maps = static:{id}\nvirtual_gid_maps = static:{id}\nminimal_backoff_time = 2s\nqueue_run_delay = 2s\n",
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
        let started = tools::run(postfix.control().arg("start"));
        started.with_context(|| postfix.log())?;
        Ok(postfix)
    }

    fn control(&self) -> Command {
        let program = tools::find("postfix").unwrap_or_else(|| PathBuf::from("postfix"));
        let mut command = Command::new(program);
        command.arg("-c").arg(&self.config).stdin(Stdio::null());
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("mail.log")).unwrap_or_default()
    }

    fn inject(&self, from: &str, to: &str, message: &str) -> Result<()> {
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

    /// Messages in its mailbox.
    fn inbox(&self) -> Vec<String> {
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

/// The anchor: the same checks hold for Postfix alone, without anything of ours in between.
#[tokio::test(flavor = "multi_thread")]
async fn postfix_alone_passes_the_same_checks() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
    let sink = Sink::start(SinkConfig::at(anywhere, folder.path().join("sink"))).await?;
    let postfix = Postfix::start(&folder.path().join("postfix"), sink.address())?;
    let target = Target {
        address: postfix.address,
        kind: Kind::Mx,
    };
    let ledger = Arc::new(Ledger::default());
    let mut load = Load::new(vec![target], 4).messages(40);
    load.domain = "remote.example".to_owned();
    load::run(load, &ledger).await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(30)).await?;
    println!("{verdict}");
    verdict.holds().with_context(|| postfix.log())?;
    ensure!(
        verdict.accepted == 40 && verdict.duplicates == 0,
        "{verdict}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn postfix_relays_in_and_receives_over_tls() -> Result<()> {
    let cluster = Cluster::builder().relays(1).start().await?;
    let mx = cluster.layout.relays[0].mx;
    let postfix = Postfix::start(&cluster.layout.root.join("postfix"), mx)?;
    let (host, port) = (postfix.address.ip(), postfix.address.port());
    cluster
        .apply_policy(&format!(
            "kind: Destination\nname: postfix.example\nroute: {{ host: {host}, port: {port} }}\ntls: {{ level: encrypt }}\n"
        ))
        .await?;

    // Postfix to the cluster.
    let mut tokens = Vec::new();
    for number in 0..5 {
        let token = load::token();
        let message = format!(
            "From: a@postfix.example\nTo: you@served.example\nSubject: {number}\nX-Ledger: {token}\n\n.\n..\nline {number}\n"
        );
        postfix.inject("a@postfix.example", "you@served.example", &message)?;
        tokens.push(token);
    }
    let outcome = wait::until(
        "mail of Postfix in the sink",
        Duration::from_secs(30),
        || async {
            let all = cluster.sink.store().list()?;
            let there: Vec<String> = all
                .iter()
                .filter_map(|one| ledger::token(&one.octets().ok()?))
                .collect();
            ensure!(
                tokens.iter().all(|token| there.contains(token)),
                "{} of {}",
                there.len(),
                tokens.len()
            );
            ensure!(
                all.iter().all(|one| one
                    .octets()
                    .is_ok_and(|o| String::from_utf8_lossy(&o).contains("\r\n.\r\n..\r\nline "))),
                "body"
            );
            Ok(all.len())
        },
    )
    .await;
    let arrived = outcome.with_context(|| postfix.log())?;
    ensure!(
        postfix
            .log()
            .contains("Untrusted TLS connection established to")
            || postfix.log().contains("TLS connection established to"),
        "{}",
        postfix.log()
    );

    // The cluster to Postfix.
    let token = load::token();
    // Complete headers: Postfix adds those that are missing where it delivers.
    let content = format!(
        "From: demo@served.example\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <{token}@served.example>\r\n\
         Subject: to Postfix\r\nX-Ledger: {token}\r\n\r\n.\r\n..\r\nthe end\r\n"
    );
    let mut client =
        load::connect(cluster.targets(Kind::Submission)[0], SUBMITTER, PASSWORD).await?;
    let to = vec!["inbox@postfix.example".to_owned()];
    let reply = client
        .transaction("demo@served.example", &to, content.as_bytes())
        .await?;
    ensure!(reply.code == 250, "{reply}");
    let outcome = wait::until(
        "our mail in Postfix's mailbox",
        Duration::from_secs(30),
        || async {
            postfix
                .inbox()
                .into_iter()
                .find(|text| text.contains(&token))
                .context("not there")
        },
    )
    .await;
    let text = outcome.with_context(|| postfix.log())?;
    ensure!(
        text.ends_with(&content.replace("\r\n", "\n")),
        "changed:\n{text}"
    );
    ensure!(text.contains("using TLSv1.3"), "not over TLS:\n{text}");
    client.quit().await;
    println!("Postfix -> cluster {arrived} messages, cluster -> Postfix 1");
    cluster.pass()
}
