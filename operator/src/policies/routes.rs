//! Which clusters a change of a RelayPolicy is about.
use kube::{Resource, ResourceExt, runtime::reflector::ObjectRef};
use sealane_crd::{RelayCluster, RelayPolicy};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

/// Remembers which cluster each policy named, so that the one that it left is looked at too.
#[derive(Debug, Default)]
pub(crate) struct Routes(Mutex<HashMap<(String, String), String>>);

impl Routes {
    /// The cluster that it names, and the one that it named before.
    pub(crate) fn clusters(&self, policy: &RelayPolicy) -> Vec<ObjectRef<RelayCluster>> {
        let namespace = policy.namespace().unwrap_or_default();
        let key = (namespace.clone(), policy.name_any());
        let now = policy.spec.cluster_ref.name.clone();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = if policy.meta().deletion_timestamp.is_some() {
            known.remove(&key)
        } else {
            known.insert(key, now.clone())
        };
        drop(known);
        let before = before.filter(|b| *b != now);
        [Some(now), before]
            .into_iter()
            .flatten()
            .map(|name| ObjectRef::new(&name).within(&namespace))
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(cluster: &str) -> RelayPolicy {
        serde_json::from_value(json!({
            "apiVersion": "sealane.io/v1alpha1", "kind": "RelayPolicy",
            "metadata": {"name": "p", "namespace": "ns"},
            "spec": {"clusterRef": {"name": cluster}}
        }))
        .unwrap()
    }

    #[test]
    fn the_cluster_that_a_policy_left_is_looked_at_too() {
        let routes = Routes::default();
        let names = |cluster: &str| -> Vec<String> {
            let all = routes.clusters(&policy(cluster));
            all.into_iter().map(|r| r.name).collect()
        };
        assert_eq!(names("a"), ["a"]);
        assert_eq!(names("a"), ["a"]);
        assert_eq!(names("b"), ["b", "a"]);
        assert_eq!(names("b"), ["b"]);
    }
}
