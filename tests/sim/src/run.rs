//! One simulation: found the cluster, storm, heal, wait until nothing is open, look at what the disks hold.
use crate::{
    audit::Audit,
    disk::{Death, Disk},
    ledger::Ledger,
    node::{self, Host},
    note,
    pki::Pki,
    plan::Plan,
    relay::{self, Outside, Relay},
    report::Report,
    storm::Storm,
    trace,
    witness::Witness,
    world,
};
use anyhow::Context;
use sealane_runtime::identity::Role;
use std::{
    cell::Cell,
    collections::BTreeMap,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

/// Simulated time per step.
const TICK: Duration = Duration::from_millis(2);
/// A cluster that is not founded by then never will be.
const FOUNDED: Duration = Duration::from_secs(60);
/// After the storm everything must be settled by then.
const SETTLED: Duration = Duration::from_secs(240);
/// Whoever runs the process starts it again after this.
const RESTART: Duration = Duration::from_millis(700);
/// Between two looks at all disks.
const LOOK: Duration = Duration::from_millis(250);

static STEPS: AtomicU64 = AtomicU64::new(0);

/// Steps so far.
pub(crate) fn steps() -> u64 {
    STEPS.load(Ordering::Relaxed)
}

/// What the phases share.
pub(crate) struct Simulation<'a> {
    pub(crate) sim: turmoil::Sim<'a>,
    pub(crate) plan: Rc<Plan>,
    pub(crate) hosts: Vec<Host>,
    pub(crate) outside: Outside,
    pub(crate) witness: Witness,
    pub(crate) relays: Vec<Rc<Cell<u64>>>,
    audit: Audit,
    next_look: Duration,
    /// Nodes that ended by themselves, and when they start again.
    restarts: BTreeMap<usize, Duration>,
    pub(crate) report: Report,
}

impl std::fmt::Debug for Simulation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Simulation")
    }
}

/// Runs a plan to its end.
pub(crate) fn run(plan: Plan) -> anyhow::Result<Report> {
    world::enter()?;
    let dir = tempfile::tempdir()?;
    let pki = Pki::new(dir.path())?;
    let plan = Rc::new(plan);
    note!("{plan:?}");
    let mut s = Simulation::new(plan.clone(), &pki)?;
    s.found().context("founding")?;
    let began = s.sim.elapsed();
    let mut storm = Storm::new(plan.clone());
    while s.sim.elapsed() - began < plan.storm && s.sound() {
        let now = s.sim.elapsed() - began;
        storm.act(&mut s, now);
        s.step()?;
    }
    storm.end(&mut s);
    s.settle()?;
    if s.sound() {
        s.scan()?;
    }
    Ok(s.finish())
}

impl Simulation<'_> {
    fn new(plan: Rc<Plan>, pki: &Pki<'_>) -> anyhow::Result<Self> {
        let (least, most) = plan.latency_ms;
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(UNIX_EPOCH + world::EPOCH)
            .simulation_duration(Duration::from_secs(100_000))
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(least))
            .max_message_latency(Duration::from_millis(most))
            .tcp_capacity(4096)
            .enable_random_order()
            .build();
        let witness = Witness::default();
        let mut hosts = Vec::new();
        for n in 0..plan.nodes {
            let seed = plan.seed ^ ((n as u64 + 1) << 32);
            let disk = Disk::new(&node::name(n), seed, plan.sync_us, witness.clone());
            witness.watch(disk.clone());
            disk.set(|f| f.lies = plan.lies);
            let identity = pki.issue(Role::Control, &node::name(n))?;
            let host = Host::new(&plan, n, disk, identity)?;
            hosts.push(host.clone());
            sim.host(node::name(n), move || {
                let host = host.clone();
                async move {
                    host.run().await;
                    Ok(())
                }
            });
        }
        let outside = Outside {
            ledger: Arc::new(Mutex::new(Ledger::default())),
            sink: Arc::default(),
            witness: witness.clone(),
            busy: Arc::new(AtomicBool::new(false)),
        };
        let (zombie, _) = pki.issue(Role::Relay, "zombie")?;
        let mut relays = Vec::new();
        for n in 0..plan.relays {
            let (identity, _) = pki.issue(Role::Relay, &relay::name(n))?;
            let lives = Rc::new(Cell::new(0));
            relays.push(lives.clone());
            let relay = Relay {
                n,
                plan: plan.clone(),
                identity,
                zombie: zombie.clone(),
                outside: outside.clone(),
                lives,
            };
            sim.host(relay::name(n), move || {
                let relay = relay.clone();
                async move {
                    relay.run().await;
                    Ok(())
                }
            });
        }
        let (admin, _) = pki.issue(Role::Admin, "admin")?;
        let nodes = plan.nodes;
        sim.host("admin", move || {
            let admin = admin.clone();
            async move {
                crate::admin::run(admin, nodes).await;
                Ok(())
            }
        });
        Ok(Self {
            sim,
            plan,
            hosts,
            outside,
            witness,
            relays,
            audit: Audit::default(),
            next_look: Duration::ZERO,
            restarts: BTreeMap::new(),
            report: Report::default(),
        })
    }

    /// One tick, and what follows from it.
    pub(crate) fn step(&mut self) -> anyhow::Result<()> {
        trace::at(u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX));
        STEPS.fetch_add(1, Ordering::Relaxed);
        self.sim
            .step()
            .map_err(|e| anyhow::anyhow!("a host failed: {e}"))?;
        for n in 0..self.hosts.len() {
            let Some(host) = self.hosts.get(n).cloned() else {
                continue;
            };
            let (dying, ended) = (host.take_dying(), host.take_ended());
            if dying {
                // The product calls abort(3).
                self.report.count("storage aborts", 1);
                self.down(n, Death::Kill);
            }
            if dying || ended.is_some() {
                let again = self.sim.elapsed() + RESTART;
                self.restarts.insert(n, again);
            }
            // On a full volume a node does not start; it tries again.
            let full = host.disk.lock().faults.full;
            if let Some(why) = ended.filter(|_| !dying && !full) {
                if host.disk.counts().flips > 0 {
                    self.report.count("damaged nodes that stepped out", 1);
                    continue;
                }
                self.broken(format!("{} ended by itself: {why}", host.name));
            }
        }
        let now = self.sim.elapsed();
        let due: Vec<usize> = self
            .restarts
            .iter()
            .filter(|(_, at)| **at <= now)
            .map(|(n, _)| *n)
            .collect();
        due.into_iter().for_each(|n| self.up(n));
        if self.sim.elapsed() >= self.next_look {
            self.next_look = self.sim.elapsed() + LOOK;
            for host in &self.hosts {
                let found = self.audit.look(&host.name, &host.disk);
                for what in found {
                    self.outside.ledger().violate(what);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn broken(&self, what: String) {
        self.outside.ledger().violate(what);
    }

    /// Nothing is broken so far.
    fn sound(&self) -> bool {
        self.outside.ledger().violations().is_empty() && self.witness.violations().is_empty()
    }

    /// The process of a node dies.
    pub(crate) fn down(&mut self, n: usize, how: Death) {
        let Some(host) = self.hosts.get(n) else {
            return;
        };
        // First the disk: nothing that the dying process still does reaches it.
        host.disk.crash(how);
        self.sim.crash(node::name(n));
        self.audit.died(&host.name);
        self.restarts.remove(&n);
    }

    /// It starts again.
    pub(crate) fn up(&mut self, n: usize) {
        self.restarts.remove(&n);
        self.sim.bounce(node::name(n));
    }

    fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> anyhow::Result<bool> {
        let end = self.sim.elapsed() + limit;
        while self.sim.elapsed() < end && self.sound() {
            self.step()?;
            if done(self) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Until every group has its replicas, without faults.
    fn found(&mut self) -> anyhow::Result<()> {
        let replicas = usize::try_from(self.plan.replicas).unwrap_or(usize::MAX);
        let groups = self.plan.shards + 1;
        let whole = self.until(FOUNDED, |s| {
            (0..groups).all(|g| s.audit.settled(g, replicas))
        })?;
        if !whole {
            self.broken("the cluster is not whole after a minute without faults".into());
        }
        note!("the cluster is whole");
        self.witness.steady(true);
        self.outside.busy.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Faults are over: all that was accepted reaches an end.
    fn settle(&mut self) -> anyhow::Result<()> {
        note!("faults are over");
        self.outside.busy.store(false, Ordering::Relaxed);
        let healed = self.sim.elapsed();
        let settled = self.until(SETTLED, |s| {
            let open: Vec<_> = s.outside.ledger().open();
            open.iter().all(|(_, m)| m.ends_with("@hole.example"))
        })?;
        let took = self.sim.elapsed() - healed;
        self.report.count(
            "milliseconds from the end of faults to nothing open",
            u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
        );
        if !settled && self.sound() {
            let open: Vec<String> = self
                .outside
                .ledger()
                .open()
                .into_iter()
                .map(|(_, m)| m)
                .filter(|m| !m.ends_with("@hole.example"))
                .collect();
            self.broken(format!(
                "I8: {} recipients of accepted mail are open {} s after the storm: {:?}",
                open.len(),
                SETTLED.as_secs(),
                open.iter().take(5).collect::<Vec<_>>()
            ));
        }
        Ok(())
    }

    /// The lights go out once more: what waits for the black hole is still there, and then goes too.
    fn scan(&mut self) -> anyhow::Result<()> {
        note!("durability scan");
        for n in 0..self.hosts.len() {
            self.down(n, Death::Power);
        }
        for n in 0..self.hosts.len() {
            self.up(n);
        }
        let waiting = self.outside.ledger().open();
        self.report
            .count("recipients that waited at the scan", waiting.len() as u64);
        // Each volume is looked through once, however many wait.
        let (flipped, sound): (Vec<_>, Vec<_>) =
            (self.hosts.iter()).partition(|h| h.disk.counts().flips > 0);
        let volumes: Vec<_> = sound.iter().map(|h| Audit::whole(&h.disk)).collect();
        let damaged = !flipped.is_empty();
        let majority = usize::try_from(self.plan.replicas).unwrap_or(1) / 2 + 1;
        for (id, mailbox) in &waiting {
            let holders = volumes.iter().filter(|v| v.contains(id.as_slice())).count();
            if holders < majority - usize::from(damaged) {
                self.broken(format!(
                    "I1: {mailbox} was accepted and waits, but {holders} disks have it"
                ));
            }
        }
        self.outside
            .sink
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .open = true;
        let all = self.until(SETTLED, |s| s.outside.ledger().open().is_empty())?;
        if !all && self.sound() {
            let open = self.outside.ledger().open();
            self.broken(format!(
                "I8: {} recipients are open after the durability scan: {:?}",
                open.len(),
                open.iter().take(3).map(|(_, m)| m).collect::<Vec<_>>()
            ));
        }
        Ok(())
    }

    fn finish(mut self) -> Report {
        let mut report = std::mem::take(&mut self.report);
        report.seed = self.plan.seed;
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        report.count("simulated milliseconds", ms(self.sim.elapsed()));
        report.mail(&self.outside.ledger().counts());
        let (commits, elections) = self.witness.counts();
        report.count("elections", elections);
        report.count("majorities verified on disk", commits);
        report.count("snapshots installed", self.witness.installs());
        let (looks, compared) = self.audit.counts();
        report.count("volumes looked through", looks);
        report.count("states compared between nodes", compared);
        for host in &self.hosts {
            report.disk(&host.disk.counts());
        }
        let again = report.number("syncs after a failed one");
        report.violations = self.outside.ledger().violations().to_vec();
        report.violations.extend(self.witness.violations());
        if again > 0 {
            let what = format!("P4: {again} syncs after one that failed");
            report.violations.push(what);
        }
        let (events, hash) = trace::sum();
        report.count("events", events);
        report.hash = hash;
        report
    }
}
