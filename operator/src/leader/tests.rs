use super::*;
use crate::fake_api::FakeApi;
use std::sync::Arc;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/system/leases/operator";

fn candidate(api: &Arc<FakeApi>, identity: &str, terms: Terms) -> Leader {
    let lease = LeaseName {
        namespace: "system".to_owned(),
        name: "operator".to_owned(),
    };
    Leader::new(api.client(), &lease, identity.to_owned(), terms)
}

fn quick() -> Terms {
    Terms {
        length: Duration::from_secs(2),
        deadline: Duration::from_millis(400),
        pause: Duration::from_millis(20),
    }
}

#[tokio::test]
async fn the_second_waits_until_the_first_lets_go() {
    let api = FakeApi::new();
    let (mut a, mut b) = (candidate(&api, "a", quick()), candidate(&api, "b", quick()));
    a.acquire(|| {}).await;
    let lease = api.get(LEASE).expect("made");
    assert_eq!(lease["spec"]["holderIdentity"], "a");
    assert_eq!(lease["spec"]["leaseTransitions"], 1);

    let waits = timeout(Duration::from_millis(200), b.acquire(|| {})).await;
    assert!(waits.is_err(), "b leads beside a");

    a.release().await;
    timeout(Duration::from_secs(1), b.acquire(|| {}))
        .await
        .expect("a released it");
    let lease = api.get(LEASE).expect("there");
    assert_eq!(lease["spec"]["holderIdentity"], "b");
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn a_leader_that_cannot_renew_says_that_it_lost() {
    let api = FakeApi::new();
    let mut a = candidate(&api, "a", quick());
    a.acquire(|| {}).await;
    let keeps = timeout(Duration::from_millis(600), a.keep()).await;
    assert!(keeps.is_err(), "renewals hold it beyond the deadline");
    api.set_down(true);
    let lost = timeout(Duration::from_secs(2), a.keep()).await;
    assert!(lost.is_ok(), "it went on without the lease");
}

#[tokio::test]
async fn a_leader_that_was_replaced_says_so_at_once() {
    let api = FakeApi::new();
    let mut a = candidate(&api, "a", Terms::default());
    a.acquire(|| {}).await;
    let mut lease = api.get(LEASE).expect("made");
    lease["spec"]["holderIdentity"] = "b".into();
    api.put(LEASE, lease);
    let lost = timeout(Duration::from_secs(5), a.keep()).await;
    assert!(lost.is_ok(), "another holds it");
}
