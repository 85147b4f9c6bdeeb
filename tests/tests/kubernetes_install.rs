//! `helm install` on a real API server: every object that comes of it, whole; scaling; what an upgrade refuses.
//!
//! The operator runs, as a process with the token of its ServiceAccount, so with no more than what the chart's RBAC says. Pods of
//! the relay stay pending.
#![forbid(unsafe_code)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sealane_tests::kubernetes::mail::{self, NAME, NAMESPACE, PATH};
use sealane_tests::kubernetes::manifests::{condition, pod_spec, text, title};
use sealane_tests::kubernetes::{Cluster, Kubelet, Scope, golden, lint};
use sealane_tests::wait;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/mail/deployments/mail-relay";

/// Waits until the operator made what it makes last.
async fn made(cluster: &Cluster) -> Result<()> {
    wait::until("the relay's Deployment and status", LIMIT, || async {
        cluster.api.get(DEPLOYMENT).await?;
        let object = cluster.api.get(PATH).await?;
        ensure!(condition(&object, "Progressing").is_some(), "no status yet");
        Ok(())
    })
    .await
}

/// Nothing in a golden file may depend on the ports of this run.
fn without_ports(mut objects: Vec<Value>) -> Vec<Value> {
    for object in &mut objects {
        if let Some(endpoints) =
            object.pointer_mut("/metadata/annotations/sealane.io~1control-endpoints")
        {
            *endpoints = json!("(ports)");
        }
    }
    objects
}

async fn release(cluster: &Cluster) -> Result<Vec<Value>> {
    let namespaced = [
        "/apis/apps/v1/namespaces/mail/deployments/mail-sealane-operator",
        "/api/v1/namespaces/mail/serviceaccounts/mail-sealane-operator",
        "/apis/networking.k8s.io/v1/namespaces/mail/networkpolicies/mail-sealane-operator",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/mail/roles/mail-sealane-operator-lease",
        "/apis/rbac.authorization.k8s.io/v1/namespaces/mail/rolebindings/mail-sealane-operator-lease",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/mail-mail-sealane-operator",
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/mail-mail-sealane-operator",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/mail-mail-sealane-operator-edit",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/mail-mail-sealane-operator-view",
        PATH,
    ];
    let mut all = Vec::new();
    for path in namespaced {
        all.push(cluster.api.get(path).await?);
    }
    all.push(cluster.api.get(&format!("{}/base", mail::POLICIES)).await?);
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn helm_install_makes_exactly_these_objects() -> Result<()> {
    let cluster = Cluster::start().await?;
    let kubelet = Kubelet::start(&cluster, Scope::Operator)?;
    mail::prepare(&cluster).await?;
    let values = mail::values(&kubelet, Some(([192, 0, 2, 9], 25).into()))?;
    let notes = mail::install(&cluster, &values).await?;
    for hint in [
        "kubectl -n mail get relaycluster mail",
        "helm -n mail test mail",
        "scale relaycluster/mail",
    ] {
        ensure!(notes.contains(hint), "no {hint:?} in the notes: {notes}");
    }
    made(&cluster).await?;

    golden::compare("release", &without_ports(release(&cluster).await?))?;
    // Volumes and pods are of the StatefulSet controller: they come when they come.
    let children: Vec<Value> = mail::children(&cluster)
        .await?
        .into_iter()
        .filter(|o| text(o, "/kind") != "PersistentVolumeClaim")
        .collect();
    golden::compare("children", &children)?;
    let faults: Vec<String> = children.iter().flat_map(lint::faults).collect();
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    let pods = children.iter().filter(|o| pod_spec(o).is_some()).count();
    ensure!(
        pods == 2,
        "a StatefulSet and a Deployment: {:?}",
        children.iter().map(title).collect::<Vec<_>>()
    );

    // As the API server completes them, the pods are let into a namespace for restricted ones.
    wait::until("pods of the relay", LIMIT, || async {
        let pods = cluster.api.list("/api/v1/namespaces/mail/pods").await?;
        let ours = |p: &&Value| text(p, "/metadata/labels/sealane.io~1cluster") == NAME;
        let count = pods.iter().filter(ours).count();
        ensure!(count == 5, "{count} pods");
        Ok(())
    })
    .await?;
    scales(&cluster).await?;
    another_namespace(&cluster).await?;
    refuses_old_definitions(&cluster, &values).await?;
    nothing_is_forbidden(&kubelet, &cluster).await?;
    kubelet.stop().await;
    cluster.pass()
}

async fn scales(cluster: &Cluster) -> Result<()> {
    let replicas = |n: u64| async move {
        wait::until(&format!("{n} relay nodes"), LIMIT, || async {
            let found = cluster.api.get(DEPLOYMENT).await?;
            let found = found.pointer("/spec/replicas").and_then(Value::as_u64);
            ensure!(found == Some(n), "{found:?}");
            Ok(())
        })
        .await
    };
    replicas(2).await?;
    for n in [5, 3] {
        let args = format!("--replicas={n}");
        cluster
            .kubectl(&[
                "scale",
                "relaycluster/mail",
                &args,
                "--namespace",
                NAMESPACE,
            ])
            .await?;
        replicas(n).await?;
    }
    Ok(())
}

/// A RelayCluster of the same name in another namespace is another one, and goes without the first.
async fn another_namespace(cluster: &Cluster) -> Result<()> {
    const OTHER: &str = "other";
    let there = |path: &str| path.replacen("/namespaces/mail/", "/namespaces/other/", 1);
    cluster.namespace(OTHER).await?;
    let mut certificate = mail::certificate()?;
    certificate["metadata"]["namespace"] = json!(OTHER);
    let mut spec = mail::spec();
    spec["image"] = json!("sealane:one");
    let relay = json!({
        "apiVersion": "sealane.io/v1alpha1",
        "kind": "RelayCluster",
        "metadata": { "name": NAME, "namespace": OTHER },
        "spec": spec,
    });
    cluster.apply(&[certificate, relay]).await?;
    wait::until("the other Deployment", LIMIT, || async {
        cluster.api.get(&there(DEPLOYMENT)).await.map(drop)
    })
    .await?;
    let ca = "/api/v1/namespaces/mail/secrets/mail-ca";
    let (one, two) = (
        cluster.api.get(ca).await?,
        cluster.api.get(&there(ca)).await?,
    );
    ensure!(
        one.get("data") != two.get("data"),
        "one CA for two clusters"
    );
    let before = cluster.api.get(DEPLOYMENT).await?;
    cluster
        .kubectl(&[
            "delete",
            "relaycluster",
            NAME,
            "--namespace",
            OTHER,
            "--timeout=120s",
        ])
        .await?;
    wait::until("the other cluster's objects are gone", LIMIT, || async {
        for path in [
            DEPLOYMENT,
            "/apis/apps/v1/namespaces/mail/statefulsets/mail-control",
            "/api/v1/namespaces/mail/services/mail-smtp",
            "/api/v1/namespaces/mail/secrets/mail-relay-identity",
        ] {
            let left = cluster.api.find(&there(path)).await?;
            ensure!(left.is_none(), "{}", there(path));
        }
        Ok(())
    })
    .await?;
    cluster
        .api
        .get(&there(ca))
        .await
        .context("the CA is kept")?;
    let after = cluster.api.get(DEPLOYMENT).await?;
    ensure!(
        text(&before, "/metadata/uid") == text(&after, "/metadata/uid"),
        "the first one was made again"
    );
    Ok(())
}

/// The cluster has definitions of another version: an upgrade says so, and says what to run.
async fn refuses_old_definitions(cluster: &Cluster, values: &Value) -> Result<()> {
    mail::install(cluster, values).await?;
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/relaypolicies.sealane.io";
    let mut crd = cluster.api.get(path).await?;
    let order =
        "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/order/description";
    *crd.pointer_mut(order).context("order")? = json!("As it was.");
    let versions = crd.pointer("/spec/versions").cloned();
    cluster
        .api
        .merge(path, &json!({ "spec": { "versions": versions } }))
        .await?;
    let refused = mail::install(cluster, values).await;
    let said = refused.err().context("it was upgraded")?.to_string();
    ensure!(
        said.contains("helm show crds") && said.contains("relaypolicies"),
        "{said}"
    );

    let chart = sealane_tests::kubernetes::assets::chart()?
        .display()
        .to_string();
    let crds = cluster.helm(&["show", "crds", &chart]).await?;
    let file = cluster.write("crds.yaml", &crds)?.display().to_string();
    cluster
        .kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &file])
        .await?;
    mail::install(cluster, values).await?;
    Ok(())
}

/// RBAC is enough for what the operator did so far.
async fn nothing_is_forbidden(kubelet: &Kubelet, cluster: &Cluster) -> Result<()> {
    let pods = cluster.api.list("/api/v1/namespaces/mail/pods").await?;
    let operator = pods
        .iter()
        .find(|p| text(p, "/metadata/name").contains("operator"));
    let name = text(operator.context("the operator's pod")?, "/metadata/name").to_owned();
    let log = kubelet.log(NAMESPACE, &name);
    ensure!(log.lines().count() > 3, "it said nothing: {log}");
    for line in log.lines() {
        ensure!(!line.to_lowercase().contains("forbidden"), "{line}");
    }
    Ok(())
}
