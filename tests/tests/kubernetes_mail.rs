//! A relay that helm installed, with real processes for its pods: mail, policy, conflicts, certificates, `helm test`.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealane_tests::kubernetes::mail::{
    self, Admin, Exchange, NAMESPACE, PATH, POLICIES, pem_body, secret_value,
};
use sealane_tests::kubernetes::manifests::{condition, text};
use sealane_tests::kubernetes::{Cluster, Kubelet, Scope};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::sink::Sink;
use sealane_tests::wait;
use serde_json::{Value, json};

const START: Duration = Duration::from_secs(240);
const LIMIT: Duration = Duration::from_secs(120);
/// Less than the minute after which the operator looks without being told.
const PROMPT: Duration = Duration::from_secs(30);
/// When the CA is to be replaced: the relay takes mail by then.
const DUE: Duration = Duration::from_secs(150);
/// Until another one signs.
const ROTATION: Duration = Duration::from_secs(400);

async fn policy(cluster: &Cluster, name: &str) -> Result<Value> {
    cluster.api.get(&format!("{POLICIES}/{name}")).await
}

async fn until(cluster: &Cluster, name: &str, kind: &str, status: &str) -> Result<(Value, String)> {
    wait::until(&format!("{name} {kind}={status}"), LIMIT, || async {
        let object = policy(cluster, name).await?;
        let (now, _, message) = condition(&object, kind).context("no such condition yet")?;
        ensure!(now == status, "{kind}={now}: {message}");
        Ok((object, message))
    })
    .await
}

fn revision(object: &Value, path: &str) -> u64 {
    object.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

/// The names of the live policy's documents, as the control plane says them.
async fn live(admin: &Admin) -> Result<Vec<String>> {
    let policy = admin.json(&["policy", "get"]).await?;
    let documents = policy
        .get("documents")
        .unwrap_or(&policy)
        .as_array()
        .context("documents")?
        .clone();
    let mut names: Vec<String> = documents
        .iter()
        .map(|d| format!("{}/{}", text(d, "/kind"), text(d, "/name")))
        .collect();
    names.sort();
    Ok(names)
}

async fn policies(cluster: &Cluster, admin: &Admin) -> Result<()> {
    let before = ["Destination/*", "Domain/served.example", "Submitter/demo"];
    // What `helm test` took in goes out again.
    wait::until("only the first is live", LIMIT, || async {
        let names = live(admin).await?;
        ensure!(names == before, "{names:?}");
        Ok(())
    })
    .await?;
    let base = until(cluster, "base", "Synced", "True").await?.0;
    let first = revision(&base, "/status/revision");
    ensure!(first > 0, "{base}");
    wait::until("the RelayCluster says the same revision", LIMIT, || async {
        let object = cluster.api.get(PATH).await?;
        let said = revision(&object, "/status/policyRevision");
        ensure!(said == first, "{said}, not {first}");
        Ok(())
    })
    .await?;

    // A second one is joined with the first.
    let more = json!([{ "kind": "Domain", "name": "more.example", "recipients": ["info"] }]);
    cluster.apply(&[mail::policy("more", &more)]).await?;
    let more = until(cluster, "more", "Synced", "True").await?.0;
    let second = revision(&more, "/status/revision");
    ensure!(second > first, "{more}");
    wait::until(
        "the first is live in the second revision",
        LIMIT,
        || async {
            let base = policy(cluster, "base").await?;
            ensure!(revision(&base, "/status/revision") == second, "{base}");
            Ok(())
        },
    )
    .await?;

    // Two that say something about the same domain: both names, and nothing changes.
    let rival = json!([
        { "kind": "Domain", "name": "more.example", "recipients": "any" },
        { "kind": "Domain", "name": "other.example", "recipients": "any" },
    ]);
    cluster.apply(&[mail::policy("rival", &rival)]).await?;
    for name in ["more", "rival"] {
        let (_, message) = until(cluster, name, "Conflict", "True").await?;
        let other = if name == "more" { "rival" } else { "more" };
        ensure!(
            message.contains(other) && message.contains("Domain/more.example"),
            "{name}: {message}"
        );
    }
    let (_, message) = until(cluster, "base", "Synced", "False").await?;
    ensure!(
        message.contains("more") && message.contains("rival"),
        "{message}"
    );
    let object = mail::until(cluster, "PolicySynced", "False", LIMIT).await?;
    ensure!(
        revision(&object, "/status/policyRevision") == second,
        "{object}"
    );
    ensure!(live(admin).await?.len() == 4, "something was applied");

    // Without the rival everything is well again.
    cluster
        .kubectl(&["delete", "relaypolicy", "rival", "--namespace", NAMESPACE])
        .await?;
    mail::until(cluster, "PolicySynced", "True", PROMPT).await?;
    until(cluster, "more", "Conflict", "False").await?;
    until(cluster, "base", "Synced", "True").await?;

    // A document that only the validator can refuse.
    let wrong = json!([{ "kind": "Destination", "name": "wrong.example", "retry": { "delays": ["soon"] } }]);
    cluster.apply(&[mail::policy("wrong", &wrong)]).await?;
    let (_, message) = until(cluster, "wrong", "Valid", "False").await?;
    ensure!(message.contains("delays"), "{message}");
    cluster
        .kubectl(&[
            "delete",
            "relaypolicy",
            "wrong",
            "more",
            "--namespace",
            NAMESPACE,
        ])
        .await?;
    wait::until("what was taken out is not live any more", LIMIT, || async {
        let names = live(admin).await?;
        ensure!(names == before, "{names:?}");
        Ok(())
    })
    .await
}

/// While mail flows, the CA is replaced, and with it all identities; and a user renews the public certificate.
async fn certificates(cluster: &Cluster, kubelet: &Kubelet, sink: &Sink, old: &str) -> Result<()> {
    let ca = || secret_value(cluster, "mail-ca", "tls.crt");
    ensure!(
        pem_body(&ca().await?) == pem_body(old),
        "the CA was replaced before mail flowed"
    );
    let exchange = Exchange::begin(kubelet).await?;
    wait::until("another CA signs", ROTATION, || async {
        ensure!(pem_body(&ca().await?) != pem_body(old), "still the old one");
        Ok(())
    })
    .await?;
    cluster.apply(&[mail::certificate()?]).await?;
    exchange.end(cluster, kubelet, sink, old).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn an_installed_relay_takes_mail_and_follows_its_policies() -> Result<()> {
    let cluster = Cluster::start().await?;
    let kubelet = Kubelet::start(&cluster, Scope::Everything)?;
    let sink = mail::next_hop(&cluster).await?;
    mail::prepare(&cluster).await?;
    let authority = mail::authority(DUE)?;
    cluster.apply(&[authority]).await?;
    let old = secret_value(&cluster, "mail-ca", "tls.crt").await?;
    let values = mail::values(&kubelet, Some(sink.address()))?;
    mail::install(&cluster, &values).await?;
    let began = Instant::now();
    let object = mail::settled(&cluster, START).await?;
    println!("settled after {:.1} s", began.elapsed().as_secs_f32());
    ensure!(text(&object, "/status/membersReady") == "3/3", "{object}");
    ensure!(
        text(&object, "/status/version") == "sealane:one",
        "{object}"
    );
    ensure!(
        object.pointer("/status/founded") == Some(&json!(true)),
        "{object}"
    );

    let ledger = Arc::new(Ledger::default());
    load::run(Load::new(mail::targets(&kubelet)?, 6).messages(60), &ledger).await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(60)).await?;
    verdict.holds()?;
    ensure!(verdict.accepted == 60, "{verdict}");

    certificates(&cluster, &kubelet, &sink, &old).await?;

    let said = cluster
        .helm(&[
            "test",
            mail::NAME,
            "--namespace",
            NAMESPACE,
            "--timeout",
            "3m",
        ])
        .await?;
    ensure!(said.contains("Succeeded"), "{said}");
    wait::until("what the test made is gone", LIMIT, || async {
        let left = cluster
            .api
            .find(&format!("{POLICIES}/mail-sealane-test"))
            .await?;
        ensure!(left.is_none(), "{left:?}");
        Ok(())
    })
    .await?;

    let admin = Admin::new(&cluster, &kubelet).await?;
    policies(&cluster, &admin).await?;
    kubelet.stop().await;
    cluster.pass()
}
