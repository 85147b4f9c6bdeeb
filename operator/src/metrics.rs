//! Prometheus metrics of the operator. Labels come from closed sets, and from the names of the clusters that it keeps.
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
struct CallLabel {
    call: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConditionLabel {
    namespace: String,
    name: String,
    condition: String,
}

/// How a pass over a cluster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything is as it is to be.
    Settled,
    /// A step was taken, or one is in motion.
    Moving,
    /// The resource is wrong: nothing was changed.
    Refused,
    /// It failed, and is done again.
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Moving => "moving",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Metrics {
    passes: Family<OutcomeLabel, Counter>,
    pass_seconds: Histogram,
    steps: Family<KindLabel, Counter>,
    certificates: Family<KindLabel, Counter>,
    policies_applied: Counter,
    control_plane_errors: Family<CallLabel, Counter>,
    conditions: Family<ConditionLabel, Gauge>,
    leads: Gauge,
}

impl Metrics {
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let m = Self {
            passes: Family::default(),
            pass_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            steps: Family::default(),
            certificates: Family::default(),
            policies_applied: Counter::default(),
            control_plane_errors: Family::default(),
            conditions: Family::default(),
            leads: Gauge::default(),
        };
        let r = registry.sub_registry_with_prefix("sealane_operator");
        r.register(
            "passes",
            "Passes over a RelayCluster by outcome",
            m.passes.clone(),
        );
        r.register("pass_seconds", "Length of a pass", m.pass_seconds.clone());
        r.register(
            "steps",
            "Disruptive steps that were taken, by kind",
            m.steps.clone(),
        );
        r.register(
            "certificates_issued",
            "Certificates that were issued, by kind",
            m.certificates.clone(),
        );
        r.register(
            "policies_applied",
            "Policy revisions that were made from RelayPolicies",
            m.policies_applied.clone(),
        );
        r.register(
            "control_plane_errors",
            "Calls of control-plane nodes that failed, by call",
            m.control_plane_errors.clone(),
        );
        r.register(
            "condition",
            "Conditions of each RelayCluster: 1 True, 0 False, -1 Unknown",
            m.conditions.clone(),
        );
        r.register(
            "leader",
            "1 if this process holds the lease",
            m.leads.clone(),
        );
        m
    }

    pub(crate) fn pass(&self, outcome: Outcome, length: Duration) {
        let outcome = outcome.as_str();
        self.passes.get_or_create(&OutcomeLabel { outcome }).inc();
        self.pass_seconds.observe(length.as_secs_f64());
    }

    pub(crate) fn step(&self, kind: &'static str) {
        self.steps.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn certificate(&self, kind: &'static str) {
        self.certificates.get_or_create(&KindLabel { kind }).inc();
    }

    pub(crate) fn policy_applied(&self) {
        self.policies_applied.inc();
    }

    pub(crate) fn control_plane_error(&self, call: &'static str) {
        self.control_plane_errors
            .get_or_create(&CallLabel { call })
            .inc();
    }

    /// `status` as in a condition.
    pub(crate) fn condition(&self, namespace: &str, name: &str, condition: &str, status: &str) {
        let value = match status {
            "True" => 1,
            "False" => 0,
            _ => -1,
        };
        let label = label(namespace, name, condition);
        self.conditions.get_or_create(&label).set(value);
    }

    /// The cluster is gone.
    pub(crate) fn forget(&self, namespace: &str, name: &str, conditions: &[&str]) {
        for c in conditions {
            self.conditions.remove(&label(namespace, name, c));
        }
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(i64::from(leads));
    }
}

fn label(namespace: &str, name: &str, condition: &str) -> ConditionLabel {
    ConditionLabel {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        condition: condition.to_owned(),
    }
}
