use super::*;
use crate::{events::Events, fake_api::FakeApi, metrics::Metrics};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};

const CLUSTER: &str = "/apis/sealane.io/v1alpha1/namespaces/ns/relayclusters/mail";

fn context(api: &Arc<FakeApi>) -> Arc<Context> {
    let client = api.client();
    let events = Events::new(client.clone(), "test");
    let metrics = Metrics::new(&mut Registry::default());
    Arc::new(Context::new(
        client,
        events,
        metrics,
        false,
        Duration::from_secs(600),
    ))
}

fn put(api: &FakeApi, spec: &Value) {
    let object = json!({
        "apiVersion": "sealane.io/v1alpha1", "kind": "RelayCluster",
        "metadata": {"name": "mail", "namespace": "ns", "uid": "u-1", "generation": 1},
        "spec": spec,
    });
    api.put(CLUSTER, object);
}

fn spec() -> Value {
    json!({
        "image": "sealane:1",
        "relay": {"hostname": "mx.example.org", "certificate": {"secretName": "public"}},
    })
}

async fn once(api: &FakeApi, context: &Arc<Context>) -> Action {
    let cluster = serde_json::from_value(api.get(CLUSTER).unwrap()).unwrap();
    pass(Arc::new(cluster), context.clone()).await.unwrap()
}

fn condition_of(object: &Value, name: &str) -> (String, String) {
    let all = object["status"]["conditions"].as_array().unwrap();
    let found = all.iter().find(|c| c["type"] == name).unwrap();
    let text = |key: &str| found[key].as_str().unwrap().to_owned();
    (text("status"), text("reason"))
}

#[tokio::test]
async fn the_first_pass_makes_everything_and_the_next_one_writes_nothing_new() {
    let (api, spec) = (FakeApi::new(), spec());
    put(&api, &spec);
    let context = context(&api);
    once(&api, &context).await;

    let there = |path: &str| api.get(path).unwrap_or_else(|| panic!("{path} is missing"));
    let set = there("/apis/apps/v1/namespaces/ns/statefulsets/mail-control");
    assert_eq!(set["spec"]["replicas"], 3);
    let relays = there("/apis/apps/v1/namespaces/ns/deployments/mail-relay");
    assert_eq!(relays["metadata"]["ownerReferences"][0]["uid"], "u-1");
    let ca = there("/api/v1/namespaces/ns/secrets/mail-ca");
    assert!(ca["metadata"]["ownerReferences"].is_null(), "the CA stays");
    let control = there("/api/v1/namespaces/ns/secrets/mail-control-identity");
    let keys: Vec<&String> = control["data"].as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 7, "{keys:?}");
    there("/api/v1/namespaces/ns/secrets/mail-relay-identity");
    there("/api/v1/namespaces/ns/secrets/mail-operator-identity");

    let cluster = there(CLUSTER);
    assert_eq!(
        cluster["metadata"]["finalizers"],
        json!(["sealane.io/cleanup"])
    );
    assert_eq!(condition_of(&cluster, "Progressing").0, "True");
    assert_eq!(
        condition_of(&cluster, "CertificatesReady"),
        ("False".to_owned(), "Missing".to_owned())
    );
    assert_eq!(cluster["status"]["founded"], false);

    // The step is over: what is waited for is said once more, then nothing is written but what is applied anyway.
    once(&api, &context).await;
    api.writes();
    once(&api, &context).await;
    let written = api.writes();
    let others: Vec<&String> = written
        .iter()
        .filter(|w| !w.starts_with("PATCH") || w.contains("relayclusters"))
        .collect();
    assert!(others.is_empty(), "{others:?}");
    let again = there("/api/v1/namespaces/ns/secrets/mail-ca");
    assert_eq!(again["data"], ca["data"]);
}

#[tokio::test]
async fn a_spec_that_is_refused_changes_nothing() {
    let (api, mut spec) = (FakeApi::new(), spec());
    spec["relay"]["hostname"] = "mx".into();
    put(&api, &spec);
    let context = context(&api);
    once(&api, &context).await;
    let cluster = api.get(CLUSTER).unwrap();
    assert_eq!(
        condition_of(&cluster, "Degraded"),
        ("True".to_owned(), "Invalid".to_owned())
    );
    let made = api.writes();
    let children: Vec<&String> = made
        .iter()
        .filter(|w| !w.contains("relayclusters") && !w.contains("events"))
        .collect();
    assert!(children.is_empty(), "{children:?}");
}

#[tokio::test]
async fn while_it_is_paused_nothing_is_made() {
    let (api, mut spec) = (FakeApi::new(), spec());
    spec["paused"] = true.into();
    put(&api, &spec);
    let context = context(&api);
    once(&api, &context).await;
    let made = api.writes();
    assert!(made.iter().all(|w| w.contains("relayclusters")), "{made:?}");
    let cluster = api.get(CLUSTER).unwrap();
    assert_eq!(
        condition_of(&cluster, "Progressing"),
        ("False".to_owned(), "Paused".to_owned())
    );
}

#[tokio::test]
async fn a_cluster_that_goes_waits_for_its_relay_nodes_and_leaves_the_ca() {
    let (api, spec) = (FakeApi::new(), spec());
    put(&api, &spec);
    let context = context(&api);
    once(&api, &context).await;
    let pod = "/api/v1/namespaces/ns/pods/mail-relay-1";
    let labels = json!({"sealane.io/cluster": "mail", "app.kubernetes.io/component": "relay-node"});
    api.put(
        pod,
        json!({"metadata": {"name": "mail-relay-1", "namespace": "ns", "labels": labels}}),
    );
    let mut cluster = api.get(CLUSTER).unwrap();
    cluster["metadata"]["deletionTimestamp"] = jiff::Timestamp::now().to_string().into();
    api.put(CLUSTER, cluster);

    once(&api, &context).await;
    let finalizers = |api: &FakeApi| api.get(CLUSTER).unwrap()["metadata"]["finalizers"].clone();
    assert_eq!(finalizers(&api), json!(["sealane.io/cleanup"]));
    assert!(
        api.get("/apis/apps/v1/namespaces/ns/deployments/mail-relay")
            .is_none()
    );

    api.remove(pod);
    once(&api, &context).await;
    assert_eq!(finalizers(&api), json!([]));
    assert!(api.get("/api/v1/namespaces/ns/secrets/mail-ca").is_some());
}
