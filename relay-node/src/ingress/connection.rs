//! The driver of one connection: moves bytes between socket and session, keeps the deadlines, and
//! carries out what the session asks for. Decides nothing itself.
use super::{
    context::IngressContext,
    gatekeeper,
    intake::{self, Failed, Intake},
    received::Received,
    stream::Stream,
    transaction::{Peer, Transaction},
};
use crate::{metrics::Refusal, tls::tls_facts};
use bytes::BytesMut;
use jiff::Timestamp;
use sealane_runtime::telemetry;
use sealane_smtp::server::{
    Action, AuthOutcome, BodyOutcome, Event, Listener, Phase, ServerConfig, ServerSession, Verdict,
};
use sealane_types::{Reply, TlsFacts};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// Octets of one read of commands.
const COMMANDS: usize = 16 << 10;
/// The minimum data rate is asked for after this much waiting.
const RATE_GRACE: Duration = Duration::from_secs(30);
/// For the TLS close, and for the peer to close too.
const FAREWELL: Duration = Duration::from_secs(1);
/// Replies are written once this many octets wait: the peer must take them before it is heard again.
const REPLIES: usize = 64 << 10;
/// Said to who speaks in clear; counted.
const TLS_FIRST: &[u8] = b"530 5.7.0 Must issue a STARTTLS";

#[derive(Debug)]
pub(super) struct Connection {
    context: Arc<IngressContext>,
    listener: Listener,
    peer: SocketAddr,
    session: ServerSession,
    stop: CancellationToken,
    stopping: bool,
    /// Replies that were not written yet.
    out: BytesMut,
    input: Vec<u8>,
    transaction: Option<Transaction>,
    /// Spent waiting for the octets of the current body, and octets that came.
    waited: Duration,
    arrived: u64,
    /// When the last line came, and how many had come.
    progress: (Instant, u64),
}

/// Why a connection ends early. A rude peer is no error of ours.
#[derive(Debug)]
enum Over {
    /// As agreed, or the peer went.
    Closed,
    /// The socket says so.
    Io(io::Error),
}

impl From<io::Error> for Over {
    fn from(e: io::Error) -> Self {
        Over::Io(e)
    }
}

impl Connection {
    pub(super) fn new(
        context: Arc<IngressContext>,
        listener: Listener,
        config: Arc<ServerConfig>,
        peer: SocketAddr,
        stop: CancellationToken,
    ) -> Self {
        Self {
            context,
            listener,
            peer,
            session: ServerSession::new(config),
            stop,
            stopping: false,
            out: BytesMut::new(),
            input: vec![0; COMMANDS],
            transaction: None,
            waited: Duration::ZERO,
            arrived: 0,
            progress: (Instant::now(), 0),
        }
    }

    pub(super) async fn run(mut self, tcp: TcpStream) {
        let ended = self.converse(tcp).await;
        if let Err(Over::Io(e)) = ended {
            tracing::debug!(peer = %self.peer, listener = self.listener.as_str(), error = %e, "connection lost");
        }
        if let Some(t) = self.transaction.take() {
            self.account(&t, None, "interrupted", None);
        }
    }

    async fn converse(&mut self, tcp: TcpStream) -> Result<(), Over> {
        let mut stream = if self.listener == Listener::Submissions {
            let (stream, facts) = self.handshake(tcp).await?;
            self.session.handle(Event::Connected(Some(facts)));
            stream
        } else {
            self.session.handle(Event::Connected(None));
            Stream::Plain(tcp)
        };
        loop {
            while let Some(action) = self.session.poll_action() {
                match action {
                    Action::StartTls => stream = self.start_tls(stream).await?,
                    Action::Close => return self.farewell(&mut stream).await,
                    action => self.act(action, &mut stream).await?,
                }
            }
            self.flush(&mut stream).await?;
            self.read(&mut stream).await?;
        }
    }

    // ---- bytes

    /// Feeds the session with what the peer sends, or with the lack of it.
    async fn read(&mut self, stream: &mut Stream) -> Result<(), Over> {
        let limits = &self.context.limits;
        let data = self.session.phase() == Phase::Data;
        let deadline = if data {
            limits.data_timeout.0
        } else {
            self.left_for_a_line()
        };
        let room = match self.transaction.as_mut().and_then(|t| t.intake.as_mut()) {
            Some(intake) if data => intake.room().await,
            _ => COMMANDS,
        };
        // A long body is read in long pieces, everything else in short ones.
        if room > self.input.len() {
            self.input
                .resize(room.next_multiple_of(COMMANDS).min(intake::READ), 0);
        }
        let room = room.min(self.input.len());
        let started = Instant::now();
        let read = tokio::select! {
            biased;
            read = timeout(deadline, stream.read(&mut self.input[..room])) => read,
            () = self.stop.cancelled(), if !self.stopping => {
                self.stopping = true;
                self.session.handle(Event::Shutdown);
                return Ok(());
            }
        };
        let octets = match read {
            Ok(Ok(0)) => return Err(Over::Closed),
            Ok(Ok(n)) => n,
            Ok(Err(e)) => return Err(e.into()),
            Err(_) => {
                self.context
                    .metrics
                    .refused(self.listener.as_str(), Refusal::Timeout);
                self.session.handle(Event::Timeout);
                return Ok(());
            }
        };
        if data {
            self.progress.0 = Instant::now();
            self.waited += started.elapsed();
            self.arrived = self.arrived.saturating_add(octets as u64);
            let needed = self
                .waited
                .as_secs()
                .saturating_mul(self.context.limits.minimum_rate);
            if self.waited > RATE_GRACE && self.arrived < needed {
                self.context
                    .metrics
                    .refused(self.listener.as_str(), Refusal::Timeout);
                self.session.handle(Event::Timeout);
                return Ok(());
            }
        }
        self.session.input(&self.input[..octets]);
        Ok(())
    }

    /// What is left of the time for one line. Octets alone do not extend it.
    fn left_for_a_line(&mut self) -> Duration {
        let lines = self.session.lines();
        if self.progress.1 != lines {
            self.progress = (Instant::now(), lines);
        }
        let limits = &self.context.limits;
        let whole = if self.session.is_early() {
            limits.early_timeout.0
        } else {
            limits.command_timeout.0
        };
        whole.saturating_sub(self.progress.0.elapsed())
    }

    async fn flush(&mut self, stream: &mut Stream) -> Result<(), Over> {
        if self.out.is_empty() {
            return Ok(());
        }
        let write = async {
            stream.write_all(&self.out).await?;
            stream.flush().await
        };
        let written = timeout(self.context.limits.data_timeout.0, write).await;
        self.out.clear();
        written.map_err(|_| Over::Closed)?.map_err(Over::from)
    }

    async fn farewell(&mut self, stream: &mut Stream) -> Result<(), Over> {
        self.flush(stream).await?;
        // What the peer sent meanwhile is read: unread octets would turn the close into a reset, and
        // the last reply could be lost.
        let _ = timeout(FAREWELL, async {
            stream.shutdown().await?;
            while stream.read(&mut self.input).await? > 0 {}
            io::Result::Ok(())
        })
        .await;
        Err(Over::Closed)
    }

    // ---- TLS

    async fn start_tls(&mut self, mut stream: Stream) -> Result<Stream, Over> {
        self.flush(&mut stream).await?;
        let Stream::Plain(tcp) = stream else {
            return Err(Over::Closed);
        };
        let (stream, facts) = self.handshake(tcp).await?;
        self.progress.0 = Instant::now();
        self.session.handle(Event::TlsEstablished(facts));
        Ok(stream)
    }

    async fn handshake(&self, tcp: TcpStream) -> Result<(Stream, TlsFacts), Over> {
        // The certificate of now: it may have been renewed since the last handshake.
        let acceptor = TlsAcceptor::from(self.context.tls.current().config.clone());
        let accept = acceptor.accept(tcp);
        let tls = match timeout(self.context.limits.handshake_timeout.0, accept).await {
            Ok(Ok(tls)) => tls,
            failed => {
                self.context
                    .metrics
                    .refused(self.listener.as_str(), Refusal::Handshake);
                let why = match failed {
                    Ok(Err(e)) => e.to_string(),
                    _ => "too slow".to_owned(),
                };
                tracing::info!(peer = %self.peer, listener = self.listener.as_str(), error = why, "TLS handshake failed");
                return Err(Over::Closed);
            }
        };
        let connection = tls.get_ref().1;
        let mut facts = tls_facts(connection);
        facts.server_name = connection.server_name().unwrap_or_default().to_owned();
        Ok((Stream::Tls(Box::new(tls)), facts))
    }

    // ---- actions

    async fn act(&mut self, action: Action, stream: &mut Stream) -> Result<(), Over> {
        match action {
            Action::Send(octets) => {
                if self.session.tls().is_none()
                    && octets.windows(TLS_FIRST.len()).any(|w| w == TLS_FIRST)
                {
                    self.context
                        .metrics
                        .refused(self.listener.as_str(), Refusal::Plaintext);
                }
                self.out.extend_from_slice(&octets);
                if self.out.len() > REPLIES {
                    self.flush(stream).await?;
                }
            }
            Action::Authenticate { name, password } => {
                self.flush(stream).await?;
                let outcome = self
                    .context
                    .authenticator
                    .verify(self.context.policy(), name, password)
                    .await;
                if outcome == AuthOutcome::Rejected {
                    self.context.metrics.auth_failed(self.listener.as_str());
                    tracing::info!(peer = %self.peer, listener = self.listener.as_str(), "authentication failed");
                }
                self.session.handle(Event::Auth(outcome));
            }
            Action::CheckMail {
                reverse_path,
                parameters,
            } => {
                let verdict = match self.context.policy() {
                    None => self.refuse(gatekeeper::no_policy()),
                    Some(policy) => {
                        match gatekeeper::sender(
                            &policy,
                            self.listener,
                            self.session.submitter(),
                            &reverse_path,
                        ) {
                            Err(refused) => self.refuse(refused),
                            Ok(()) => {
                                let peer = self.peer(&self.session);
                                self.transaction =
                                    Some(Transaction::new(policy, peer, reverse_path, &parameters));
                                Verdict::Accept
                            }
                        }
                    }
                };
                self.session.handle(Event::Verdict(verdict));
            }
            Action::CheckRcpt(mailbox) => {
                let checked = match &self.transaction {
                    None => Err(gatekeeper::no_policy()),
                    Some(t) => gatekeeper::recipient(&t.policy, self.listener, &mailbox),
                };
                let verdict = match (checked, &mut self.transaction) {
                    (Ok(mailbox), Some(t)) => {
                        t.add(mailbox);
                        Verdict::Accept
                    }
                    (Err(refused), _) => self.refuse(refused),
                    (Ok(_), None) => self.refuse(gatekeeper::no_policy()),
                };
                self.session.handle(Event::Verdict(verdict));
            }
            Action::BeginData => {
                let verdict = match self.begin_body().await {
                    Ok(()) => Verdict::Accept,
                    Err(f) => {
                        self.context.metrics.refused(self.listener.as_str(), f.why);
                        Verdict::Reply(f.reply)
                    }
                };
                self.session.handle(Event::Verdict(verdict));
            }
            Action::BodyData(octets) => {
                if let Some(intake) = self.transaction.as_mut().and_then(|t| t.intake.as_mut()) {
                    intake.append(octets).await;
                }
            }
            Action::BodyEnd => {
                self.flush(stream).await?;
                let outcome = self.end_body().await;
                self.progress.0 = Instant::now();
                self.session.handle(Event::Body(outcome));
            }
            Action::BodyAborted => {
                if let Some(mut t) = self.transaction.take() {
                    t.intake = None;
                    let why = if self.session.is_too_big() {
                        Refusal::Size
                    } else {
                        Refusal::Content
                    };
                    self.context.metrics.refused(self.listener.as_str(), why);
                    self.account(&t, None, "refused", None);
                }
            }
            Action::Reset => self.transaction = None,
            // Done by the caller, which owns the stream.
            Action::StartTls | Action::Close => {}
        }
        Ok(())
    }

    fn peer<'a>(&'a self, session: &'a ServerSession) -> Peer<'a> {
        static NO_TLS: std::sync::LazyLock<TlsFacts> = std::sync::LazyLock::new(TlsFacts::default);
        Peer {
            address: self.peer,
            listener: self.listener,
            helo: session.helo(),
            tls: session.tls().unwrap_or(&NO_TLS),
            submitter: session.submitter(),
        }
    }

    fn refuse(&self, refused: gatekeeper::Refused) -> Verdict {
        self.context
            .metrics
            .refused(self.listener.as_str(), refused.why);
        tracing::info!(
            peer = %self.peer,
            listener = self.listener.as_str(),
            reason = refused.why.as_str(),
            reply = %refused.reply,
            "command refused"
        );
        Verdict::Reply(refused.reply)
    }

    // ---- body

    async fn begin_body(&mut self) -> Result<(), Failed> {
        self.waited = Duration::ZERO;
        self.arrived = 0;
        let Some(t) = &self.transaction else {
            let gatekeeper::Refused { reply, why } = gatekeeper::no_policy();
            return Err(Failed { reply, why });
        };
        let context = &self.context;
        let id = intake::choose_id(&context.submit);
        let one = t
            .recipients
            .first()
            .filter(|_| t.recipients.len() == 1)
            .map(ToString::to_string);
        let peer = self.peer(&self.session);
        let header = Received {
            helo: peer.helo,
            peer: self.peer,
            hostname: &context.hostname,
            protocol: self.session.protocol(),
            tls: peer.tls,
            id,
            recipient: one.as_deref(),
            at: Timestamp::now(),
        }
        .header();
        let begun = Intake::begin(
            (context.submit.clone(), context.handover.clone()),
            context.budget.clone(),
            &context.limits,
            telemetry::current_context(&t.span),
            id,
            &header,
        )
        .await?;
        if let Some(t) = &mut self.transaction {
            t.intake = Some(begun);
        }
        Ok(())
    }

    async fn end_body(&mut self) -> BodyOutcome {
        let started = Instant::now();
        let gone = || {
            BodyOutcome::Reply(Reply::new(
                451,
                (4, 3, 0),
                "Message lost here, send it again",
            ))
        };
        let Some(mut t) = self.transaction.take() else {
            return gone();
        };
        let Some(body) = t.intake.take() else {
            return gone();
        };
        let entry = t.entry(self.peer(&self.session), &self.context.relay);
        let ended = Box::pin(body.finish(t.envelope(), entry))
            .instrument(t.span.clone())
            .await;
        t.span
            .record("message.id", tracing::field::display(ended.id));
        t.span.record("message.size", ended.size);
        t.span.record("recipients", t.recipients.len());
        let listener = self.listener.as_str();
        let metrics = &self.context.metrics;
        let (word, reply) = match &ended.outcome {
            BodyOutcome::Durable(_) => {
                metrics.accepted(listener, ended.size, started.elapsed());
                ("accepted", None)
            }
            BodyOutcome::Reply(reply) => {
                if let Some(why) = ended.why {
                    metrics.refused(listener, why);
                }
                ("refused", Some(reply.to_string()))
            }
            BodyOutcome::Unknown => {
                metrics.unknown();
                tracing::warn!(message.id = %ended.id, "outcome unknown: closing without a reply");
                ("unknown", None)
            }
        };
        t.span.record("outcome", word);
        self.account(&t, Some((ended.id, ended.size)), word, reply);
        ended.outcome
    }

    /// The accounting record: one per message that got as far as MAIL.
    fn account(
        &self,
        t: &Transaction,
        message: Option<(sealane_types::MessageId, u64)>,
        outcome: &'static str,
        reply: Option<String>,
    ) {
        t.span.record("outcome", outcome);
        let peer = self.peer(&self.session);
        tracing::info!(
            parent: None,
            message_id = message.map(|(id, _)| id.to_string()).unwrap_or_default(),
            size = message.map_or(0, |(_, size)| size),
            listener = self.listener.as_str(),
            peer = %self.peer,
            helo = peer.helo,
            submitter = peer.submitter.unwrap_or_default(),
            tls_version = peer.tls.version,
            tls_cipher = peer.tls.cipher,
            reverse_path = %t.reverse_path,
            recipients = t.recipients.len(),
            policy_revision = t.policy.revision(),
            outcome,
            reply = reply.unwrap_or_default(),
            "message received"
        );
    }
}
