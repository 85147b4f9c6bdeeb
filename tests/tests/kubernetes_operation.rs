//! Years of a relay in minutes, under mail load, while the operator is killed again and again: scale 3 → 5 → 3, an upgrade, and at
//! last everything is uninstalled and installed again over the volumes that stayed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rand::Rng;
use sealane_tests::kubernetes::mail::{self, Admin, NAME, NAMESPACE, PATH};
use sealane_tests::kubernetes::manifests::{items, text};
use sealane_tests::kubernetes::membership::Watch;
use sealane_tests::kubernetes::{Cluster, Kubelet, Scope};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Kind, Load};
use sealane_tests::sink::{Sink, SinkConfig};
use sealane_tests::wait;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const START: Duration = Duration::from_secs(240);
/// A change of the control plane by two members, or a restart of all pods, with an operator that is killed meanwhile.
const CHANGE: Duration = Duration::from_secs(600);

/// Kills the operator at random moments, until it is dropped.
struct Killer {
    task: JoinHandle<()>,
    kills: Arc<std::sync::atomic::AtomicUsize>,
}

impl Killer {
    fn start(cluster: &Cluster, kubelet: &Arc<Kubelet>) -> Self {
        let kills = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (api, kubelet, count) = (cluster.api.clone(), Arc::clone(kubelet), Arc::clone(&kills));
        let task = tokio::spawn(async move {
            loop {
                let pause = rand::rng().random_range(1500..7000);
                sleep(Duration::from_millis(pause)).await;
                let pods = api
                    .list("/api/v1/namespaces/mail/pods")
                    .await
                    .unwrap_or_default();
                for pod in pods
                    .iter()
                    .filter(|p| text(p, "/metadata/name").contains("operator"))
                {
                    if kubelet.kill(NAMESPACE, text(pod, "/metadata/name")).await {
                        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            }
        });
        Self { task, kills }
    }

    fn kills(&self) -> usize {
        self.kills.load(std::sync::atomic::Ordering::Relaxed)
    }
}

impl Drop for Killer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn patch(cluster: &Cluster, spec: &Value) -> Result<()> {
    cluster.api.merge(PATH, &json!({ "spec": spec })).await?;
    Ok(())
}

/// Settled, with exactly so many active members, pods and volumes.
async fn members(cluster: &Cluster, admin: &Admin, count: usize) -> Result<()> {
    let began = Instant::now();
    wait::until(&format!("{count} members"), CHANGE, || async {
        let list = admin.json(&["node", "list"]).await?;
        let active = items(&list, "/nodes")
            .filter(|n| text(n, "/kind") == "control-plane" && text(n, "/state") == "active");
        let mut names: Vec<&str> = active.map(|n| text(n, "/name")).collect();
        names.sort_unstable();
        let wanted: Vec<String> = (0..count).map(|n| format!("{NAME}-control-{n}")).collect();
        ensure!(names == wanted, "{names:?}");
        ensure!(
            list.get("settled") == Some(&json!(true)),
            "copies are moving"
        );
        let path = format!("/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims");
        let claims = cluster.api.list(&path).await?;
        ensure!(claims.len() == count, "{} volumes", claims.len());
        let object = cluster.api.get(PATH).await?;
        let ready = format!("{count}/{count}");
        ensure!(text(&object, "/status/membersReady") == ready, "{object:#}");
        Ok(())
    })
    .await?;
    mail::settled(cluster, CHANGE).await?;
    println!(
        "{count} members after {:.1} s",
        began.elapsed().as_secs_f32()
    );
    Ok(())
}

async fn accepting(ledger: &Ledger, more: usize) -> Result<()> {
    let now = Instant::now();
    wait::until("mail accepted", CHANGE, || async {
        let got = ledger.accepted_since(now);
        ensure!(got >= more, "{got} of {more}");
        Ok(())
    })
    .await
}

/// Larger volumes: claims grow, the StatefulSet is made again around its pods, and no pod notices.
async fn larger_volumes(cluster: &Cluster) -> Result<()> {
    let before = uids(cluster).await?;
    patch(
        cluster,
        &json!({ "controlPlane": { "storage": { "size": "2Gi" } } }),
    )
    .await?;
    wait::until("2Gi everywhere", CHANGE, || async {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims");
        for claim in cluster.api.list(&path).await? {
            let capacity = text(&claim, "/status/capacity/storage");
            ensure!(
                capacity == "2Gi",
                "{}: {capacity}",
                text(&claim, "/metadata/name")
            );
        }
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets/{NAME}-control");
        let set = cluster.api.get(&path).await?;
        let size = text(
            &set,
            "/spec/volumeClaimTemplates/0/spec/resources/requests/storage",
        );
        ensure!(size == "2Gi", "the template says {size}");
        Ok(())
    })
    .await?;
    mail::settled(cluster, CHANGE).await?;
    ensure!(uids(cluster).await? == before, "a pod was restarted");
    Ok(())
}

/// Which pods there are, without the operator's: names and uids.
async fn uids(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let pods = cluster
        .api
        .list(&format!("/api/v1/namespaces/{NAMESPACE}/pods"))
        .await?;
    let of = |p: &Value| {
        (
            text(p, "/metadata/name").to_owned(),
            text(p, "/metadata/uid").to_owned(),
        )
    };
    Ok(pods
        .iter()
        .map(of)
        .filter(|(name, _)| !name.contains("operator"))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn three_five_three_and_an_upgrade_under_load_with_a_dying_operator() -> Result<()> {
    let cluster = Cluster::start().await?;
    let kubelet = Arc::new(Kubelet::start(&cluster, Scope::Everything)?);
    let sink = mail::next_hop(&cluster).await?;
    mail::prepare(&cluster).await?;
    let mut values = mail::values(&kubelet, Some(sink.address()))?;
    // One that starts again does not wait for the Lease of the one that was killed: it is to be killed at work.
    values["operator"]["leaderElection"] = json!(false);
    mail::install(&cluster, &values).await?;
    mail::settled(&cluster, START).await?;
    let admin = Admin::new(&cluster, &kubelet).await?;

    let ledger = Arc::new(Ledger::default());
    let load = load::start(
        Load::new(mail::targets(&kubelet)?, 9).pause(Duration::from_millis(100)),
        &ledger,
    );
    accepting(&ledger, 100).await?;
    let watch = Watch::start(admin.clone(), 3);
    let killer = Killer::start(&cluster, &kubelet);
    for count in [5, 3] {
        patch(&cluster, &json!({ "controlPlane": { "replicas": count } })).await?;
        members(&cluster, &admin, count).await?;
        accepting(&ledger, 100).await?;
    }
    let of_node = |n: usize| format!("{NAME}-control-{n}");
    watch.judge(&[
        (&of_node(3), "active"),
        (&of_node(4), "active"),
        (&of_node(4), "removed"),
        (&of_node(3), "removed"),
    ])?;

    larger_volumes(&cluster).await?;

    // Another image: the same programs, but every pod is another one, one at a time.
    let before = uids(&cluster).await?;
    patch(&cluster, &json!({ "image": "sealane:two" })).await?;
    wait::until("all pods run sealane:two", CHANGE, || async {
        let object = cluster.api.get(PATH).await?;
        ensure!(
            text(&object, "/status/version") == "sealane:two",
            "{object:#}"
        );
        Ok(())
    })
    .await?;
    members(&cluster, &admin, 3).await?;
    // A relay node that goes finishes what it has first.
    wait::until("no pod of the old image is left", CHANGE, || async {
        for (name, uid) in uids(&cluster).await? {
            ensure!(before.get(&name) != Some(&uid), "{name} was not restarted");
        }
        Ok(())
    })
    .await?;
    accepting(&ledger, 100).await?;

    // The same names again are other nodes: no id comes back.
    patch(&cluster, &json!({ "controlPlane": { "replicas": 5 } })).await?;
    members(&cluster, &admin, 5).await?;
    watch.judge(&[])?;
    let ids = watch.ids();
    for n in [3, 4] {
        let known = ids.get(&of_node(n)).context("ids")?;
        ensure!(known.len() == 2, "{n}: {known:?}");
    }
    let kills = killer.kills();
    drop((killer, watch));
    ensure!(
        kills >= 10,
        "vacuous: the operator was killed {kills} times"
    );

    load.stop().await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(90)).await?;
    println!("operator killed {kills} times, {verdict}");
    verdict.holds()?;
    ensure!(verdict.permanent == 0, "a 5xx for our own sake: {verdict}");
    ensure!(
        verdict.unknown == 0,
        "a connection broke behind the final dot: {verdict}"
    );
    ensure!(verdict.duplicates == 0, "{verdict}");
    kubelet.stop().await;
    cluster.pass()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn the_queue_is_there_after_uninstalling_and_installing_again() -> Result<()> {
    let cluster = Cluster::start().await?;
    let kubelet = Kubelet::start(&cluster, Scope::Everything)?;
    let sink = mail::next_hop(&cluster).await?;
    mail::prepare(&cluster).await?;
    // Nobody listens there yet: mail waits.
    let later = sealane_tests::ports::free()?;
    let values = mail::values(&kubelet, Some(later))?;
    mail::install(&cluster, &values).await?;
    mail::settled(&cluster, START).await?;
    let first = cluster.api.get(PATH).await?;

    let ledger = Arc::new(Ledger::default());
    let mut targets = mail::targets(&kubelet)?;
    targets.retain(|t| t.kind == Kind::Mx);
    load::run(Load::new(targets, 4).messages(50), &ledger).await;
    ensure!(ledger.accepted() == 50, "{}", ledger.judge(sink.store())?);

    // Uninstalling the operator takes nothing else away.
    cluster
        .helm(&["uninstall", NAME, "--namespace", NAMESPACE, "--wait"])
        .await?;
    ensure!(
        cluster.api.find(PATH).await?.is_some(),
        "the RelayCluster went with the release"
    );
    ensure!(
        uids(&cluster).await?.len() == 5,
        "pods went with the release"
    );

    // The operator comes back, and finds everything as it was.
    mail::install(&cluster, &values).await?;
    mail::settled(&cluster, START).await?;
    let pods = uids(&cluster).await?;

    // Now all of it: the RelayCluster while there is an operator, then the release.
    let gone = [
        "delete",
        "relaycluster",
        NAME,
        "--namespace",
        NAMESPACE,
        "--timeout=180s",
    ];
    cluster.kubectl(&gone).await?;
    wait::until("all pods are gone", START, || async {
        let left = uids(&cluster).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    cluster
        .helm(&["uninstall", NAME, "--namespace", NAMESPACE, "--wait"])
        .await?;
    let claims = format!("/api/v1/namespaces/{NAMESPACE}/persistentvolumeclaims");
    ensure!(
        cluster.api.list(&claims).await?.len() == 3,
        "volumes are kept"
    );
    let ca = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{NAME}-ca");
    ensure!(cluster.api.find(&ca).await?.is_some(), "the CA is kept");

    mail::install(&cluster, &values).await?;
    let second = mail::settled(&cluster, START).await?;
    let id = |object: &Value| text(object, "/status/clusterId").to_owned();
    ensure!(
        !id(&first).is_empty() && id(&first) == id(&second),
        "another cluster was founded: {second:#}"
    );
    for (name, uid) in uids(&cluster).await? {
        ensure!(
            pods.get(&name) != Some(&uid),
            "{name} was there all the time"
        );
    }
    let admin = Admin::new(&cluster, &kubelet).await?;
    let queue = admin.json(&["queue", "list"]).await?;
    ensure!(queue.get("totalWaiting") == Some(&json!(50)), "{queue}");

    // The next hop opens.
    let open = Sink::start(SinkConfig::at(later, cluster.root.join("sink"))).await?;
    let verdict = ledger.settle(open.store(), Duration::from_secs(90)).await?;
    println!("{verdict}");
    verdict.holds()?;
    ensure!(verdict.duplicates == 0, "{verdict}");
    kubelet.stop().await;
    cluster.pass()
}
