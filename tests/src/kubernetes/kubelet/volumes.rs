//! Files of a pod. Secrets and ConfigMaps follow their objects, in the way of a kubelet: a new folder, then one rename of
//! the link that leads to it, so that who reads sees all of the old or all of the new.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use data_encoding::BASE64;
use serde_json::{Value, json};

use super::pod::LocalPod;
use super::{Setting, claims};
use crate::kubernetes::manifests::{items, text};
use crate::kubernetes::pki::{Who, kubeconfig};

/// How often objects are looked at again. A real kubelet takes about a minute.
const REFRESH: Duration = Duration::from_secs(2);

/// Makes the volumes of a pod, and looks from time to time whether they are still what their objects say.
pub(super) async fn lay(
    setting: &Setting,
    pod: &Value,
    local: &mut LocalPod,
    folders: &BTreeMap<String, PathBuf>,
) -> Result<()> {
    if local.laid_at.is_some_and(|at| at.elapsed() < REFRESH) {
        return Ok(());
    }
    let namespace = text(pod, "/metadata/namespace");
    for volume in items(pod, "/spec/volumes") {
        let name = text(volume, "/name");
        let place = local.volume(name);
        if let Some(source) = volume.pointer("/configMap") {
            let path = format!(
                "/api/v1/namespaces/{namespace}/configmaps/{}",
                text(source, "/name")
            );
            let object = setting.api.get(&path).await?;
            if local.has_changed(name, &object) {
                let mut files = BTreeMap::new();
                for (key, value) in object
                    .pointer("/data")
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                {
                    let text =
                        local.rewrite(&setting.directory, value.as_str().unwrap_or_default())?;
                    files.insert(key.clone(), text.into_bytes());
                }
                write(&place, &files)?;
            }
        } else if let Some(source) = volume.pointer("/secret") {
            let path = format!(
                "/api/v1/namespaces/{namespace}/secrets/{}",
                text(source, "/secretName")
            );
            let object = setting.api.get(&path).await?;
            if local.has_changed(name, &object) {
                let mut files = BTreeMap::new();
                for (key, value) in object
                    .pointer("/data")
                    .and_then(Value::as_object)
                    .into_iter()
                    .flatten()
                {
                    let octets = BASE64.decode(value.as_str().unwrap_or_default().as_bytes());
                    files.insert(
                        key.clone(),
                        octets.with_context(|| format!("{path} {key}"))?,
                    );
                }
                write(&place, &files)?;
            }
        } else if volume.pointer("/emptyDir").is_some() {
            fs::create_dir_all(&place)?;
        } else if volume.pointer("/projected").is_some() {
            // The token of the service account: see `identity`.
            fs::create_dir_all(&place)?;
        } else if volume.pointer("/persistentVolumeClaim").is_none() {
            bail!("a volume of a kind that is not known here: {volume}");
        }
    }
    for (name, claim) in claims::of_pod(pod) {
        let place = local.volume(name);
        if place.symlink_metadata().is_err() {
            let object = setting.api.get(&claims::path(namespace, claim)).await?;
            let folder = folders.get(text(&object, "/metadata/uid"));
            let folder = folder.with_context(|| format!("the claim {claim} has no folder yet"))?;
            fs::create_dir_all(place.parent().context("volumes/")?)?;
            symlink(folder, &place)?;
        }
    }
    if local.laid_at.is_none() {
        identity(setting, pod, local).await?;
    }
    local.laid_at = Some(Instant::now());
    Ok(())
}

/// A kubeconfig with the token of the pod's service account, where a pod would have it: what it may do is what RBAC says.
async fn identity(setting: &Setting, pod: &Value, local: &LocalPod) -> Result<()> {
    let mut sources = items(pod, "/spec/volumes").flat_map(|v| items(v, "/projected/sources"));
    if !sources.any(|source| source.get("serviceAccountToken").is_some()) {
        return Ok(());
    }
    let namespace = text(pod, "/metadata/namespace");
    let account = text(pod, "/spec/serviceAccountName");
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenRequest",
        "spec": { "expirationSeconds": 7200 },
    });
    let reply = setting.api.post(&path, &request).await?;
    let token = text(&reply, "/status/token");
    kubeconfig(
        &local.kubeconfig(),
        &setting.server,
        &setting.ca,
        namespace,
        &Who::Token(token),
    )
}

/// Puts files into a folder, all at once.
fn write(folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    fs::create_dir_all(folder)?;
    let data = folder.join("..data");
    let old = fs::read_link(&data).ok();
    let stamp = format!("..{}", jiff::Timestamp::now().as_nanosecond());
    let fresh = folder.join(&stamp);
    fs::create_dir(&fresh).with_context(|| fresh.display().to_string())?;
    for (name, octets) in files {
        fs::write(fresh.join(name), octets)?;
    }
    let draft = folder.join("..data_tmp");
    symlink(&stamp, &draft)?;
    fs::rename(&draft, &data)?;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !files.contains_key(&name) {
            fs::remove_file(folder.join(&name))?;
        }
    }
    for name in files.keys() {
        let link = folder.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new("..data").join(name), link)?;
        }
    }
    if let Some(old) = old {
        fs::remove_dir_all(folder.join(old))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn files_are_exchanged_together_and_old_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let files = |list: &[(&str, &str)]| -> BTreeMap<String, Vec<u8>> {
            list.iter()
                .map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec()))
                .collect()
        };
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
        write(folder.path(), &files(&[("a", "1"), ("b", "2")])).unwrap();
        assert_eq!(
            (read("a").as_deref(), read("b").as_deref()),
            (Some("1"), Some("2"))
        );
        write(folder.path(), &files(&[("a", "3"), ("c", "4")])).unwrap();
        assert_eq!(
            (read("a").as_deref(), read("b"), read("c").as_deref()),
            (Some("3"), None, Some("4"))
        );
        let left = fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(left, 4, "..data, its folder, a, c");
    }
}
