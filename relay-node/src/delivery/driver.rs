//! Moves octets between a stream and a client session. No decision is made here.
use bytes::BytesMut;
use sealane_smtp::client::{Action, ClientSession};
use std::{io, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

/// Octets read at once.
const READ: usize = 8 << 10;

/// A stream and the session that speaks over it.
#[derive(Debug)]
pub(super) struct Driver<S> {
    pub(super) stream: S,
    pub(super) session: ClientSession,
    /// Octets heard so far.
    pub(super) heard: u64,
}

/// What the session wants of its driver's driver.
#[derive(Debug)]
pub(super) enum Step {
    /// An action that is not `Send`.
    Action(Action),
    /// The session is closed and has nothing more to say.
    Over,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Driver<S> {
    pub(super) fn new(stream: S, session: ClientSession) -> Self {
        Self {
            stream,
            session,
            heard: 0,
        }
    }

    /// Runs the session until it wants something. `deadline` gives the time for the next reply,
    /// by what the session waits for.
    ///
    /// # Cancel safety
    /// The session may have been told of octets whose answer is not written: drop the connection.
    pub(super) async fn step(&mut self, deadline: impl Fn(&ClientSession) -> Duration) -> Step {
        loop {
            while let Some(action) = self.session.poll_action() {
                match action {
                    Action::Send(octets) => {
                        let limit = deadline(&self.session);
                        if let Err(why) = self.write(&octets, limit).await {
                            self.session.lost(why);
                        }
                    }
                    other => return Step::Action(other),
                }
            }
            if self.session.is_closed() {
                return Step::Over;
            }
            let limit = deadline(&self.session);
            self.read(limit).await;
        }
    }

    async fn read(&mut self, limit: Duration) {
        let mut buffer = BytesMut::with_capacity(READ);
        match timeout(limit, self.stream.read_buf(&mut buffer)).await {
            Ok(Ok(n)) if n > 0 => {
                self.heard += n as u64;
                self.session.input(&buffer);
            }
            Ok(Ok(_)) => self.session.lost("connection closed by the peer"),
            Ok(Err(error)) => self.session.lost(word(&error)),
            Err(_) => self.session.lost("no reply within the deadline"),
        }
    }

    /// Writes and flushes.
    pub(super) async fn write(
        &mut self,
        octets: &[u8],
        limit: Duration,
    ) -> Result<(), &'static str> {
        let work = async {
            self.stream.write_all(octets).await?;
            self.stream.flush().await
        };
        match timeout(limit, work).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(word(&error)),
            Err(_) => Err("the peer does not read"),
        }
    }

    /// QUIT, its answer, close.
    pub(super) async fn quit(&mut self, limit: Duration) {
        self.session.quit();
        let work = async {
            while !matches!(self.step(|_| limit).await, Step::Over) {}
            let _ = self.stream.shutdown().await;
        };
        let _ = timeout(limit, work).await;
    }
}

/// A safe word for an I/O error.
fn word(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            "connection reset by the peer"
        }
        io::ErrorKind::UnexpectedEof => "connection closed by the peer",
        io::ErrorKind::InvalidData => "malformed TLS record",
        _ => "connection failed",
    }
}
