//! The index of a shard that this node begins to lead: its messages, page by page, while mail flows.
use super::{Dispatch, index::Build};
use crate::raft::Group;
use sealane_runtime::blocking;
use sealane_state::queries;

/// Messages per page.
const PAGE: usize = 512;

impl Dispatch {
    pub(super) async fn build(self, group: Group, build: Build) {
        let dispatch = self.clone();
        let id = group.id();
        let done = blocking::run(move || -> anyhow::Result<Option<usize>> {
            let reader = group.store().reader();
            let (mut after, mut count) = (None, 0);
            loop {
                let page = queries::list(&reader, after, PAGE, None)?;
                if !dispatch.at(|at| dispatch.index().page(id, build, &page, at)) {
                    return Ok(None);
                }
                count += page.len();
                match page.last() {
                    Some(m) if page.len() == PAGE => after = Some(m.id),
                    _ => return Ok(Some(count)),
                }
            }
        })
        .await;
        match done {
            Ok(Ok(Some(messages))) => {
                let changed = self.index().built(id, build);
                tracing::info!(shard = %id, messages, changed = changed.len(), "delivery index built");
                self.reread(id, changed);
                self.0.work.notify_one();
            }
            Ok(Ok(None)) => {}
            Ok(Err(e)) => {
                tracing::error!(shard = %id, error = %e, "delivery index not built, will retry");
                self.index().follow(id, None);
            }
            Err(e) => {
                tracing::error!(shard = %id, error = %e, "delivery index not built, will retry");
                self.index().follow(id, None);
            }
        }
    }
}
