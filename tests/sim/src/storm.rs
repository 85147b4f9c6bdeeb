//! Makes the faults of a plan happen, and mends them.
use crate::{
    clocks,
    disk::Death,
    node, note,
    plan::{Fault, Kind, Plan, WILD_MS, YEARS_MS},
    relay,
    run::Simulation,
};
use sealane_store::inspect;
use std::{collections::BTreeSet, rc::Rc, time::Duration};

/// What is to be mended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wound {
    NodeDown(usize),
    RelayDown(usize),
    Cut(String, String),
    Held(String, String),
    Disk(usize),
    Clock(String),
    Damaged(usize),
}

/// The weather.
#[derive(Debug)]
pub(crate) struct Storm {
    plan: Rc<Plan>,
    next: usize,
    wounds: Vec<(Duration, Wound)>,
    down: BTreeSet<usize>,
    flipped: bool,
}

impl Storm {
    /// Before the first fault.
    pub(crate) fn new(plan: Rc<Plan>) -> Self {
        Self {
            plan,
            next: 0,
            wounds: Vec::new(),
            down: BTreeSet::new(),
            flipped: false,
        }
    }

    /// What is due at `now`, since the storm began.
    pub(crate) fn act(&mut self, s: &mut Simulation<'_>, now: Duration) {
        let (over, rest) = std::mem::take(&mut self.wounds)
            .into_iter()
            .partition(|(until, _)| *until <= now);
        self.wounds = rest;
        for (_, wound) in over {
            self.mend(s, wound);
        }
        while let Some(fault) = self.plan.faults.get(self.next).copied()
            && fault.at <= now
        {
            self.next += 1;
            self.strike(s, fault);
        }
    }

    /// Mends all.
    pub(crate) fn end(&mut self, s: &mut Simulation<'_>) {
        for (_, wound) in std::mem::take(&mut self.wounds) {
            self.mend(s, wound);
        }
        for n in 0..self.plan.nodes {
            clocks::skew(&node::name(n), 0);
        }
    }

    fn wound(&mut self, fault: Fault, wound: Wound) {
        self.wounds.push((fault.at + fault.length, wound));
    }

    fn any_host(&self, n: usize) -> String {
        let all = self.plan.nodes + self.plan.relays;
        match n % all {
            n if n < self.plan.nodes => node::name(n),
            n => relay::name(n - self.plan.nodes),
        }
    }

    fn take_down(&mut self, s: &mut Simulation<'_>, fault: Fault, n: usize, how: Death) {
        if self.down.insert(n) {
            let what = match how {
                Death::Kill => "kills",
                Death::Power => "power losses",
            };
            s.report.count(what, 1);
            s.down(n, how);
            self.wound(fault, Wound::NodeDown(n));
        }
    }

    fn strike(&mut self, s: &mut Simulation<'_>, fault: Fault) {
        let n = fault.whom % self.plan.nodes;
        note!("fault {fault:?}");
        match fault.kind {
            Kind::PowerLoss => self.take_down(s, fault, n, Death::Power),
            Kind::Kill => self.take_down(s, fault, n, Death::Kill),
            Kind::Blackout => {
                for n in 0..self.plan.nodes {
                    self.take_down(s, fault, n, Death::Power);
                }
            }
            Kind::KillRelay => {
                let n = fault.whom % self.plan.relays;
                let down = Wound::RelayDown(n);
                if self.wounds.iter().any(|(_, w)| *w == down) {
                    return;
                }
                s.report.count("relay kills", 1);
                let life = s.relays.get(n).map_or(0, |l| l.get());
                s.sim.crash(relay::name(n));
                s.outside.ledger().died((n, life));
                self.wound(fault, down);
            }
            Kind::Split => {
                for a in 0..self.plan.nodes {
                    for b in a + 1..self.plan.nodes {
                        let (a, b) = (node::name(a), node::name(b));
                        s.sim.partition(a.as_str(), b.as_str());
                        s.report.count("links cut", 1);
                        self.wound(fault, Wound::Cut(a, b));
                    }
                }
            }
            Kind::Partition | Kind::Hold => {
                let (a, b) = self.pair(fault);
                let oneway = fault.variant.is_multiple_of(3);
                if fault.kind == Kind::Hold {
                    s.sim.hold(a.as_str(), b.as_str());
                    s.report.count("links held", 1);
                    return self.wound(fault, Wound::Held(a, b));
                }
                if fault.variant % 4 == 1 {
                    // One node alone.
                    for other in (0..self.plan.nodes).map(node::name).filter(|o| *o != a) {
                        s.sim.partition(a.as_str(), other.as_str());
                        s.report.count("links cut", 1);
                        self.wound(fault, Wound::Cut(a.clone(), other));
                    }
                } else if oneway {
                    s.sim.partition_oneway(a.as_str(), b.as_str());
                    s.report.count("links cut", 1);
                    self.wound(fault, Wound::Cut(a, b));
                } else {
                    s.sim.partition(a.as_str(), b.as_str());
                    s.report.count("links cut", 1);
                    self.wound(fault, Wound::Cut(a, b));
                }
            }
            Kind::DiskError | Kind::DiskFull | Kind::SlowDisk | Kind::Stall => {
                let Some(host) = s.hosts.get(n) else { return };
                let hard = fault.variant.is_multiple_of(2);
                host.disk.set(|f| match fault.kind {
                    Kind::DiskError if hard => f.fail_sync = true,
                    Kind::DiskError => f.fail_write = true,
                    Kind::DiskFull if hard => f.full = true,
                    Kind::DiskFull => f.scarce = true,
                    Kind::SlowDisk => {
                        f.slow = Duration::from_millis(u64::from(fault.variant % 2000));
                    }
                    _ => f.stall = 1 + fault.variant % 20,
                });
                s.report.count("disks made bad", 1);
                self.wound(fault, Wound::Disk(n));
            }
            Kind::Flip => {
                // Once, and only while the others are well: a minority may be damaged, and it takes a while
                // until the node that comes in its place has everything.
                if self.flipped || !self.down.is_empty() {
                    return;
                }
                let Some(host) = s.hosts.get(n) else { return };
                let families = [
                    inspect::METAS,
                    inspect::LOGS,
                    inspect::ROWS,
                    inspect::BODIES,
                ];
                let family = families[fault.variant as usize % families.len()];
                if let Some(key) = host.disk.flip(family) {
                    note!("{}: a bit of {family} {key:02x?} flips", host.name);
                    self.flipped = true;
                    s.witness.steady(false);
                    self.wound(fault, Wound::Damaged(n));
                }
            }
            Kind::Clock => {
                let host = self.any_host(fault.whom);
                let most = self.plan.skew_ms;
                let mut ms = i64::from(fault.variant) % (2 * most + 1) - most;
                let others = self
                    .wounds
                    .iter()
                    .any(|(_, w)| matches!(w, Wound::Clock(_)));
                if most == WILD_MS && !others && fault.variant.is_multiple_of(3) {
                    ms = if ms < 0 { -YEARS_MS } else { YEARS_MS };
                    s.report.count("clocks set wrong by years", 1);
                }
                clocks::skew(&host, ms);
                s.report.count("clocks set wrong", 1);
                self.wound(fault, Wound::Clock(host));
            }
        }
    }

    /// Two hosts, of which one is a node.
    fn pair(&self, fault: Fault) -> (String, String) {
        let a = fault.whom % self.plan.nodes;
        let all = self.plan.nodes + self.plan.relays;
        let b = (a + 1 + fault.other % (all - 1)) % all;
        (node::name(a), self.any_host(b))
    }

    fn mend(&mut self, s: &mut Simulation<'_>, wound: Wound) {
        note!("mended {wound:?}");
        match wound {
            Wound::NodeDown(n) => {
                self.down.remove(&n);
                s.up(n);
            }
            Wound::RelayDown(n) => s.sim.bounce(relay::name(n)),
            Wound::Cut(a, b) => s.sim.repair(a.as_str(), b.as_str()),
            Wound::Held(a, b) => s.sim.release(a.as_str(), b.as_str()),
            Wound::Disk(n) => {
                if let Some(host) = s.hosts.get(n) {
                    let lies = self.plan.lies;
                    host.disk.set(|f| {
                        *f = crate::disk::Faults {
                            lies,
                            ..Default::default()
                        };
                    });
                }
            }
            Wound::Damaged(n) => {
                s.down(n, Death::Kill);
                if let Some(host) = s.hosts.get(n) {
                    host.disk.wipe();
                    s.report.count("volumes replaced", 1);
                }
                if self.down.contains(&n) {
                    return;
                }
                s.up(n);
            }
            Wound::Clock(host) => clocks::skew(&host, 0),
        }
    }
}
