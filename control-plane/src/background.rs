//! What a node does without being asked: each a named task, started by [`crate::node`].
pub(crate) mod compaction;
pub(crate) mod dispatch;
pub(crate) mod leadership;
pub(crate) mod membership;
pub(crate) mod readiness;
pub(crate) mod reclaim;
pub(crate) mod report;
pub(crate) mod scrub;
pub(crate) mod standing;
pub(crate) mod tokens;
