//! A relay whose identities somebody else issues.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sealane_tests::kubernetes::cert_manager::{CertManager, ISSUER};
use sealane_tests::kubernetes::mail::{self, IDENTITIES, NAMESPACE, pem_body, secret_value};
use sealane_tests::kubernetes::{Cluster, Kubelet, Scope};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::sink::{Sink, SinkConfig};
use sealane_tests::wait;
use serde_json::json;

const START: Duration = Duration::from_secs(240);
const ROTATION: Duration = Duration::from_secs(400);
const LIMIT: Duration = Duration::from_secs(120);

/// The issuer exchanges its CA under load: everybody trusts the new one before anybody shows it.
async fn exchange(
    cluster: &Cluster,
    kubelet: &Kubelet,
    sink: &Sink,
    issuer: &CertManager,
) -> Result<()> {
    let ledger = Arc::new(Ledger::default());
    let load = load::start(
        Load::new(mail::targets(kubelet)?, 6).pause(Duration::from_millis(50)),
        &ledger,
    );
    let mut before = kubelet.running(NAMESPACE).await;
    let old = issuer.ca();
    issuer.exchange()?;
    let began = Instant::now();
    wait::until(
        "only the new CA is trusted everywhere",
        ROTATION,
        || async {
            for name in IDENTITIES {
                let bundle = secret_value(cluster, name, "ca.crt").await?;
                let trusted: String = bundle.lines().collect();
                ensure!(trusted.contains(&pem_body(&issuer.ca())), "{name}: not yet");
                ensure!(
                    !trusted.contains(&pem_body(&old)),
                    "{name} trusts the old one"
                );
            }
            Ok(())
        },
    )
    .await?;
    let exchanged = Instant::now() + Duration::from_secs(15);
    wait::until("mail with the new certificates", LIMIT, || async {
        let more = ledger.accepted_since(exchanged);
        ensure!(more >= 100, "{more}");
        Ok(())
    })
    .await?;
    mail::until(cluster, "CertificatesReady", "True", LIMIT).await?;
    load.stop().await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(60)).await?;
    println!(
        "another CA after {:.1} s: {verdict}",
        began.elapsed().as_secs_f32()
    );
    ensure!(
        verdict.lost.is_empty() && verdict.damaged.is_empty(),
        "{verdict}"
    );
    ensure!(
        verdict.temporary + verdict.permanent + verdict.unknown + verdict.broken == 0,
        "a session failed: {verdict}"
    );
    let mut after = kubelet.running(NAMESPACE).await;
    before.sort();
    after.sort();
    ensure!(
        after == before,
        "a pod was restarted: {before:?}, {after:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn identities_come_from_cert_manager_and_its_ca_is_exchanged_under_load() -> Result<()> {
    let cluster = Cluster::start().await?;
    let issuer = CertManager::install(&cluster).await?;
    let kubelet = Kubelet::start(&cluster, Scope::Everything)?;
    let sink = Sink::start(SinkConfig::at(
        ([127, 0, 0, 1], 0).into(),
        cluster.root.join("sink"),
    ))
    .await?;
    mail::prepare(&cluster).await?;
    let mut values = mail::values(&kubelet, Some(sink.address()))?;
    values["cluster"]["spec"]["certificates"] = json!({
        "issuer": "CertManager",
        "certManager": { "issuerRef": { "name": ISSUER } },
    });
    mail::install(&cluster, &values).await?;

    // Nothing is made up while nobody issues.
    let object = mail::until(&cluster, "CertificatesReady", "False", START).await?;
    ensure!(
        object.to_string().contains("mail-control-0-issued"),
        "it does not say what is missing: {object}"
    );
    issuer
        .beside(&cluster, mail::settled(&cluster, START))
        .await?;
    for name in IDENTITIES {
        let trusted: String = secret_value(&cluster, name, "ca.crt")
            .await?
            .lines()
            .collect();
        ensure!(trusted.contains(&pem_body(&issuer.ca())), "{name}");
    }
    let ca = format!("/api/v1/namespaces/{NAMESPACE}/secrets/mail-ca");
    if let Some(own) = cluster.api.find(&ca).await? {
        ensure!(
            own.pointer("/data/tls.key").is_none(),
            "the operator has a CA of its own: {own}"
        );
    }

    let ledger = Arc::new(Ledger::default());
    load::run(Load::new(mail::targets(&kubelet)?, 6).messages(60), &ledger).await;
    let verdict = ledger.settle(sink.store(), Duration::from_secs(60)).await?;
    verdict.holds()?;
    ensure!(verdict.accepted == 60, "{verdict}");

    issuer
        .beside(&cluster, exchange(&cluster, &kubelet, &sink, &issuer))
        .await?;
    kubelet.stop().await;
    cluster.pass()
}
