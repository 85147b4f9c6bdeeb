//! The task that takes leases and keeps attempts going.
use super::{ControlPlane, Courier, DeliveryMetrics, DeliveryOptions, Lease, LeaseClock, QueueControl};
use crate::{resolve::Resolver, tls::TlsConnector};
use sealane_policy::PolicySnapshot;
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::sync::CancellationToken;

/// How often idle connections are looked at.
const SWEEP: Duration = Duration::from_secs(1);
/// For the QUITs at the end.
const FAREWELL: Duration = Duration::from_secs(2);
