//! Golden files of objects: whole, in JSON, without what is another one at every run.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::assets;
use super::manifests::{text, title};

/// Write the files instead of comparing.
const UPDATE: &str = "SEALANE_UPDATE";

/// Whether files are to be written anew.
#[must_use]
pub fn updating() -> bool {
    std::env::var_os(UPDATE).is_some()
}

/// Takes out what the API server or chance makes: ids, times, addresses, who wrote which field, keys and certificates.
#[must_use]
pub fn lasting(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object
        .pointer_mut("/metadata")
        .and_then(Value::as_object_mut)
    {
        for made in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "managedFields",
            "generation",
            "selfLink",
        ] {
            meta.remove(made);
        }
        for owner in meta
            .get_mut("ownerReferences")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            owner["uid"] = json!("(uid)");
        }
    }
    let kind = text(&object, "/kind").to_owned();
    if let Some(meta) = object
        .pointer_mut("/metadata")
        .and_then(Value::as_object_mut)
    {
        let notes = meta.get_mut("annotations").and_then(Value::as_object_mut);
        let none_left = notes.is_some_and(|notes| {
            // Comes when the Deployment's controller has looked at it.
            notes.remove("deployment.kubernetes.io/revision");
            if kind == "Secret" {
                // Fingerprints and times.
                notes
                    .values_mut()
                    .for_each(|value| *value = json!("(value)"));
            }
            notes.is_empty()
        });
        if none_left {
            meta.remove("annotations");
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if kind == "Secret" {
            let keys = fields.get("data").and_then(Value::as_object);
            let keys: Vec<String> = keys
                .into_iter()
                .flatten()
                .map(|(key, _)| key.clone())
                .collect();
            fields.insert("data".to_owned(), json!(keys));
        }
    }
    if kind == "Service"
        && let Some(spec) = object.pointer_mut("/spec").and_then(Value::as_object_mut)
    {
        let headless = spec.get("clusterIP") == Some(&json!("None"));
        for given in ["clusterIP", "clusterIPs"] {
            if !headless {
                spec.remove(given);
            }
        }
        spec.remove("healthCheckNodePort");
        for port in spec
            .get_mut("ports")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        }
    }
    object
}

/// Compares objects with `golden/NAME.json`, in the order of their titles.
///
/// # Errors
/// Says which object differs and where; `SEALANE_UPDATE=1 make test-k8s` writes the file anew.
pub fn compare(name: &str, objects: &[Value]) -> Result<()> {
    let mut found: Vec<Value> = objects.iter().map(lasting).collect();
    found.sort_by_key(|o| (title(o), text(o, "/metadata/namespace").to_owned()));
    let file = file(name)?;
    if updating() {
        fs::create_dir_all(file.parent().context("golden/")?)?;
        fs::write(
            &file,
            format!("{}\n", serde_json::to_string_pretty(&found)?),
        )?;
        println!("wrote {}", file.display());
        return Ok(());
    }
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "{}: missing? {UPDATE}=1 make test-k8s writes it",
            file.display()
        )
    })?;
    let expected: Vec<Value> = serde_json::from_str(&text)?;
    let titles = |list: &[Value]| list.iter().map(title).collect::<Vec<_>>();
    ensure!(
        titles(&expected) == titles(&found),
        "{name}: other objects\nexpected {:?}\nfound    {:?}",
        titles(&expected),
        titles(&found)
    );
    let mut differences = Vec::new();
    for (expected, found) in expected.iter().zip(&found) {
        let mut paths = Vec::new();
        difference("", expected, found, &mut paths);
        differences.extend(
            paths
                .into_iter()
                .map(|path| format!("{}{path}", title(expected))),
        );
    }
    ensure!(
        differences.is_empty(),
        "{name}: {} differences. If they are meant: {UPDATE}=1 make test-k8s\n{}",
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}

fn file(name: &str) -> Result<PathBuf> {
    Ok(assets::clone()?
        .join("tests/kubernetes/golden")
        .join(format!("{name}.json")))
}

fn difference(path: &str, expected: &Value, found: &Value, out: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let (a, b) = (
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                );
                difference(&format!("{path}.{key}"), a, b, out);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (at, (a, b)) in a.iter().zip(b).enumerate() {
                difference(&format!("{path}[{at}]"), a, b, out);
            }
        }
        _ if expected == found => {}
        _ => out.push(format!("{path}: expected {expected}, found {found}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_its_path_and_both_values() {
        let mut out = Vec::new();
        difference(
            "",
            &json!({ "spec": { "ports": [{ "port": 25 }, { "port": 587 }], "type": "LoadBalancer" } }),
            &json!({ "spec": { "ports": [{ "port": 25 }, { "port": 588 }], "more": true } }),
            &mut out,
        );
        assert_eq!(
            out,
            [
                ".spec.more: expected null, found true",
                ".spec.ports[1].port: expected 587, found 588",
                ".spec.type: expected \"LoadBalancer\", found null",
            ]
        );
    }

    #[test]
    fn what_chance_makes_is_taken_out_and_the_rest_stays() {
        let object = json!({
            "kind": "Secret",
            "metadata": { "name": "a", "uid": "1", "ownerReferences": [{ "name": "mail", "uid": "2" }] },
            "data": { "tls.crt": "x", "tls.key": "y" },
            "status": {},
        });
        let expected = json!({
            "kind": "Secret",
            "metadata": { "name": "a", "ownerReferences": [{ "name": "mail", "uid": "(uid)" }] },
            "data": ["tls.crt", "tls.key"],
        });
        assert_eq!(lasting(&object), expected);
    }
}
