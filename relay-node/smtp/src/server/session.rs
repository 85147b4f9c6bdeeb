//! The state machine of one connection.
use super::{auth, data::DataScanner};
use crate::{
    durable::Durable,
    syntax::{self, MailParameters},
};
use bytes::{Buf, Bytes, BytesMut};
use sealane_mutants::{Mutant::M8, mutant};
use sealane_types::{DomainName, Mailbox, Reply, ReversePath, TlsFacts, sanitize};
use std::{collections::VecDeque, fmt, sync::Arc};

/// Which rules apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// Mail for served domains; STARTTLS required.
    Mx,
    /// Submission (RFC 6409): STARTTLS, then AUTH, required.
    Submission,
    /// Submission over implicit TLS (RFC 8314): AUTH required.
    Submissions,
}

impl Listener {
    /// Name in records and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Listener::Mx => "mx",
            Listener::Submission => "submission",
            Listener::Submissions => "submissions",
        }
    }
    fn needs_auth(self) -> bool {
        self != Listener::Mx
    }
}

/// Limits and names, shared by all sessions of a listener.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Name in greeting and EHLO reply.
    pub hostname: String,
    /// Rules.
    pub listener: Listener,
    /// Octets of a message.
    pub max_size: u64,
    /// Recipients of a message; at least 100 (RFC 5321 section 4.5.3.1.8).
    pub max_recipients: usize,
    /// Octets of a command line.
    pub max_line: usize,
    /// Protocol errors before 421.
    pub max_errors: u32,
    /// Failed authentications before 421.
    pub max_auth_failures: u32,
}

/// A password on its way to the verifier; never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The answer to a question the session asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Accept,
    /// No, with this reply.
    Reply(Reply),
}

/// The answer to [`Action::Authenticate`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthOutcome {
    /// Who it is.
    Accepted(String),
    /// Wrong name or password.
    Rejected,
    /// Cannot tell now.
    Unavailable,
}

/// What became of the body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyOutcome {
    /// Say 250.
    Durable(Durable),
    /// It is certain that nothing was accepted: say this.
    Reply(Reply),
    /// Nobody knows: close without a word, the client asks again.
    Unknown,
}

/// What happened outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection stands; on `Submissions` TLS stands too.
    Connected(Option<TlsFacts>),
    /// The handshake after [`Action::StartTls`] succeeded.
    TlsEstablished(TlsFacts),
    /// Answers [`Action::Authenticate`].
    Auth(AuthOutcome),
    /// Answers [`Action::CheckMail`], [`Action::CheckRcpt`], [`Action::BeginData`].
    Verdict(Verdict),
    /// Answers [`Action::BodyEnd`].
    Body(BodyOutcome),
    /// The deadline of the current [`Phase`] passed.
    Timeout,
    /// The node drains: end at the next command boundary.
    Shutdown,
}

/// What the driver shall do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these octets.
    Send(Bytes),
    /// Begin the TLS handshake as server.
    StartTls,
    /// Verify; answer with [`Event::Auth`].
    Authenticate {
        /// Who logs in.
        name: String,
        /// With what.
        password: Secret,
    },
    /// May this sender? Answer with [`Event::Verdict`].
    CheckMail {
        /// From MAIL.
        reverse_path: ReversePath,
        /// From MAIL.
        parameters: MailParameters,
    },
    /// May this recipient? Answer with [`Event::Verdict`].
    CheckRcpt(Mailbox),
    /// May the body come? Answer with [`Event::Verdict`].
    BeginData,
    /// Message octets, dots undone, CRLF line ends only.
    BodyData(Bytes),
    /// The body is complete: make it durable, answer with [`Event::Body`].
    BodyEnd,
    /// Forget the body: the session replied already.
    BodyAborted,
    /// Forget sender and recipients.
    Reset,
    /// Close the connection after writing what was sent.
    Close,
}

/// What the session waits for: the driver picks the deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A command.
    Command,
    /// The TLS handshake.
    Handshake,
    /// Body octets.
    Data,
    /// An answer of the driver itself.
    Verdict,
    /// Nothing: it is over.
    Closed,
}

#[derive(Debug)]
enum State {
    Command,
    AuthResponse,
    /// An answer to the named question.
    Waiting(Question),
    Handshake,
    Data(DataScanner),
    Closed,
}

#[derive(Debug)]
enum Question {
    Auth,
    Mail(ReversePath),
    Rcpt,
    Data,
    Body,
}

/// One SMTP connection, server side.
#[derive(Debug)]
pub struct ServerSession {
    config: Arc<ServerConfig>,
    state: State,
    input: BytesMut,
    actions: VecDeque<Action>,
    out: BytesMut,
    tls: Option<TlsFacts>,
    helo: Option<String>,
    submitter: Option<String>,
    sender: Option<ReversePath>,
    recipients: usize,
    refused_recipients: usize,
    size: u64,
    too_big: bool,
    skipping_line: bool,
    errors: u32,
    auth_failures: u32,
    /// Commands since the last accepted message that brought none nearer.
    idle_commands: u32,
    lines: u64,
    draining: bool,
}

/// NOOP, RSET, VRFY and EHLO between two messages, as in Postfix.
const MAX_IDLE_COMMANDS: u32 = 100;
/// Replies that may wait to be sent before further commands are looked at.
const REPLIES: usize = 16 << 10;
/// Octets of an AUTH exchange line (RFC 4954 section 4).
const AUTH_LINE: usize = 12_288;
const TLS_FIRST: (u16, (u8, u16, u16), &str) =
    (530, (5, 7, 0), "Must issue a STARTTLS command first");

impl ServerSession {
    /// Before anything happened.
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self {
            config,
            state: State::Command,
            input: BytesMut::new(),
            actions: VecDeque::new(),
            out: BytesMut::new(),
            tls: None,
            helo: None,
            submitter: None,
            sender: None,
            recipients: 0,
            refused_recipients: 0,
            size: 0,
            too_big: false,
            skipping_line: false,
            errors: 0,
            auth_failures: 0,
            idle_commands: 0,
            lines: 0,
            draining: false,
        }
    }

    /// The EHLO argument, sanitised; for the Received header.
    pub fn helo(&self) -> &str {
        self.helo.as_deref().unwrap_or("unknown")
    }
    /// Facts of the TLS session, once there is one.
    pub fn tls(&self) -> Option<&TlsFacts> {
        self.tls.as_ref()
    }
    /// Who authenticated.
    pub fn submitter(&self) -> Option<&str> {
        self.submitter.as_deref()
    }
    /// "with" word of the Received header (RFC 3848).
    pub fn protocol(&self) -> &'static str {
        if self.submitter.is_some() {
            "ESMTPSA"
        } else {
            "ESMTPS"
        }
    }

    /// Whether the message that comes exceeds the limit.
    pub fn is_too_big(&self) -> bool {
        self.too_big
    }
    /// Lines heard so far: a peer that sends octets but no line makes no progress.
    pub fn lines(&self) -> u64 {
        self.lines
    }
    /// Whether the peer still owes TLS, or AUTH where it is needed.
    pub fn is_early(&self) -> bool {
        self.tls.is_none() || self.unauthenticated()
    }

    /// What it waits for.
    pub fn phase(&self) -> Phase {
        match self.state {
            State::Command | State::AuthResponse => Phase::Command,
            State::Waiting(_) => Phase::Verdict,
            State::Handshake => Phase::Handshake,
            State::Data(_) => Phase::Data,
            State::Closed => Phase::Closed,
        }
    }

    /// Whether [`Self::input`] would use more octets now.
    pub fn wants_input(&self) -> bool {
        matches!(
            self.state,
            State::Command | State::AuthResponse | State::Data(_)
        )
    }

    /// Octets from the peer. They are kept while an answer is awaited; the driver should not read on then.
    pub fn input(&mut self, octets: &[u8]) {
        if !matches!(self.state, State::Closed) {
            self.input.extend_from_slice(octets);
            self.advance();
        }
    }

    /// What to do next; `None` until something happens.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() && self.out.is_empty() {
            // Commands that waited for their replies to be taken.
            self.advance();
        }
        if self.actions.is_empty() && !self.out.is_empty() {
            self.actions
                .push_back(Action::Send(self.out.split().freeze()));
        }
        self.actions.pop_front()
    }

    /// Something happened.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(tls) => {
                self.tls = tls;
                let greeting = format!("220 {} ESMTP Sealane\r\n", self.config.hostname);
                self.out.extend_from_slice(greeting.as_bytes());
            }
            Event::TlsEstablished(facts) => {
                // RFC 3207 section 4.2: all knowledge is discarded.
                self.tls = Some(facts);
                self.helo = None;
                self.submitter = None;
                self.state = State::Command;
                self.reset();
            }
            Event::Auth(outcome) => self.auth_done(outcome),
            Event::Verdict(verdict) => self.verdict(verdict),
            Event::Body(outcome) => self.body_done(outcome),
            Event::Timeout => {
                if matches!(self.state, State::Data(_)) {
                    self.push(Action::BodyAborted);
                }
                self.reply(&Reply::new(
                    421,
                    (4, 4, 2),
                    format!("{} timeout, closing", self.config.hostname),
                ));
                self.close();
            }
            Event::Shutdown => self.draining = true,
        }
        self.advance();
    }

    // ---- output

    fn push(&mut self, action: Action) {
        if !self.out.is_empty() {
            self.actions
                .push_back(Action::Send(self.out.split().freeze()));
        }
        self.actions.push_back(action);
    }

    fn reply(&mut self, r: &Reply) {
        let code = r.code;
        let enhanced = r.enhanced.map(|e| format!("{e} ")).unwrap_or_default();
        let lines: Vec<&str> = r.text.split('\n').collect();
        for (n, line) in lines.iter().enumerate() {
            let dash = if n + 1 < lines.len() { '-' } else { ' ' };
            let text = sanitize(line.as_bytes(), 400);
            self.out
                .extend_from_slice(format!("{code}{dash}{enhanced}{text}\r\n").as_bytes());
        }
    }

    fn say(&mut self, code: u16, enhanced: (u8, u16, u16), text: &str) {
        self.reply(&Reply::new(code, enhanced, text));
    }

    fn error(&mut self, code: u16, enhanced: (u8, u16, u16), text: &str) {
        self.say(code, enhanced, text);
        self.errors += 1;
        if self.errors >= self.config.max_errors {
            self.say(421, (4, 7, 0), "Too many errors, closing");
            self.close();
        }
    }

    fn close(&mut self) {
        self.state = State::Closed;
        self.input.clear();
        self.push(Action::Close);
    }

    fn reset(&mut self) {
        if self.sender.take().is_some() {
            self.push(Action::Reset);
        }
        self.recipients = 0;
        self.refused_recipients = 0;
        self.size = 0;
        self.too_big = false;
    }

    // ---- input

    fn advance(&mut self) {
        loop {
            match &mut self.state {
                State::Command | State::AuthResponse => {
                    if self.draining
                        && matches!(self.state, State::Command)
                        && self.sender.is_none()
                    {
                        self.say(421, (4, 3, 2), "Service shutting down, closing");
                        self.close();
                        return;
                    }
                    if self.out.len() > REPLIES {
                        return;
                    }
                    let Some(line) = self.next_line() else { return };
                    self.lines += 1;
                    // Whatever it is, it ends an AUTH exchange.
                    let auth = matches!(self.state, State::AuthResponse);
                    self.state = State::Command;
                    match line {
                        Line::TooLong if auth => {
                            self.error(500, (5, 5, 6), "Authentication exchange line is too long");
                        }
                        Line::TooLong => self.error(500, (5, 5, 2), "Line too long"),
                        Line::Bare => self.error(500, (5, 5, 2), "Bare CR or LF in command"),
                        Line::Text(text) if auth => self.auth_response(&text),
                        Line::Text(text) => self.line(&text),
                    }
                }
                State::Data(scanner) => {
                    if self.input.is_empty() {
                        return;
                    }
                    let scanned = scanner.scan(&self.input);
                    let spoiled = scanner.spoiled;
                    self.input.advance(scanned.consumed);
                    self.data(scanned.content, spoiled, scanned.ended);
                }
                State::Waiting(_) | State::Handshake | State::Closed => return,
            }
        }
    }

    fn next_line(&mut self) -> Option<Line> {
        let auth = matches!(self.state, State::AuthResponse)
            || self
                .input
                .get(..5)
                .is_some_and(|verb| verb.eq_ignore_ascii_case(b"AUTH "));
        let limit = if auth {
            AUTH_LINE + 2
        } else {
            self.config.max_line
        };
        let Some(end) = memchr::memchr(b'\n', &self.input) else {
            if self.input.len() > limit {
                self.input.clear();
                self.skipping_line = true;
            }
            return None;
        };
        let line = self.input.split_to(end + 1);
        if std::mem::take(&mut self.skipping_line) || line.len() > limit {
            return Some(Line::TooLong);
        }
        let Some(text) = line.strip_suffix(b"\r\n") else {
            return Some(Line::Bare);
        };
        if text.contains(&b'\r') {
            return Some(Line::Bare);
        }
        Some(Line::Text(text.to_vec()))
    }

    fn line(&mut self, line: &[u8]) {
        let ascii = std::str::from_utf8(line)
            .ok()
            .filter(|text| text.is_ascii());
        let Some(text) = ascii.filter(|text| !text.contains('\0')) else {
            return self.not_ascii(line);
        };
        // RFC 5321 section 4.1.1: trailing white space is tolerated.
        let text = text.trim_end_matches([' ', '\t']);
        let (verb, argument) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        let argument = argument.trim_start_matches([' ', '\t']);
        let verb = verb.to_ascii_uppercase();
        // Cross-protocol: a browser or worse speaks (CVE class of ALPACA).
        if ["GET", "POST", "PUT", "HEAD", "CONNECT", "OPTIONS", "PRI"].contains(&verb.as_str()) {
            self.say(554, (5, 5, 0), "This is not HTTP, closing");
            return self.close();
        }
        if self.tls.is_none() && !["EHLO", "NOOP", "STARTTLS", "QUIT"].contains(&verb.as_str()) {
            let (code, enhanced, text) = TLS_FIRST;
            return self.error(code, enhanced, text);
        }
        // RFC 4954 section 6.
        let before_auth = ["AUTH", "EHLO", "HELO", "NOOP", "RSET", "QUIT", "STARTTLS"];
        if self.tls.is_some() && self.unauthenticated() && !before_auth.contains(&verb.as_str()) {
            return self.error(530, (5, 7, 0), "Authentication required");
        }
        if ["EHLO", "HELO", "NOOP", "RSET", "VRFY"].contains(&verb.as_str()) {
            self.idle_commands += 1;
            if self.idle_commands > MAX_IDLE_COMMANDS {
                self.say(421, (4, 7, 0), "Too many commands without mail, closing");
                return self.close();
            }
        }
        match verb.as_str() {
            "EHLO" => self.ehlo(argument, true),
            "HELO" => self.ehlo(argument, false),
            "STARTTLS" => self.starttls(argument),
            "AUTH" => self.auth(argument),
            "MAIL" => self.mail(argument),
            "RCPT" => self.rcpt(argument),
            "DATA" => self.begin_data(argument),
            "RSET" if !argument.is_empty() => {
                self.error(501, (5, 5, 4), "RSET takes no parameter");
            }
            "RSET" => {
                self.reset();
                self.say(250, (2, 0, 0), "Ok");
            }
            "NOOP" => self.say(250, (2, 0, 0), "Ok"),
            "QUIT" => {
                self.say(221, (2, 0, 0), "Bye");
                self.close();
            }
            "VRFY" if argument.is_empty() => self.error(501, (5, 5, 4), "Syntax: VRFY address"),
            "VRFY" => self.say(252, (2, 5, 2), "Cannot verify, try to send"),
            "EXPN" | "HELP" | "TURN" | "ETRN" | "ATRN" | "BDAT" | "BURL" | "SEND" | "SOML"
            | "SAML" | "XCLIENT" | "XFORWARD" => {
                self.error(502, (5, 5, 1), "Command not implemented")
            }
            _ => self.error(500, (5, 5, 2), "Unknown command"),
        }
    }

    /// SMTPUTF8 is not offered: addresses in it have a reply of their own (RFC 6531 section 3.5).
    fn not_ascii(&mut self, line: &[u8]) {
        let verb = line.get(..5).map(<[u8]>::to_ascii_uppercase);
        let address = matches!(verb.as_deref(), Some(b"MAIL " | b"RCPT "));
        if address && !self.is_early() && !line.contains(&0) {
            self.refused_recipients += u32::from(line[0].eq_ignore_ascii_case(&b'R')) as usize;
            return self.error(553, (5, 6, 7), "Non-ASCII addresses are not supported");
        }
        self.error(500, (5, 5, 2), "Command is not ASCII");
    }

    fn unauthenticated(&self) -> bool {
        self.config.listener.needs_auth() && self.submitter.is_none()
    }

    fn ehlo(&mut self, argument: &str, extended: bool) {
        if argument.trim().is_empty() {
            return self.error(501, (5, 5, 4), "Syntax: EHLO hostname");
        }
        let clean: String = argument
            .chars()
            .take(255)
            .map(|c| {
                if c.is_ascii_alphanumeric() || "-._:[]".contains(c) {
                    c
                } else {
                    '?'
                }
            })
            .collect();
        self.helo = Some(clean);
        self.reset();
        let host = self.config.hostname.clone();
        if !extended {
            return self.reply(&Reply::bare(250, host));
        }
        let mut lines = vec![host];
        if self.tls.is_none() {
            lines.push("STARTTLS".into());
        }
        lines.push("PIPELINING".into());
        lines.push(format!("SIZE {}", self.config.max_size));
        lines.push("8BITMIME".into());
        if self.tls.is_some() && self.unauthenticated() {
            lines.push("AUTH PLAIN".into());
        }
        lines.push("ENHANCEDSTATUSCODES".into());
        self.reply(&Reply::bare(250, lines.join("\n")));
    }

    fn starttls(&mut self, argument: &str) {
        if self.tls.is_some() {
            return self.error(503, (5, 5, 1), "TLS is active already");
        }
        if !argument.is_empty() {
            return self.error(501, (5, 5, 4), "STARTTLS takes no parameter");
        }
        if !self.input.is_empty() && !mutant(M8) {
            // CVE-2011-0411: whatever stands behind STARTTLS in clear is an attack or a broken client.
            self.say(554, (5, 5, 0), "Octets behind STARTTLS, closing");
            return self.close();
        }
        self.say(220, (2, 0, 0), "Ready to start TLS");
        self.push(Action::StartTls);
        self.state = State::Handshake;
    }

    fn auth(&mut self, argument: &str) {
        if !self.config.listener.needs_auth() {
            return self.error(502, (5, 5, 1), "AUTH is not offered here");
        }
        if self.submitter.is_some() || self.sender.is_some() {
            return self.error(503, (5, 5, 1), "AUTH is not possible now");
        }
        if self.helo.is_none() {
            return self.error(503, (5, 5, 1), "Send EHLO first");
        }
        let (mechanism, initial) = argument
            .split_once([' ', '\t'])
            .map_or((argument, None), |(m, i)| (m, Some(i.trim_start())));
        if !mechanism.eq_ignore_ascii_case("PLAIN") {
            return self.error(504, (5, 5, 4), "Mechanism not supported");
        }
        match initial {
            Some(response) => self.auth_response(response.as_bytes()),
            None => {
                self.out.extend_from_slice(b"334 \r\n");
                self.state = State::AuthResponse;
            }
        }
    }

    fn auth_response(&mut self, line: &[u8]) {
        let line = line.trim_ascii_end();
        if line == b"*" {
            return self.error(501, (5, 7, 0), "Authentication cancelled");
        }
        let Ok(text) = std::str::from_utf8(line) else {
            return self.error(501, (5, 5, 2), "Invalid base64");
        };
        match auth::plain(text) {
            Err(r) => self.refuse(&r),
            // PLAIN may ask to act as someone else: nobody may.
            Ok((authzid, name, _)) if !authzid.is_empty() && authzid != name => {
                self.auth_failed();
            }
            Ok((_, name, password)) => {
                self.push(Action::Authenticate {
                    name,
                    password: Secret(password),
                });
                self.state = State::Waiting(Question::Auth);
            }
        }
    }

    fn auth_failed(&mut self) {
        self.say(535, (5, 7, 8), "Authentication credentials invalid");
        self.auth_failures += 1;
        if self.auth_failures >= self.config.max_auth_failures {
            self.say(421, (4, 7, 0), "Too many authentication failures, closing");
            self.close();
        }
    }

    fn auth_done(&mut self, outcome: AuthOutcome) {
        if !matches!(self.state, State::Waiting(Question::Auth)) {
            return;
        }
        self.state = State::Command;
        match outcome {
            AuthOutcome::Accepted(name) => {
                self.submitter = Some(name);
                self.say(235, (2, 7, 0), "Authentication successful");
            }
            AuthOutcome::Rejected => self.auth_failed(),
            AuthOutcome::Unavailable => {
                self.say(454, (4, 7, 0), "Temporary authentication failure")
            }
        }
    }

    // ---- transaction

    fn mail(&mut self, argument: &str) {
        if self.helo.is_none() {
            return self.error(503, (5, 5, 1), "Send EHLO first");
        }
        if self.sender.is_some() {
            return self.error(503, (5, 5, 1), "Sender given already");
        }
        let (path, parameters) = match syntax::mail(argument) {
            Ok(m) => m,
            Err(r) => return self.refuse(&r),
        };
        let qualified = path
            .mailbox()
            .and_then(Mailbox::domain)
            .is_none_or(DomainName::is_fully_qualified);
        if self.config.listener.needs_auth() && !qualified {
            return self.error(554, (5, 1, 8), "Sender domain must be fully qualified");
        }
        if parameters.size.is_some_and(|s| s > self.config.max_size) {
            return self.error(552, (5, 3, 4), "Message size exceeds the limit");
        }
        self.push(Action::CheckMail {
            reverse_path: path.clone(),
            parameters,
        });
        self.state = State::Waiting(Question::Mail(path));
    }

    /// A refusal; only a permanent one is the peer's mistake.
    fn refuse(&mut self, r: &Reply) {
        self.reply(r);
        self.errors += u32::from(r.code >= 500);
        if self.errors >= self.config.max_errors {
            self.say(421, (4, 7, 0), "Too many errors, closing");
            self.close();
        }
    }

    fn rcpt(&mut self, argument: &str) {
        if self.sender.is_none() {
            return self.error(503, (5, 5, 1), "Send MAIL first");
        }
        if self.recipients >= self.config.max_recipients {
            return self.say(452, (4, 5, 3), "Too many recipients");
        }
        let mailbox = match syntax::rcpt(argument) {
            Ok(m) => m,
            Err(r) => {
                self.refused_recipients += 1;
                return self.refuse(&r);
            }
        };
        let qualified = mailbox.domain().is_none_or(DomainName::is_fully_qualified);
        if self.config.listener.needs_auth() && !qualified {
            self.refused_recipients += 1;
            return self.error(554, (5, 1, 3), "Recipient domain must be fully qualified");
        }
        self.push(Action::CheckRcpt(mailbox));
        self.state = State::Waiting(Question::Rcpt);
    }

    fn begin_data(&mut self, argument: &str) {
        if !argument.is_empty() {
            return self.error(501, (5, 5, 4), "DATA takes no parameter");
        }
        if self.recipients == 0 {
            let refused = self.sender.is_some() && self.refused_recipients > 0;
            return if refused {
                self.error(554, (5, 5, 1), "No valid recipients")
            } else {
                self.error(503, (5, 5, 1), "Send RCPT first")
            };
        }
        self.push(Action::BeginData);
        self.state = State::Waiting(Question::Data);
    }

    fn verdict(&mut self, verdict: Verdict) {
        let State::Waiting(question) = std::mem::replace(&mut self.state, State::Command) else {
            return;
        };
        match (question, verdict) {
            (Question::Mail(path), Verdict::Accept) => {
                self.sender = Some(path);
                self.say(250, (2, 1, 0), "Sender ok");
            }
            (Question::Rcpt, Verdict::Accept) => {
                self.recipients += 1;
                self.say(250, (2, 1, 5), "Recipient ok");
            }
            (Question::Data, Verdict::Accept) => {
                self.reply(&Reply::bare(354, "End data with <CR><LF>.<CR><LF>"));
                self.state = State::Data(DataScanner::new());
            }
            (Question::Rcpt, Verdict::Reply(r)) => {
                self.refused_recipients += 1;
                self.refuse(&r);
            }
            (Question::Mail(_) | Question::Data, Verdict::Reply(r)) => self.refuse(&r),
            (question @ (Question::Auth | Question::Body), _) => {
                self.state = State::Waiting(question)
            }
        }
    }

    fn data(&mut self, content: Bytes, spoiled: bool, ended: bool) {
        self.size = self.size.saturating_add(content.len() as u64);
        let big = self.size > self.config.max_size;
        if big && !self.too_big {
            self.too_big = true;
            self.push(Action::BodyAborted);
        }
        let good = !spoiled && !self.too_big;
        if good && !content.is_empty() {
            self.push(Action::BodyData(content));
        }
        if !ended {
            return;
        }
        if good {
            self.push(Action::BodyEnd);
            self.state = State::Waiting(Question::Body);
            return;
        }
        self.state = State::Command;
        if self.too_big {
            self.say(552, (5, 3, 4), "Message size exceeds the limit");
        } else {
            self.push(Action::BodyAborted);
            self.say(550, (5, 5, 2), "Bare CR, bare LF or NUL in message");
        }
        self.reset();
    }

    fn body_done(&mut self, outcome: BodyOutcome) {
        if !matches!(self.state, State::Waiting(Question::Body)) {
            return;
        }
        self.state = State::Command;
        match outcome {
            BodyOutcome::Durable(d) => {
                self.errors = 0;
                self.idle_commands = 0;
                self.say(250, (2, 0, 0), &format!("Accepted {}", d.id()));
            }
            BodyOutcome::Reply(r) => self.reply(&r),
            BodyOutcome::Unknown => return self.close(),
        }
        self.reset();
    }
}

enum Line {
    Text(Vec<u8>),
    TooLong,
    Bare,
}
