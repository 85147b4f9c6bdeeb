//! Shares of destinations, from whichever node deals them.
use crate::members::{Line, Members};
use anyhow::Context;
use sealane_wire::v1::{self, queue_client::QueueClient};
use std::{collections::HashMap, time::Duration};
use tokio::time::{Instant, timeout};

/// For one answer. A node that does not answer must not cost us what we hold.
const PATIENCE: Duration = Duration::from_millis(700);

/// An answer of the dealer.
#[derive(Debug, Clone)]
pub struct Dealt {
    /// Before the question was sent: what is granted is held from here.
    pub asked: Instant,
    /// How long the places are held.
    pub valid: Duration,
    /// One per need.
    pub shares: Vec<v1::Share>,
}

/// Asks the dealer, and finds it again when it moves. One question at a time: a later one makes
/// the answers to earlier ones void.
#[derive(Debug)]
pub struct ShareClient {
    members: Members,
    session: u64,
    sequence: u64,
    /// Who dealt last, or is said to deal.
    dealer: Option<String>,
    /// Whom to ask when nobody knows.
    turn: usize,
    /// Of group 0, the highest that dealt.
    term: u64,
    clients: HashMap<String, QueueClient<Line>>,
}

impl ShareClient {
    /// For one run of this process.
    pub fn new(members: Members) -> Self {
        Self {
            members,
            session: rand::random(),
            sequence: 0,
            dealer: None,
            turn: 0,
            term: 0,
            clients: HashMap::new(),
        }
    }

    /// The dealer's answer, one share per need. An error: nobody dealt, what is held stays held for
    /// its time.
    ///
    /// # Cancel safety
    /// A cancelled question counts as one without an answer.
    pub async fn deal(&mut self, needs: Vec<v1::ShareNeed>) -> anyhow::Result<Dealt> {
        let expected = needs.len();
        let mut last = None;
        // The dealer, or who knows it and then the dealer, or the next one after a dead one.
        for _ in 0..3 {
            self.sequence += 1;
            let request = v1::ShareRequest {
                session: self.session,
                sequence: self.sequence,
                needs: needs.clone(),
            };
            let address = self.address()?;
            let asked = Instant::now();
            match self.ask(&address, request).await {
                Ok(reply) if reply.dealer && reply.term >= self.term => {
                    anyhow::ensure!(reply.shares.len() == expected, "a share per need");
                    self.term = reply.term;
                    self.dealer = Some(address);
                    return Ok(Dealt {
                        asked,
                        valid: Duration::from_millis(reply.valid_ms),
                        shares: reply.shares,
                    });
                }
                Ok(reply) => {
                    last = Some(anyhow::anyhow!("{address} does not deal"));
                    self.dealer = Some(reply.dealer_address).filter(|a| !a.is_empty());
                    if self.dealer.is_none() {
                        break;
                    }
                }
                Err(e) => {
                    last = Some(e);
                    self.dealer = None;
                    self.clients.remove(&address);
                }
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("nobody deals")))
    }

    fn address(&mut self) -> anyhow::Result<String> {
        if let Some(address) = &self.dealer {
            return Ok(address.clone());
        }
        let all = self.members.addresses();
        let address = all
            .get(self.turn % all.len().max(1))
            .context("no control-plane node is known")?;
        self.turn = self.turn.wrapping_add(1);
        Ok(address.clone())
    }

    async fn ask(
        &mut self,
        address: &str,
        request: v1::ShareRequest,
    ) -> anyhow::Result<v1::ShareReply> {
        let client = match self.clients.get_mut(address) {
            Some(client) => client,
            None => {
                let client = QueueClient::new(self.members.dial(address)?);
                self.clients.entry(address.to_owned()).or_insert(client)
            }
        };
        let reply = timeout(PATIENCE, client.deal_shares(request)).await;
        Ok(reply.context("no answer")??.into_inner())
    }
}
