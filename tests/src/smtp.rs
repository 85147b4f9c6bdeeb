//! A raw SMTP client: it sends exactly the octets it is given and reads replies, no more.
//!
//! Not the product's client and sharing no line with it, so that a mistake is not made twice.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest wait for a reply. Above the 60 s that the product may take for its 250.
const PATIENCE: Duration = Duration::from_secs(75);

trait Duplex: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Duplex for T {}

/// A reply: the code and its lines without the code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub code: u16,
    pub lines: Vec<String>,
}

impl Reply {
    /// All lines, joined.
    #[must_use]
    pub fn text(&self) -> String {
        self.lines.join(" / ")
    }

    /// Whether this is `code` with the enhanced status `enhanced` in front of its text.
    #[must_use]
    pub fn is(&self, code: u16, enhanced: &str) -> bool {
        self.code == code && self.lines.iter().all(|line| line.starts_with(enhanced))
    }

    /// Whether a capability is among the lines of an EHLO reply.
    #[must_use]
    pub fn offers(&self, capability: &str) -> bool {
        self.lines
            .iter()
            .skip(1)
            .any(|line| line.split(' ').next() == Some(capability))
    }
}

impl std::fmt::Display for Reply {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} {}", self.code, self.text())
    }
}

/// One connection.
pub struct Client {
    stream: BufReader<Box<dyn Duplex>>,
    patience: Duration,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Client")
    }
}

fn tls_config() -> Result<Arc<ClientConfig>> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(Arc::clone(config));
    }
    let config = crate::tls::blind_client()?;
    Ok(Arc::clone(CONFIG.get_or_init(|| config)))
}

async fn handshake<S: Duplex + 'static>(stream: S) -> Result<Box<dyn Duplex>> {
    let name = ServerName::try_from("relay.sealane.example").context("server name")?;
    let connecting = TlsConnector::from(tls_config()?).connect(name, stream);
    let stream = timeout(PATIENCE, connecting)
        .await
        .context("TLS handshake took too long")??;
    Ok(Box::new(stream))
}

impl Client {
    /// TCP only, nothing read.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = timeout(Duration::from_secs(5), TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(Box::new(stream)),
            patience: PATIENCE,
        })
    }

    /// TCP, greeting, EHLO, STARTTLS, EHLO; gives the last EHLO reply.
    ///
    /// # Errors
    /// When any step is not answered as it must be.
    pub async fn starttls(address: SocketAddr) -> Result<(Self, Reply)> {
        let mut client = Self::connect(address).await?;
        client.expect(220).await?;
        client.command("EHLO client.example").await?;
        client.command_expecting("STARTTLS", 220).await?;
        let mut client = client.upgrade().await?;
        let ehlo = client.command_expecting("EHLO client.example", 250).await?;
        Ok((client, ehlo))
    }

    /// TLS from the first octet, greeting, EHLO; gives the EHLO reply.
    ///
    /// # Errors
    /// When any step is not answered as it must be.
    pub async fn implicit_tls(address: SocketAddr) -> Result<(Self, Reply)> {
        let stream = timeout(Duration::from_secs(5), TcpStream::connect(address)).await??;
        stream.set_nodelay(true)?;
        let mut client = Self {
            stream: BufReader::new(handshake(stream).await?),
            patience: PATIENCE,
        };
        client.expect(220).await?;
        let ehlo = client.command_expecting("EHLO client.example", 250).await?;
        Ok((client, ehlo))
    }

    /// Sets how long a reply may take.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The TLS handshake behind a 220 to STARTTLS.
    ///
    /// # Errors
    /// When the server sent something in clear behind its 220, or the handshake fails.
    pub async fn upgrade(self) -> Result<Self> {
        if !self.stream.buffer().is_empty() {
            bail!("octets in clear behind the reply to STARTTLS");
        }
        let stream = handshake(self.stream.into_inner()).await?;
        Ok(Self {
            stream: BufReader::new(stream),
            patience: self.patience,
        })
    }

    /// Sends octets as they are.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn send(&mut self, octets: &[u8]) -> Result<()> {
        let sending = async {
            self.stream.get_mut().write_all(octets).await?;
            self.stream.get_mut().flush().await
        };
        timeout(self.patience, sending)
            .await
            .context("the server takes nothing more")??;
        Ok(())
    }

    /// Reads one reply.
    ///
    /// # Errors
    /// When the connection ends, the reply is malformed, or takes too long.
    pub async fn reply(&mut self) -> Result<Reply> {
        let mut lines = Vec::new();
        loop {
            let mut line = Vec::new();
            let reading = self.stream.read_until(b'\n', &mut line);
            let count = timeout(self.patience, reading)
                .await
                .context("no reply in time")??;
            if count == 0 {
                bail!("connection closed instead of a reply");
            }
            let line = String::from_utf8(line).context("reply is not UTF-8")?;
            let Some(line) = line.strip_suffix("\r\n") else {
                bail!("reply line without CRLF: {line:?}")
            };
            let code: u16 = line
                .get(..3)
                .and_then(|code| code.parse().ok())
                .with_context(|| format!("{line:?}"))?;
            lines.push(line.get(4..).unwrap_or_default().to_owned());
            match line.as_bytes().get(3) {
                None | Some(b' ') => return Ok(Reply { code, lines }),
                Some(b'-') => {}
                Some(_) => bail!("malformed reply line {line:?}"),
            }
        }
    }

    /// Reads one reply that must have this code.
    ///
    /// # Errors
    /// When it has another.
    pub async fn expect(&mut self, code: u16) -> Result<Reply> {
        let reply = self.reply().await?;
        if reply.code != code {
            bail!("expected {code}, got {reply}");
        }
        Ok(reply)
    }

    /// Sends a line and reads its reply.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn command(&mut self, line: &str) -> Result<Reply> {
        self.send(format!("{line}\r\n").as_bytes()).await?;
        self.reply().await
    }

    /// Sends a line whose reply must have this code.
    ///
    /// # Errors
    /// When it has another.
    pub async fn command_expecting(&mut self, line: &str, code: u16) -> Result<Reply> {
        let reply = self.command(line).await?;
        if reply.code != code {
            bail!("{line}: expected {code}, got {reply}");
        }
        Ok(reply)
    }

    /// AUTH PLAIN with initial response.
    ///
    /// # Errors
    /// When the connection is broken.
    pub async fn auth_plain(&mut self, user: &str, password: &str) -> Result<Reply> {
        let token = BASE64.encode(format!("\0{user}\0{password}").as_bytes());
        self.command(&format!("AUTH PLAIN {token}")).await
    }

    /// MAIL, RCPT per recipient, DATA, content; stops at the first refusal and gives that reply.
    ///
    /// # Errors
    /// When the connection breaks: the outcome is unknown if that was after the final dot.
    pub async fn transaction(
        &mut self,
        from: &str,
        to: &[String],
        content: &[u8],
    ) -> Result<Reply> {
        let reply = self.command(&format!("MAIL FROM:<{from}>")).await?;
        if reply.code != 250 {
            return Ok(reply);
        }
        for recipient in to {
            let reply = self.command(&format!("RCPT TO:<{recipient}>")).await?;
            if reply.code != 250 {
                return Ok(reply);
            }
        }
        let reply = self.command("DATA").await?;
        if reply.code != 354 {
            return Ok(reply);
        }
        self.send(&stuffed(content)).await?;
        self.reply().await
    }

    /// QUIT, not waiting long for the answer.
    pub async fn quit(mut self) {
        self.patience = Duration::from_secs(2);
        let _gone = self.command("QUIT").await;
        let _closed = self.stream.get_mut().shutdown().await;
    }

    /// Reads until the server closes; gives what came. Errors of the transport count as closing.
    ///
    /// # Errors
    /// When it stays open beyond `limit`.
    pub async fn read_to_close(&mut self, limit: Duration) -> Result<Vec<u8>> {
        let mut rest = Vec::new();
        match timeout(limit, self.stream.read_to_end(&mut rest)).await {
            Ok(_) => Ok(rest),
            Err(_) => bail!(
                "connection still open after {limit:?}, read {:?}",
                String::from_utf8_lossy(&rest)
            ),
        }
    }
}

/// Content with transparency dots (RFC 5321 section 4.5.2) and the end of data behind it.
#[must_use]
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + 64);
    let mut start = true;
    for line in content.split_inclusive(|&octet| octet == b'\n') {
        if start && line.first() == Some(&b'.') {
            out.push(b'.');
        }
        out.extend_from_slice(line);
        start = line.ends_with(b"\r\n");
    }
    if !start {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::stuffed;

    #[test]
    fn dots_at_line_starts_are_doubled() {
        assert_eq!(stuffed(b".\r\na.\r\n..b\r\n"), b"..\r\na.\r\n...b\r\n.\r\n");
        assert_eq!(stuffed(b""), b".\r\n");
        assert_eq!(stuffed(b"x"), b"x\r\n.\r\n");
    }
}
