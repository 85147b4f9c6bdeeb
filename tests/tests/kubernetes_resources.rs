//! The custom resources on a real API server: what they explain, what they refuse and in which words, how they scale.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::kubernetes::mail::{self, NAME, NAMESPACE, PATH};
use sealane_tests::kubernetes::manifests::text;
use sealane_tests::kubernetes::{Cluster, assets};
use sealane_tests::wait;
use serde_json::{Value, json};

/// A RelayCluster with something changed (RFC 7386).
fn cluster_with(change: &Value) -> Value {
    let mut spec = json!({
        "image": "sealane:one",
        "relay": { "hostname": "mx.example.org", "certificate": { "secretName": "mx-tls" } },
    });
    merge(&mut spec, change);
    json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayCluster",
        "metadata": { "name": NAME, "namespace": NAMESPACE },
        "spec": spec,
    })
}

fn merge(into: &mut Value, patch: &Value) {
    let (Some(fields), Some(changes)) = (into.as_object_mut(), patch.as_object()) else {
        *into = patch.clone();
        return;
    };
    for (key, value) in changes {
        if value.is_null() {
            fields.remove(key);
        } else {
            merge(fields.entry(key).or_insert(json!({})), value);
        }
    }
}

/// What is wrong, and words that the refusal must have: the field, and what to do.
fn wrong_clusters() -> Vec<(Value, &'static [&'static str])> {
    vec![
        (
            json!({ "relay": { "hostname": "localhost" } }),
            &["relay.hostname", "fully qualified"],
        ),
        (
            json!({ "relay": { "hostname": "mx.example.org." } }),
            &["relay.hostname", "without a dot at the end"],
        ),
        (
            json!({ "relay": { "hostname": null } }),
            &["spec.relay", "required field \"hostname\""],
        ),
        (
            json!({ "relay": { "certificate": null } }),
            &["spec.relay", "required field \"certificate\""],
        ),
        (json!({ "image": "" }), &["spec.image"]),
        (
            json!({ "imagePullPolicy": "Sometimes" }),
            &["imagePullPolicy", "Unsupported value"],
        ),
        (json!({ "relay": { "replicas": -1 } }), &["relay.replicas"]),
        (json!({ "relay": { "replicas": 501 } }), &["relay.replicas"]),
        (
            json!({ "relay": { "listeners": { "mx": false, "submission": false, "submissions": false } } }),
            &["listeners", "at least one"],
        ),
        (
            json!({ "relay": { "expose": { "clientAddress": "Lost" } } }),
            &[
                "clientAddress",
                "SPF",
                "open relay",
                "turn listeners.mx off",
            ],
        ),
        (
            json!({ "relay": { "expose": { "clientAddress": "ProxyProtocol" } } }),
            &["proxyProtocolFrom", "addresses of the load balancer"],
        ),
        (
            json!({ "relay": { "expose": { "proxyProtocolFrom": ["10.0.0.0/8"] } } }),
            &[
                "proxyProtocolFrom",
                "only used with clientAddress ProxyProtocol",
            ],
        ),
        (
            json!({ "relay": { "expose": { "clientAddress": "ProxyProtocol", "proxyProtocolFrom": ["10.0.0.300/8"] } } }),
            &["proxyProtocolFrom", "10.0.0.0/8"],
        ),
        (
            json!({ "relay": { "expose": { "type": "NodePort", "loadBalancerClass": "a" } } }),
            &["loadBalancerClass", "only used with type LoadBalancer"],
        ),
        (
            json!({ "relay": { "expose": { "type": "HostPort", "nodePorts": { "mx": 30025 } } } }),
            &["nodePorts", "NodePort or LoadBalancer"],
        ),
        (
            json!({ "relay": { "autoscaling": { "minReplicas": 5, "maxReplicas": 4 } } }),
            &["autoscaling", "minReplicas must not be above maxReplicas"],
        ),
        (
            json!({ "relay": { "replicas": 0, "autoscaling": { "minReplicas": 1, "maxReplicas": 4 } } }),
            &["relay.replicas", "HorizontalPodAutoscaler"],
        ),
        (
            json!({ "relay": { "expose": { "type": "HostPort" }, "autoscaling": { "maxReplicas": 4 } } }),
            &["autoscaling", "HostPort"],
        ),
        (
            json!({ "relay": { "bodyBudget": "plenty" } }),
            &["bodyBudget", "256MiB"],
        ),
        (json!({ "relay": { "drainSeconds": 4 } }), &["drainSeconds"]),
        (
            json!({ "controlPlane": { "replicas": 4 } }),
            &["controlPlane.replicas", "1, 3, 5 or 7"],
        ),
        (
            json!({ "controlPlane": { "copies": 2 } }),
            &["controlPlane.copies", "1, 3 or 5"],
        ),
        (
            json!({ "controlPlane": { "replicas": 1, "copies": 3 } }),
            &["copies", "a node of its own"],
        ),
        (
            json!({ "controlPlane": { "shards": 65 } }),
            &["controlPlane.shards"],
        ),
        (
            json!({ "controlPlane": { "storage": { "size": "much" } } }),
            &["storage.size", "10Gi"],
        ),
        (
            json!({ "certificates": { "issuer": "CertManager" } }),
            &["certManager", "issuerRef"],
        ),
        (
            json!({ "certificates": { "certManager": { "issuerRef": { "name": "a" } } } }),
            &["certManager", "only used with issuer CertManager"],
        ),
        (
            json!({ "certificates": { "validityHours": 8760, "caValidityHours": 8760 } }),
            &["caValidityHours", "three times"],
        ),
        (
            json!({ "telemetry": { "otlpEndpoint": "collector" } }),
            &["otlpEndpoint", "http://host:4317"],
        ),
        (
            json!({ "telemetry": { "logFormat": "xml" } }),
            &["logFormat", "Unsupported value"],
        ),
        (json!({ "relays": 3 }), &["unknown field", "relays"]),
    ]
}

fn wrong_policies() -> Vec<(Value, &'static [&'static str])> {
    vec![
        (json!([{ "kind": "Domain" }]), &["name", "Required"]),
        (
            json!([{ "kind": "Route", "name": "a" }]),
            &["kind", "Unsupported value", "Destination"],
        ),
        (
            json!([{ "kind": "Submitter", "name": "a", "password": "secret", "senders": ["*"] }]),
            &["password", "takes no password", "passwordVerifierSecretRef"],
        ),
        (
            json!([{ "kind": "Submitter", "name": "a", "senders": ["*"] }]),
            &["passwordVerifierSecretRef", "needs either"],
        ),
        (
            json!([{ "kind": "Domain", "name": "a.example", "senders": ["*"] }]),
            &["senders", "only a Submitter"],
        ),
        (
            json!([{ "kind": "Domain", "name": "a.example" }, { "kind": "Domain", "name": "a.example" }]),
            &["duplicate entries", "a.example"],
        ),
    ]
}

async fn refused(cluster: &Cluster, object: Value, words: &[&str]) -> Result<()> {
    let answer = cluster
        .apply_with(std::slice::from_ref(&object), &["--validate=strict"])
        .await;
    let said = answer
        .err()
        .with_context(|| format!("it was taken: {object}"))?
        .to_string();
    for word in words {
        ensure!(said.contains(word), "no {word:?} in: {said}\nfor {object}");
    }
    Ok(())
}

async fn explained(cluster: &Cluster) -> Result<()> {
    for (path, words) in [
        (
            "relaycluster",
            &[
                "KIND:",
                "RelayCluster",
                "A mail relay",
                "one disruptive step at a time",
            ][..],
        ),
        (
            "relaycluster.spec",
            &[
                "image",
                "-required-",
                "controlPlane",
                "The control plane: it keeps the queue",
            ],
        ),
        (
            "relaycluster.spec.relay.expose.clientAddress",
            &["ENUM:", "ProxyProtocol", "externalTrafficPolicy: Local"],
        ),
        (
            "relaycluster.spec.controlPlane.copies",
            &["Of 3, one may be lost without a pause"],
        ),
        ("relaycluster.status.conditions", &["QuorumHealthy"]),
        ("slc.status.members", &["Raft node id"]),
        (
            "relaypolicy.spec.documents",
            &[
                "passwordVerifierSecretRef",
                "retry {delays, lifetime, tlsLifetime}",
            ],
        ),
        ("slp.spec.order", &["no policy overrides another"]),
    ] {
        // Lines are broken where they fit.
        let said = cluster.kubectl(&["explain", path]).await?;
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        for word in words {
            ensure!(
                said.contains(word),
                "kubectl explain {path}: no {word:?} in: {said}"
            );
        }
    }
    Ok(())
}

/// What is fixed once it is there.
async fn immutable(cluster: &Cluster) -> Result<()> {
    for (change, words) in [
        (
            json!({ "controlPlane": { "shards": 16 } }),
            &["shards", "restore a backup"][..],
        ),
        (
            json!({ "controlPlane": { "replicas": 5, "copies": 5 } }),
            &["copies", "restore a backup"],
        ),
        (
            json!({ "controlPlane": { "storage": { "size": "5Gi" } } }),
            &["storage.size", "cannot shrink"],
        ),
        (
            json!({ "controlPlane": { "storage": { "storageClassName": "fast" } } }),
            &["storageClassName", "cannot change their class"],
        ),
    ] {
        refused(cluster, cluster_with(&change), words).await?;
    }
    // And what may change.
    for change in [
        json!({ "controlPlane": { "storage": { "size": "20Gi" } } }),
        json!({ "controlPlane": { "replicas": 5, "storage": { "size": "20Gi" } } }),
        json!({ "image": "sealane:two", "controlPlane": { "replicas": 3, "storage": { "size": "20480Mi" } } }),
    ] {
        cluster.apply(&[cluster_with(&change)]).await?;
    }
    Ok(())
}

async fn scaled(cluster: &Cluster) -> Result<()> {
    let before = cluster.api.get(PATH).await?;
    let replicas = |object: &Value| object.pointer("/spec/relay/replicas").cloned();
    ensure!(
        replicas(&before) == Some(json!(2)),
        "the default is stored: {before}"
    );
    cluster
        .kubectl(&[
            "scale",
            "relaycluster/mail",
            "--replicas=5",
            "--namespace",
            NAMESPACE,
        ])
        .await?;
    let after = cluster.api.get(PATH).await?;
    ensure!(replicas(&after) == Some(json!(5)), "{after}");
    // What an autoscaler reads.
    let status =
        json!({ "status": { "replicas": 4, "selector": "app.kubernetes.io/instance=mail" } });
    cluster
        .api
        .merge(&format!("{PATH}/status"), &status)
        .await?;
    let scale = cluster.api.get(&format!("{PATH}/scale")).await?;
    ensure!(
        scale.pointer("/spec/replicas") == Some(&json!(5)),
        "{scale}"
    );
    ensure!(
        scale.pointer("/status/replicas") == Some(&json!(4)),
        "{scale}"
    );
    ensure!(
        text(&scale, "/status/selector") == "app.kubernetes.io/instance=mail",
        "{scale}"
    );
    cluster
        .kubectl(&[
            "autoscale",
            "relaycluster/mail",
            "--min=2",
            "--max=9",
            "--cpu=60%",
            "--namespace",
            NAMESPACE,
        ])
        .await?;
    Ok(())
}

async fn listed(cluster: &Cluster) -> Result<()> {
    let wide = cluster
        .kubectl(&["get", "slc", "--namespace", NAMESPACE, "-o", "wide"])
        .await?;
    let heads = [
        "NAME", "RELAYS", "READY", "MEMBERS", "QUORUM", "WAITING", "POLICY", "AGE", "IMAGE", "STEP",
    ];
    let found: Vec<&str> = wide
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    ensure!(found == heads, "{wide}");
    let all = cluster
        .kubectl(&["get", "sealane", "--namespace", NAMESPACE])
        .await?;
    ensure!(
        all.contains("relaycluster.sealane.io/mail") && all.contains("relaypolicy.sealane.io/base"),
        "{all}"
    );
    let of_mail = [
        "get",
        "slp",
        "--namespace",
        NAMESPACE,
        "--field-selector",
        "spec.clusterRef.name=mail",
    ];
    let of_mail = cluster.kubectl(&of_mail).await?;
    ensure!(of_mail.contains("base"), "{of_mail}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn resources_explain_refuse_and_scale_as_promised() -> Result<()> {
    let cluster = Cluster::start().await?;
    let crds = assets::chart()?.join("crds").display().to_string();
    let said = cluster
        .kubectl(&["apply", "--server-side", "-f", &crds])
        .await?;
    ensure!(!said.contains("Warning"), "{said}");
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ])
        .await?;
    cluster.namespace(NAMESPACE).await?;
    // Established is said before the API server publishes the schema.
    wait::until("the schema is published", Duration::from_secs(60), || {
        cluster.kubectl(&["explain", "relaycluster"])
    })
    .await?;
    explained(&cluster).await?;

    for (change, words) in wrong_clusters() {
        refused(&cluster, cluster_with(&change), words).await?;
    }
    for name in [
        "Mail",
        "9mail",
        "a-name-that-is-longer-than-forty-characters",
    ] {
        let mut object = cluster_with(&json!({}));
        object["metadata"]["name"] = json!(name);
        refused(&cluster, object, &["name"]).await?;
    }
    for (documents, words) in wrong_policies() {
        refused(&cluster, mail::policy("base", &documents), words).await?;
    }

    let policy = mail::documents(([127, 0, 0, 1], 25).into());
    cluster
        .apply(&[cluster_with(&json!({})), mail::policy("base", &policy)])
        .await?;
    scaled(&cluster).await?;
    listed(&cluster).await?;
    immutable(&cluster).await?;
    cluster.pass()
}
