//! Show 4, a slice of it: full disks refuse mail for the time being and deliver on; slow disks are slow.
//! All of it: `make chaos PLAN=space`.
#![forbid(unsafe_code)]

use anyhow::Result;
use sealane_tests::chaos::space::{self, Ill, Place};

#[tokio::test(flavor = "multi_thread")]
async fn full_and_slow_disks_cost_time_and_no_mail() -> Result<()> {
    let cases = [
        (Ill::Full, Place::Everywhere),
        (Ill::Exhausted, Place::Everywhere),
        (Ill::Slow(1000), Place::Leader),
    ];
    Box::pin(space::run(&cases)).await?.hold()
}
