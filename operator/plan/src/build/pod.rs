//! What the pods of both parts have in common: restricted security, probes, places.
use super::{labels, meta, selector};
use crate::{ValidCluster, names};
use k8s_openapi::{
    api::core::v1::{
        Affinity, Capabilities, ConfigMapVolumeSource, ContainerPort, EmptyDirVolumeSource, EnvVar,
        EnvVarSource, HTTPGetAction, ObjectFieldSelector, PodAffinityTerm, PodAntiAffinity,
        PodSecurityContext, Probe, SeccompProfile, SecretVolumeSource, SecurityContext,
        ServiceAccount, TopologySpreadConstraint, Volume, VolumeMount, WeightedPodAffinityTerm,
    },
    apimachinery::pkg::{
        api::resource::Quantity, apis::meta::v1::ObjectMeta, util::intstr::IntOrString,
    },
};
use std::collections::BTreeMap;

/// User and group of all processes; the image's own user.
const USER: i64 = 65532;
/// `r--r--r--`.
const ALL_READ: i32 = 0o444;
/// `r--r-----`: the group is that of the pod.
const GROUP_READS: i32 = 0o440;
/// Annotation with a digest of what is only read at start.
pub(super) const CONFIG_ANNOTATION: &str = "sealane.io/config";

pub(super) fn service_account(c: &ValidCluster, part: &str) -> ServiceAccount {
    let n = c.names();
    let name = if part == names::CONTROL {
        n.control()
    } else {
        n.relay()
    };
    ServiceAccount {
        metadata: meta(c, name, part),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

pub(super) fn pod_meta(c: &ValidCluster, part: &str, config: String) -> ObjectMeta {
    ObjectMeta {
        labels: Some(labels(c.names(), part)),
        annotations: Some(BTreeMap::from([(CONFIG_ANNOTATION.to_owned(), config)])),
        ..ObjectMeta::default()
    }
}

pub(super) fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(USER),
        run_as_group: Some(USER),
        fs_group: Some(USER),
        // A volume with a queue is not walked at every start.
        fs_group_change_policy: Some("OnRootMismatch".to_owned()),
        seccomp_profile: Some(seccomp()),
        ..PodSecurityContext::default()
    }
}

pub(super) fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            add: None,
        }),
        seccomp_profile: Some(seccomp()),
        ..SecurityContext::default()
    }
}

fn seccomp() -> SeccompProfile {
    SeccompProfile {
        type_: "RuntimeDefault".to_owned(),
        localhost_profile: None,
    }
}

/// On other machines and in other zones than its like, where that is possible: a cluster of one machine works too.
pub(super) fn spread(c: &ValidCluster, part: &str) -> Vec<TopologySpreadConstraint> {
    ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        .map(|key| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(selector(c.names(), part)),
            ..TopologySpreadConstraint::default()
        })
        .into()
}

pub(super) fn apart(c: &ValidCluster, part: &str) -> Affinity {
    let term = WeightedPodAffinityTerm {
        weight: 100,
        pod_affinity_term: PodAffinityTerm {
            label_selector: Some(selector(c.names(), part)),
            topology_key: "kubernetes.io/hostname".to_owned(),
            ..PodAffinityTerm::default()
        },
    };
    Affinity {
        pod_anti_affinity: Some(PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![term]),
            required_during_scheduling_ignored_during_execution: None,
        }),
        ..Affinity::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            scheme: Some("HTTP".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(3),
        failure_threshold: Some(failures),
        success_threshold: Some(1),
        ..Probe::default()
    }
}

/// A start may take `minutes`: a node that was killed reads its log first.
pub(super) fn startup_probe(minutes: i32) -> Probe {
    probe("/livez", 2, minutes * 30)
}
/// A process whose threads are stuck for a minute is started again.
pub(super) fn liveness_probe() -> Probe {
    probe("/livez", 10, 6)
}
/// Within seconds, so that no new session goes to a relay node that stops.
pub(super) fn readiness_probe() -> Probe {
    probe("/readyz", 3, 2)
}

pub(super) fn pod_name(variable: &str) -> EnvVar {
    EnvVar {
        name: variable.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: Some("v1".to_owned()),
                field_path: "metadata.name".to_owned(),
            }),
            ..EnvVarSource::default()
        }),
    }
}

pub(super) fn port(name: &str, number: u16, host_port: Option<u16>) -> ContainerPort {
    ContainerPort {
        name: Some(name.to_owned()),
        container_port: number.into(),
        host_port: host_port.map(Into::into),
        protocol: Some("TCP".to_owned()),
        host_ip: None,
    }
}

pub(super) fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        name: name.to_owned(),
        mount_path: path.to_owned(),
        ..VolumeMount::default()
    }
}

pub(super) fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        read_only: Some(true),
        ..mount(name, path)
    }
}

pub(super) fn config_volume(name: &str, config_map: String) -> Volume {
    Volume {
        name: name.to_owned(),
        config_map: Some(ConfigMapVolumeSource {
            name: config_map,
            default_mode: Some(ALL_READ),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// A whole Secret as a folder: single files of one would not follow its changes.
pub(super) fn secret_volume(name: &str, secret: String) -> Volume {
    Volume {
        name: name.to_owned(),
        secret: Some(SecretVolumeSource {
            secret_name: Some(secret),
            default_mode: Some(GROUP_READS),
            ..SecretVolumeSource::default()
        }),
        ..Volume::default()
    }
}

/// The root file system is read-only; what a library wants to write goes here.
pub(super) fn scratch_volume(name: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity("64Mi".to_owned())),
            medium: None,
        }),
        ..Volume::default()
    }
}

/// `None` for what is empty: an empty list that is applied is not the same as none.
pub(super) fn some<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}
