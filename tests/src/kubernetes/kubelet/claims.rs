//! Volumes: a claim is bound as soon as it is there, to a folder that lives as long as the claim.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::Setting;
use crate::kubernetes::manifests::{items, text};

/// Binds new claims, grants what they ask for later, and deletes folders of claims that are gone.
pub(super) async fn tend(
    setting: &Setting,
    folders: &mut BTreeMap<String, PathBuf>,
    claims: &[Value],
) -> Result<()> {
    for claim in claims {
        let uid = text(claim, "/metadata/uid");
        let folder = setting.root.join("volumes").join(uid);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        folders.insert(uid.to_owned(), folder);
        if claim.pointer("/metadata/deletionTimestamp").is_some() {
            continue;
        }
        let path = path(
            text(claim, "/metadata/namespace"),
            text(claim, "/metadata/name"),
        );
        if text(claim, "/spec/volumeName").is_empty() {
            let volume = json!({ "spec": { "volumeName": format!("pv-{uid}") } });
            setting.api.merge(&path, &volume).await?;
        }
        let asked = claim.pointer("/spec/resources/requests/storage");
        let granted = claim.pointer("/status/capacity/storage");
        if text(claim, "/status/phase") != "Bound" || asked != granted {
            let status = json!({ "status": {
                "phase": "Bound",
                "capacity": { "storage": asked },
                "accessModes": claim.pointer("/spec/accessModes"),
            } });
            setting
                .api
                .merge(&format!("{path}/status"), &status)
                .await?;
        }
    }
    let gone: Vec<String> = folders
        .keys()
        .filter(|uid| {
            !claims
                .iter()
                .any(|c| text(c, "/metadata/uid") == uid.as_str())
        })
        .cloned()
        .collect();
    for uid in gone {
        if let Some(folder) = folders.remove(&uid) {
            fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        }
    }
    Ok(())
}

pub(super) fn path(namespace: &str, name: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")
}

/// Names of the claims of a pod, by the names of its volumes.
pub(super) fn of_pod(pod: &Value) -> impl Iterator<Item = (&str, &str)> {
    items(pod, "/spec/volumes").filter_map(|volume| {
        let claim = volume
            .pointer("/persistentVolumeClaim/claimName")?
            .as_str()?;
        Some((text(volume, "/name"), claim))
    })
}

/// Whether all claims of a pod are there and have a folder. One that is being deleted is none.
pub(super) async fn are_bound(
    pod: &Value,
    folders: &BTreeMap<String, PathBuf>,
    setting: &Setting,
) -> Result<bool> {
    for (_, claim) in of_pod(pod) {
        let path = path(text(pod, "/metadata/namespace"), claim);
        let Some(found) = setting.api.find(&path).await? else {
            return Ok(false);
        };
        let going = found.pointer("/metadata/deletionTimestamp").is_some();
        let bound = text(&found, "/status/phase") == "Bound";
        if going || !bound || !folders.contains_key(text(&found, "/metadata/uid")) {
            return Ok(false);
        }
    }
    Ok(true)
}
