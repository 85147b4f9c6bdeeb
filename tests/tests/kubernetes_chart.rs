//! The chart without a running cluster behind it: its CRDs, what it renders, and what a real API server says to that.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sealane_tests::kubernetes::manifests::{items, parse, text, title};
use sealane_tests::kubernetes::{Cluster, assets, golden, lint};
use sealane_tests::tools;
use serde_json::{Value, json};

/// Rust sources below a folder.
fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// The string literal that begins behind `open`, white space aside.
fn literal(behind: &str) -> Option<&str> {
    behind.trim_start().strip_prefix('"')?.split('"').next()
}

/// Names of all metrics that the product registers, in every form that Prometheus knows.
fn metrics() -> BTreeSet<String> {
    let root = assets::clone().unwrap();
    let mut files = Vec::new();
    for folder in [
        "relay-node/src",
        "control-plane/src",
        "control-plane/store/src",
        "operator/src",
    ] {
        sources(&root.join(folder), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let prefix = text
            .split_once("sub_registry_with_prefix(")
            .and_then(|(_, behind)| literal(behind))
            .map_or(String::new(), |prefix| format!("{prefix}_"));
        for behind in text.split(".register(").skip(1) {
            let Some(name) = literal(behind) else {
                continue;
            };
            for form in ["", "_total", "_bucket", "_sum", "_count"] {
                names.insert(format!("{prefix}{name}{form}"));
            }
        }
    }
    assert!(names.len() > 200, "{names:?}");
    names
}

#[test]
fn every_metric_that_the_chart_names_exists() {
    let known = metrics();
    let folder = assets::chart().unwrap().join("monitoring");
    let mut seen = 0;
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(folder.join(file)).unwrap();
        let of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        for word in text
            .split(|c| !of_name(c))
            .filter(|w| w.starts_with("sealane_"))
        {
            // The label that a PodMonitor makes of the pods' label.
            if word == "sealane_io_cluster" {
                continue;
            }
            assert!(known.contains(word), "{file}: no metric is called {word}");
            seen += 1;
        }
    }
    assert!(seen > 50, "vacuous: {seen}");
}

#[test]
fn the_dashboard_is_json_whose_panels_have_ids_and_places_of_their_own() {
    let file = assets::chart().unwrap().join("monitoring/dashboard.json");
    let dashboard: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeMap::new();
    for panel in items(&dashboard, "/panels") {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for y in at("y")..at("y") + at("h") {
            for x in at("x")..at("x") + at("w") {
                assert_eq!(
                    taken.insert((x, y), at("x")),
                    None,
                    "two panels at {x},{y}: {panel}"
                );
            }
        }
    }
    assert!(ids.len() > 20);
}

/// The CRDs are generated. `SEALANE_UPDATE=1 cargo test -p sealane-tests --test kubernetes_chart` writes them anew.
#[test]
fn the_crds_of_the_chart_are_those_of_the_operator() {
    let binary = tools::folder().unwrap().join("operator");
    let output = tools::run(Command::new(binary).arg("crds")).unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let folder = assets::chart().unwrap().join("crds");
    let mut files = BTreeSet::new();
    for document in printed.split("---\n").filter(|d| !d.trim().is_empty()) {
        let object = parse(document).unwrap().remove(0);
        assert_eq!(text(&object, "/kind"), "CustomResourceDefinition");
        let file = format!("{}.yaml", text(&object, "/spec/names/plural"));
        let path = folder.join(&file);
        let wanted = format!(
            "# Made by `operator crds`; tests/tests/kubernetes_chart.rs notices a difference.\n{document}"
        );
        if golden::updating() {
            fs::create_dir_all(&folder).unwrap();
            fs::write(&path, &wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "{file} is not what `operator crds` prints: SEALANE_UPDATE=1 cargo test -p sealane-tests --test kubernetes_chart"
        );
        files.insert(file);
    }
    let there: BTreeSet<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(there, files);
}

/// The chart's own values files, and ours.
fn values() -> Result<Vec<(String, PathBuf)>> {
    let root = assets::clone()?;
    let mut all = Vec::new();
    for folder in ["charts/sealane", "tests/kubernetes/values"] {
        for entry in fs::read_dir(root.join(folder))? {
            let path = entry?.path();
            let name = path
                .file_stem()
                .context("name")?
                .to_string_lossy()
                .into_owned();
            let is_yaml = path.extension().is_some_and(|e| e == "yaml");
            let is_values = folder != "charts/sealane" || name.starts_with("values");
            if is_yaml && is_values {
                all.push((name, path));
            }
        }
    }
    all.sort();
    ensure!(all.len() >= 5, "{all:?}");
    Ok(all)
}

/// Other people's CRDs, as far as the API server needs them.
fn foreign(group: &str, kind: &str, plural: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": { "kind": kind, "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs Kubernetes: make test-k8s"]
async fn every_values_file_renders_what_the_api_server_takes() -> Result<()> {
    let cluster = Cluster::start().await?;
    let chart = assets::chart()?.display().to_string();
    let crds = format!("{chart}/crds");
    cluster
        .kubectl(&["apply", "--server-side", "-f", &crds])
        .await?;
    cluster
        .apply(&[
            foreign("monitoring.coreos.com", "PodMonitor", "podmonitors"),
            foreign("monitoring.coreos.com", "PrometheusRule", "prometheusrules"),
        ])
        .await?;
    for namespace in ["mail"] {
        cluster.namespace(namespace).await?;
    }
    cluster
        .kubectl(&[
            "wait",
            "--for=condition=Established",
            "crd",
            "--all",
            "--timeout=60s",
        ])
        .await?;
    let documented = documented()?;
    for (name, file) in values()? {
        let file = file.display().to_string();
        let linted = cluster
            .helm(&["lint", "--strict", &chart, "--values", &file])
            .await?;
        ensure!(linted.contains("0 chart(s) failed"), "{name}: {linted}");
        let args = [
            "template",
            "sealane",
            &chart,
            "--namespace",
            "mail",
            "--values",
            &file,
        ];
        let objects = parse(&cluster.helm(&args).await?)?;
        let faults: Vec<String> = objects.iter().flat_map(lint::faults).collect();
        ensure!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
        permissions(&name, &objects, &documented)?;
        for object in &objects {
            let labelled = text(object, "/metadata/labels/app.kubernetes.io~1part-of") == "sealane";
            ensure!(labelled, "{name}: {}: whose is it?", title(object));
        }
        golden::compare(&format!("chart-{name}"), &objects)?;
        let said = cluster
            .apply_with(&objects, &["--dry-run=server", "--validate=strict"])
            .await?;
        ensure!(said.lines().count() == objects.len(), "{name}: {said}");
        println!("{name}: {} objects", objects.len());
    }
    refusals(&cluster, &chart).await?;
    cluster.pass()
}

/// (apiGroup, resource, verb)
type Permissions = BTreeSet<(String, String, String)>;

/// The table of the operator's README, by its first column.
fn documented() -> Result<BTreeMap<String, Permissions>> {
    let text = fs::read_to_string(assets::clone()?.join("operator/README.md"))?;
    let (_, table) = text
        .split_once("## Permissions")
        .context("## Permissions")?;
    let mut all: BTreeMap<String, Permissions> = BTreeMap::new();
    for line in table
        .lines()
        .filter(|l| l.starts_with("| watched") || l.starts_with("| own"))
    {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, place, group, resources, verbs, ..] = cells.as_slice() else {
            anyhow::bail!("{line}");
        };
        let words = |cell: &str| -> Vec<String> {
            cell.split(',')
                .map(|w| w.trim().trim_matches('`').to_owned())
                .collect()
        };
        let group = if *group == "core" {
            ""
        } else {
            group.trim_matches('`')
        };
        for resource in words(resources) {
            for verb in words(verbs) {
                let known = all.entry((*place).to_owned()).or_default();
                known.insert((group.to_owned(), resource.clone(), verb));
            }
        }
    }
    Ok(all)
}

fn granted(role: &Value) -> Permissions {
    let words = |rule: &Value, path: &str| -> Vec<String> {
        items(rule, path)
            .filter_map(|w| Some(w.as_str()?.to_owned()))
            .collect()
    };
    let mut all = Permissions::new();
    for rule in items(role, "/rules") {
        for group in words(rule, "/apiGroups") {
            for resource in words(rule, "/resources") {
                for verb in words(rule, "/verbs") {
                    all.insert((group.clone(), resource.clone(), verb));
                }
            }
        }
    }
    all
}

/// The operator may do what its README says, no more and no less.
fn permissions(
    name: &str,
    objects: &[Value],
    documented: &BTreeMap<String, Permissions>,
) -> Result<()> {
    let mut judged = 0;
    for role in objects
        .iter()
        .filter(|o| matches!(text(o, "/kind"), "Role" | "ClusterRole"))
    {
        let title = title(role);
        let place = match title.rsplit('-').next() {
            Some("edit" | "view") => continue,
            Some("lease") => "own",
            _ => "watched",
        };
        let expected = documented.get(place).context("README")?;
        let found = granted(role);
        let more: Vec<_> = found.difference(expected).collect();
        let less: Vec<_> = expected.difference(&found).collect();
        ensure!(
            more.is_empty() && less.is_empty(),
            "{name} {title}: too much {more:?}, missing {less:?}"
        );
        judged += 1;
    }
    ensure!(judged >= 2, "{name}: {judged} roles");
    Ok(())
}

/// Values that are wrong are refused before anything is sent, by their names.
async fn refusals(cluster: &Cluster, chart: &str) -> Result<()> {
    for (set, expected) in [
        ("operator.replicas=two", "replicas"),
        ("operator.leaderElection=false", "replicas"),
        ("operator.replica=2", "replica"),
        ("cluster.enabled=true", "hostname"),
        ("image.digest=latest", "digest"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("test.domain=example.org", "domain"),
        ("policies[0].name=a", "documents"),
    ] {
        let args = ["template", "sealane", chart, "--set", set];
        let refused = cluster.helm(&args).await;
        let said = refused
            .err()
            .with_context(|| format!("{set} was taken"))?
            .to_string();
        ensure!(
            said.contains(expected) && said.contains("schema"),
            "{set}: {said}"
        );
    }
    Ok(())
}
