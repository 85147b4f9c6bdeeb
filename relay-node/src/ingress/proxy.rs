//! The PROXY header of a load balancer that we trust: read before anything else, and nothing behind it.
use sealane_smtp::proxy::{Announced, Malformed, Step, step};
use std::{io, net::SocketAddr, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    time::timeout,
};

/// From the connection to the end of its header. A proxy sends it at once.
const HEADER: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoClient {
    /// Closed before it said a word: somebody looks whether the port is open.
    #[error("closed without a word")]
    Silent,
    /// It broke.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The header did not come in time.
    #[error("no PROXY header in time")]
    Slow,
    /// What came is no header.
    #[error("{0}")]
    Malformed(#[from] Malformed),
}

/// The client behind a connection from a proxy at `own`.
pub(super) async fn client(
    tcp: &mut (impl AsyncRead + Unpin),
    own: SocketAddr,
) -> Result<SocketAddr, NoClient> {
    let announced = timeout(HEADER, header(tcp)).await;
    match announced.map_err(|_| NoClient::Slow)?? {
        Announced::Own => Ok(own),
        Announced::Client(client) => Ok(client),
    }
}

async fn header(tcp: &mut (impl AsyncRead + Unpin)) -> Result<Announced, NoClient> {
    let mut head = Vec::with_capacity(128);
    loop {
        let more = match step(&head)? {
            Step::Done(announced) => return Ok(announced),
            Step::Need(more) => more,
        };
        let known = head.len();
        head.resize(known + more, 0);
        let came = tcp.read(&mut head[known..]).await?;
        if came == 0 && known == 0 {
            return Err(NoClient::Silent);
        }
        if came == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        head.truncate(known + came);
    }
}
