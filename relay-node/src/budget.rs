//! Memory for bodies in flight. Mail coming in and mail going out have a budget each, so that
//! neither waits for the other.
use prometheus_client::metrics::gauge::Gauge;
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Octets per permit.
const UNIT: usize = 1024;

/// Shared by all connections of one direction.
#[derive(Debug, Clone)]
pub(crate) struct BodyBudget {
    total: usize,
    units: Arc<Semaphore>,
    in_use: Gauge,
}

/// Memory paid for; given back when dropped.
#[derive(Debug)]
pub(crate) struct Paid {
    permit: OwnedSemaphorePermit,
    in_use: Gauge,
}

impl BodyBudget {
    pub(crate) fn new(octets: u64, in_use: Gauge) -> Self {
        let total = (usize::try_from(octets).unwrap_or(usize::MAX) / UNIT)
            .min(Semaphore::MAX_PERMITS)
            .min(u32::MAX as usize);
        Self {
            total,
            units: Arc::new(Semaphore::new(total)),
            in_use,
        }
    }

    /// Waits for room at most `within`; what exceeds the whole budget pays the whole budget. First
    /// come, first served.
    pub(crate) async fn pay(&self, octets: usize, within: Duration) -> Option<Paid> {
        let units = u32::try_from(octets.div_ceil(UNIT).min(self.total)).ok()?;
        if let Some(paid) = self.try_pay(octets) {
            return Some(paid);
        }
        let permit = tokio::time::timeout(within, self.units.clone().acquire_many_owned(units))
            .await
            .ok()?
            .ok()?;
        let paid = Paid {
            permit,
            in_use: self.in_use.clone(),
        };
        paid.in_use.inc_by(paid.octets());
        Some(paid)
    }
}

impl BodyBudget {
    /// What [`Self::pay`] does, if there is room now.
    pub(crate) fn try_pay(&self, octets: usize) -> Option<Paid> {
        let units = u32::try_from(octets.div_ceil(UNIT).min(self.total)).ok()?;
        let permit = self.units.clone().try_acquire_many_owned(units).ok()?;
        let paid = Paid {
            permit,
            in_use: self.in_use.clone(),
        };
        paid.in_use.inc_by(paid.octets());
        Some(paid)
    }
}

impl Paid {
    fn octets(&self) -> i64 {
        i64::try_from(self.permit.num_permits() * UNIT).unwrap_or(i64::MAX)
    }
    /// Both are one from now on.
    pub(crate) fn merge(&mut self, mut other: Paid) {
        // `other` keeps nothing that its drop could give back twice.
        if let Some(all) = other.permit.split(other.permit.num_permits()) {
            self.permit.merge(all);
        }
    }
}

impl Drop for Paid {
    fn drop(&mut self) {
        self.in_use.dec_by(self.octets());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_paid_comes_back_once() {
        let budget = BodyBudget::new(64 << 10, Gauge::default());
        let mut a = budget.pay(16 << 10, Duration::ZERO).await.unwrap();
        a.merge(budget.pay(48 << 10, Duration::ZERO).await.unwrap());
        assert_eq!(budget.in_use.get(), 64 << 10);
        assert!(budget.pay(1, Duration::from_millis(1)).await.is_none());
        drop(a);
        assert_eq!(budget.in_use.get(), 0);
        assert!(budget.pay(64 << 10, Duration::ZERO).await.is_some());
    }
}
