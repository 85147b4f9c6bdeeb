//! The load generator: N connections that offer mail as fast as it is taken.

mod message;
mod recipients;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::ledger::{Ledger, Offer, Outcome};
use crate::smtp::{Client, Reply, stuffed};

pub use message::{content, token};
pub use recipients::Mail;

/// Pause of a retrying client between attempts.
const BACKOFF: Duration = Duration::from_millis(100);

/// In front of the text of a 4xx that answered the final dot.
pub const AT_THE_DOT: &str = "at the dot: ";

/// How a listener is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// STARTTLS, no authentication.
    Mx,
    /// STARTTLS, then AUTH PLAIN.
    Submission,
    /// TLS from the first octet, then AUTH PLAIN.
    Submissions,
}

/// One listener.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub address: SocketAddr,
    pub kind: Kind,
}

/// What to offer.
#[derive(Debug, Clone)]
pub struct Load {
    /// A connection starts at one of these and moves to the next when it breaks.
    pub targets: Vec<Target>,
    pub connections: usize,
    /// Messages in all; `None`: until stopped.
    pub messages: Option<usize>,
    /// Octets of a message.
    pub size: RangeInclusive<usize>,
    /// Offer the same message again after 4xx or a broken connection, until it is taken or refused.
    pub retry: bool,
    /// Messages over one connection before QUIT.
    pub per_connection: usize,
    /// Pause of each connection between messages.
    pub pause: Duration,
    pub user: String,
    pub password: String,
    pub reverse_path: String,
    /// Domain of the recipients.
    pub domain: String,
    /// What the next hop does with it: each message is one of these.
    pub mails: Vec<Mail>,
}

impl Load {
    #[must_use]
    pub fn new(targets: Vec<Target>, connections: usize) -> Self {
        Self {
            targets,
            connections,
            messages: None,
            size: 500..=4000,
            retry: true,
            per_connection: 20,
            pause: Duration::ZERO,
            user: crate::policy::SUBMITTER.to_owned(),
            password: crate::policy::PASSWORD.to_owned(),
            reverse_path: "load@client.example".to_owned(),
            domain: crate::policy::SERVED.to_owned(),
            mails: vec![Mail::Welcome],
        }
    }

    #[must_use]
    pub fn messages(mut self, count: usize) -> Self {
        self.messages = Some(count);
        self
    }

    #[must_use]
    pub fn size(mut self, size: RangeInclusive<usize>) -> Self {
        self.size = size;
        self
    }

    #[must_use]
    pub fn pause(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    #[must_use]
    pub fn mails(mut self, mails: Vec<Mail>) -> Self {
        self.mails = mails;
        self
    }

    #[must_use]
    pub fn to_domain(mut self, domain: &str) -> Self {
        domain.clone_into(&mut self.domain);
        self
    }

    #[must_use]
    pub fn once(mut self) -> Self {
        self.retry = false;
        self
    }
}

/// A load that runs until it is stopped or has offered all.
#[derive(Debug)]
pub struct Running {
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

impl Running {
    /// Lets every connection end its message, then gives back. A message that is being retried is
    /// retried on: nothing stays open.
    pub async fn stop(self) {
        self.stop.cancel();
        self.finish().await;
    }

    /// Waits until everything was offered.
    pub async fn finish(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}

/// Starts the connections.
#[must_use]
pub fn start(load: Load, ledger: &Arc<Ledger>) -> Running {
    let stop = CancellationToken::new();
    let load = Arc::new(load);
    let offered = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..load.connections {
        let worker = Worker {
            load: Arc::clone(&load),
            ledger: Arc::clone(ledger),
            offered: Arc::clone(&offered),
            stop: stop.clone(),
            target: number % load.targets.len(),
            client: None,
            used: 0,
        };
        tasks.spawn(worker.run());
    }
    Running { tasks, stop }
}

/// Offers everything and waits for it.
pub async fn run(load: Load, ledger: &Arc<Ledger>) {
    start(load, ledger).finish().await;
}

struct Worker {
    load: Arc<Load>,
    ledger: Arc<Ledger>,
    offered: Arc<AtomicUsize>,
    stop: CancellationToken,
    target: usize,
    client: Option<Client>,
    used: usize,
}

impl Worker {
    async fn run(mut self) {
        while self.may_offer() {
            let token = token();
            let size = rand::rng().random_range(self.load.size.clone());
            let (to, failing) = Mail::recipients(&self.load.mails, &self.load.domain);
            let content = content(&token, &self.load.reverse_path, &to, size);
            let offer = Offer::of(&token, &self.load.reverse_path, &to, &content);
            self.ledger.offer(offer.failing(&failing));
            loop {
                let outcome = self.attempt(&to, &content).await;
                let again = match &outcome {
                    Outcome::Accepted | Outcome::Permanent(_) => false,
                    Outcome::Temporary(_) | Outcome::Unknown(_) | Outcome::Broken(_) => {
                        self.load.retry
                    }
                };
                let accepted = outcome == Outcome::Accepted;
                self.ledger.outcome(&token, outcome);
                if !accepted {
                    // Who was refused does not hammer, with this message or with the next.
                    sleep(BACKOFF).await;
                }
                if !again {
                    break;
                }
            }
            if !self.load.pause.is_zero() {
                sleep(self.load.pause).await;
            }
        }
        if let Some(client) = self.client.take() {
            client.quit().await;
        }
    }

    fn may_offer(&self) -> bool {
        let number = self.offered.fetch_add(1, Ordering::SeqCst);
        !self.stop.is_cancelled() && self.load.messages.is_none_or(|most| number < most)
    }

    async fn attempt(&mut self, to: &[String], content: &[u8]) -> Outcome {
        if self.used >= self.load.per_connection
            && let Some(client) = self.client.take()
        {
            client.quit().await;
        }
        let mut client = match self.client.take() {
            Some(client) => client,
            None => match self.connect().await {
                Ok(client) => client,
                Err(error) => {
                    self.target = (self.target + 1) % self.load.targets.len();
                    return Outcome::Broken(format!("connecting: {error:#}"));
                }
            },
        };
        self.used += 1;
        let outcome = transact(&mut client, &self.load.reverse_path, to, content).await;
        match outcome {
            Outcome::Accepted => self.client = Some(client),
            _ => self.target = (self.target + 1) % self.load.targets.len(),
        }
        outcome
    }

    async fn connect(&mut self) -> Result<Client> {
        self.used = 0;
        connect(
            self.load.targets[self.target],
            &self.load.user,
            &self.load.password,
        )
        .await
    }
}

/// Opens a connection as its kind demands, authenticated where needed.
///
/// # Errors
/// When any step is refused.
pub async fn connect(target: Target, user: &str, password: &str) -> Result<Client> {
    let (mut client, _) = match target.kind {
        Kind::Mx | Kind::Submission => Client::starttls(target.address).await?,
        Kind::Submissions => Client::implicit_tls(target.address).await?,
    };
    if target.kind != Kind::Mx {
        let reply = client.auth_plain(user, password).await?;
        anyhow::ensure!(reply.code == 235, "AUTH: {reply}");
    }
    Ok(client)
}

/// One transaction, pipelined as far as PIPELINING allows it.
async fn transact(client: &mut Client, from: &str, to: &[String], content: &[u8]) -> Outcome {
    let mut commands = format!("MAIL FROM:<{from}>\r\n");
    for recipient in to {
        commands.push_str(&format!("RCPT TO:<{recipient}>\r\n"));
    }
    commands.push_str("DATA\r\n");
    match envelope(client, &commands, to.len()).await {
        Ok(None) => {}
        Ok(Some(reply)) => return refusal(&reply),
        Err(error) => return Outcome::Broken(format!("envelope: {error:#}")),
    }
    if let Err(error) = client.send(&stuffed(content)).await {
        return Outcome::Unknown(format!("content: {error:#}"));
    }
    match client.reply().await {
        Ok(reply) if reply.code == 250 => Outcome::Accepted,
        Ok(reply) if reply.code < 500 => Outcome::Temporary(format!("{AT_THE_DOT}{reply}")),
        Ok(reply) => refusal(&reply),
        Err(error) => Outcome::Unknown(format!("after the dot: {error:#}")),
    }
}

/// Sends the envelope; the first refusal if there is one.
async fn envelope(client: &mut Client, commands: &str, recipients: usize) -> Result<Option<Reply>> {
    client.send(commands.as_bytes()).await?;
    let mut refused = None;
    for expected in std::iter::repeat_n(250, recipients + 1).chain([354]) {
        let reply = client.reply().await?;
        if reply.code != expected && refused.is_none() {
            refused = Some(reply);
        }
    }
    Ok(refused)
}

/// Queue ids and addresses taken out, so that equal refusals count as equal.
fn refusal(reply: &Reply) -> Outcome {
    let text = reply.to_string();
    if reply.code < 500 {
        Outcome::Temporary(text)
    } else {
        Outcome::Permanent(text)
    }
}
