//! A relay whose identities somebody else issues.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use sealane_tests::kubernetes::cert_manager::{CertManager, ISSUER};
use sealane_tests::kubernetes::mail::{
    self, Exchange, IDENTITIES, NAMESPACE, pem_body, secret_value,
};
use sealane_tests::kubernetes::{Cluster, Kubelet, Scope};
use sealane_tests::ledger::Ledger;
use sealane_tests::load::{self, Load};
use sealane_tests::sink::Sink;
use serde_json::json;

const START: Duration = Duration::from_secs(240);

/// Under load: everybody trusts the new CA before anybody shows it.
async fn exchange(
    cluster: &Cluster,
    kubelet: &Kubelet,
    sink: &Sink,
    issuer: &CertManager,
) -> Result<()> {
    let exchange = Exchange::begin(kubelet).await?;
    let old = issuer.ca();
    issuer.exchange()?;
    exchange.end(cluster, kubelet, sink, &old).await?;
    trusted(cluster, issuer).await
}

/// By everybody.
async fn trusted(cluster: &Cluster, issuer: &CertManager) -> Result<()> {
    for name in IDENTITIES {
        let trusted: String = secret_value(cluster, name, "ca.crt")
            .await?
            .lines()
            .collect();
        ensure!(trusted.contains(&pem_body(&issuer.ca())), "{name}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn identities_come_from_cert_manager_and_its_ca_is_exchanged_under_load() -> Result<()> {
    let cluster = Cluster::start().await?;
    let issuer = CertManager::install(&cluster).await?;
    let kubelet = Kubelet::start(&cluster, Scope::Everything)?;
    let sink = mail::next_hop(&cluster).await?;
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
    trusted(&cluster, &issuer).await?;
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
