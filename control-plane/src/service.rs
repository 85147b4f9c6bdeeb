//! The gRPC services of a control-plane node. Each translates and proposes; none keeps state of its own.
pub(crate) mod admin;
pub(crate) mod backup;
pub(crate) mod cluster;
pub(crate) mod deliver;
pub(crate) mod policy;
pub(crate) mod queue;
pub(crate) mod restore;
pub(crate) mod results;
pub(crate) mod shares;
pub(crate) mod submit;
