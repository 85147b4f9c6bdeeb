//! The load: connections that offer the same few bodies as fast as 250 comes, with PIPELINING.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use data_encoding::BASE64;
use rand::RngCore;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::cases::Case;
use crate::times::Times;

/// Bodies that differ, so that no layer below gains by seeing the same octets again.
const VARIANTS: usize = 32;
/// Longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(120);
/// Attempts at one message before the run fails.
const ATTEMPTS: usize = 50;

/// What the connections share.
#[derive(Debug)]
struct Shared {
    targets: Vec<SocketAddr>,
    tls: Arc<ClientConfig>,
    bodies: Vec<Vec<u8>>,
    next: AtomicUsize,
    messages: usize,
    per_connection: usize,
    domain: String,
    times: Arc<Times>,
}

/// Offers every message of the case until it is accepted.
///
/// # Errors
/// When a message is refused for good or again and again.
pub(crate) async fn run(
    case: &Case,
    targets: Vec<SocketAddr>,
    domain: &str,
    times: Arc<Times>,
) -> Result<()> {
    let shared = Arc::new(Shared {
        targets,
        tls: sealane_tests::tls::blind_client()?,
        bodies: (0..VARIANTS).map(|_| body(case.size)).collect(),
        next: AtomicUsize::new(0),
        messages: case.messages,
        per_connection: case.per_connection,
        domain: domain.to_owned(),
        times,
    });
    let mut workers = JoinSet::new();
    for number in 0..case.connections {
        workers.spawn(worker(Arc::clone(&shared), number));
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    Ok(())
}

/// A message of `size` octets with its end-of-data mark behind it.
pub(crate) fn body(size: usize) -> Vec<u8> {
    let mut out =
        b"From: <bench@client.example>\r\nTo: <bench@served.example>\r\nSubject: bench\r\n\r\n"
            .to_vec();
    let mut random = [0; 54];
    while out.len() < size {
        rand::rng().fill_bytes(&mut random);
        let line = BASE64.encode(&random);
        let room = size.saturating_sub(out.len() + 2).min(line.len());
        out.extend_from_slice(&line.as_bytes()[..room]);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

async fn worker(shared: Arc<Shared>, number: usize) -> Result<()> {
    let mut connection: Option<Connection> = None;
    let mut at = number;
    loop {
        let n = shared.next.fetch_add(1, Relaxed);
        if n >= shared.messages {
            if let Some(c) = connection {
                c.quit().await;
            }
            return Ok(());
        }
        let mut attempts = 0;
        loop {
            attempts += 1;
            let outcome = offer(&shared, &mut connection, at, n).await;
            match outcome {
                Ok(()) => break,
                Err(error) => {
                    ensure!(attempts < ATTEMPTS, "message {n}: {error:#}");
                    connection = None;
                    at += 1;
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
        if connection
            .as_ref()
            .is_some_and(|c| c.sent >= shared.per_connection)
            && let Some(c) = connection.take()
        {
            c.quit().await;
        }
    }
}

async fn offer(
    shared: &Shared,
    connection: &mut Option<Connection>,
    at: usize,
    n: usize,
) -> Result<()> {
    let c = match connection {
        Some(c) => c,
        None => {
            let target = shared.targets[at % shared.targets.len()];
            connection.insert(Connection::open(target, &shared.tls).await?)
        }
    };
    c.envelope(n, &shared.domain).await?;
    shared.times.dot(n);
    c.send(&shared.bodies[n % shared.bodies.len()]).await?;
    c.expect(b"250").await?;
    shared.times.accepted(n);
    c.sent += 1;
    Ok(())
}

/// One small message, number 0, over a connection of its own.
///
/// # Errors
/// When it is not accepted.
pub(crate) async fn offer_one(target: SocketAddr, domain: &str) -> Result<()> {
    let tls = sealane_tests::tls::blind_client()?;
    let mut c = Connection::open(target, &tls).await?;
    c.envelope(0, domain).await?;
    c.send(&body(1024)).await?;
    c.expect(b"250").await?;
    c.quit().await;
    Ok(())
}

/// An SMTP connection after its handshake and EHLO.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    sent: usize,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, tls: &Arc<ClientConfig>) -> Result<Self> {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let mut buffer = Vec::new();
        expect(&mut tcp, &mut buffer, b"220").await?;
        tcp.write_all(b"EHLO client.example\r\n").await?;
        expect(&mut tcp, &mut buffer, b"250").await?;
        tcp.write_all(b"STARTTLS\r\n").await?;
        expect(&mut tcp, &mut buffer, b"220").await?;
        let name = ServerName::try_from("relay.example")?;
        let stream = TlsConnector::from(Arc::clone(tls))
            .connect(name, tcp)
            .await?;
        let mut connection = Self {
            stream,
            buffer,
            sent: 0,
        };
        connection.send(b"EHLO client.example\r\n").await?;
        connection.expect(b"250").await?;
        Ok(connection)
    }

    pub(crate) async fn send(&mut self, octets: &[u8]) -> Result<()> {
        self.stream.write_all(octets).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Up to 354.
    async fn envelope(&mut self, n: usize, domain: &str) -> Result<()> {
        let text =
            format!("MAIL FROM:<bench@client.example>\r\nRCPT TO:<m{n}@{domain}>\r\nDATA\r\n");
        self.send(text.as_bytes()).await?;
        self.expect(b"250").await?;
        self.expect(b"250").await?;
        self.expect(b"354").await
    }

    pub(crate) async fn expect(&mut self, code: &[u8]) -> Result<()> {
        expect(&mut self.stream, &mut self.buffer, code).await
    }

    pub(crate) async fn quit(mut self) {
        if self.send(b"QUIT\r\n").await.is_ok() {
            let _bye = tokio::time::timeout(Duration::from_secs(2), self.expect(b"221")).await;
        }
    }
}

/// Reads one reply and takes it out of the buffer.
async fn expect(
    stream: &mut (impl AsyncReadExt + Unpin),
    buffer: &mut Vec<u8>,
    code: &[u8],
) -> Result<()> {
    loop {
        if let Some(end) = reply_end(buffer) {
            let right = buffer.starts_with(code);
            let text = if right {
                String::new()
            } else {
                String::from_utf8_lossy(&buffer[..end]).into_owned()
            };
            buffer.drain(..end);
            ensure!(right, "{text}");
            return Ok(());
        }
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(buffer)).await;
        if read.context("no reply in time")?? == 0 {
            bail!("connection closed");
        }
    }
}

/// Where the first complete reply ends.
fn reply_end(buffer: &[u8]) -> Option<usize> {
    let mut start = 0;
    loop {
        let line = buffer.get(start..)?;
        let length = memchr::memchr(b'\n', line)? + 1;
        start += length;
        if line.get(3) != Some(&b'-') {
            return Some(start);
        }
    }
}
