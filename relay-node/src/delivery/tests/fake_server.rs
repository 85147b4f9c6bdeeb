//! An SMTP server that does as it is told and remembers every octet.
use bytes::BytesMut;
use rustls::{ServerConfig, pki_types::PrivateKeyDer};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

/// A certificate authority and what it issued.
pub(super) struct Authority {
    pub(super) roots: rustls::RootCertStore,
    pub(super) pem: String,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

/// A server certificate for some names.
#[derive(Clone)]
pub(super) struct ServerCertificate {
    pub(super) config: Arc<ServerConfig>,
    /// SHA-256 of its public key.
    pub(super) pin: [u8; 32],
}

impl Authority {
    pub(super) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("test authority {}", COUNT.fetch_add(1, Ordering::Relaxed));
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        Self {
            roots,
            pem: certificate.pem(),
            issuer: rcgen::Issuer::new(params, key),
        }
    }

    pub(super) fn issue(&self, names: &[&str]) -> ServerCertificate {
        use rcgen::PublicKeyData;
        use sha2::Digest;
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(
            names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>(),
        )
        .unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::Pkcs8(key.serialize_der().into()),
            )
            .unwrap();
        let pin = sha2::Sha256::digest(key.subject_public_key_info()).into();
        ServerCertificate {
            config: Arc::new(config),
            pin,
        }
    }
}

/// What happens at STARTTLS.
#[derive(Clone)]
pub(super) enum StartTls {
    NotOffered,
    /// Offered, refused with this line.
    Refused(&'static str),
    /// `220`, and behind it in the same segment these octets.
    Injected(&'static str),
    /// `220`, then no TLS but these octets.
    Garbage(&'static [u8]),
    Good(ServerCertificate),
    /// TLS from the first octet.
    Implicit(ServerCertificate),
}

/// The script.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) greeting: &'static str,
    pub(super) starttls: StartTls,
    /// EHLO keywords in clear, besides STARTTLS.
    pub(super) clear: &'static [&'static str],
    /// EHLO keywords inside TLS.
    pub(super) secure: &'static [&'static str],
    pub(super) mail: &'static str,
    /// Reply to RCPT by its line.
    pub(super) rcpt: fn(&str) -> &'static str,
    pub(super) data: &'static str,
    /// Reply to the final dot; empty: close without one.
    pub(super) dot: &'static str,
    /// It comes a moment after this became more than zero.
    pub(super) dot_after: Option<watch::Receiver<u64>>,
    /// Close after so many messages of a connection, without 421.
    pub(super) close_after: usize,
    /// Octets of content are counted and not kept.
    pub(super) discard: bool,
}

impl Script {
    pub(super) fn good(starttls: StartTls) -> Self {
        Self {
            greeting: "220 fake.example ESMTP",
            starttls,
            clear: &[],
            secure: &[
                "PIPELINING",
                "8BITMIME",
                "ENHANCEDSTATUSCODES",
                "SIZE 104857600",
            ],
            mail: "250 2.1.0 ok",
            rcpt: |_| "250 2.1.5 ok",
            data: "354 go",
            dot: "250 2.0.0 taken",
            dot_after: None,
            close_after: usize::MAX,
            discard: false,
        }
    }
}

/// What arrived.
#[derive(Default)]
pub(super) struct Seen {
    /// Octets outside TLS.
    pub(super) clear: Vec<u8>,
    /// Command lines inside TLS.
    pub(super) commands: Vec<String>,
    /// Content as on the wire, the final dot line included.
    pub(super) contents: Vec<Vec<u8>>,
    /// Content octets so far, complete or not.
    pub(super) content_octets: u64,
    pub(super) connections: usize,
    /// SNI of each handshake.
    pub(super) names: Vec<Option<String>>,
    /// Called with `content_octets` at every read.
    pub(super) watch: Option<Box<dyn FnMut(u64) + Send>>,
}

impl Seen {
    pub(super) fn clear_text(&self) -> String {
        String::from_utf8_lossy(&self.clear).to_ascii_uppercase()
    }
}

pub(super) struct FakeServer {
    pub(super) address: SocketAddr,
    pub(super) seen: Arc<Mutex<Seen>>,
}

impl FakeServer {
    pub(super) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                shared.lock().unwrap().connections += 1;
                let session = Session {
                    script: script.clone(),
                    seen: Arc::clone(&shared),
                };
                tokio::spawn(async move {
                    let _ = session.run(stream).await;
                });
            }
        });
        Self { address, seen }
    }

    pub(super) fn seen<T>(&self, look: impl FnOnce(&Seen) -> T) -> T {
        look(&self.seen.lock().unwrap())
    }
}

struct Session {
    script: Script,
    seen: Arc<Mutex<Seen>>,
}

impl Session {
    async fn run(self, mut stream: TcpStream) -> std::io::Result<()> {
        let (certificate, greet) = match &self.script.starttls {
            StartTls::Implicit(certificate) => (certificate.clone(), true),
            _ => match self.clear(&mut stream).await? {
                Some(certificate) => (certificate, false),
                None => return Ok(()),
            },
        };
        let tls = TlsAcceptor::from(certificate.config).accept(stream).await?;
        let name = tls.get_ref().1.server_name().map(str::to_owned);
        self.seen.lock().unwrap().names.push(name);
        self.secure(tls, greet).await
    }

    /// Until STARTTLS; everything that comes is kept.
    async fn clear(&self, stream: &mut TcpStream) -> std::io::Result<Option<ServerCertificate>> {
        stream
            .write_all(format!("{}\r\n", self.script.greeting).as_bytes())
            .await?;
        let mut buffer = BytesMut::new();
        loop {
            let Some(line) = self.line(stream, &mut buffer, true).await? else {
                return Ok(None);
            };
            let offered = !matches!(self.script.starttls, StartTls::NotOffered);
            let verb = line.to_ascii_uppercase();
            let reply = match verb.split(' ').next().unwrap() {
                "EHLO" => {
                    let mut keywords = self.script.clear.to_vec();
                    if offered {
                        keywords.push("STARTTLS");
                    }
                    ehlo(&keywords)
                }
                "STARTTLS" => match &self.script.starttls {
                    StartTls::Refused(reply) => format!("{reply}\r\n"),
                    StartTls::Injected(more) => format!("220 go\r\n{more}"),
                    StartTls::Garbage(octets) => {
                        stream.write_all(b"220 go\r\n").await?;
                        // Wait for the ClientHello, so that the octets are an answer to it.
                        let mut hello = [0; 1024];
                        let n = stream.read(&mut hello).await?;
                        self.seen
                            .lock()
                            .unwrap()
                            .clear
                            .extend_from_slice(&hello[..n]);
                        stream.write_all(octets).await?;
                        while stream.read(&mut hello).await? > 0 {}
                        return Ok(None);
                    }
                    StartTls::Good(certificate) => {
                        stream.write_all(b"220 go\r\n").await?;
                        return Ok(Some(certificate.clone()));
                    }
                    StartTls::NotOffered | StartTls::Implicit(_) => "502 no\r\n".into(),
                },
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(None);
                }
                _ => "250 whatever you say\r\n".into(),
            };
            stream.write_all(reply.as_bytes()).await?;
        }
    }

    async fn secure(
        &self,
        mut stream: impl AsyncRead + AsyncWrite + Unpin,
        greet: bool,
    ) -> std::io::Result<()> {
        if greet {
            stream
                .write_all(format!("{}\r\n", self.script.greeting).as_bytes())
                .await?;
        }
        let mut buffer = BytesMut::new();
        let mut messages = 0;
        let mut accepted = 0;
        loop {
            let Some(line) = self.line(&mut stream, &mut buffer, false).await? else {
                return Ok(());
            };
            self.seen.lock().unwrap().commands.push(line.clone());
            let upper = line.to_ascii_uppercase();
            let reply = match upper.split([' ', ':']).next().unwrap() {
                "EHLO" => ehlo(self.script.secure),
                "MAIL" => {
                    accepted = 0;
                    format!("{}\r\n", self.script.mail)
                }
                "RCPT" => {
                    let reply = (self.script.rcpt)(&line);
                    accepted += usize::from(reply.starts_with('2'));
                    format!("{reply}\r\n")
                }
                "DATA" if accepted == 0 => "503 5.5.1 no recipients\r\n".into(),
                "DATA" if self.script.data.starts_with('3') => {
                    stream
                        .write_all(format!("{}\r\n", self.script.data).as_bytes())
                        .await?;
                    if !self.content(&mut stream, &mut buffer).await? || self.script.dot.is_empty()
                    {
                        return Ok(());
                    }
                    if let Some(mut count) = self.script.dot_after.clone() {
                        let _ = count.wait_for(|n| *n > 0).await;
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    messages += 1;
                    format!("{}\r\n", self.script.dot)
                }
                "DATA" => format!("{}\r\n", self.script.data),
                "QUIT" => {
                    stream.write_all(b"221 bye\r\n").await?;
                    return Ok(());
                }
                _ => "250 2.0.0 ok\r\n".into(),
            };
            stream.write_all(reply.as_bytes()).await?;
            stream.flush().await?;
            if messages >= self.script.close_after {
                return stream.shutdown().await;
            }
        }
    }

    /// A line without CRLF; `None` at the end of the stream.
    async fn line(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut BytesMut,
        clear: bool,
    ) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = buffer.windows(2).position(|w| w == b"\r\n") {
                let line = buffer.split_to(end + 2);
                return Ok(Some(String::from_utf8_lossy(&line[..end]).into_owned()));
            }
            let before = buffer.len();
            if stream.read_buf(buffer).await? == 0 {
                return Ok(None);
            }
            if clear {
                self.seen
                    .lock()
                    .unwrap()
                    .clear
                    .extend_from_slice(&buffer[before..]);
            }
        }
    }

    /// Content up to and including CRLF.CRLF (or the dot line of an empty message).
    async fn content(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut BytesMut,
    ) -> std::io::Result<bool> {
        let mut kept = Vec::new();
        let mut tail: Vec<u8> = b"\r\n".to_vec();
        loop {
            let chunk = buffer.split();
            {
                let mut seen = self.seen.lock().unwrap();
                seen.content_octets += chunk.len() as u64;
                let octets = seen.content_octets;
                if let Some(watch) = seen.watch.as_mut() {
                    watch(octets);
                }
            }
            if !self.script.discard {
                kept.extend_from_slice(&chunk);
            }
            tail.extend_from_slice(&chunk);
            if let Some(end) = tail.windows(5).position(|w| w == b"\r\n.\r\n") {
                assert_eq!(
                    end + 5,
                    tail.len(),
                    "nothing is sent behind the final dot before its reply"
                );
                self.seen.lock().unwrap().contents.push(kept);
                return Ok(true);
            }
            tail.drain(..tail.len().saturating_sub(4));
            if stream.read_buf(buffer).await? == 0 {
                self.seen.lock().unwrap().contents.push(kept);
                return Ok(false);
            }
        }
    }
}

fn ehlo(keywords: &[&str]) -> String {
    let mut lines = vec!["fake.example greets you"];
    lines.extend(keywords);
    let last = lines.len() - 1;
    lines
        .iter()
        .enumerate()
        .map(|(i, l)| format!("250{}{l}\r\n", if i == last { ' ' } else { '-' }))
        .collect()
}
