//! connect: TCP, TLS, and the judgement of both.
use super::{
    DeliveryOptions,
    connection::Connection,
    driver::{Driver, Step},
    places::Place,
    report::HopFailure,
};
use crate::{
    resolve::{AddressGuard, Hop},
    tls::{CertificateRequirement, TlsConnector},
};
use sealane_smtp::client::{Action, Awaited, ClientConfig, ClientSession, Failure};
use sealane_tls_policy::{HopRequirement, Judgement, SessionFacts, TlsSession, judge};
use sealane_types::TlsFacts;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::client::TlsStream;

/// What a connection must prove before it carries mail.
#[derive(Debug)]
pub(crate) struct Requirement {
    pub(crate) decision: HopRequirement,
    pub(crate) certificate: CertificateRequirement,
}

/// Opens connections.
#[derive(Debug)]
pub(crate) struct Connector {
    hostname: String,
    tls: TlsConnector,
    guard: AddressGuard,
    options: DeliveryOptions,
}

impl Connector {
    pub(crate) fn new(
        hostname: String,
        tls: TlsConnector,
        guard: AddressGuard,
        options: DeliveryOptions,
    ) -> Self {
        Self {
            hostname,
            tls,
            guard,
            options,
        }
    }

    /// Connects, speaks to STARTTLS, shakes hands, judges, and says EHLO inside TLS.
    ///
    /// # Cancel safety
    /// The connection is dropped, and its place with it.
    pub(crate) async fn open(
        &self,
        hop: &Hop,
        requirement: &Requirement,
        place: Place,
    ) -> Result<Connection, HopFailure> {
        let remote = format!("{} [{}]:{}", hop.host, hop.address.ip(), hop.address.port());
        match self.open_to(hop, requirement, &remote, place).await {
            Ok(connection) => Ok(connection),
            Err(failure) => {
                tracing::debug!(remote, reply = %failure.reply, "hop not usable");
                Err(failure.at(&remote))
            }
        }
    }

    async fn open_to(
        &self,
        hop: &Hop,
        requirement: &Requirement,
        remote: &str,
        place: Place,
    ) -> Result<Connection, HopFailure> {
        let stream = self.tcp(hop).await?;
        let config = ClientConfig {
            hostname: self.hostname.clone(),
            implicit_tls: hop.implicit_tls,
        };
        let mut clear = Driver::new(stream, ClientSession::new(config));
        if !hop.implicit_tls {
            self.until_starttls(&mut clear, requirement).await?;
        }
        let Driver {
            stream,
            mut session,
            ..
        } = clear;
        let (stream, tls) = self.handshake(stream, hop, requirement).await?;
        session.tls_established();
        let mut connection = Connection {
            driver: Driver::new(stream, session),
            remote: remote.to_owned(),
            tls,
            transactions: 0,
            place,
        };
        match self.until_ready(&mut connection.driver).await {
            Ok(()) => Ok(connection),
            Err(failure) => Err(failure.within(&connection.tls)),
        }
    }

    async fn tcp(&self, hop: &Hop) -> Result<TcpStream, HopFailure> {
        if !self.guard.permits(hop.address.ip(), hop.source) {
            return Err(HopFailure::own(
                (5, 4, 4),
                "the address is not routable from here",
            ));
        }
        let stream = match timeout(
            self.options.connect_timeout.0,
            TcpStream::connect(hop.address),
        )
        .await
        {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(HopFailure::own((4, 4, 1), connect_word(&error))),
            Err(_) => return Err(HopFailure::own((4, 4, 1), "connection timed out")),
        };
        // What was checked is what was dialled.
        match stream.peer_addr() {
            Ok(peer) if self.guard.permits(peer.ip(), hop.source) => {}
            _ => return Err(HopFailure::own((4, 4, 1), "connected to another address")),
        }
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }

    async fn until_starttls(
        &self,
        clear: &mut Driver<TcpStream>,
        requirement: &Requirement,
    ) -> Result<(), HopFailure> {
        let refusal = match self.step(clear).await {
            Step::Action(Action::StartTls) => return Ok(()),
            Step::Action(Action::Close(Some(failure))) => failure,
            Step::Action(_) | Step::Over => {
                Failure::temporary((4, 5, 0), "protocol error before STARTTLS", false)
            }
        };
        if !refusal.tls_caused {
            return Err(HopFailure::refused(refusal.reply));
        }
        let not_offered = refusal.reply.enhanced.is_none_or(|e| (e.1, e.2) == (7, 4));
        let tls = if not_offered {
            TlsSession::NotOffered
        } else {
            TlsSession::HandshakeFailed
        };
        Err(judged(requirement, tls, refusal.reply.text))
    }

    async fn handshake(
        &self,
        stream: TcpStream,
        hop: &Hop,
        requirement: &Requirement,
    ) -> Result<(TlsStream<TcpStream>, TlsFacts), HopFailure> {
        let work = self
            .tls
            .connect(stream, &hop.host, &requirement.certificate);
        let (stream, tls, evidence) = match timeout(self.options.tls_timeout.0, work).await {
            Ok(Ok(established)) => established,
            Ok(Err(error)) => {
                tracing::debug!(%error, host = hop.host, "TLS handshake failed");
                return Err(judged(
                    requirement,
                    TlsSession::HandshakeFailed,
                    "TLS handshake failed",
                ));
            }
            Err(_) => {
                return Err(judged(
                    requirement,
                    TlsSession::HandshakeFailed,
                    "TLS handshake timed out",
                ));
            }
        };
        let session = SessionFacts {
            tls: TlsSession::Established(evidence.passed),
            offers_require_tls: false,
        };
        match judge(requirement.decision, session) {
            Judgement::Deliver(_) => Ok((stream, tls)),
            Judgement::Refuse { .. } => {
                let text = format!("certificate not accepted: {}", evidence.verification);
                Err(judged(requirement, session.tls, text).within(&tls))
            }
        }
    }

    async fn until_ready(
        &self,
        driver: &mut Driver<TlsStream<TcpStream>>,
    ) -> Result<(), HopFailure> {
        match self.step(driver).await {
            Step::Action(Action::Ready) => Ok(()),
            Step::Action(Action::Close(Some(failure))) => Err(HopFailure::refused(failure.reply)),
            Step::Action(_) | Step::Over => {
                Err(HopFailure::own((4, 5, 0), "protocol error before MAIL"))
            }
        }
    }

    async fn step<S>(&self, driver: &mut Driver<S>) -> Step
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        driver
            .step(|session| match session.awaits() {
                Awaited::Greeting => self.options.greeting_timeout.0,
                _ => self.options.command_timeout.0,
            })
            .await
    }
}

/// The failure that the table names for a session that does not meet the requirement.
fn judged(requirement: &Requirement, tls: TlsSession, text: impl Into<String>) -> HopFailure {
    match judge(
        requirement.decision,
        SessionFacts {
            tls,
            offers_require_tls: false,
        },
    ) {
        Judgement::Refuse {
            status, tls_caused, ..
        } => {
            let failure = HopFailure::own(status, text);
            if tls_caused {
                failure.tls_caused()
            } else {
                failure
            }
        }
        // Does not happen: a session without TLS or with failed checks is refused.
        Judgement::Deliver(_) => HopFailure::own((4, 7, 5), text).tls_caused(),
    }
}

fn connect_word(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "connection refused",
        std::io::ErrorKind::HostUnreachable | std::io::ErrorKind::NetworkUnreachable => {
            "host unreachable"
        }
        std::io::ErrorKind::TimedOut => "connection timed out",
        _ => "connection failed",
    }
}
