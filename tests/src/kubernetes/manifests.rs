//! Objects as helm prints them.

use anyhow::{Context, Result};
use serde_json::Value;

/// All objects of a stream of YAML documents.
///
/// # Errors
/// When one is not YAML.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let mut documents = vec![String::new()];
    for line in text.lines() {
        if line.trim_end() == "---" {
            documents.push(String::new());
        } else if let Some(last) = documents.last_mut() {
            last.push_str(line);
            last.push('\n');
        }
    }
    let written = |text: &String| {
        text.lines()
            .any(|l| !l.trim().is_empty() && !l.starts_with('#'))
    };
    documents
        .iter()
        .filter(|text| written(text))
        .map(|text| {
            serde_saphyr::from_str(text)
                .map_err(|error| anyhow::anyhow!("{error}"))
                .with_context(|| text.clone())
        })
        .collect()
}

/// Text at a path such as `/metadata/name`; empty if there is none.
#[must_use]
pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// `Kind/name`.
#[must_use]
pub fn title(object: &Value) -> String {
    format!(
        "{}/{}",
        text(object, "/kind"),
        text(object, "/metadata/name")
    )
}

/// Items of a list at a path; none if there is no list.
pub fn items<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object
        .pointer(path)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// The pod that an object makes or is: `spec` of its template.
#[must_use]
pub fn pod_spec(object: &Value) -> Option<&Value> {
    match text(object, "/kind") {
        "Pod" => object.pointer("/spec"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "Job" | "ReplicaSet" => {
            object.pointer("/spec/template/spec")
        }
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template/spec"),
        _ => None,
    }
}

/// The condition of that type: (status, reason, message).
#[must_use]
pub fn condition(object: &Value, kind: &str) -> Option<(String, String, String)> {
    let found = items(object, "/status/conditions").find(|c| text(c, "/type") == kind)?;
    let field = |path: &str| text(found, path).to_owned();
    Some((field("/status"), field("/reason"), field("/message")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn documents_of_comments_only_are_none() {
        let objects = parse(
            "---\n# Source: a\nkind: A\nmetadata: {name: x}\n---\n# Source: b\n\n---\nkind: B\n",
        )
        .unwrap();
        assert_eq!(objects.iter().map(title).collect::<Vec<_>>(), ["A/x", "B/"]);
    }
}
