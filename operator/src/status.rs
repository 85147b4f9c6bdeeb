//! Writes statuses: only what changed, and only by this process.
mod cluster;

pub(crate) use cluster::{Seen, of_cluster};

use crate::{context::Context, events::CONTROLLER, failure::Failure};
use k8s_openapi::{
    NamespaceResourceScope, apimachinery::pkg::apis::meta::v1::Condition, jiff::Timestamp,
};
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
};
use sealane_plan::conditions::{self, Wanted};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;
use std::fmt::Debug;

/// The conditions of `object` with `new` among them.
pub(crate) fn conditions<K: Resource>(
    object: &K,
    old: &[Condition],
    new: &[Wanted],
) -> Vec<Condition> {
    let generation = object.meta().generation.unwrap_or(0);
    conditions::update(old, new, generation, Timestamp::now())
}

/// Writes `new` as the status of `object` if it is not `old`. An object that is gone is no failure.
pub(crate) async fn write<K, S>(
    context: &Context,
    object: &K,
    old: &S,
    new: &S,
) -> Result<(), Failure>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned,
    S: Serialize + PartialEq,
{
    if old == new {
        return Ok(());
    }
    let name = object.name_any();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": name },
        "status": new,
    });
    let api: Api<K> = Api::namespaced(
        context.client.clone(),
        &object.namespace().unwrap_or_default(),
    );
    let written = api
        .patch_status(
            &name,
            &PatchParams::apply(CONTROLLER).force(),
            &Patch::Apply(&patch),
        )
        .await;
    match written {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(s)) if s.is_not_found() => Ok(()),
        Err(e) => Err(Failure::api(format!(
            "write the status of {} {name}",
            K::kind(&())
        ))(e)),
    }
}
