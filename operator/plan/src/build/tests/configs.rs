//! The files that the processes read.
use super::{
    super::{Apis, BuildInput, config},
    full, minimal, raw,
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Every field name of docs/configuration.md, by process: `a.b`, and `.c` as its neighbour.
fn documented(section: &str) -> BTreeSet<String> {
    let text = include_str!("../../../../../docs/configuration.md");
    let begin = text.find(&format!("## {section}\n")).unwrap();
    let rest = &text[begin + 3..];
    let part = &rest[..rest.find("\n## ").unwrap_or(rest.len())];
    let mut all = BTreeSet::new();
    for line in part.lines().filter(|l| l.starts_with("| `")) {
        let cell = line.split('|').nth(1).unwrap();
        let mut parent = String::new();
        for name in cell.split('`').skip(1).step_by(2) {
            let full = match name.strip_prefix('.') {
                Some(last) => format!("{parent}.{last}"),
                None => name.to_owned(),
            };
            parent = full
                .rsplit_once('.')
                .map_or(String::new(), |(p, _)| p.to_owned());
            all.insert(full);
        }
    }
    all
}

fn paths(prefix: &str, value: &Value, all: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (k, v) in fields {
                let path = if prefix.is_empty() {
                    k.clone()
                } else {
                    format!("{prefix}.{k}")
                };
                paths(&path, v, all);
            }
        }
        _ => {
            all.insert(prefix.to_owned());
        }
    }
}

#[test]
fn configurations_have_documented_fields_only() {
    let control = documented("control-plane");
    assert!(
        control.contains("cluster.bootstrap") && control.contains("identity.key"),
        "{control:?}"
    );
    let mut relay = documented("relay-node");
    relay.extend(
        control
            .iter()
            .filter(|f| f.starts_with("telemetry."))
            .cloned(),
    );
    relay.insert("metricsListen".to_owned());
    for spec in [minimal(), full()] {
        let cluster = raw(&spec);
        let input = BuildInput {
            cluster: &cluster,
            control_replicas: 3,
            ordinals: 3,
            storage: "10Gi",
            relay_image: "i",
            founded: false,
            apis: Apis::default(),
        };
        for (config, known) in [
            (config::control(&input, 1), &control),
            (config::relay(&input), &relay),
        ] {
            let mut found = BTreeSet::new();
            paths("", &Value::Object(config), &mut found);
            let unknown: Vec<&String> = found.difference(known).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
        }
    }
}

#[test]
fn only_the_first_node_founds_and_only_once() {
    let cluster = raw(&minimal());
    let of = |ordinal, ordinals, founded| {
        let input = BuildInput {
            cluster: &cluster,
            control_replicas: ordinals,
            ordinals,
            storage: "10Gi",
            relay_image: "i",
            founded,
            apis: Apis::default(),
        };
        let c = config::control(&input, ordinal);
        (
            c["cluster"]["bootstrap"].clone(),
            c["cluster"]["peers"].as_array().unwrap().len(),
        )
    };
    assert_eq!(of(0, 3, false), (json!(true), 2));
    assert_eq!(of(1, 3, false), (json!(false), 2));
    assert_eq!(of(0, 3, true), (json!(false), 2));
    assert_eq!(of(0, 1, false), (json!(true), 0));
    // Without a peer the configuration would be refused.
    assert_eq!(of(0, 1, true), (json!(false), 1));
}

#[test]
fn files_are_yaml_that_says_the_same() {
    let cluster = raw(&full());
    let input = BuildInput {
        cluster: &cluster,
        control_replicas: 3,
        ordinals: 3,
        storage: "10Gi",
        relay_image: "i",
        founded: true,
        apis: Apis::default(),
    };
    let map = config::control_map(&input).data.unwrap();
    assert_eq!(map.len(), 3);
    for (n, text) in (0..).zip(map.values()) {
        let read: Value = sealane_yaml::parse(text).unwrap();
        assert_eq!(read, Value::Object(config::control(&input, n)));
    }
    let map = config::relay_map(&input).data.unwrap();
    let read: Value = sealane_yaml::parse(&map["relay-node.yaml"]).unwrap();
    assert_eq!(read, Value::Object(config::relay(&input)));
}
