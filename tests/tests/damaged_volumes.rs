//! Show 3, a slice of it: a damaged volume is refused with what to do, and replacing the node heals it.
//! All of it: `make chaos PLAN=damage`.
#![forbid(unsafe_code)]

use anyhow::Result;
use sealane_tests::chaos::damage::{self, Damage};

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_old_volume_is_refused_and_replaced() -> Result<()> {
    let damages = [Damage::WalTailAfterKill, Damage::Vote, Damage::OldImage];
    Box::pin(damage::run(&damages)).await?.hold()
}
