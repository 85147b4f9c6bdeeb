//! Events on the resources: every step, and every refusal once.
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client, Resource,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
};

/// As `reportingController`, and as the field manager of everything that is applied.
pub(crate) const CONTROLLER: &str = "sealane-operator";
/// The API server takes no longer note.
const NOTE: usize = 1000;

/// What was said last, so that a pass every few seconds does not say it again.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subject {
    uid: String,
    reason: &'static str,
}

/// Publishes; what cannot be published is logged and does not stop a pass.
pub(crate) struct Events {
    client: Client,
    reporter: Reporter,
    said: Mutex<HashMap<Subject, String>>,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// `instance` is this process, as in the lease.
    pub(crate) fn new(client: Client, instance: &str) -> Self {
        let reporter = Reporter {
            controller: CONTROLLER.to_owned(),
            instance: Some(instance.to_owned()),
        };
        Self {
            client,
            reporter,
            said: Mutex::default(),
        }
    }

    /// Something was done. `action` is a verb ("RestartPod"), `reason` a word of the past ("PodRestarted").
    pub(crate) async fn did<K>(&self, on: &K, action: &str, reason: &'static str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = on.object_ref(&());
        tracing::info!(
            object = about.name,
            namespace = about.namespace,
            reason,
            "{note}"
        );
        self.publish(about, EventType::Normal, action, reason, note)
            .await;
    }

    /// Something is not done, and why. Said again only when the note is another one.
    pub(crate) async fn refused<K>(&self, on: &K, action: &str, reason: &'static str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = on.object_ref(&());
        if self.is_new(&about, reason, &note) {
            tracing::warn!(
                object = about.name,
                namespace = about.namespace,
                reason,
                "{note}"
            );
            self.publish(about, EventType::Warning, action, reason, note)
                .await;
        }
    }

    /// Something that is as it should be takes its time. Said again only when the note is another one.
    pub(crate) async fn waits<K>(&self, on: &K, action: &str, reason: &'static str, note: String)
    where
        K: Resource<DynamicType = ()>,
    {
        let about = on.object_ref(&());
        if self.is_new(&about, reason, &note) {
            tracing::info!(
                object = about.name,
                namespace = about.namespace,
                reason,
                "{note}"
            );
            self.publish(about, EventType::Normal, action, reason, note)
                .await;
        }
    }

    fn is_new(&self, about: &ObjectReference, reason: &'static str, note: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        let last = said.insert(subject(about, reason), note.to_owned());
        last.as_deref() != Some(note)
    }

    /// It is refused no more: the next time it is said again.
    pub(crate) fn relented<K>(&self, on: &K, reason: &'static str)
    where
        K: Resource<DynamicType = ()>,
    {
        let subject = subject(&on.object_ref(&()), reason);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.remove(&subject);
    }

    /// The object is gone.
    pub(crate) fn forget<K>(&self, on: &K)
    where
        K: Resource<DynamicType = ()>,
    {
        let uid = on.meta().uid.clone().unwrap_or_default();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        said.retain(|s, _| s.uid != uid);
    }

    async fn publish(
        &self,
        about: ObjectReference,
        type_: EventType,
        action: &str,
        reason: &str,
        note: String,
    ) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(short(note)),
            action: action.to_owned(),
            secondary: None,
        };
        // A recorder of its own: one that remembers would count a second pod's restart as the first one's, note and all.
        let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
        if let Err(e) = recorder.publish(&event, &about).await {
            tracing::warn!(error = %e, reason, "an event was not published");
        }
    }
}

fn subject(about: &ObjectReference, reason: &'static str) -> Subject {
    Subject {
        uid: about.uid.clone().unwrap_or_default(),
        reason,
    }
}

/// Cut at a character.
fn short(mut note: String) -> String {
    if note.len() > NOTE {
        let mut end = NOTE - 3;
        while !note.is_char_boundary(end) {
            end -= 1;
        }
        note.truncate(end);
        note.push('…');
    }
    note
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        assert_eq!(short("ä".repeat(500)), "ä".repeat(500));
        let cut = short("ä".repeat(600));
        assert!(cut.len() <= NOTE && cut.ends_with('…'));
    }

    #[tokio::test]
    async fn a_refusal_is_said_once_until_it_changes_or_ends() {
        let api = FakeApi::new();
        let events = Events::new(api.client(), "test");
        let on: ConfigMap = serde_json::from_value(
            json!({"metadata": {"name": "mail", "namespace": "a", "uid": "1"}}),
        )
        .unwrap();
        let refuse = |note: &str| events.refused(&on, "Validate", "Invalid", note.to_owned());
        refuse("no hostname").await;
        refuse("no hostname").await;
        assert_eq!(api.writes().len(), 1);
        refuse("no certificate").await;
        assert_eq!(api.writes().len(), 1);
        refuse("no certificate").await;
        assert_eq!(api.writes().len(), 0);
        events.relented(&on, "Invalid");
        refuse("no certificate").await;
        assert_eq!(api.writes().len(), 1);
    }
}
