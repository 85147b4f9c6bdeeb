//! What a seed decides: everything.
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::time::Duration;

/// A kind of fault. Each seed has a subset of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A node loses power: what was not synced may be gone.
    PowerLoss,
    /// All nodes do, at once.
    Blackout,
    /// A node's process is killed.
    Kill,
    /// A relay's process is killed.
    KillRelay,
    /// Nodes do not hear each other, in both directions or one.
    Partition,
    /// Messages between two hosts are held back, then all come at once.
    Hold,
    /// A sync or a write fails, once.
    DiskError,
    /// A volume fills up: first the node is warned, then nothing fits any more.
    DiskFull,
    /// Syncs take up to seconds.
    SlowDisk,
    /// Writes are told to wait.
    Stall,
    /// A host's wall clock jumps.
    Clock,
    /// A bit of a record flips; later the operator gives the node an empty volume.
    Flip,
    /// No node hears another for longer than a proposal is waited for. See [`Plan::split`].
    Split,
}

/// Those that may come at any time.
pub(crate) const KINDS: [Kind; 12] = [
    Kind::PowerLoss,
    Kind::Blackout,
    Kind::Kill,
    Kind::KillRelay,
    Kind::Partition,
    Kind::Hold,
    Kind::DiskError,
    Kind::DiskFull,
    Kind::SlowDisk,
    Kind::Stall,
    Kind::Clock,
    Kind::Flip,
];

/// One fault at one time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    /// Since faults began.
    pub(crate) at: Duration,
    /// Until it is mended.
    pub(crate) length: Duration,
    /// What.
    pub(crate) kind: Kind,
    /// To whom; taken modulo the number of hosts.
    pub(crate) whom: usize,
    /// And whom else.
    pub(crate) other: usize,
    /// How, where there is a choice.
    pub(crate) variant: u32,
}

/// One simulation.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Its name.
    pub(crate) seed: u64,
    /// Control-plane nodes.
    pub(crate) nodes: usize,
    /// Copies of each group.
    pub(crate) replicas: u32,
    /// Queue shards.
    pub(crate) shards: u32,
    /// Relay nodes.
    pub(crate) relays: usize,
    /// Clients that each relay serves at once.
    pub(crate) clients: usize,
    /// Pause of a client between two messages, milliseconds.
    pub(crate) think_ms: (u64, u64),
    /// Raft: heartbeat and election timeouts, milliseconds.
    pub(crate) heartbeat_ms: u64,
    /// Shortest.
    pub(crate) election_min_ms: u64,
    /// Longest.
    pub(crate) election_max_ms: u64,
    /// Log entries kept for members that lag.
    pub(crate) keep_entries: u64,
    /// Of a lease.
    pub(crate) lease: Duration,
    /// Microseconds of a usual sync.
    pub(crate) sync_us: (u64, u64),
    /// Of a message between hosts, milliseconds.
    pub(crate) latency_ms: (u64, u64),
    /// Octets of most bodies.
    pub(crate) body: usize,
    /// One of so many bodies is longer than an entry may be.
    pub(crate) large_every: u32,
    /// Which do.
    pub(crate) faults: Vec<Fault>,
    /// Mail and faults together.
    pub(crate) storm: Duration,
    /// Syncs lie: the run must fail.
    pub(crate) lies: bool,
    /// Clocks are wrong by up to so many milliseconds.
    pub(crate) skew_ms: i64,
    /// One of so many clients has so little patience that its relay withdraws what is on its way; 0: none.
    pub(crate) hasty_every: u32,
    /// Of the other clients.
    pub(crate) patience: Duration,
}

/// Clocks that are synchronised, more or less.
const SKEW_MS: i64 = 900;
/// Longer than the control plane waits for a commit (25 s).
const SPLIT: Duration = Duration::from_secs(27);
/// In two of five seeds, and with `--wild-clocks`: by an hour, and now and then one of them by years.
pub(crate) const WILD_MS: i64 = 3_600_000;
/// So wrong is one clock at a time at most: with two of three nobody could say what time it is.
pub(crate) const YEARS_MS: i64 = 10 * 365 * 24 * WILD_MS;

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        let mut r = StdRng::seed_from_u64(seed);
        let nodes = if r.random_bool(0.7) { 3 } else { 5 };
        let replicas = if nodes == 5 && r.random_bool(0.5) {
            5
        } else {
            3
        };
        let heartbeat_ms = r.random_range(50..=150);
        let election_min_ms = heartbeat_ms * r.random_range(4..=6);
        let storm = Duration::from_secs(r.random_range(8..=20));
        let chosen = r.random_range(1..=5);
        let mut kinds: Vec<Kind> = KINDS.choose_multiple(&mut r, chosen).copied().collect();
        kinds.sort_unstable();
        let mut faults = Vec::new();
        let mut at = Duration::from_millis(r.random_range(500..2500));
        while at < storm {
            let kind = *kinds.choose(&mut r).unwrap_or(&Kind::Kill);
            faults.push(Fault {
                at,
                length: Duration::from_millis(if r.random_bool(0.5) {
                    r.random_range(20..800)
                } else {
                    r.random_range(800..8000)
                }),
                kind,
                whom: r.random_range(0..60),
                other: r.random_range(1..60),
                variant: r.random(),
            });
            at += Duration::from_millis(if r.random_bool(0.2) {
                r.random_range(10..300)
            } else {
                r.random_range(300..3500)
            });
        }
        let mut plan = Self {
            seed,
            nodes,
            replicas,
            shards: r.random_range(2..=3),
            relays: r.random_range(1..=2),
            clients: r.random_range(1..=4),
            think_ms: (5, r.random_range(50..=900)),
            heartbeat_ms,
            election_min_ms,
            election_max_ms: election_min_ms * 2,
            keep_entries: *[16, 64, 1000].choose(&mut r).unwrap_or(&64),
            lease: Duration::from_secs(r.random_range(5..=15)),
            sync_us: (300, r.random_range(1500..=8000)),
            latency_ms: (1, r.random_range(2..=25)),
            body: r.random_range(100..=20_000),
            large_every: *[0, 0, 40].choose(&mut r).unwrap_or(&0),
            faults,
            storm,
            lies: false,
            skew_ms: SKEW_MS,
            patience: Duration::from_secs(12),
            // Last: the choices above stay what they were for seeds that are known.
            hasty_every: *[0, 0, 4, 8].choose(&mut r).unwrap_or(&0),
        };
        if r.random_bool(0.125) {
            plan.split();
        }
        if r.random_bool(0.4) {
            plan.skew_ms = WILD_MS;
        }
        plan
    }

    /// Ends the storm with a split, and lets clients wait for what comes of it: leaders tell them that
    /// they do not know, and afterwards commit what they had.
    fn split(&mut self) {
        let longest = Duration::from_secs(8);
        let at = self.storm + longest;
        self.faults.push(Fault {
            at,
            length: SPLIT,
            kind: Kind::Split,
            whom: 0,
            other: 0,
            variant: 0,
        });
        self.storm = at + SPLIT + longest;
        self.patience = SPLIT + longest;
    }
}
