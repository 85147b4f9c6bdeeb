//! The clients against control-plane nodes that do as they are told.
mod fake_node;

use crate::{
    Content, DeliverClient, Members, PolicyWatch, Renewal, ShareClient, Submission, SubmitClient,
    SubmitError, UploadError,
};
use bytes::Bytes;
use fake_node::{FakeNode, Heard};
use sealane_types::{MessageId, ShardId, TraceContext};
use sealane_wire::v1::{self, submit_outcome::Kind};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const PATIENCE: Duration = Duration::from_secs(10);

fn shard(n: u32) -> ShardId {
    ShardId::new(n).unwrap()
}

fn members(nodes: &[&FakeNode]) -> Members {
    let seeds = nodes.iter().map(|n| n.address.to_string()).collect();
    let dial = |address: &str| {
        Ok(tonic::transport::Endpoint::from_shared(format!("http://{address}"))?.connect_lazy())
    };
    Members::new(seeds, Arc::new(dial))
}

/// A client that knows a leader.
async fn client(nodes: &[&FakeNode]) -> SubmitClient {
    let client = SubmitClient::start(
        "relay-1",
        members(nodes),
        &TaskTracker::new(),
        CancellationToken::new(),
    );
    timeout(PATIENCE, client.led_shard(Instant::now() + PATIENCE))
        .await
        .unwrap()
        .unwrap();
    client
}

fn submission(id: MessageId) -> Submission {
    Submission {
        id,
        envelope: v1::Envelope::default(),
        entry: v1::EntryRecord::default(),
        trace: TraceContext::default(),
        size: 4,
        sha256: [0; 32],
        content: Content::Inline(Bytes::from_static(b"body")),
        lease: false,
    }
}

/// Leaves this much before the client aborts.
fn deadline(until_abort: Duration) -> Instant {
    Instant::now() + Duration::from_secs(5) + until_abort
}

async fn enqueue(node: &FakeNode) -> MessageId {
    match node.hear().await {
        Heard::Enqueue(id) => id,
        other => panic!("{other:?}"),
    }
}

async fn abort(node: &FakeNode) -> MessageId {
    match node.hear().await {
        Heard::Abort(id) => id,
        other => panic!("{other:?}"),
    }
}

fn fresh(shard: ShardId) -> MessageId {
    MessageId::new(shard, 5, rand::random())
}

#[tokio::test]
async fn durable_is_durable() {
    let node = FakeNode::start(1).await;
    node.lead(&[(3, 1)]);
    let client = client(&[&node]).await;
    let id = fresh(shard(3));
    let submit = client.submit(submission(id), deadline(PATIENCE));
    let serve = async {
        let id = enqueue(&node).await;
        node.answer(id, Kind::Durable, 0);
    };
    let (outcome, ()) = tokio::join!(submit, serve);
    assert_eq!(outcome.unwrap().id(), id);
}

#[tokio::test]
async fn without_a_leader_nothing_is_proposed() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let client = client(&[&node]).await;
    let outcome = client
        .submit(submission(fresh(shard(2))), deadline(PATIENCE))
        .await;
    assert!(
        matches!(outcome, Err(SubmitError::NotProposed(_))),
        "{outcome:?}"
    );
    let serve = async {
        let id = enqueue(&node).await;
        node.answer(id, Kind::Unavailable, 0);
    };
    let (outcome, ()) = tokio::join!(
        client.submit(submission(fresh(shard(1))), deadline(PATIENCE)),
        serve
    );
    assert!(
        matches!(outcome, Err(SubmitError::NotProposed(_))),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_lost_leader_is_followed_with_the_same_id() {
    let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
    first.lead(&[(1, 1)]);
    let client = client(&[&first, &second]).await;
    let id = fresh(shard(1));
    let serve = async {
        assert_eq!(enqueue(&first).await, id);
        first.break_streams();
        second.lead(&[(1, 2)]);
        assert_eq!(enqueue(&second).await, id);
        second.answer(id, Kind::Durable, 0);
    };
    let (outcome, ()) = tokio::join!(client.submit(submission(id), deadline(PATIENCE)), serve);
    assert_eq!(outcome.unwrap().id(), id);
}

#[tokio::test]
async fn a_higher_term_is_followed_while_the_old_leader_is_silent() {
    let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
    first.lead(&[(1, 1)]);
    let client = client(&[&first, &second]).await;
    let id = fresh(shard(1));
    let serve = async {
        assert_eq!(enqueue(&first).await, id);
        second.lead(&[(1, 2)]);
        assert_eq!(enqueue(&second).await, id);
        second.answer(id, Kind::Durable, 0);
    };
    let (outcome, ()) = tokio::join!(client.submit(submission(id), deadline(PATIENCE)), serve);
    assert!(outcome.is_ok());
}

#[tokio::test]
async fn unknown_is_asked_again() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let client = client(&[&node]).await;
    let id = fresh(shard(1));
    let serve = async {
        for kind in [
            Kind::Unknown,
            Kind::NotLeader,
            Kind::Unavailable,
            Kind::StorageFull,
            Kind::Durable,
        ] {
            assert_eq!(enqueue(&node).await, id);
            node.answer(id, kind, 0);
        }
    };
    let (outcome, ()) = tokio::join!(client.submit(submission(id), deadline(PATIENCE)), serve);
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test]
async fn an_unsettled_enqueue_is_aborted_before_the_deadline() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let client = client(&[&node]).await;
    let id = fresh(shard(1));
    let serve = async {
        assert_eq!(enqueue(&node).await, id);
        assert_eq!(abort(&node).await, id);
        node.answer(id, Kind::Aborted, 0);
    };
    let (outcome, ()) = tokio::join!(
        client.submit(submission(id), deadline(Duration::from_millis(50))),
        serve
    );
    assert!(
        matches!(outcome, Err(SubmitError::Transient(_))),
        "{outcome:?}"
    );
}

/// The Enqueue's late "durable" must not be told: the Abort behind it may remove the message.
#[tokio::test]
async fn durable_does_not_count_while_an_abort_is_on_its_way() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let client = client(&[&node]).await;
    let id = fresh(shard(1));
    let serve = async {
        assert_eq!(enqueue(&node).await, id);
        assert_eq!(abort(&node).await, id);
        node.answer(id, Kind::Durable, 0);
        node.answer(id, Kind::Aborted, 0);
    };
    let (outcome, ()) = tokio::join!(
        client.submit(submission(id), deadline(Duration::from_millis(50))),
        serve
    );
    assert!(
        matches!(outcome, Err(SubmitError::Transient(_))),
        "{outcome:?}"
    );

    // Both say durable: the message was leased before, it stays.
    let id = fresh(shard(1));
    let serve = async {
        assert_eq!(enqueue(&node).await, id);
        assert_eq!(abort(&node).await, id);
        node.answer(id, Kind::Durable, 0);
        node.answer(id, Kind::Durable, 0);
    };
    let (outcome, ()) = tokio::join!(
        client.submit(submission(id), deadline(Duration::from_millis(50))),
        serve
    );
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[tokio::test]
async fn an_abort_without_answer_leaves_the_outcome_unknown() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let client = client(&[&node]).await;
    let id = fresh(shard(1));
    let outcome = client.submit(submission(id), Instant::now() + Duration::from_millis(1200));
    // Within the abort window from the start: nothing was sent, so nothing can be pending.
    assert!(matches!(
        outcome.await,
        Err(SubmitError::Transient(_) | SubmitError::Unknown)
    ));
    let (outcome, ()) = tokio::join!(
        client.submit(submission(id), deadline(Duration::from_millis(50))),
        async {
            node.lead(&[(1, 2)]);
            loop {
                match node.hear().await {
                    Heard::Abort(_) => break,
                    Heard::Enqueue(_) => {}
                    other => panic!("{other:?}"),
                }
            }
            node.lead(&[]);
        }
    );
    assert_eq!(outcome, Err(SubmitError::Unknown));
}

#[tokio::test]
async fn pieces_are_acknowledged_one_by_one_and_sent_again() {
    let (first, second) = (FakeNode::start(1).await, FakeNode::start(2).await);
    first.lead(&[(1, 1)]);
    let client = client(&[&first, &second]).await;
    let id = fresh(shard(1));
    let mut upload = client.begin_upload(id, TraceContext::default());
    let push = async {
        for _ in 0..3 {
            upload
                .push(Bytes::from_static(b"piece"), (), deadline(PATIENCE))
                .await
                .unwrap();
        }
        upload.finish().await.unwrap()
    };
    let serve = async {
        assert_eq!(first.hear().await, Heard::Chunk(id, 0));
        first.answer(id, Kind::ChunkDurable, 0);
        let mut seen = [first.hear().await, first.hear().await];
        seen.sort();
        assert_eq!(seen, [Heard::Chunk(id, 1), Heard::Chunk(id, 2)]);
        first.break_streams();
        second.lead(&[(1, 2)]);
        for _ in 0..2 {
            match second.hear().await {
                Heard::Chunk(_, seq) => second.answer(id, Kind::ChunkDurable, seq),
                other => panic!("{other:?}"),
            }
        }
    };
    let (chunks, ()) = tokio::join!(push, serve);
    assert_eq!(chunks, 3);
    let mut other = client.begin_upload(fresh(shard(7)), TraceContext::default());
    let refused = other
        .push(Bytes::from_static(b"piece"), (), deadline(PATIENCE))
        .await;
    assert!(
        matches!(refused, Err(UploadError::NotProposed(_))),
        "{refused:?}"
    );
}

#[tokio::test]
async fn a_lease_and_its_renewal_count_from_when_our_clock_showed_what_their_node_says() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let submit = client(&[&node]).await;
    let deliver = DeliverClient::start(
        "relay-1",
        members(&[&node]),
        submit,
        7,
        &TaskTracker::new(),
        CancellationToken::new(),
    );
    assert_eq!(node.hear().await, Heard::Credit(7));
    let shown = node.shown();
    assert!(shown > 0, "the client does not say what its clock shows");
    let before = Instant::now();
    let id = fresh(shard(1));
    node.lease_since(id, 5, &[0], shown);
    let work = timeout(PATIENCE, deliver.lease()).await.unwrap().unwrap();
    assert!(work.received <= before, "its way counts as its time");
    // The answer to an earlier question than the one that waits.
    let (renewal, ()) = tokio::join!(deliver.renew(id, 5), async {
        assert_eq!(node.hear().await, Heard::Renew(id, 5));
        node.renewed_since(id, 5, 30_000, shown);
    });
    let Renewal::Renewed(left) = renewal else {
        panic!("{renewal:?}")
    };
    assert!(left < Duration::from_secs(30), "{left:?}");
    // A moment in the future is none that this clock showed.
    node.lease_since(fresh(shard(1)), 6, &[0], u64::MAX / 2);
    let work = timeout(PATIENCE, deliver.lease()).await.unwrap().unwrap();
    assert!(work.received <= Instant::now());
}

#[tokio::test]
async fn leases_come_reports_go_and_credits_return() {
    let node = FakeNode::start(1).await;
    node.lead(&[(1, 1)]);
    let tasks = TaskTracker::new();
    let submit = client(&[&node]).await;
    let deliver = DeliverClient::start(
        "relay-1",
        members(&[&node]),
        submit,
        7,
        &tasks,
        CancellationToken::new(),
    );
    assert_eq!(node.hear().await, Heard::Credit(7));
    let id = fresh(shard(1));
    node.lease(id, 5, &[0, 1]);
    let work = timeout(PATIENCE, deliver.lease()).await.unwrap().unwrap();
    assert_eq!(work.lease.epoch, 5);

    let (renewal, ()) = tokio::join!(deliver.renew(id, 5), async {
        assert_eq!(node.hear().await, Heard::Renew(id, 5));
        node.renewed(id, 5, 30_000);
    });
    assert_eq!(renewal, Renewal::Renewed(Duration::from_secs(30)));

    let report = |n| v1::Report {
        id: Bytes::copy_from_slice(id.as_bytes()),
        epoch: 5,
        recipients: vec![v1::RecipientReport {
            recipient: n,
            ..Default::default()
        }],
        ..Default::default()
    };
    deliver.report(report(0));
    assert_eq!(node.hear().await, Heard::Report(id, 5, vec![0]));
    // The acknowledgement is lost with the stream: reported again, then the rest.
    node.break_streams();
    deliver.report(report(1));
    loop {
        match node.hear().await {
            Heard::Credit(_) => {}
            heard => {
                assert_eq!(heard, Heard::Report(id, 5, vec![0]));
                break;
            }
        }
    }
    node.acknowledge(id, 5);
    assert_eq!(node.hear().await, Heard::Report(id, 5, vec![1]));
    assert_eq!(deliver.unacknowledged(), 1);
    node.acknowledge(id, 5);
    timeout(PATIENCE, deliver.settled()).await.unwrap();
}

#[tokio::test]
async fn shares_are_asked_where_they_are_dealt() {
    let (one, two) = (FakeNode::start(1).await, FakeNode::start(2).await);
    let mut client = ShareClient::new(members(&[&one, &two]));
    let need = || vec![v1::ShareNeed::default()];
    client
        .deal(need())
        .await
        .expect_err("group 0 has no leader");
    let dealt = |term, places| v1::ShareReply {
        dealer: true,
        term,
        valid_ms: 3_000,
        shares: vec![v1::Share {
            places,
            ..v1::Share::default()
        }],
        ..v1::ShareReply::default()
    };
    // The node that is asked knows the dealer.
    let elsewhere = |node: &FakeNode| v1::ShareReply {
        dealer_address: node.address.to_string(),
        ..v1::ShareReply::default()
    };
    one.deals(elsewhere(&two));
    two.deals(dealt(4, 7));
    for _ in 0..2 {
        let answer = client.deal(need()).await.unwrap();
        assert_eq!(answer.shares[0].places, 7);
        assert!(answer.asked <= Instant::now());
    }
    // It moves; who dealt before and does not know it is not believed.
    two.deals(elsewhere(&one));
    one.deals(dealt(5, 3));
    assert_eq!(client.deal(need()).await.unwrap().shares[0].places, 3);
    one.deals(dealt(4, 9));
    client.deal(need()).await.expect_err("an old term");
    // An answer that does not fit the question is none.
    one.deals(v1::ShareReply {
        shares: Vec::new(),
        ..dealt(6, 9)
    });
    two.deals(elsewhere(&one));
    client.deal(need()).await.expect_err("a share per need");
}

#[tokio::test]
async fn before_the_first_policy_there_is_none_and_no_node_takes_it_back() {
    let (one, two) = (FakeNode::start(1).await, FakeNode::start(2).await);
    let mut policy = PolicyWatch::start(
        "relay-1",
        members(&[&one, &two]),
        &TaskTracker::new(),
        CancellationToken::new(),
    );
    // Both say revision 0: nobody applied anything.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(policy.borrow_and_update().is_none());
    one.has_policy(7);
    timeout(PATIENCE, policy.changed()).await.unwrap().unwrap();
    let in_force = |policy: &tokio::sync::watch::Receiver<_>| {
        let now = policy.borrow();
        let now: &std::sync::Arc<sealane_policy::PolicySnapshot> = Option::as_ref(&now).unwrap();
        now.revision()
    };
    assert_eq!(in_force(&policy), 7);
    policy.mark_unchanged();
    // An older one is none, wherever it comes from.
    one.has_policy(0);
    one.has_policy(6);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!policy.has_changed().unwrap());
    one.has_policy(8);
    timeout(PATIENCE, policy.changed()).await.unwrap().unwrap();
    assert_eq!(in_force(&policy), 8);
}
