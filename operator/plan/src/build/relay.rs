//! The relay nodes' Deployment.
use super::{
    BuildInput, config, meta,
    pod::{
        self, apart, config_volume, container_security, mount, pod_meta, pod_security, port,
        read_only, scratch_volume, secret_volume, some, spread,
    },
    selector as label_selector, selector_labels,
};
use crate::names::{METRICS_PORT, MX_PORT, Names, RELAY, SUBMISSION_PORT, SUBMISSIONS_PORT};
use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            Container, ContainerPort, Lifecycle, LifecycleHandler, PodSpec, PodTemplateSpec,
            SleepAction,
        },
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use sealane_crd::{ExposeType, Relay};

/// After it was told to stop, a pod takes sessions for so many seconds more: until then load balancers and nodes still send
/// some to it.
const STILL_SENT: i64 = 10;
/// Beside `drainSeconds`: [`STILL_SENT`], and what is left is handed back to the queue.
const BESIDES_DRAINING: i64 = 30;
/// A relay node that was ready for so many seconds is one.
const STEADY: i32 = 5;

/// Label selector of the relay nodes' pods, for `status.selector`.
pub fn selector(n: &Names) -> String {
    let labels = selector_labels(n, RELAY);
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    pairs.join(",")
}

pub(super) fn deployment(i: &BuildInput<'_>) -> Deployment {
    let n = i.cluster.names();
    let r = &i.cluster.spec().relay;
    Deployment {
        metadata: meta(i.cluster, n.relay(), RELAY),
        spec: Some(DeploymentSpec {
            replicas: Some(r.replicas.cast_signed()),
            selector: label_selector(n, RELAY),
            strategy: Some(strategy(r)),
            min_ready_seconds: Some(STEADY),
            revision_history_limit: Some(10),
            template: PodTemplateSpec {
                metadata: Some(pod_meta(i.cluster, RELAY, config::relay_digest(i))),
                spec: Some(pod_spec(i)),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// A new one is there before an old one goes; with ports of the node there is no room for both.
fn strategy(r: &Relay) -> DeploymentStrategy {
    let (surge, unavailable) = match r.expose.type_ {
        ExposeType::HostPort => (0, 1),
        _ => (1, 0),
    };
    DeploymentStrategy {
        type_: Some("RollingUpdate".to_owned()),
        rolling_update: Some(RollingUpdateDeployment {
            max_surge: Some(IntOrString::Int(surge)),
            max_unavailable: Some(IntOrString::Int(unavailable)),
        }),
    }
}

fn pod_spec(i: &BuildInput<'_>) -> PodSpec {
    let n = i.cluster.names();
    let s = i.cluster.spec();
    let r = &s.relay;
    PodSpec {
        service_account_name: Some(n.relay()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        termination_grace_period_seconds: Some(i64::from(r.drain_seconds) + BESIDES_DRAINING),
        image_pull_secrets: some(
            &s.image_pull_secrets
                .iter()
                .map(Into::into)
                .collect::<Vec<_>>(),
        ),
        node_selector: (!r.node_selector.is_empty()).then(|| r.node_selector.clone()),
        tolerations: some(&r.tolerations),
        priority_class_name: r.priority_class_name.clone(),
        affinity: Some(apart(i.cluster, RELAY)),
        topology_spread_constraints: Some(spread(i.cluster, RELAY)),
        containers: vec![container(i)],
        volumes: Some(vec![
            config_volume("config", n.relay_config()),
            secret_volume("identity", n.relay_identity()),
            secret_volume("certificate", r.certificate.secret_name.clone()),
            scratch_volume("tmp"),
        ]),
        ..PodSpec::default()
    }
}

fn container(i: &BuildInput<'_>) -> Container {
    let s = i.cluster.spec();
    Container {
        name: RELAY.to_owned(),
        image: Some(i.relay_image.to_owned()),
        image_pull_policy: Some(s.image_pull_policy.as_str().to_owned()),
        command: Some(vec![config::RELAY_PROGRAM.to_owned()]),
        args: Some(vec![format!("--config={}", config::relay_file())]),
        // All have one configuration and one identity; who is who is told by the name.
        env: Some(vec![pod::pod_name("SEALANE_NAME")]),
        ports: Some(ports(&s.relay)),
        resources: Some(s.relay.resources.clone()),
        startup_probe: Some(pod::startup_probe(2)),
        liveness_probe: Some(pod::liveness_probe()),
        readiness_probe: Some(pod::readiness_probe()),
        security_context: Some(container_security()),
        lifecycle: Some(Lifecycle {
            pre_stop: Some(LifecycleHandler {
                sleep: Some(SleepAction {
                    seconds: STILL_SENT,
                }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(vec![
            read_only("config", config::FOLDER),
            read_only("identity", config::IDENTITY),
            read_only("certificate", config::CERTIFICATE),
            mount("tmp", "/tmp"),
        ]),
        ..Container::default()
    }
}

/// Name, container port and public port of the listeners that are on.
pub(super) fn listeners(r: &Relay) -> Vec<(&'static str, u16, u16)> {
    let l = &r.listeners;
    [
        (l.mx, ("mx", MX_PORT, 25)),
        (l.submission, ("submission", SUBMISSION_PORT, 587)),
        (l.submissions, ("submissions", SUBMISSIONS_PORT, 465)),
    ]
    .into_iter()
    .filter_map(|(on, listener)| on.then_some(listener))
    .collect()
}

fn ports(r: &Relay) -> Vec<ContainerPort> {
    let on_host = r.expose.type_ == ExposeType::HostPort;
    let mut all: Vec<ContainerPort> = listeners(r)
        .into_iter()
        .map(|(name, number, public)| port(name, number, on_host.then_some(public)))
        .collect();
    all.push(port("metrics", METRICS_PORT, None));
    all
}
