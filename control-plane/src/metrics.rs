//! Prometheus metrics of a control-plane node. Labels come from closed sets only.
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use sealane_wire::v1::submit_outcome::Kind;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShardLabel {
    shard: u32,
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    enqueues: Family<OutcomeLabel, Counter>,
    enqueue_seconds: Histogram,
    enqueues_repeated: Counter,
    results: Family<OutcomeLabel, Counter>,
    leases: Counter,
    leases_expired: Counter,
    dsns: Counter,
    watchdog: Family<KindLabel, Counter>,
    queue_depth: Family<ShardLabel, Gauge>,
    queue_oldest_seconds: Family<ShardLabel, Gauge>,
    leads: Family<ShardLabel, Gauge>,
    relays: Gauge,
    dealer: Gauge,
    dealt_questions: Counter,
    dealt_destinations: Gauge,
    clock_wrong: Gauge,
    scrubbed: Counter,
    scrub_passes: Counter,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let m = Self {
            enqueues: Family::default(),
            enqueue_seconds: Histogram::new(exponential_buckets(0.0005, 2.0, 16)),
            enqueues_repeated: Counter::default(),
            results: Family::default(),
            leases: Counter::default(),
            leases_expired: Counter::default(),
            dsns: Counter::default(),
            watchdog: Family::default(),
            queue_depth: Family::default(),
            queue_oldest_seconds: Family::default(),
            leads: Family::default(),
            relays: Gauge::default(),
            dealer: Gauge::default(),
            dealt_questions: Counter::default(),
            dealt_destinations: Gauge::default(),
            clock_wrong: Gauge::default(),
            scrubbed: Counter::default(),
            scrub_passes: Counter::default(),
        };
        let r = registry.sub_registry_with_prefix("sealane");
        r.register("enqueue", "Enqueue requests by outcome", m.enqueues.clone());
        r.register(
            "enqueue_seconds",
            "From enqueue frame to answer",
            m.enqueue_seconds.clone(),
        );
        r.register(
            "enqueues_repeated",
            "Questions about messages that were durable already: their first answer was lost",
            m.enqueues_repeated.clone(),
        );
        r.register(
            "recipient_results",
            "Recorded recipient results by outcome",
            m.results.clone(),
        );
        r.register("leases", "Leases granted", m.leases.clone());
        r.register(
            "leases_expired",
            "Leases taken back because their holder went silent",
            m.leases_expired.clone(),
        );
        r.register("dsns", "Non-delivery reports enqueued", m.dsns.clone());
        r.register(
            "watchdog_findings",
            "Messages that nobody looked after, by what was wrong; anything but 0 is worth a report",
            m.watchdog.clone(),
        );
        r.register(
            "queue_depth",
            "Messages in a shard that this node leads",
            m.queue_depth.clone(),
        );
        r.register(
            "queue_oldest_age_seconds",
            "Age of the oldest message in a shard that this node leads",
            m.queue_oldest_seconds.clone(),
        );
        r.register(
            "shard_leader",
            "1 if this node leads the shard",
            m.leads.clone(),
        );
        r.register(
            "relays_connected",
            "Relay nodes with a delivery stream to this node",
            m.relays.clone(),
        );
        r.register(
            "shares_dealer",
            "1 if this node deals the shares of destinations",
            m.dealer.clone(),
        );
        r.register(
            "shares_questions",
            "Questions for shares answered by this node",
            m.dealt_questions.clone(),
        );
        r.register(
            "shares_destinations",
            "Destinations in use whose shares this node deals",
            m.dealt_destinations.clone(),
        );
        r.register(
            "clock_wrong_milliseconds",
            "How far this machine's clock is from what most nodes' clocks show; 0: it is gone by",
            m.clock_wrong.clone(),
        );
        r.register(
            "scrubbed_octets",
            "Octets of the volume that were read in search of damage",
            m.scrubbed.clone(),
        );
        r.register(
            "scrub_passes",
            "Passes over the whole volume that found no damage",
            m.scrub_passes.clone(),
        );
        m
    }

    pub(crate) fn enqueue(&self, kind: Kind, took: Duration) {
        self.enqueues
            .get_or_create(&OutcomeLabel {
                outcome: kind.as_str_name(),
            })
            .inc();
        self.enqueue_seconds.observe(took.as_secs_f64());
    }
    pub(crate) fn enqueue_repeated(&self) {
        self.enqueues_repeated.inc();
    }
    pub(crate) fn result(&self, outcome: &'static str) {
        self.results.get_or_create(&OutcomeLabel { outcome }).inc();
    }
    pub(crate) fn leased(&self, n: u64) {
        self.leases.inc_by(n);
    }
    pub(crate) fn lease_expired(&self, n: u64) {
        self.leases_expired.inc_by(n);
    }
    pub(crate) fn dsn(&self) {
        self.dsns.inc();
    }
    pub(crate) fn watchdog(&self, kind: &'static str) {
        self.watchdog.get_or_create(&KindLabel { kind }).inc();
    }
    /// So much was read without damage.
    pub(crate) fn scrubbed(&self, octets: u64) {
        self.scrubbed.inc_by(octets);
    }
    /// A whole pass.
    pub(crate) fn scrub_passed(&self) {
        self.scrub_passes.inc();
    }
    /// 0: this node goes by its own clock.
    pub(crate) fn clock(&self, wrong_by_ms: i64) {
        self.clock_wrong.set(wrong_by_ms);
    }
    pub(crate) fn relays(&self, n: usize) {
        self.relays.set(i64::try_from(n).unwrap_or(i64::MAX));
    }
    /// Shares were dealt to somebody; so many destinations are in use.
    pub(crate) fn dealt(&self, destinations: usize) {
        self.dealt_questions.inc();
        self.dealt_destinations
            .set(i64::try_from(destinations).unwrap_or(i64::MAX));
    }
    /// Whether this node deals shares.
    pub(crate) fn dealer(&self, dealing: bool) {
        if self.dealer.set(i64::from(dealing)) != 0 && !dealing {
            self.dealt_destinations.set(0);
        }
    }
    /// `None`: not led here.
    pub(crate) fn shard(&self, shard: u32, led: Option<(u64, Duration)>) {
        let label = ShardLabel { shard };
        self.leads
            .get_or_create(&label)
            .set(i64::from(led.is_some()));
        match led {
            Some((depth, oldest)) => {
                self.queue_depth
                    .get_or_create(&label)
                    .set(i64::try_from(depth).unwrap_or(i64::MAX));
                self.queue_oldest_seconds
                    .get_or_create(&label)
                    .set(i64::try_from(oldest.as_secs()).unwrap_or(i64::MAX));
            }
            None => {
                self.queue_depth.remove(&label);
                self.queue_oldest_seconds.remove(&label);
            }
        }
    }
}
