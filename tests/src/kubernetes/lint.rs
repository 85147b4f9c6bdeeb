//! What must hold for every object that we ask Kubernetes to run: restricted pods, permissions that are named one by one,
//! resources, probes.

use serde_json::Value;

use super::manifests::{items, pod_spec, text, title};

/// Everything that is wrong with an object, one sentence each. Empty: nothing.
#[must_use]
pub fn faults(object: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    if let Some(spec) = pod_spec(object) {
        pod(object, spec, &mut faults);
    }
    if matches!(text(object, "/kind"), "Role" | "ClusterRole") {
        permissions(object, &mut faults);
    }
    let title = title(object);
    faults
        .into_iter()
        .map(|fault| format!("{title}: {fault}"))
        .collect()
}

fn is(object: &Value, path: &str, expected: &Value) -> bool {
    object.pointer(path) == Some(expected)
}

fn pod(object: &Value, spec: &Value, faults: &mut Vec<String>) {
    let yes = Value::Bool(true);
    let mut demand = |holds: bool, fault: &str| {
        if !holds {
            faults.push(fault.to_owned());
        }
    };
    demand(
        is(spec, "/securityContext/runAsNonRoot", &yes),
        "may run as root",
    );
    let user = spec
        .pointer("/securityContext/runAsUser")
        .and_then(Value::as_u64);
    demand(user.is_some_and(|n| n > 0), "no user of its own");
    let seccomp = text(spec, "/securityContext/seccompProfile/type");
    demand(seccomp == "RuntimeDefault", "no seccomp profile");
    for shared in ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"] {
        demand(
            spec.get(shared).is_none_or(|v| v != &yes),
            &format!("{shared} is on"),
        );
    }
    demand(
        !items(spec, "/volumes").any(|v| v.get("hostPath").is_some()),
        "mounts a path of the machine",
    );
    demand(
        is(spec, "/enableServiceLinks", &Value::Bool(false)),
        "has variables for every Service of its namespace",
    );
    // Only the operator calls the API.
    let calls = text(
        object,
        "/spec/template/metadata/labels/app.kubernetes.io~1name",
    ) == "sealane-operator";
    let token = spec.get("automountServiceAccountToken");
    demand(
        calls || token == Some(&Value::Bool(false)),
        "has a token that it does not need",
    );
    demand(
        items(spec, "/containers").next().is_some(),
        "has no container",
    );
    for container in items(spec, "/containers").chain(items(spec, "/initContainers")) {
        for fault in container_faults(container) {
            demand(
                false,
                &format!("container {}: {fault}", text(container, "/name")),
            );
        }
    }
}

fn container_faults(container: &Value) -> Vec<String> {
    let mut faults = Vec::new();
    let mut demand = |holds: bool, fault: &str| {
        if !holds {
            faults.push(fault.to_owned());
        }
    };
    let security = container
        .get("securityContext")
        .cloned()
        .unwrap_or_default();
    let (yes, no) = (Value::Bool(true), Value::Bool(false));
    demand(
        is(&security, "/allowPrivilegeEscalation", &no),
        "may escalate privileges",
    );
    demand(
        is(&security, "/readOnlyRootFilesystem", &yes),
        "may write its root file system",
    );
    demand(is(&security, "/runAsNonRoot", &yes), "may run as root");
    demand(!is(&security, "/privileged", &yes), "is privileged");
    demand(
        items(&security, "/capabilities/drop").eq(["ALL"]),
        "keeps capabilities",
    );
    demand(
        items(&security, "/capabilities/add").next().is_none(),
        "adds capabilities",
    );
    for amount in [
        "/resources/requests/cpu",
        "/resources/requests/memory",
        "/resources/limits/memory",
    ] {
        demand(
            container.pointer(amount).is_some(),
            &format!("{amount} is not set"),
        );
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        demand(container.get(probe).is_some(), &format!("no {probe}"));
    }
    let image = text(container, "/image");
    let tag = image.rsplit_once('/').map_or(image, |(_, last)| last);
    let fixed = tag.contains('@') || tag.split_once(':').is_some_and(|(_, tag)| tag != "latest");
    demand(fixed, &format!("image {image:?}: which one is not said"));
    demand(
        container.get("imagePullPolicy").is_some(),
        "no imagePullPolicy",
    );
    demand(
        text(container, "/terminationMessagePolicy") == "FallbackToLogsOnError",
        "why it ended is not in its status",
    );
    faults
}

fn permissions(object: &Value, faults: &mut Vec<String>) {
    for rule in items(object, "/rules") {
        for part in ["apiGroups", "resources", "verbs"] {
            let path = format!("/{part}");
            let mut words = items(rule, &path).filter_map(Value::as_str).peekable();
            if words.peek().is_none() {
                faults.push(format!("a rule without {part}: {rule}"));
            }
            for word in words {
                if word.contains('*') {
                    faults.push(format!("a wildcard in {part}: {rule}"));
                }
                if matches!(
                    word,
                    "escalate"
                        | "bind"
                        | "impersonate"
                        | "deletecollection"
                        | "pods/exec"
                        | "nodes"
                ) {
                    faults.push(format!("{word}: {rule}"));
                }
            }
        }
        if rule.get("nonResourceURLs").is_some() {
            faults.push(format!("URLs that are no resources: {rule}"));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_careless_pod_has_many_faults() {
        let pod = json!({ "kind": "Pod", "metadata": { "name": "a" }, "spec": {
            "hostNetwork": true,
            "containers": [{ "name": "c", "image": "registry:5000/x", "securityContext": { "capabilities": { "drop": ["NET_RAW"] } } }],
        } });
        let faults = faults(&pod).join("\n");
        for expected in [
            "hostNetwork",
            "keeps capabilities",
            "no livenessProbe",
            "which one is not said",
            "token",
            "limits/memory",
        ] {
            assert!(faults.contains(expected), "{expected}: {faults}");
        }
    }

    #[test]
    fn wildcards_and_powers_over_others_are_seen() {
        let role =
            |rule: Value| json!({ "kind": "Role", "metadata": { "name": "r" }, "rules": [rule] });
        let good = json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] });
        assert!(faults(&role(good)).is_empty());
        for bad in [
            json!({ "apiGroups": ["*"], "resources": ["pods"], "verbs": ["get"] }),
            json!({ "apiGroups": [""], "resources": ["pods/*"], "verbs": ["get"] }),
            json!({ "apiGroups": [""], "resources": ["pods"], "verbs": ["*"] }),
            json!({ "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles"], "verbs": ["escalate"] }),
            json!({ "nonResourceURLs": ["/metrics"], "verbs": ["get"] }),
        ] {
            assert!(!faults(&role(bad.clone())).is_empty(), "{bad}");
        }
    }
}
