//! Server-side apply of everything that was built, and removal of what is not built any more.
//!
//! Everything is applied in every pass: what did not change makes no write and no event, and what somebody changed by hand
//! is put back. Nothing but the operator's own objects is removed: those that this RelayCluster owns and that have its labels.
use crate::{context::Context, events::CONTROLLER, failure::Failure};
use kube::{
    Api, Resource, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions,
        PropagationPolicy, TypeMeta,
    },
    core::PartialObjectMeta,
};
use sealane_plan::{
    ValidCluster,
    build::{self, Apis, Children},
    names,
};

/// Applies, then removes. Answers with the objects as the API server has them now, with their statuses.
pub(crate) async fn apply(
    context: &Context,
    valid: &ValidCluster,
    children: &Children,
    apis: Apis,
) -> Result<Vec<DynamicObject>, Failure> {
    let kinds = build::kinds(apis);
    let objects = children.objects();
    let mut applied = Vec::with_capacity(objects.len());
    for object in &objects {
        let Some(kind) = kinds.iter().find(|k| is_of(k, object.types.as_ref())) else {
            continue;
        };
        applied.push(put(context, valid, kind, object).await?);
    }
    for kind in &kinds {
        let wanted = |name: &str| {
            let mut same = objects.iter().filter(|o| is_of(kind, o.types.as_ref()));
            same.any(|o| o.metadata.name.as_deref() == Some(name))
        };
        prune(context, valid, kind, wanted).await?;
    }
    Ok(applied)
}

fn is_of(kind: &ApiResource, types: Option<&TypeMeta>) -> bool {
    types.is_some_and(|t| t.api_version == kind.api_version && t.kind == kind.kind)
}

async fn put(
    context: &Context,
    valid: &ValidCluster,
    kind: &ApiResource,
    object: &DynamicObject,
) -> Result<DynamicObject, Failure> {
    let api: Api<DynamicObject> =
        Api::namespaced_with(context.client.clone(), valid.names().namespace(), kind);
    let name = object.name_any();
    let ours = PatchParams::apply(CONTROLLER).force();
    let applied = api.patch(&name, &ours, &Patch::Apply(object)).await;
    applied.map_err(Failure::api(format!("apply {} {name}", kind.kind)))
}

/// Deletes what this RelayCluster owns and does not want any more.
async fn prune(
    context: &Context,
    valid: &ValidCluster,
    kind: &ApiResource,
    wanted: impl Fn(&str) -> bool,
) -> Result<(), Failure> {
    let n = valid.names();
    let api: Api<PartialObjectMeta<DynamicObject>> =
        Api::namespaced_with(context.client.clone(), n.namespace(), kind);
    let (key, value) = names::MANAGED_BY;
    let chosen = format!("{key}={value},{}={}", names::CLUSTER_LABEL, n.cluster());
    let found = api.list(&ListParams::default().labels(&chosen)).await;
    let found = found.map_err(Failure::api(format!("list {}", kind.plural)))?;
    for object in found.items {
        let owned = object
            .owner_references()
            .iter()
            .any(|o| o.controller == Some(true) && o.uid == valid.uid());
        let going = object.meta().deletion_timestamp.is_some();
        let name = object.name_any();
        if !owned || going || wanted(&name) {
            continue;
        }
        tracing::info!(kind = kind.kind, %name, namespace = n.namespace(), "removed: not wanted any more");
        let this_one = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            preconditions: Some(Preconditions {
                uid: object.uid(),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let deleted = api.delete(&name, &this_one).await;
        gone(deleted).map_err(Failure::api(format!("delete {} {name}", kind.kind)))?;
    }
    Ok(())
}

/// A deletion of what is gone, or was replaced by another of the same name, is done.
pub(crate) fn gone<T>(deleted: kube::Result<T>) -> kube::Result<()> {
    match deleted {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.is_not_found() || s.is_conflict() => Ok(()),
        Err(e) => Err(e),
    }
}
