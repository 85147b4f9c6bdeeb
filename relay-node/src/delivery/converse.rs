//! converse: one transaction, its content, the final dot.
use super::{
    Body, ControlPlane, DeliveryOptions, Lease, LeaseClock, OutcomeKind, RecipientOutcome,
    connection::Connection, driver::Step, line_ends::LineEnds, report::HopFailure,
};
use bytes::BytesMut;
use futures_util::StreamExt;
use sealane_runtime::telemetry;
use sealane_smtp::client::{
    Action, Awaited, ClientSession, DotStuffer, RecipientOutcome as Said, Transaction,
};
use std::time::Duration;
use tokio::time::timeout;
use tracing::Instrument;

/// Where the content comes from, and how long there is.
pub(crate) struct Content<'a, C> {
    pub(crate) control: &'a C,
    pub(crate) clock: &'a LeaseClock,
    pub(crate) options: &'a DeliveryOptions,
}

/// A transaction without an outcome for each recipient.
pub(crate) enum Broken {
    /// The connection was gone before the peer said anything about this message.
    Silent(HopFailure),
    /// The connection was lost before the content was complete: nothing was delivered.
    BeforeContent(HopFailure),
    /// Another host would not do better.
    Settled(HopFailure),
    /// The lease is over: nothing may be delivered, and nothing was.
    LeaseOver,
}

/// How the content ended.
enum Ending {
    Sent,
    /// The connection failed; the session knows.
    Lost(&'static str),
    Refused(HopFailure),
    LeaseOver,
}

impl Connection {
    /// One message to the recipients of the lease. After an error the connection is of no use.
    ///
    /// # Cancel safety
    /// Drop the connection: without the final dot nothing was delivered.
    pub(crate) async fn transact<C: ControlPlane>(
        &mut self,
        lease: &Lease,
        content: Content<'_, C>,
    ) -> Result<Vec<RecipientOutcome>, Broken> {
        let options = content.options;
        let before = self.driver.heard;
        let mut dot_sent = false;
        self.transactions += 1;
        self.driver.session.begin(transaction(lease));
        let said = loop {
            match self.driver.step(|session| deadline(options, session)).await {
                Step::Action(Action::SendBody) => match self.send_body(lease, &content).await {
                    Ending::Sent => {
                        dot_sent = true;
                        self.driver.session.body_sent();
                    }
                    Ending::Lost(why) => self.driver.session.lost(why),
                    Ending::Refused(failure) => return Err(Broken::Settled(self.place(failure))),
                    Ending::LeaseOver => return Err(Broken::LeaseOver),
                },
                Step::Action(Action::Done(said)) => break said,
                Step::Action(Action::Ready) => {}
                Step::Action(Action::Close(_) | Action::StartTls | Action::Send(_))
                | Step::Over => {
                    let failure = HopFailure::own((4, 5, 0), "protocol error");
                    return Err(Broken::BeforeContent(self.place(failure)));
                }
            }
        };
        self.settle_down(options).await;
        if self.driver.session.is_closed()
            && !dot_sent
            && let Some(failure) = lost_before_content(&said)
        {
            // Shut down while it was idle: either nothing or a 421 came back.
            let untouched = self.driver.heard == before || failure.reply.code == 421;
            let failure = self.place(failure);
            return Err(if untouched {
                Broken::Silent(failure)
            } else {
                Broken::BeforeContent(failure)
            });
        }
        Ok(self.outcomes(lease, said))
    }

    /// Takes the session to where it can begin again, or to its end.
    async fn settle_down(&mut self, options: &DeliveryOptions) {
        while !self.driver.session.is_ready() && !self.driver.session.is_closed() {
            if let Step::Over = self.driver.step(|_| options.command_timeout.0).await {
                return;
            }
        }
        // `Ready` itself, when the session was ready already.
        while self.driver.session.is_ready() && self.driver.session.poll_action().is_some() {}
    }

    /// Streams the content through the stuffer: one piece in memory, the final dot kept back until
    /// everything else is written and the lease still holds.
    async fn send_body<C: ControlPlane>(
        &mut self,
        lease: &Lease,
        content: &Content<'_, C>,
    ) -> Ending {
        let options = content.options;
        let unavailable = |why: &str| {
            tracing::warn!(message_id = %lease.key.id, why, "content not available");
            Ending::Refused(HopFailure::own((4, 3, 0), "content not available now"))
        };
        let mut body = match timeout(options.block_timeout.0, fetch(lease, content.control)).await {
            Ok(Ok(body)) => body,
            Ok(Err(error)) => return unavailable(&error.0),
            Err(_) => return unavailable("no answer within the deadline"),
        };
        let (mut stuffer, mut ends, mut out) =
            (DotStuffer::default(), LineEnds::default(), BytesMut::new());
        let mut octets = 0u64;
        loop {
            let piece = match timeout(options.block_timeout.0, body.next()).await {
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return unavailable(&error.0),
                Ok(None) => break,
                Err(_) => return unavailable("no piece within the deadline"),
            };
            octets += piece.len() as u64;
            if !ends.clean(&piece) {
                return malformed(lease);
            }
            if !content.clock.holds(options.lease_margin.0) {
                return Ending::LeaseOver;
            }
            stuffer.stuff(&piece, &mut out);
            if octets >= lease.size {
                // The last piece leaves together with the final dot.
                break;
            }
            if let Err(why) = self.driver.write(&out, options.block_timeout.0).await {
                return Ending::Lost(why);
            }
            out.clear();
        }
        if octets != lease.size || !ended(&mut body, options.block_timeout.0).await {
            return unavailable("the stream ended early or late");
        }
        if !ends.complete() {
            return malformed(lease);
        }
        if !content.clock.commit(options.lease_margin.0) {
            return Ending::LeaseOver;
        }
        stuffer.finish(&mut out);
        match self.driver.write(&out, options.block_timeout.0).await {
            Ok(()) => Ending::Sent,
            Err(why) => Ending::Lost(why),
        }
    }

    fn place(&self, failure: HopFailure) -> HopFailure {
        failure.at(&self.remote).within(&self.tls)
    }

    fn outcomes(&self, lease: &Lease, said: Vec<Said>) -> Vec<RecipientOutcome> {
        lease
            .recipients
            .iter()
            .zip(said)
            .map(|(recipient, said)| {
                let (kind, reply, tls_caused) = match said {
                    Said::Delivered(reply) => (OutcomeKind::Delivered, reply, false),
                    Said::Failed(f) if f.permanent => (OutcomeKind::Failed, f.reply, f.tls_caused),
                    Said::Failed(f) => (OutcomeKind::Deferred, f.reply, f.tls_caused),
                };
                let (remote, tls) = (self.remote.clone(), Some(self.tls.clone()));
                RecipientOutcome {
                    number: recipient.number,
                    kind,
                    reply,
                    remote,
                    tls,
                    tls_caused,
                }
            })
            .collect()
    }
}

fn transaction(lease: &Lease) -> Transaction {
    Transaction {
        reverse_path: lease.reverse_path.to_string(),
        recipients: lease
            .recipients
            .iter()
            .map(|r| r.mailbox.to_string())
            .collect(),
        size: lease.size,
        eight_bit: lease.eight_bit,
    }
}

/// RFC 5321 section 4.5.3.2, by what is waited for.
fn deadline(options: &DeliveryOptions, session: &ClientSession) -> Duration {
    match session.awaits() {
        Awaited::FinalDot => options.final_timeout.0,
        Awaited::Data => options.data_timeout.0,
        Awaited::Greeting | Awaited::Command => options.envelope_timeout.0,
    }
}

/// The content, under a span of its own that the control plane continues.
async fn fetch<C: ControlPlane>(lease: &Lease, control: &C) -> Result<Body, super::BodyError> {
    let span =
        tracing::info_span!("delivery.fetch_body", message_id = %lease.key.id, size = lease.size);
    let context = telemetry::current_context(&span);
    control
        .fetch_body(lease.key, lease.size, context)
        .instrument(span)
        .await
}

/// Whether nothing more comes.
async fn ended(body: &mut Body, within: Duration) -> bool {
    matches!(timeout(within, body.next()).await, Ok(None))
}

fn malformed(lease: &Lease) -> Ending {
    tracing::error!(message_id = %lease.key.id, "stored content has a bare CR or LF; it is not sent");
    Ending::Refused(HopFailure::own(
        (5, 6, 0),
        "the content has a bare CR or LF",
    ))
}

/// The temporary failure that a broken connection left for the open recipients.
fn lost_before_content(said: &[Said]) -> Option<HopFailure> {
    said.iter().find_map(|s| match s {
        Said::Failed(f) if !f.permanent => Some(HopFailure::refused(f.reply.clone())),
        _ => None,
    })
}
