//! When a pass is made: what is watched, which cluster it is about, and how long after a pass the next one comes.
//!
//! Of the RelayClusters themselves only changes of what people write count, not those of the status that this process
//! writes. Everything else is watched by its metadata only and leads to its cluster by a label, so that no Secret is kept
//! in memory.
use crate::{
    context::Context,
    failure::Failure,
    policies::{self, Routes},
    reconcile,
};
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    future::BoxFuture,
    stream::{BoxStream, select_all},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::{Deployment, StatefulSet},
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service},
    },
};
use kube::{
    Api, Client, Resource, ResourceExt,
    core::PartialObjectMeta,
    runtime::{
        PredicateConfig, WatchStreamExt, applier,
        controller::{Action, Config, ReconcileRequest, trigger_self, trigger_with},
        reflector::{ObjectRef, reflector, store},
        watcher,
    },
};
use sealane_crd::{RelayCluster, RelayPolicy};
use sealane_plan::names;
use serde::de::DeserializeOwned;
use std::{
    collections::hash_map::DefaultHasher,
    fmt::Debug,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Changes that come within this time are one.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// Clusters that are worked on at once.
const CONCURRENCY: u16 = 8;

/// One namespace, or all.
#[derive(Debug, Clone)]
pub(crate) struct Scope(pub(crate) Option<String>);

impl Scope {
    /// What `--namespace` says: each of them, or all.
    pub(crate) fn of(namespaces: &[String]) -> Vec<Self> {
        if namespaces.is_empty() {
            return vec![Self(None)];
        }
        namespaces.iter().map(|n| Self(Some(n.clone()))).collect()
    }

    fn api<K>(&self, client: &Client) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match &self.0 {
            Some(namespace) => Api::namespaced(client.clone(), namespace),
            None => Api::all(client.clone()),
        }
    }
}

type Requests<K> = BoxStream<'static, Result<ReconcileRequest<K>, watcher::Error>>;

/// What people write, as a number that changes with it.
fn written<K: Resource>(object: &K) -> Option<u64> {
    let meta = object.meta();
    let mut hasher = DefaultHasher::new();
    meta.generation.hash(&mut hasher);
    meta.finalizers.hash(&mut hasher);
    meta.annotations.hash(&mut hasher);
    meta.deletion_timestamp.is_some().hash(&mut hasher);
    Some(hasher.finish())
}

/// The cluster that a child belongs to, by its label.
fn cluster_of<K: Resource>(child: &K) -> Option<ObjectRef<RelayCluster>> {
    let name = child.labels().get(names::CLUSTER_LABEL)?;
    Some(ObjectRef::new(name).within(&child.namespace()?))
}

fn children<K>(scope: &Scope, client: &Client) -> Requests<RelayCluster>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + 'static,
{
    let api: Api<PartialObjectMeta<K>> = scope.api(client);
    let config = watcher::Config::default().labels(names::CLUSTER_LABEL);
    let changes = watcher(api, config).default_backoff().touched_objects();
    trigger_with::<_, RelayCluster, _, _>(changes, |child| cluster_of(&child)).boxed()
}

fn from_policies(scope: &Scope, client: &Client) -> Requests<RelayCluster> {
    let routes = Routes::default();
    let changes = watcher(scope.api::<RelayPolicy>(client), watcher::Config::default())
        .map_ok(policies::marked)
        .default_backoff()
        .touched_objects()
        .predicate_filter(policies::changed, PredicateConfig::default());
    trigger_with::<_, RelayCluster, _, _>(changes, move |policy| routes.clusters(&policy)).boxed()
}

/// Works on the clusters of one scope until `stop`; what is under way then is finished.
pub(crate) fn clusters(
    scope: &Scope,
    context: Arc<Context>,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    let client = &context.client;
    let (reader, writer) = store();
    let own = watcher(
        scope.api::<RelayCluster>(client),
        watcher::Config::default(),
    )
    .default_backoff();
    let own = reflector(writer, own)
        .applied_objects()
        .predicate_filter(written, PredicateConfig::default());
    let queue = select_all([
        trigger_self::<RelayCluster, _>(own, ()).boxed(),
        from_policies(scope, client),
        children::<StatefulSet>(scope, client),
        children::<Deployment>(scope, client),
        children::<Service>(scope, client),
        children::<ConfigMap>(scope, client),
        children::<Secret>(scope, client),
        children::<Pod>(scope, client),
        children::<PersistentVolumeClaim>(scope, client),
    ]);
    let passes = applier(
        |cluster: Arc<RelayCluster>, context| Box::pin(reconcile::pass(cluster, context)),
        again,
        context,
        reader,
        queue.take_until(stop.cancelled_owned()),
        Config::default()
            .debounce(DEBOUNCE)
            .concurrency(CONCURRENCY),
    );
    drain(passes, "RelayCluster")
}

/// Tells RelayPolicies that their cluster does not exist; those of clusters that do are told by the cluster's pass.
pub(crate) fn orphans(
    scope: &Scope,
    context: Arc<Context>,
    stop: CancellationToken,
) -> BoxFuture<'static, ()> {
    let (reader, writer) = store();
    let own = watcher(
        scope.api::<RelayPolicy>(&context.client),
        watcher::Config::default(),
    )
    .default_backoff();
    let own = reflector(writer, own)
        .applied_objects()
        .predicate_filter(policies::changed, PredicateConfig::default());
    let passes = applier(
        |policy: Arc<RelayPolicy>, context| Box::pin(policies::orphan(policy, context)),
        |policy: Arc<RelayPolicy>, error: &Failure, context: Arc<Context>| {
            tracing::warn!(policy = %policy.name_any(), error = %error, "a RelayPolicy was not looked at");
            Action::requeue(context.backoff.failed(&key(&*policy, "RelayPolicy")))
        },
        context,
        reader,
        trigger_self::<RelayPolicy, _>(own, ()).take_until(stop.cancelled_owned()),
        Config::default()
            .debounce(DEBOUNCE)
            .concurrency(CONCURRENCY),
    );
    drain(passes, "RelayPolicy")
}

/// After a pass that failed.
fn again(cluster: Arc<RelayCluster>, error: &Failure, context: Arc<Context>) -> Action {
    let pause = context.backoff.failed(&key(&*cluster, "RelayCluster"));
    let namespace = cluster.namespace().unwrap_or_default();
    tracing::warn!(%namespace, name = %cluster.name_any(), error = %error, ?pause, "a pass failed and is made again");
    Action::requeue(pause)
}

/// Of an object, for [`crate::backoff::Backoff`].
pub(crate) fn key<K: Resource>(object: &K, kind: &str) -> String {
    let namespace = object.namespace().unwrap_or_default();
    format!("{kind}/{namespace}/{}", object.name_any())
}

fn drain<T, E>(
    passes: impl Stream<Item = Result<T, E>> + Send + 'static,
    kind: &'static str,
) -> BoxFuture<'static, ()>
where
    E: std::error::Error + Send + 'static,
    T: Send + 'static,
{
    Box::pin(passes.for_each(move |pass| async move {
        // Failed passes were said by the error policy. The rest is: an object that is gone, a watch that begins anew.
        if let Err(e) = pass {
            tracing::debug!(error = %e, kind, "no pass was made, or it failed");
        }
    }))
}
