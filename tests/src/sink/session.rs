//! One SMTP session of the sink.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use super::script::{Act, Stage};
use super::store::{Envelope, now_ms};
use super::{Counts, Shared};

/// Longest silence of a client.
const IDLE: Duration = Duration::from_secs(120);
/// Most octets of a message.
const MAX_MESSAGE: usize = 200 << 20;

/// The sink's TLS identity.
#[derive(Clone)]
pub struct SinkTls(TlsAcceptor);

impl std::fmt::Debug for SinkTls {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("SinkTls")
    }
}

impl SinkTls {
    pub(super) fn new(name: &str) -> Result<Self> {
        Ok(Self(TlsAcceptor::from(crate::tls::self_signed_server(
            name,
        )?)))
    }
}

/// Serves one connection to its end.
pub(super) async fn run(
    stream: TcpStream,
    peer: SocketAddr,
    shared: &Arc<Shared>,
    connection: usize,
) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut clear = Session::new(BufReader::new(stream), peer, shared, None, connection);
    clear.greet().await?;
    if clear.converse().await? == End::Closed {
        return Ok(());
    }
    // STARTTLS was said. What the client already sent belongs to nobody: count it and hang up.
    let reader = clear.stream;
    if !reader.buffer().is_empty() {
        Counts::add(&shared.counts.injected);
        bail!("octets behind STARTTLS");
    }
    let mut stream = reader.into_inner();
    let injection = shared.script.injection().unwrap_or_default();
    stream
        .write_all(format!("220 2.0.0 go ahead\r\n{injection}").as_bytes())
        .await?;
    let stream = timeout(IDLE, shared.tls.0.accept(stream)).await??;
    let facts = {
        let (_, tls) = stream.get_ref();
        Facts {
            version: tls
                .protocol_version()
                .map_or_else(String::new, |version| format!("{version:?}")),
            cipher: tls
                .negotiated_cipher_suite()
                .map_or_else(String::new, |suite| format!("{:?}", suite.suite())),
        }
    };
    let mut secret = Session::new(
        BufReader::new(stream),
        peer,
        shared,
        Some(facts),
        connection,
    );
    let end = secret.converse().await;
    let _closed = secret.stream.get_mut().shutdown().await;
    end.map(|_| ())
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Closed,
    UpgradeToTls,
}

struct Facts {
    version: String,
    cipher: String,
}

struct Session<'a, S> {
    stream: BufReader<S>,
    peer: SocketAddr,
    shared: &'a Arc<Shared>,
    tls: Option<Facts>,
    /// Its number in the record of traffic.
    connection: usize,
    helo: String,
    reverse_path: Option<(String, Vec<String>)>,
    recipients: Vec<String>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Session<'a, S> {
    fn new(
        stream: BufReader<S>,
        peer: SocketAddr,
        shared: &'a Arc<Shared>,
        tls: Option<Facts>,
        connection: usize,
    ) -> Self {
        Self {
            stream,
            peer,
            shared,
            tls,
            connection,
            helo: String::new(),
            reverse_path: None,
            recipients: Vec::new(),
        }
    }

    async fn greet(&mut self) -> Result<()> {
        if self.scripted(Stage::Greeting, "").await? {
            bail!("scripted greeting");
        }
        let hostname = &self.shared.hostname;
        let greeting = format!("220 {hostname} ESMTP sink");
        self.say(&greeting).await
    }

    async fn say(&mut self, reply: &str) -> Result<()> {
        self.stream
            .get_mut()
            .write_all(format!("{reply}\r\n").as_bytes())
            .await?;
        self.stream.get_mut().flush().await?;
        Ok(())
    }

    /// Does what the script says; true when the command was answered by it.
    async fn scripted(&mut self, stage: Stage, line: &str) -> Result<bool> {
        let Some(act) = self.shared.script.take(stage, line) else {
            return Ok(false);
        };
        Counts::add(&self.shared.counts.scripted);
        match act {
            Act::Reply(reply) => {
                self.say(&reply).await?;
                Ok(true)
            }
            // The script gives a reply, or nothing, for the last.
            Act::Drop | Act::KeepAndDrop | Act::Greylist(_) => bail!("scripted drop"),
            Act::Delay(time) => {
                sleep(time).await;
                Ok(false)
            }
        }
    }

    async fn line(&mut self) -> Result<Option<String>> {
        let mut line = Vec::new();
        let count = timeout(IDLE, self.stream.read_until(b'\n', &mut line)).await??;
        if count == 0 {
            return Ok(None);
        }
        Ok(Some(
            String::from_utf8_lossy(&line)
                .trim_end_matches(['\r', '\n'])
                .to_owned(),
        ))
    }

    async fn converse(&mut self) -> Result<End> {
        while let Some(line) = self.line().await? {
            let verb = line
                .split([' ', ':'])
                .next()
                .unwrap_or_default()
                .to_ascii_uppercase();
            if self.tls.is_none() && matches!(verb.as_str(), "MAIL" | "RCPT" | "DATA" | "AUTH") {
                Counts::add(&self.shared.counts.clear_commands);
                self.say("530 5.7.0 Must issue a STARTTLS command first")
                    .await?;
                continue;
            }
            match verb.as_str() {
                "EHLO" => self.ehlo(&line).await?,
                "HELO" => {
                    let reply = format!("250 {}", self.shared.hostname);
                    self.say(&reply).await?;
                }
                "STARTTLS" => {
                    if self.tls.is_some() || !self.shared.script.offers_starttls() {
                        self.say("502 5.5.1 not here").await?;
                    } else if !self.scripted(Stage::StartTls, &line).await? {
                        return Ok(End::UpgradeToTls);
                    }
                }
                "MAIL" => self.mail(&line).await?,
                "RCPT" => self.rcpt(&line).await?,
                "DATA" => self.data().await?,
                "RSET" => {
                    self.reset();
                    self.say("250 2.0.0 reset").await?;
                }
                "NOOP" => self.say("250 2.0.0 yes").await?,
                "QUIT" => {
                    // From here on it is the client's no more.
                    self.shared.traffic.closed(self.connection);
                    self.say("221 2.0.0 bye").await?;
                    return Ok(End::Closed);
                }
                _ => self.say("500 5.5.1 what?").await?,
            }
        }
        Ok(End::Closed)
    }

    async fn ehlo(&mut self, line: &str) -> Result<()> {
        self.helo = line.get(4..).unwrap_or_default().trim().to_owned();
        self.reset();
        let starttls = if self.tls.is_none() && self.shared.script.offers_starttls() {
            "250-STARTTLS\r\n"
        } else {
            ""
        };
        let reply = format!(
            "250-{}\r\n{starttls}250-PIPELINING\r\n250-SIZE {MAX_MESSAGE}\r\n250-ENHANCEDSTATUSCODES\r\n250 8BITMIME",
            self.shared.hostname
        );
        self.say(&reply).await
    }

    fn reset(&mut self) {
        self.reverse_path = None;
        self.recipients.clear();
    }

    async fn mail(&mut self, line: &str) -> Result<()> {
        if self.reverse_path.is_some() {
            return self.say("503 5.5.1 nested MAIL").await;
        }
        if self.scripted(Stage::Mail, line).await? {
            return Ok(());
        }
        match path(line) {
            Some(path) => {
                self.shared.traffic.message();
                self.reverse_path = Some(path);
                self.say("250 2.1.0 ok").await
            }
            None => self.say("501 5.5.4 MAIL FROM:<path>").await,
        }
    }

    async fn rcpt(&mut self, line: &str) -> Result<()> {
        if self.reverse_path.is_none() {
            return self.say("503 5.5.1 MAIL first").await;
        }
        if self.scripted(Stage::Rcpt, line).await? {
            return Ok(());
        }
        match path(line) {
            Some((path, _)) => {
                self.recipients.push(path);
                self.say("250 2.1.5 ok").await
            }
            None => self.say("501 5.5.4 RCPT TO:<path>").await,
        }
    }

    async fn data(&mut self) -> Result<()> {
        if self.recipients.is_empty() {
            return self.say("503 5.5.1 RCPT first").await;
        }
        let to = self.recipients.join(" ");
        if self.scripted(Stage::Data, &to).await? {
            return Ok(());
        }
        self.say("354 go on").await?;
        let (octets, bare) = self.body().await?;
        if bare {
            Counts::add(&self.shared.counts.bare_line_ends);
        }
        let (reverse_path, mail_parameters) = self.reverse_path.clone().unwrap_or_default();
        let tls = self.tls.as_ref();
        let envelope = Envelope {
            reverse_path,
            mail_parameters,
            recipients: self.recipients.clone(),
            helo: self.helo.clone(),
            peer: self.peer.to_string(),
            tls_version: tls.map_or_else(String::new, |facts| facts.version.clone()),
            tls_cipher: tls.map_or_else(String::new, |facts| facts.cipher.clone()),
            received_at_ms: now_ms(),
            octets: octets.len() as u64,
            bare_line_ends: bare,
        };
        self.reset();
        let act = self
            .shared
            .script
            .take(Stage::Dot, &envelope.recipients.join(" "));
        if act.is_some() {
            Counts::add(&self.shared.counts.scripted);
        }
        match act {
            None => {}
            Some(Act::Reply(reply)) => return self.say(&reply).await,
            Some(Act::Drop | Act::Greylist(_)) => bail!("scripted drop"),
            Some(Act::KeepAndDrop) => {
                self.keep(envelope, octets).await?;
                bail!("scripted drop");
            }
            Some(Act::Delay(time)) => sleep(time).await,
        }
        let name = self.keep(envelope, octets).await?;
        self.say(&format!("250 2.0.0 kept {name}")).await
    }

    async fn keep(&self, envelope: Envelope, octets: Vec<u8>) -> Result<String> {
        let shared = Arc::clone(self.shared);
        let file = tokio::task::spawn_blocking(move || {
            let file = shared.store.keep(&envelope, &octets)?;
            if shared.verbose {
                println!(
                    "delivered  from=<{}> to=<{}> octets={} {} {} file={}",
                    envelope.reverse_path,
                    envelope.recipients.join(">,<"),
                    octets.len(),
                    envelope.tls_version,
                    envelope.tls_cipher,
                    file.display()
                );
            }
            anyhow::Ok(file)
        })
        .await??;
        Counts::add(&self.shared.counts.messages);
        Ok(file
            .file_stem()
            .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned()))
    }

    /// Reads to CRLF.CRLF; true when a CR or LF stood outside CRLF.
    async fn body(&mut self) -> Result<(Vec<u8>, bool)> {
        let mut octets = Vec::new();
        let mut line = Vec::new();
        let mut bare = false;
        let mut at_line_start = true;
        loop {
            line.clear();
            let count = timeout(IDLE, self.stream.read_until(b'\n', &mut line)).await??;
            if count == 0 || octets.len() > MAX_MESSAGE {
                bail!("no end of data");
            }
            if at_line_start && line == b".\r\n" {
                return Ok((octets, bare));
            }
            let content = line.strip_suffix(b"\r\n");
            bare |= content.is_none() || content.is_some_and(|text| text.contains(&b'\r'));
            let unstuffed = if at_line_start {
                line.strip_prefix(b".").unwrap_or(&line)
            } else {
                &line
            };
            octets.extend_from_slice(unstuffed);
            at_line_start = content.is_some();
        }
    }
}

/// The path between angle brackets and the parameters behind it.
fn path(line: &str) -> Option<(String, Vec<String>)> {
    let (_, rest) = line.split_once('<')?;
    let (path, parameters) = rest.rsplit_once('>')?;
    Some((
        path.to_owned(),
        parameters.split_whitespace().map(str::to_owned).collect(),
    ))
}
