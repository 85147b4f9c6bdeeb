//! What a kubelet says of a pod.

use serde_json::{Value, json};

use super::container::Container;
use super::pod::LocalPod;

/// `status` of the pod.
pub(super) fn of(pod: &LocalPod) -> Value {
    let over = |c: &Container| c.running.is_none() && c.ended.is_some();
    let started = pod
        .containers
        .iter()
        .any(|c| c.running.is_some() || c.ended.is_some());
    let all_over = !pod.containers.is_empty() && pod.containers.iter().all(over);
    let failed = pod
        .containers
        .iter()
        .any(|c| c.ended.as_ref().is_some_and(|e| e.code != 0));
    let phase = match (started, all_over && !pod.starts_again()) {
        (false, _) => "Pending",
        (true, false) => "Running",
        (true, true) if failed => "Failed",
        (true, true) => "Succeeded",
    };
    let ready = pod.is_ready();
    let condition = |kind: &str, is: bool, since: &str| json!({ "type": kind, "status": if is { "True" } else { "False" }, "lastTransitionTime": since });
    json!({
        "phase": phase,
        "hostIP": "192.0.2.1",
        "podIP": "192.0.2.2",
        "podIPs": [{ "ip": "192.0.2.2" }],
        "startTime": pod.began,
        "conditions": [
            condition("PodScheduled", true, &pod.began),
            condition("Initialized", true, &pod.began),
            condition("ContainersReady", ready, &pod.ready_since),
            condition("Ready", ready, &pod.ready_since),
        ],
        "containerStatuses": pod.containers.iter().map(|c| container(c, pod.starts_again())).collect::<Vec<_>>(),
    })
}

fn container(c: &Container, again: bool) -> Value {
    let over = c.ended.as_ref().map(|e| {
        let reason = if e.code == 0 { "Completed" } else { "Error" };
        json!({ "terminated": { "exitCode": e.code, "reason": reason, "startedAt": e.began, "finishedAt": e.at } })
    });
    let state = match (&c.running, &over) {
        (Some(_), _) => json!({ "running": { "startedAt": c.began } }),
        (None, None) => json!({ "waiting": { "reason": "ContainerCreating" } }),
        (None, Some(over)) if !again => over.clone(),
        (None, Some(_)) => {
            json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off" } })
        }
    };
    let mut status = json!({
        "name": c.name,
        "image": c.image,
        "imageID": c.image,
        "ready": c.ready,
        "started": c.running.is_some(),
        "restartCount": c.restarts,
        "state": state,
    });
    if let (true, Some(over)) = (again, over) {
        status["lastState"] = over;
    }
    status
}
