//! The sink: takes mail over STARTTLS, notes when, keeps nothing.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

use anyhow::{Context, Result, bail};
use memchr::memmem;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::times::Times;

const END: &[u8] = b"\r\n.\r\n";
/// Recipients below this domain hear 451, always.
pub(crate) const WAITING: &str = "waiting.example";

/// A listening sink.
#[derive(Debug)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Of the work that is going on.
    times: RwLock<Arc<Times>>,
    tls: Arc<ServerConfig>,
    /// 451 to every recipient while this stands.
    closed: AtomicBool,
    connections: AtomicU64,
    deferred: AtomicU64,
}

impl Sink {
    /// Listens on a free port of loopback, on the current runtime.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn start(times: Arc<Times>, closed: bool) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            times: RwLock::new(times),
            tls: sealane_tests::tls::self_signed_server("sink.example")?,
            closed: AtomicBool::new(closed),
            connections: AtomicU64::new(0),
            deferred: AtomicU64::new(0),
        });
        let server = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&server);
                tokio::spawn(async move {
                    let _peer_gone = session(stream, &shared).await;
                });
            }
        });
        Ok(Self { address, shared })
    }

    /// From now on mail is taken.
    pub(crate) fn open(&self) {
        self.shared.closed.store(false, Relaxed);
    }

    /// Other work begins: deliveries are noted here from now on.
    pub(crate) fn record(&self, times: Arc<Times>) {
        *self.shared.times.write().expect("no panic while held") = times;
    }

    /// Recipients that heard 451 because of their domain.
    pub(crate) fn deferred(&self) -> u64 {
        self.shared.deferred.load(Relaxed)
    }

    /// TLS sessions so far.
    pub(crate) fn connections(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }
}

async fn session(mut tcp: TcpStream, shared: &Shared) -> Result<()> {
    tcp.set_nodelay(true)?;
    tcp.write_all(b"220 sink.example ESMTP\r\n").await?;
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let line = line(&mut tcp, &mut buffer).await?;
        if line.starts_with(b"EHLO") {
            tcp.write_all(b"250-sink.example\r\n250 STARTTLS\r\n")
                .await?;
        } else if line.starts_with(b"STARTTLS") {
            tcp.write_all(b"220 2.0.0 go ahead\r\n").await?;
            break;
        } else if line.starts_with(b"QUIT") {
            return Ok(());
        } else {
            tcp.write_all(b"530 5.7.0 STARTTLS first\r\n").await?;
        }
    }
    let tls = TlsAcceptor::from(Arc::clone(&shared.tls))
        .accept(tcp)
        .await?;
    shared.connections.fetch_add(1, Relaxed);
    mail(tls, shared).await
}

async fn mail(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> Result<()> {
    let mut buffer = Vec::with_capacity(96 << 10);
    let mut out: Vec<u8> = Vec::new();
    let mut numbers: Vec<usize> = Vec::new();
    loop {
        // Replies to pipelined commands leave together.
        if !out.is_empty() && memchr::memchr(b'\n', &buffer).is_none() {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
        }
        let line = line(&mut stream, &mut buffer).await?;
        match line.get(..4).unwrap_or_default() {
            b"EHLO" => out.extend_from_slice(
                b"250-sink.example\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250 ENHANCEDSTATUSCODES\r\n",
            ),
            b"MAIL" => out.extend_from_slice(b"250 2.1.0 ok\r\n"),
            b"RCPT" if memmem::find(&line, WAITING.as_bytes()).is_some() => {
                shared.deferred.fetch_add(1, Relaxed);
                out.extend_from_slice(b"451 4.3.0 later\r\n");
            }
            b"RCPT" if shared.closed.load(Relaxed) => {
                out.extend_from_slice(b"451 4.3.0 later\r\n");
            }
            b"RCPT" => {
                numbers.push(number(&line).context("number")?);
                out.extend_from_slice(b"250 2.1.5 ok\r\n");
            }
            b"DATA" if numbers.is_empty() => out.extend_from_slice(b"554 5.5.1 no recipient\r\n"),
            b"DATA" => {
                out.extend_from_slice(b"354 go on\r\n");
                stream.write_all(&out).await?;
                stream.flush().await?;
                out.clear();
                content(&mut stream, &mut buffer).await?;
                {
                    let times = shared.times.read().expect("no panic while held");
                    numbers.drain(..).for_each(|n| times.delivered(n));
                }
                out.extend_from_slice(b"250 2.0.0 taken\r\n");
            }
            b"RSET" => {
                numbers.clear();
                out.extend_from_slice(b"250 2.0.0 ok\r\n");
            }
            b"QUIT" => {
                stream.write_all(b"221 2.0.0 bye\r\n").await?;
                stream.shutdown().await?;
                return Ok(());
            }
            _ => out.extend_from_slice(b"250 2.0.0 ok\r\n"),
        }
    }
}

/// `RCPT TO:<m123@…>`
fn number(line: &[u8]) -> Option<usize> {
    let start = memchr::memchr(b'<', line)? + 2;
    let digits = line.get(start..)?;
    let end = memchr::memchr(b'@', digits)?;
    std::str::from_utf8(digits.get(..end)?).ok()?.parse().ok()
}

async fn line(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<Vec<u8>> {
    loop {
        if let Some(end) = memchr::memchr(b'\n', buffer) {
            return Ok(buffer.drain(..=end).collect());
        }
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
    }
}

/// Reads to the end-of-data mark and forgets all of it.
async fn content(stream: &mut (impl AsyncRead + Unpin), buffer: &mut Vec<u8>) -> Result<()> {
    loop {
        if let Some(at) = memmem::find(buffer, END) {
            buffer.drain(..at + END.len());
            return Ok(());
        }
        // The mark may straddle two reads.
        let keep = buffer.len().saturating_sub(END.len() - 1);
        buffer.drain(..keep);
        if stream.read_buf(buffer).await? == 0 {
            bail!("closed");
        }
    }
}
