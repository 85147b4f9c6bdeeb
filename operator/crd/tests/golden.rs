//! What is installed, as a golden file: a change of a type shows here as what changes for users.
#![allow(clippy::unwrap_used, reason = "tests")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use sealane_crd::crds;

#[test]
fn the_definitions_are_as_they_were() {
    for crd in crds() {
        let name = crd.metadata.name.clone().unwrap();
        insta::assert_json_snapshot!(name, crd);
    }
}

/// Every node of every schema, with its path.
fn nodes(check: &mut dyn FnMut(&str, &JSONSchemaProps)) {
    fn walk(path: &str, s: &JSONSchemaProps, check: &mut dyn FnMut(&str, &JSONSchemaProps)) {
        check(path, s);
        for (name, child) in s.properties.iter().flatten() {
            walk(&format!("{path}.{name}"), child, check);
        }
        if let Some(JSONSchemaPropsOrArray::Schema(child)) = &s.items {
            walk(&format!("{path}[]"), child, check);
        }
        if let Some(JSONSchemaPropsOrBool::Schema(child)) = &s.additional_properties {
            walk(&format!("{path}.*"), child, check);
        }
    }
    for crd in crds() {
        let root = crd.spec.versions[0]
            .schema
            .clone()
            .unwrap()
            .open_api_v3_schema
            .unwrap();
        walk(&crd.spec.names.kind, &root, check);
    }
}

#[test]
fn schemas_are_structural_and_say_nothing_that_the_api_server_warns_about() {
    nodes(&mut |path, s| {
        assert!(
            s.any_of.is_none() && s.one_of.is_none() && s.all_of.is_none() && s.not.is_none(),
            "{path}"
        );
        assert!(
            s.type_.is_some() || s.x_kubernetes_int_or_string == Some(true),
            "{path} has no type"
        );
        assert!(s.nullable.is_none(), "{path} is nullable");
        assert!(s.unique_items.is_none(), "{path}: uniqueItems");
        assert!(
            s.ref_path.is_none() && s.schema.is_none() && s.definitions.is_none(),
            "{path}"
        );
        if let Some(format) = &s.format {
            assert!(
                matches!(format.as_str(), "int32" | "int64" | "date-time"),
                "{path}: {format}"
            );
        }
    });
}

#[test]
fn every_field_is_explained() {
    nodes(&mut |path, s| {
        let own = path.starts_with("RelayCluster") || path.starts_with("RelayPolicy");
        let inner = path.ends_with("[]") || path.ends_with('*');
        if own && !inner {
            assert!(
                s.description.as_ref().is_some_and(|d| d.len() > 3),
                "{path} has no description"
            );
        }
    });
}

#[test]
fn rules_teach_and_iterate_over_bounded_lists_only() {
    let mut rules = 0;
    nodes(&mut |path, s| {
        for r in s.x_kubernetes_validations.iter().flatten() {
            rules += 1;
            let message = r.message.clone().unwrap_or_default();
            assert!(
                message.contains(": ") && message.len() > 20,
                "{path}: {message:?}"
            );
            assert!(
                !message.contains('\n') && message.len() < 2048,
                "{path}: {message:?}"
            );
            assert!(!r.rule.contains('\n'), "{path}: {}", r.rule);
            if r.rule.starts_with("self.all(") {
                assert!(s.max_items.is_some(), "{path}: no maxItems");
            }
        }
        if s.type_.as_deref() == Some("string") && s.x_kubernetes_validations.is_some() {
            assert!(s.max_length.is_some(), "{path}: no maxLength");
        }
    });
    assert!(rules >= 25, "{rules}");
}

#[test]
fn lists_say_how_they_are_merged() {
    nodes(&mut |path, s| {
        if s.type_.as_deref() != Some("array") {
            return;
        }
        match s.x_kubernetes_list_type.as_deref() {
            Some("map") => assert!(s.x_kubernetes_list_map_keys.is_some(), "{path}"),
            Some("set" | "atomic") | None => {}
            Some(other) => panic!("{path}: {other}"),
        }
        if path.ends_with(".conditions") {
            assert_eq!(s.x_kubernetes_list_type.as_deref(), Some("map"), "{path}");
        }
    });
}

#[test]
fn relay_clusters_are_scaled_by_their_relay_nodes() {
    let crd = &crds()[0];
    let sub = crd.spec.versions[0].subresources.clone().unwrap();
    assert!(sub.status.is_some());
    let scale = sub.scale.unwrap();
    assert_eq!(scale.spec_replicas_path, ".spec.relay.replicas");
    assert_eq!(scale.status_replicas_path, ".status.replicas");
    assert_eq!(
        scale.label_selector_path.as_deref(),
        Some(".status.selector")
    );
    assert_eq!(crd.spec.names.short_names, Some(vec!["slc".to_owned()]));
    assert_eq!(
        crds()[1].spec.names.short_names,
        Some(vec!["slp".to_owned()])
    );
}
