//! What a process gets from its operating system: the time of day and TCP connections.
//!
//! There is one operating system per process, so there is one of these per process. A simulation
//! (`tests/sim`) puts its own in place before anything runs; otherwise it is tokio and the system's
//! clock, at the price of one atomic load.
use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::OnceLock,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

/// Something to wait for.
pub type Wait<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Another operating system.
pub trait World: Send + Sync {
    /// Time of day, since the epoch.
    fn now(&self) -> Duration;
    /// A connection to an authority (host:port).
    fn connect(&self, authority: String) -> Wait<'static, Box<dyn Octets>>;
    /// Listens.
    fn listen(&self, at: SocketAddr) -> Wait<'static, Box<dyn Accept>>;
}

/// A connection of another world.
pub trait Octets: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Octets for T {}

/// A listener of another world.
pub trait Accept: Send + Sync {
    /// The next connection, and who it is from.
    ///
    /// # Cancel safety
    /// Cancel safe.
    fn accept(&self) -> Wait<'_, (Box<dyn Octets>, SocketAddr)>;
}

static WORLD: OnceLock<Box<dyn World>> = OnceLock::new();

/// From here on this process lives in another world. False if it did so before.
pub fn enter(world: Box<dyn World>) -> bool {
    WORLD.set(world).is_ok()
}

/// Time of day, milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = match WORLD.get() {
        None => SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default(),
        Some(world) => world.now(),
    };
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A TCP connection.
pub enum Socket {
    /// Of the operating system.
    Tcp(TcpStream),
    /// Of another world.
    Other(Box<dyn Octets>),
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Socket")
    }
}

impl Socket {
    /// Connects to an authority (host:port), without Nagle's algorithm.
    pub async fn connect(authority: &str) -> io::Result<Self> {
        match WORLD.get() {
            None => {
                let tcp = TcpStream::connect(authority).await?;
                tcp.set_nodelay(true)?;
                Ok(Self::Tcp(tcp))
            }
            Some(world) => Ok(Self::Other(world.connect(authority.to_owned()).await?)),
        }
    }
}

/// A TCP listener.
pub enum Listener {
    /// Of the operating system.
    Tcp(TcpListener),
    /// Of another world.
    Other(Box<dyn Accept>),
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

impl Listener {
    /// Listens.
    pub async fn bind(at: SocketAddr) -> io::Result<Self> {
        match WORLD.get() {
            None => Ok(Self::Tcp(TcpListener::bind(at).await?)),
            Some(world) => Ok(Self::Other(world.listen(at).await?)),
        }
    }

    /// The next connection, and who it is from.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn accept(&self) -> io::Result<(Socket, SocketAddr)> {
        match self {
            Self::Tcp(l) => {
                let (tcp, from) = l.accept().await?;
                let _ = tcp.set_nodelay(true);
                Ok((Socket::Tcp(tcp), from))
            }
            Self::Other(l) => {
                let (octets, from) = l.accept().await?;
                Ok((Socket::Other(octets), from))
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_read(cx, buf),
            Self::Other(s) => Pin::new(s).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write(cx, buf),
            Self::Other(s) => Pin::new(s).poll_write(cx, buf),
        }
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_write_vectored(cx, parts),
            Self::Other(s) => Pin::new(s).poll_write_vectored(cx, parts),
        }
    }
    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(s) => s.is_write_vectored(),
            Self::Other(s) => s.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_flush(cx),
            Self::Other(s) => Pin::new(s).poll_flush(cx),
        }
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(s) => Pin::new(s).poll_shutdown(cx),
            Self::Other(s) => Pin::new(s).poll_shutdown(cx),
        }
    }
}
