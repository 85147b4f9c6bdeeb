//! What cert-manager does, as far as the operator sees it: a Secret for each Certificate, by an issuer of type CA.
//!
//! It is not cert-manager: its own checks of a Certificate, its approvals and its renewals are not here.

use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

use super::Cluster;
use super::mail::{NAMESPACE, live, secret};
use super::manifests::{items, text};
use crate::wait;

/// Name of the issuer.
pub const ISSUER: &str = "sealane";
const CERTIFICATES: &str = "/apis/cert-manager.io/v1/namespaces/mail/certificates";

type Authority = CertifiedIssuer<'static, KeyPair>;

/// The issuer and its CA.
#[derive(Debug)]
pub struct CertManager(Mutex<Authority>);

fn authority() -> Result<Authority> {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "an issuer of yours");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?)
}

impl CertManager {
    /// Makes the resource known to the API server.
    ///
    /// # Errors
    /// When it refuses.
    pub async fn install(cluster: &Cluster) -> Result<Self> {
        let anything = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
        let crd = json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": "certificates.cert-manager.io" },
            "spec": {
                "group": "cert-manager.io",
                "names": { "kind": "Certificate", "plural": "certificates", "singular": "certificate" },
                "scope": "Namespaced",
                "versions": [{
                    "name": "v1", "served": true, "storage": true,
                    "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": anything } } },
                }],
            },
        });
        cluster.apply(&[crd]).await?;
        wait::until(
            "certificates are served",
            Duration::from_secs(30),
            || async { cluster.api.list(CERTIFICATES).await },
        )
        .await?;
        Ok(Self(Mutex::new(authority()?)))
    }

    /// The CA's certificate, PEM.
    pub fn ca(&self) -> String {
        self.0.lock().expect("no panic while held").pem()
    }

    /// From now on another CA signs, and all that the old one signed is issued again.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn exchange(&self) -> Result<()> {
        *self.0.lock().expect("no panic while held") = authority()?;
        Ok(())
    }

    /// Issues while something else is done.
    ///
    /// # Errors
    /// Those of `work`, or when a Certificate cannot be issued.
    pub async fn beside<T>(
        &self,
        cluster: &Cluster,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::select! {
            done = work => done,
            error = self.run(cluster) => Err(error),
        }
    }

    async fn run(&self, cluster: &Cluster) -> anyhow::Error {
        loop {
            if let Err(error) = self.pass(cluster).await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    async fn pass(&self, cluster: &Cluster) -> Result<()> {
        for certificate in cluster.api.list(CERTIFICATES).await? {
            let name = text(&certificate, "/spec/secretName").to_owned();
            let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/{name}");
            let old = cluster.api.find(&path).await?;
            let by = old.as_ref().map(|s| text(s, "/data/ca.crt").to_owned());
            if by == Some(BASE64.encode(self.ca().as_bytes())) {
                continue;
            }
            let issued = self
                .issue(&certificate)
                .with_context(|| format!("{certificate}"))?;
            cluster.apply(&[issued]).await?;
        }
        Ok(())
    }

    /// What the Certificate asks for, and no more.
    fn issue(&self, certificate: &Value) -> Result<Value> {
        ensure!(
            text(certificate, "/spec/issuerRef/name") == ISSUER,
            "whose?"
        );
        let names: Vec<String> = strings(certificate, "/spec/dnsNames");
        let mut params = CertificateParams::new(names)?;
        for uri in strings(certificate, "/spec/uris") {
            let uri = SanType::URI(uri.as_str().try_into()?);
            params.subject_alt_names.push(uri);
        }
        ensure!(
            !params.subject_alt_names.is_empty(),
            "nobody's: cert-manager refuses it"
        );
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        for usage in strings(certificate, "/spec/usages") {
            match usage.as_str() {
                "server auth" => params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ServerAuth),
                "client auth" => params
                    .extended_key_usages
                    .push(ExtendedKeyUsagePurpose::ClientAuth),
                _ => {}
            }
        }
        let hours: u64 = text(certificate, "/spec/duration")
            .strip_suffix('h')
            .context("spec.duration")?
            .parse()?;
        live(
            &mut params,
            Duration::ZERO,
            Duration::from_secs(3600 * hours),
        );
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let ca = self.0.lock().expect("no panic while held");
        let leaf = params.signed_by(&key, &*ca)?.pem();
        let data = [
            ("tls.crt", leaf.as_str()),
            ("tls.key", &key.serialize_pem()),
            ("ca.crt", &ca.pem()),
        ];
        let mut issued = secret(
            text(certificate, "/spec/secretName"),
            "kubernetes.io/tls",
            &data,
        );
        issued["metadata"]["labels"] = certificate
            .pointer("/spec/secretTemplate/labels")
            .cloned()
            .unwrap_or_default();
        Ok(issued)
    }
}

fn strings(object: &Value, path: &str) -> Vec<String> {
    let all = items(object, path).filter_map(Value::as_str);
    all.map(str::to_owned).collect()
}
