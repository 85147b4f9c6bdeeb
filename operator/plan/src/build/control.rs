//! The control plane's StatefulSet.
use super::{
    BuildInput, config, labels, meta,
    pod::{
        self, apart, config_volume, container_security, mount, pod_meta, pod_security, port,
        read_only, scratch_volume, secret_volume, some, spread,
    },
    selector,
};
use crate::names::{CONTROL, GRPC_PORT, METRICS_PORT};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Container, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSpec, PodTemplateSpec,
            VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::ObjectMeta},
};
use std::collections::BTreeMap;

/// Leaderships are handed over, the last writes are synced, the database is closed.
const GRACE: i64 = 60;
/// A node that was killed under load reads its log again, and takes what it missed as snapshots afterwards.
const START_MINUTES: i32 = 30;

pub(super) fn stateful_set(i: &BuildInput<'_>) -> StatefulSet {
    let n = i.cluster.names();
    StatefulSet {
        metadata: meta(i.cluster, n.control(), CONTROL),
        spec: Some(StatefulSetSpec {
            replicas: Some(i.control_replicas.cast_signed()),
            service_name: Some(n.control()),
            selector: selector(n, CONTROL),
            // The first nodes found the cluster together, so none may wait for another to be ready.
            pod_management_policy: Some("Parallel".to_owned()),
            // Pods are restarted by the operator, one at a time, when the groups can do without them.
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".to_owned()),
                rolling_update: None,
            }),
            // A volume is deleted by the operator, once the control plane says that its node is removed.
            persistent_volume_claim_retention_policy: Some(
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Retain".to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                },
            ),
            revision_history_limit: Some(10),
            template: PodTemplateSpec {
                metadata: Some(pod_meta(i.cluster, CONTROL, config::control_digest(i))),
                spec: Some(pod_spec(i)),
            },
            volume_claim_templates: Some(vec![claim(i)]),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

fn pod_spec(i: &BuildInput<'_>) -> PodSpec {
    let n = i.cluster.names();
    let s = i.cluster.spec();
    let c = &s.control_plane;
    PodSpec {
        service_account_name: Some(n.control()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(GRACE),
        image_pull_secrets: some(
            &s.image_pull_secrets
                .iter()
                .map(Into::into)
                .collect::<Vec<_>>(),
        ),
        node_selector: (!c.node_selector.is_empty()).then(|| c.node_selector.clone()),
        tolerations: some(&c.tolerations),
        priority_class_name: c.priority_class_name.clone(),
        affinity: Some(apart(i.cluster, CONTROL)),
        topology_spread_constraints: Some(spread(i.cluster, CONTROL)),
        containers: vec![container(i)],
        volumes: Some(vec![
            config_volume("config", n.control_config()),
            secret_volume("identity", n.control_identity()),
            scratch_volume("tmp"),
        ]),
        ..PodSpec::default()
    }
}

fn container(i: &BuildInput<'_>) -> Container {
    let s = i.cluster.spec();
    Container {
        name: CONTROL.to_owned(),
        image: Some(s.image.clone()),
        image_pull_policy: Some(s.image_pull_policy.as_str().to_owned()),
        command: Some(vec![config::CONTROL_PROGRAM.to_owned()]),
        args: Some(vec![format!(
            "--config={}/$(POD_NAME).yaml",
            config::FOLDER
        )]),
        env: Some(vec![pod::pod_name("POD_NAME")]),
        ports: Some(vec![
            port("grpc", GRPC_PORT, None),
            port("metrics", METRICS_PORT, None),
        ]),
        resources: Some(s.control_plane.resources.clone()),
        startup_probe: Some(pod::startup_probe(START_MINUTES)),
        liveness_probe: Some(pod::liveness_probe()),
        readiness_probe: Some(pod::readiness_probe()),
        security_context: Some(container_security()),
        // Why a process ended stands in the pod's status, and from there in ours.
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            mount("data", config::VOLUME),
            read_only("config", config::FOLDER),
            read_only("identity", config::IDENTITY),
            mount("tmp", "/tmp"),
        ]),
        ..Container::default()
    }
}

/// It cannot be changed once the StatefulSet exists: the labels must stay what they are.
fn claim(i: &BuildInput<'_>) -> PersistentVolumeClaim {
    let storage = &i.cluster.spec().control_plane.storage;
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some("data".to_owned()),
            labels: Some(labels(i.cluster.names(), CONTROL)),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            volume_mode: Some("Filesystem".to_owned()),
            resources: Some(VolumeResourceRequirements {
                requests: Some(BTreeMap::from([(
                    "storage".to_owned(),
                    Quantity(i.storage.to_owned()),
                )])),
                limits: None,
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}
