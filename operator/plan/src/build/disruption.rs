//! PodDisruptionBudgets: what node drains and evictions may take at once.
use super::{meta, selector};
use crate::{
    ValidCluster,
    names::{CONTROL, RELAY},
};
use k8s_openapi::{
    api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};

pub(super) fn all(c: &ValidCluster) -> Vec<PodDisruptionBudget> {
    let n = c.names();
    vec![
        // One member, and only while all others are ready: a member that is not ready may be a copy that others need.
        budget(
            c,
            n.control(),
            CONTROL,
            IntOrString::Int(1),
            "IfHealthyBudget",
        ),
        // Relay nodes keep nothing; one that does not work is no loss.
        budget(
            c,
            n.relay(),
            RELAY,
            IntOrString::String("25%".to_owned()),
            "AlwaysAllow",
        ),
    ]
}

fn budget(
    c: &ValidCluster,
    name: String,
    part: &str,
    max_unavailable: IntOrString,
    unhealthy: &str,
) -> PodDisruptionBudget {
    PodDisruptionBudget {
        metadata: meta(c, name, part),
        spec: Some(PodDisruptionBudgetSpec {
            max_unavailable: Some(max_unavailable),
            selector: Some(selector(c.names(), part)),
            unhealthy_pod_eviction_policy: Some(unhealthy.to_owned()),
            min_available: None,
        }),
        status: None,
    }
}
