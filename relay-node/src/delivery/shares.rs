//! Keeps this relay's shares: asks at once for what is missing, renews the rest every second.
use super::{DeliveryMetrics, places::Places, pool::Pool};
use sealane_client::ShareClient;
use sealane_shares::RENEW_MS;
use std::{sync::Arc, time::Duration};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Between questions when something is missing, or nobody answered.
const WANTING: Duration = Duration::from_millis(200);
/// Needs that come up together are asked together.
const TOGETHER: Duration = Duration::from_millis(20);

/// Runs until `stop`; then says what is still held, so that the rest is free at once.
pub(crate) async fn keep(
    places: Places,
    pool: Arc<Pool>,
    mut client: ShareClient,
    metrics: DeliveryMetrics,
    stop: CancellationToken,
) {
    let mut wanting = false;
    loop {
        let pause = if wanting {
            WANTING
        } else {
            Duration::from_millis(RENEW_MS)
        };
        let stopped = tokio::select! {
            () = stop.cancelled() => true,
            () = places.asked() => false,
            () = sleep(pause) => false,
        };
        let question = places.question();
        if !question.is_empty() {
            match client.deal(question.needs()).await {
                Ok(dealt) => {
                    metrics.asked(true);
                    wanting = places.answered(&question, &dealt);
                }
                Err(error) => {
                    metrics.asked(false);
                    wanting = true;
                    tracing::debug!(error = %format!("{error:#}"), "no shares dealt");
                }
            }
            // Less may be held than is open now.
            if !places.excess().is_empty() {
                pool.wake();
            }
        }
        if stopped {
            return;
        }
        sleep(TOGETHER).await;
    }
}
