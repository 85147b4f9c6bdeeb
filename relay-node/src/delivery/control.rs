//! The control plane as delivery needs it.
use super::{LeaseKey, report::Report};
use bytes::Bytes;
use futures_util::stream::BoxStream;
use sealane_types::TraceContext;
use std::{future::Future, time::Duration};

/// What an attempt asks of the control plane. The queue's client implements it, and so does the
/// bench of the tests, which has no control plane at all.
pub trait ControlPlane: Send + Sync + 'static {
    /// The content of `size` octets in order, in pieces of at most 1 MiB; the next piece is read when it is asked for.
    fn fetch_body(
        &self,
        key: LeaseKey,
        size: u64,
        trace: TraceContext,
    ) -> impl Future<Output = Result<Body, BodyError>> + Send;
    /// Asks for more time.
    fn renew(&self, key: LeaseKey) -> impl Future<Output = Renewal> + Send;
    /// Hands over outcomes.
    fn report(&self, report: Report) -> impl Future<Output = ()> + Send;
    /// Returns a lease that nothing was done with.
    fn give_back(&self, key: LeaseKey) -> impl Future<Output = ()> + Send;
}

/// Content on its way from the queue.
pub type Body = BoxStream<'static, Result<Bytes, BodyError>>;

/// The content cannot be had now. Temporary; the text is for the log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("content not available: {0}")]
pub struct BodyError(pub String);

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// It holds this long from the moment before the question.
    Renewed(Duration),
    /// It is someone else's, or nobody's.
    Lost,
    /// No answer; it runs out at its time unless a later renewal succeeds.
    Unknown,
}
