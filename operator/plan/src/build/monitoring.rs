//! The PodMonitor, for the Prometheus operator.
use super::{BuildInput, meta, pod_monitor_api, selector_labels};
use crate::names::{CLUSTER_LABEL, CONTROL, LABEL_COMPONENT};
use kube::core::DynamicObject;
use serde_json::json;

pub(super) fn pod_monitor(i: &BuildInput<'_>) -> Option<DynamicObject> {
    if !(i.cluster.spec().monitoring.pod_monitor && i.apis.pod_monitor) {
        return None;
    }
    let n = i.cluster.names();
    let mut every = selector_labels(n, CONTROL);
    every.remove(LABEL_COMPONENT);
    let mut object = DynamicObject::new(n.cluster(), &pod_monitor_api()).within(n.namespace());
    object.metadata = meta(i.cluster, n.cluster().to_owned(), CONTROL);
    object.data = json!({
        "spec": {
            "selector": { "matchLabels": every },
            "podTargetLabels": [LABEL_COMPONENT, CLUSTER_LABEL],
            "podMetricsEndpoints": [{ "port": "metrics", "path": "/metrics" }],
        }
    });
    Some(object)
}
