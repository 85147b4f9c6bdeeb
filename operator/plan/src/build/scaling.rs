//! The HorizontalPodAutoscaler. It scales the RelayCluster, not the Deployment: the operator sets that.
use super::meta;
use crate::{ValidCluster, names::RELAY};
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec, MetricSpec,
    MetricTarget, ResourceMetricSource,
};
use sealane_crd::{GROUP, VERSION};

pub(super) fn autoscaler(c: &ValidCluster) -> Option<HorizontalPodAutoscaler> {
    let a = c.spec().relay.autoscaling.as_ref()?;
    Some(HorizontalPodAutoscaler {
        metadata: meta(c, c.names().relay(), RELAY),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: Some(format!("{GROUP}/{VERSION}")),
                kind: "RelayCluster".to_owned(),
                name: c.names().cluster().to_owned(),
            },
            min_replicas: Some(a.min_replicas.cast_signed()),
            max_replicas: a.max_replicas.cast_signed(),
            metrics: Some(vec![MetricSpec {
                type_: "Resource".to_owned(),
                resource: Some(ResourceMetricSource {
                    name: "cpu".to_owned(),
                    target: MetricTarget {
                        type_: "Utilization".to_owned(),
                        average_utilization: Some(a.target_cpu_percent.cast_signed()),
                        ..MetricTarget::default()
                    },
                }),
                ..MetricSpec::default()
            }]),
            behavior: None,
        }),
        status: None,
    })
}
