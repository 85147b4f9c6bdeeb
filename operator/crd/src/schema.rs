//! What the derived schemas lack to be good ones.
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use schemars::{Schema, SchemaGenerator, json_schema};

/// An object whose fields are somebody else's.
pub(crate) fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// What the API server understands, and what people read with `kubectl explain`.
///
/// - No `nullable`: null is the same as absent, so a default takes its place and CEL's `has` means what it says.
/// - No formats that the API server warns about (`uint32` and so on); the limits stand in `minimum` and `maximum`.
/// - A line break in a doc comment is none in a description.
pub(crate) fn tidy(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let schema = version.schema.as_mut();
        if let Some(root) = schema.and_then(|s| s.open_api_v3_schema.as_mut()) {
            node(root);
            root.title = None;
        }
    }
    crd
}

fn node(s: &mut JSONSchemaProps) {
    s.nullable = None;
    s.title = None;
    if s.format.as_deref().is_some_and(|f| f.starts_with("uint")) {
        s.format = None;
    }
    if s.x_kubernetes_int_or_string == Some(true) {
        s.description = Some("An amount, such as 500m, 2 or 1Gi.".to_owned());
    }
    if let Some(text) = &mut s.description {
        let paragraphs: Vec<String> = text
            .split("\n\n")
            .map(|p| p.lines().map(str::trim).collect::<Vec<_>>().join(" "))
            .collect();
        *text = paragraphs.join("\n\n");
    }
    for child in s.properties.iter_mut().flat_map(|p| p.values_mut()) {
        node(child);
    }
    match &mut s.items {
        Some(JSONSchemaPropsOrArray::Schema(one)) => node(one),
        Some(JSONSchemaPropsOrArray::Schemas(many)) => many.iter_mut().for_each(node),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(child)) = &mut s.additional_properties {
        node(child);
    }
}
