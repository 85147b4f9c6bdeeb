//! What is measured. Every case but `base` differs from it in one thing.

use anyhow::{Result, bail};
use serde::Serialize;

/// One piece of work.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// Octets of a message.
    pub(crate) size: usize,
    pub(crate) connections: usize,
    /// Messages over one connection before QUIT.
    pub(crate) per_connection: usize,
    /// Messages in all.
    pub(crate) messages: usize,
    pub(crate) shards: u32,
    pub(crate) nodes: usize,
    /// The sink takes nothing until all is accepted.
    pub(crate) hold: bool,
    /// Worth running on the peer.
    pub(crate) peer: bool,
}

const BASE: Case = Case {
    name: "base",
    size: 4 << 10,
    connections: 100,
    per_connection: 100,
    messages: 30_000,
    shards: 8,
    nodes: 3,
    hold: false,
    peer: true,
};

/// Every case.
pub(crate) fn all() -> Vec<Case> {
    vec![
        BASE,
        Case {
            name: "64k",
            size: 64 << 10,
            connections: 20,
            messages: 6_000,
            ..BASE
        },
        Case {
            name: "1m",
            size: 1 << 20,
            connections: 20,
            messages: 400,
            ..BASE
        },
        Case {
            name: "64k-waits",
            size: 64 << 10,
            connections: 20,
            messages: 6_000,
            hold: true,
            peer: false,
            ..BASE
        },
        Case {
            name: "1-connection",
            connections: 1,
            messages: 3_000,
            ..BASE
        },
        Case {
            name: "20-connections",
            connections: 20,
            messages: 20_000,
            ..BASE
        },
        Case {
            name: "1000-connections",
            connections: 1000,
            peer: false,
            ..BASE
        },
        Case {
            name: "1-message",
            per_connection: 1,
            messages: 6_000,
            ..BASE
        },
        Case {
            name: "1-shard",
            shards: 1,
            peer: false,
            ..BASE
        },
        Case {
            name: "4-shards",
            shards: 4,
            peer: false,
            ..BASE
        },
        Case {
            name: "1-node",
            nodes: 1,
            peer: false,
            ..BASE
        },
    ]
}

/// Leaders killed while mail flows: `crate::failover`.
pub(crate) const FAILOVER: &str = "failover";
/// Nodes added and removed while mail flows: `crate::growth`.
pub(crate) const GROWTH: &str = "growth";
/// A crowd of waiting messages: `crate::waiting`.
pub(crate) const WAITING: &str = "waiting";

/// What was asked for.
#[derive(Debug, Default)]
pub(crate) struct Selection {
    pub(crate) cases: Vec<Case>,
    pub(crate) failover: bool,
    pub(crate) growth: bool,
    pub(crate) waiting: bool,
}

/// The named ones, or all.
///
/// # Errors
/// When there is no case of that name.
pub(crate) fn select(names: &[String]) -> Result<Selection> {
    let known = all();
    if names.is_empty() {
        return Ok(Selection {
            cases: known,
            failover: true,
            growth: true,
            waiting: true,
        });
    }
    let mut out = Selection::default();
    for name in names {
        match (name.as_str(), known.iter().find(|case| case.name == name)) {
            (_, Some(case)) => out.cases.push(case.clone()),
            (FAILOVER, None) => out.failover = true,
            (GROWTH, None) => out.growth = true,
            (WAITING, None) => out.waiting = true,
            _ => bail!("no case is called {name:?}; --list names them"),
        }
    }
    Ok(out)
}

impl Case {
    /// What all others are compared with.
    pub(crate) fn base() -> Self {
        BASE
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        let size = if self.size >= 1 << 20 {
            format!("{} MiB", self.size >> 20)
        } else {
            format!("{} KiB", self.size >> 10)
        };
        format!(
            "{size}, {} connections × {} messages, {} in all, {} nodes, {} shards{}",
            self.connections,
            self.per_connection,
            self.messages,
            self.nodes,
            self.shards,
            if self.hold {
                ", delivered after all is accepted"
            } else {
                ""
            }
        )
    }

    /// The same with hardly any mail.
    pub(crate) fn small(mut self) -> Self {
        self.messages = self.messages.min(200);
        self.connections = self.connections.min(20);
        self
    }
}
