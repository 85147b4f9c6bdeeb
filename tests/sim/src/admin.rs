//! The operator's part: a policy whose retries are as fast as the simulation.
use crate::node;
use sealane_runtime::{grpc, identity::Identity};
use sealane_wire::v1::{self, policy_client::PolicyClient};
use std::time::Duration;

/// Tries until the policy is in force.
pub(crate) async fn run(identity: Identity, nodes: usize) {
    let mut turn = 0usize;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        turn += 1;
        let Ok(channel) = grpc::channel(&node::address(turn % nodes.max(1)), &identity) else {
            continue;
        };
        let request = v1::PolicyApplyRequest {
            documents: vec![v1::Document {
                kind: Some(v1::document::Kind::Destination(v1::DestinationDocument {
                    name: "*".into(),
                    retry: Some(v1::RetrySchedule {
                        delays_ms: vec![1000, 3000, 5000],
                        lifetime_ms: 5 * 24 * 3600 * 1000,
                        tls_lifetime_ms: 24 * 3600 * 1000,
                    }),
                    ..Default::default()
                })),
            }],
            ..Default::default()
        };
        let mut client = PolicyClient::new(channel);
        let applied = tokio::time::timeout(Duration::from_secs(5), client.apply(request)).await;
        if let Ok(Ok(_)) = applied {
            crate::note!("the policy is in force");
            return;
        }
    }
}
