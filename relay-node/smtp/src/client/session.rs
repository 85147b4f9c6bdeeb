//! The state machine of one outbound connection.
//!
//! Before TLS it says EHLO, STARTTLS and QUIT, nothing else, whatever the peer offers or demands.
use super::replies::ReplyReader;
use bytes::{Bytes, BytesMut};
use sealane_mutants::{Mutant::M9, mutant};
use sealane_types::Reply;
use std::collections::VecDeque;

/// How to speak.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// EHLO argument.
    pub hostname: String,
    /// TLS stands before the greeting.
    pub implicit_tls: bool,
}

/// One message to some recipients.
#[derive(Debug, Clone)]
pub struct Transaction {
    /// Without brackets; empty is `<>`.
    pub reverse_path: String,
    /// Without brackets.
    pub recipients: Vec<String>,
    /// Octets.
    pub size: u64,
    /// The content was declared to have octets above 127.
    pub eight_bit: bool,
}

/// Why the session, or all of a transaction, failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The peer's words, or ours with code 0.
    pub reply: Reply,
    /// Do not try again.
    pub permanent: bool,
    /// Missing or failing TLS is the cause.
    pub tls_caused: bool,
}

impl Failure {
    /// A failure of our own finding, to be tried again.
    pub fn temporary(enhanced: (u8, u16, u16), text: impl Into<String>, tls_caused: bool) -> Self {
        Self {
            reply: Reply::new(0, enhanced, text),
            permanent: false,
            tls_caused,
        }
    }

    /// A failure of our own finding, final.
    pub fn permanent(enhanced: (u8, u16, u16), text: impl Into<String>) -> Self {
        Self {
            reply: Reply::new(0, enhanced, text),
            permanent: true,
            tls_caused: false,
        }
    }

    fn said(reply: Reply) -> Self {
        Self {
            permanent: reply.is_permanent(),
            reply,
            tls_caused: false,
        }
    }
}

/// What became of one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientOutcome {
    /// The next hop took responsibility.
    Delivered(Reply),
    /// It did not.
    Failed(Failure),
}

/// What the driver shall do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Write these octets.
    Send(Bytes),
    /// Begin the TLS handshake as client.
    StartTls,
    /// A transaction may begin.
    Ready,
    /// Stream the body through [`super::DotStuffer`], then call [`ClientSession::body_sent`].
    SendBody,
    /// The transaction is over; one outcome per recipient, in order.
    Done(Vec<RecipientOutcome>),
    /// The connection is of no more use. Before the first [`Action::Ready`], the reason holds for every recipient.
    Close(Option<Failure>),
}

/// What a reply is waited for; each has its own deadline (RFC 5321 section 4.5.3.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Awaited {
    /// The connection itself.
    Greeting,
    /// Any command but DATA.
    Command,
    /// DATA.
    Data,
    /// The content.
    FinalDot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Greeting,
    Ehlo,
    StartTls,
    Handshake,
    Ready,
    Mail,
    Rcpt,
    Data,
    Body,
    FinalDot,
    /// DATA was under way when nobody was left to send to, and got 354: a dot alone was sent.
    LoneDot,
    Reset,
    Quit,
    Closed,
}

#[derive(Debug, Default, Clone, Copy)]
struct Capabilities {
    starttls: bool,
    pipelining: bool,
    size: Option<u64>,
    eight_bit: bool,
}

/// One SMTP connection, client side.
#[derive(Debug)]
pub struct ClientSession {
    config: ClientConfig,
    state: State,
    secure: bool,
    reader: ReplyReader,
    out: BytesMut,
    actions: VecDeque<Action>,
    capabilities: Capabilities,
    transaction: Option<Transaction>,
    /// `None`: open (accepted by RCPT or not asked yet, see `answered`).
    outcomes: Vec<Option<RecipientOutcome>>,
    /// RCPT replies heard.
    answered: usize,
    /// Why nobody is left to send to, while replies to what is under way are still to come.
    refused: Option<Failure>,
    quit_after: Option<Failure>,
}

impl ClientSession {
    /// For a connection that just stands (with TLS, if implicit).
    pub fn new(config: ClientConfig) -> Self {
        let secure = config.implicit_tls;
        Self {
            config,
            state: State::Greeting,
            secure,
            reader: ReplyReader::default(),
            out: BytesMut::new(),
            actions: VecDeque::new(),
            capabilities: Capabilities::default(),
            transaction: None,
            outcomes: Vec::new(),
            answered: 0,
            refused: None,
            quit_after: None,
        }
    }

    /// What to do next.
    pub fn poll_action(&mut self) -> Option<Action> {
        if self.actions.is_empty() && !self.out.is_empty() {
            self.actions
                .push_back(Action::Send(self.out.split().freeze()));
        }
        self.actions.pop_front()
    }

    /// A transaction may begin.
    pub fn is_ready(&self) -> bool {
        self.state == State::Ready
    }
    /// Over.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }
    /// What the next reply answers.
    pub fn awaits(&self) -> Awaited {
        match self.state {
            State::Greeting => Awaited::Greeting,
            State::Data => Awaited::Data,
            State::FinalDot => Awaited::FinalDot,
            _ => Awaited::Command,
        }
    }

    /// Octets from the peer.
    pub fn input(&mut self, octets: &[u8]) {
        self.reader.input.extend_from_slice(octets);
        while !matches!(self.state, State::Closed | State::Handshake) {
            match self.reader.next() {
                Ok(Some(reply)) => self.reply(reply),
                Ok(None) => return,
                Err(g) => {
                    return self.fail(Failure::temporary(
                        (4, 5, 0),
                        format!("protocol error: {}", g.0),
                        false,
                    ));
                }
            }
        }
    }

    /// The handshake succeeded and the certificate is acceptable.
    pub fn tls_established(&mut self) {
        if self.state == State::Handshake {
            self.secure = true;
            // RFC 3207 section 4.2: nothing learnt in clear is used.
            self.capabilities = Capabilities::default();
            self.ehlo();
        }
    }

    /// The connection ended or a deadline passed.
    pub fn lost(&mut self, why: &str) {
        if self.state == State::Quit {
            let why = self.quit_after.take();
            return self.close(why);
        }
        let text = if self.state == State::FinalDot {
            format!("{why} after the final dot: outcome unknown")
        } else {
            why.to_owned()
        };
        self.fail(Failure::temporary((4, 4, 2), text, false));
    }

    /// Begins a transaction; only when ready.
    pub fn begin(&mut self, transaction: Transaction) {
        debug_assert!(
            self.is_ready() && self.secure,
            "a transaction begins only on a ready session"
        );
        let verdict = if transaction.eight_bit && !self.capabilities.eight_bit {
            Some(Failure::permanent(
                (5, 6, 3),
                "next hop does not offer 8BITMIME; mail is not converted",
            ))
        } else if self
            .capabilities
            .size
            .is_some_and(|max| max > 0 && transaction.size > max)
        {
            Some(Failure::permanent(
                (5, 3, 4),
                "message is larger than the next hop accepts",
            ))
        } else {
            None
        };
        self.outcomes = vec![None; transaction.recipients.len()];
        self.answered = 0;
        self.refused = None;
        if let Some(why) = verdict {
            return self.finish_with(&why);
        }
        let mut mail = format!("MAIL FROM:<{}>", transaction.reverse_path);
        if self.capabilities.size.is_some() {
            mail.push_str(&format!(" SIZE={}", transaction.size));
        }
        if transaction.eight_bit {
            mail.push_str(" BODY=8BITMIME");
        }
        self.command(&mail);
        self.state = State::Mail;
        if self.capabilities.pipelining {
            for r in &transaction.recipients {
                self.command(&format!("RCPT TO:<{r}>"));
            }
            // RFC 2920 section 3.1: the last one of a group.
            self.command("DATA");
        }
        self.transaction = Some(transaction);
    }

    /// The body and its final dot are written.
    pub fn body_sent(&mut self) {
        if self.state == State::Body {
            self.state = State::FinalDot;
        }
    }

    /// Ends a ready session politely.
    pub fn quit(&mut self) {
        if self.state != State::Closed {
            self.command("QUIT");
            self.state = State::Quit;
        }
    }

    // ---- inside

    fn push(&mut self, action: Action) {
        if !self.out.is_empty() {
            self.actions
                .push_back(Action::Send(self.out.split().freeze()));
        }
        self.actions.push_back(action);
    }

    fn command(&mut self, line: &str) {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
    }

    fn ehlo(&mut self) {
        let line = format!("EHLO {}", self.config.hostname);
        self.command(&line);
        self.state = State::Ehlo;
    }

    fn close(&mut self, why: Option<Failure>) {
        self.state = State::Closed;
        self.push(Action::Close(why));
    }

    /// Ends everything with this reason: for the open recipients, or for the session.
    fn fail(&mut self, why: Failure) {
        if self.transaction.take().is_some() {
            self.finish_with(&why);
            self.close(None);
        } else {
            let why = self.quit_after.take().unwrap_or(why);
            self.close(Some(why));
        }
    }

    fn finish_with(&mut self, why: &Failure) {
        let outcomes = std::mem::take(&mut self.outcomes)
            .into_iter()
            .map(|o| o.unwrap_or_else(|| RecipientOutcome::Failed(why.clone())))
            .collect();
        self.push(Action::Done(outcomes));
    }

    /// Says QUIT, then reports `why`.
    fn give_up(&mut self, why: Failure) {
        self.quit_after = Some(why);
        self.command("QUIT");
        self.state = State::Quit;
    }

    fn reply(&mut self, r: Reply) {
        if r.code == 421 && self.state != State::Quit {
            return self.fail(Failure::said(r));
        }
        match self.state {
            State::Greeting if r.is_positive() => self.ehlo(),
            State::Greeting => self.give_up(Failure::said(r)),
            State::Ehlo if r.code == 250 => self.learn(&r),
            State::Ehlo => self.give_up(Failure::said(r)),
            State::StartTls if r.code == 220 => {
                if !self.reader.input.is_empty() {
                    // Response injection: octets in clear that pretend to come from inside TLS.
                    return self.fail(Failure::temporary(
                        (4, 7, 5),
                        "octets behind the reply to STARTTLS",
                        true,
                    ));
                }
                self.push(Action::StartTls);
                self.state = State::Handshake;
            }
            State::StartTls => self.give_up(Failure::temporary(
                (4, 7, 4),
                format!("STARTTLS refused: {r}"),
                true,
            )),
            State::Mail => self.mail_reply(r),
            State::Rcpt => self.rcpt_reply(r),
            State::Data => self.data_reply(r),
            State::FinalDot => self.final_reply(r),
            // Whatever it says: there was no recipient.
            State::LoneDot => self.abandon(),
            // A reply to a body that is still being sent: the peer gave up on it.
            State::Body => self.fail(Failure::said(r)),
            State::Reset if r.is_positive() => self.ready(),
            State::Reset => self.close(None),
            State::Quit => {
                let why = self.quit_after.take();
                self.close(why);
            }
            State::Ready => self.fail(Failure::temporary(
                (4, 5, 0),
                "reply without command",
                false,
            )),
            State::Handshake | State::Closed => {}
        }
    }

    fn ready(&mut self) {
        self.state = State::Ready;
        self.push(Action::Ready);
    }

    fn learn(&mut self, r: &Reply) {
        let mut c = Capabilities::default();
        for line in r.text.split('\n').skip(1) {
            let mut words = line.split_ascii_whitespace();
            match words.next().map(str::to_ascii_uppercase).as_deref() {
                Some("STARTTLS") => c.starttls = true,
                Some("PIPELINING") => c.pipelining = true,
                Some("8BITMIME") => c.eight_bit = true,
                Some("SIZE") => {
                    c.size = Some(words.next().and_then(|n| n.parse().ok()).unwrap_or(0))
                }
                _ => {}
            }
        }
        self.capabilities = c;
        if self.secure || (mutant(M9) && !c.starttls) {
            self.ready();
        } else if c.starttls {
            self.command("STARTTLS");
            self.state = State::StartTls;
        } else {
            let text = "next hop does not offer STARTTLS; mail is never sent in clear";
            self.give_up(Failure::temporary((4, 7, 4), text, true));
        }
    }

    fn mail_reply(&mut self, r: Reply) {
        if !r.is_positive() {
            let why = Failure::said(r);
            if !self.capabilities.pipelining {
                return self.transaction_over(&why);
            }
            self.refused = Some(why);
        }
        self.state = State::Rcpt;
        self.next_rcpt();
    }

    /// In lockstep, the next RCPT; pipelined, they are all under way.
    fn next_rcpt(&mut self) {
        if self.capabilities.pipelining {
            return;
        }
        let next = self
            .transaction
            .as_ref()
            .and_then(|t| t.recipients.get(self.answered))
            .cloned();
        if let Some(r) = next {
            self.command(&format!("RCPT TO:<{r}>"));
        }
    }

    fn rcpt_reply(&mut self, r: Reply) {
        if !r.is_positive()
            && let Some(slot) = self.outcomes.get_mut(self.answered)
        {
            *slot = Some(RecipientOutcome::Failed(Failure::said(r)));
        }
        self.answered += 1;
        if self.answered < self.outcomes.len() {
            return self.next_rcpt();
        }
        if self.refused.is_some() {
            // The refusal of MAIL holds for all, not what RCPT heard for it.
            self.outcomes.iter_mut().for_each(|o| *o = None);
        } else if self.outcomes.iter().all(Option::is_some) {
            let why = Failure::temporary((4, 5, 0), "no recipient accepted", false);
            self.refused = Some(why);
        }
        if self.capabilities.pipelining {
            self.state = State::Data;
        } else if self.refused.is_some() {
            self.abandon();
        } else {
            self.command("DATA");
            self.state = State::Data;
        }
    }

    fn data_reply(&mut self, r: Reply) {
        match r.code {
            // RFC 2920 section 3.1: 354 though no recipient was valid. An empty message to nobody ends it.
            354 if self.refused.is_some() => {
                self.command(".");
                self.state = State::LoneDot;
            }
            _ if self.refused.is_some() => self.abandon(),
            354 => {
                self.state = State::Body;
                self.push(Action::SendBody);
            }
            400.. => self.transaction_over(&Failure::said(r)),
            // 250 to DATA is nonsense: nothing was sent.
            _ => self.transaction_over(&Failure::temporary(
                (4, 5, 0),
                "unexpected reply to DATA",
                false,
            )),
        }
    }

    fn final_reply(&mut self, r: Reply) {
        self.transaction = None;
        if r.is_positive() {
            let outcomes = std::mem::take(&mut self.outcomes)
                .into_iter()
                .map(|o| o.unwrap_or_else(|| RecipientOutcome::Delivered(r.clone())))
                .collect();
            self.push(Action::Done(outcomes));
        } else {
            self.finish_with(&Failure::said(r));
        }
        self.ready();
    }

    /// Nobody is left to send to.
    fn abandon(&mut self) {
        if let Some(why) = self.refused.take() {
            self.transaction_over(&why);
        }
    }

    /// Reports and resets for the next transaction.
    fn transaction_over(&mut self, why: &Failure) {
        self.transaction = None;
        self.finish_with(why);
        self.command("RSET");
        self.state = State::Reset;
    }
}
