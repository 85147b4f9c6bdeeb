//! Waiting for something that another process will make true.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::time::sleep;

use crate::awake;

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(50);

/// Polls `probe` until it gives a value; fails with `what` and the last refusal after `limit`, in
/// which time that this process did not run is not counted.
pub async fn until<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T>>,
{
    let began = Instant::now();
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if awake::since(began) >= limit => {
                bail!("{what}: not within {} s: {error:#}", limit.as_secs());
            }
            Err(_) => sleep(POLL).await,
        }
    }
}
