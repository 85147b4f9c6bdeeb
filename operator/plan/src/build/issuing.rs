//! cert-manager's Certificates, one for each workload.
use super::{BuildInput, certificate_api, labels, meta};
use crate::{certs::workloads, names::CERTIFICATES};
use kube::core::DynamicObject;
use sealane_crd::Issuer;
use serde_json::json;

pub(super) fn certificates(i: &BuildInput<'_>) -> Vec<DynamicObject> {
    let n = i.cluster.names();
    let s = &i.cluster.spec().certificates;
    let Some(manager) = s
        .cert_manager
        .as_ref()
        .filter(|_| s.issuer == Issuer::CertManager && i.apis.cert_manager)
    else {
        return Vec::new();
    };
    let issuer = &manager.issuer_ref;
    workloads(n, i.ordinals)
        .into_iter()
        .map(|w| {
            let mut object =
                DynamicObject::new(&w.issued, &certificate_api()).within(n.namespace());
            object.metadata = meta(i.cluster, w.issued.clone(), CERTIFICATES);
            let mut spec = json!({
                "secretName": w.issued,
                "secretTemplate": { "labels": labels(n, CERTIFICATES) },
                "duration": format!("{}h", s.validity_hours),
                "renewBefore": format!("{}h", s.validity_hours.div_ceil(3)),
                "uris": [w.uri],
                "usages": ["digital signature", "server auth", "client auth"],
                "privateKey": {
                    "algorithm": "ECDSA",
                    "size": 256,
                    "encoding": "PKCS8",
                    "rotationPolicy": "Always",
                },
                "issuerRef": { "name": issuer.name, "kind": issuer.kind, "group": issuer.group },
            });
            if !w.dns.is_empty() {
                spec["dnsNames"] = json!(w.dns);
            }
            object.data = json!({ "spec": spec });
            object
        })
        .collect()
}
