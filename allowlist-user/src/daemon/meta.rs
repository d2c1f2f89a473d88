//! Stores the metadata of the active generation in the kernel, for reports and for the next daemon.

use allowlist_lists::states::SourceStates;
use log::warn;

use super::Daemon;
use crate::generation_meta::GenerationMeta;

impl Daemon {
    /// Returns the metadata of the active generation with these lists, for reports.
    pub(super) fn meta(&self, lists: &SourceStates) -> GenerationMeta {
        GenerationMeta::new(&self.ids, &self.policy, lists, self.since)
    }

    /// Stores the metadata of the active generation in the kernel. A failure is only logged.
    pub(super) fn store_meta(&mut self, meta: GenerationMeta) {
        if let Err(error) = self.dataplane.set_metadata(&meta.encode()) {
            warn!(
                "cannot store the names of sources in the kernel: {error:#}; reports may show the state of lists before this"
            );
        }
        self.named_services = meta.services;
        self.is_meta_outdated = false;
    }

    /// Stores the metadata if that in the kernel is older than the active state.
    pub(super) fn update_meta(&mut self) {
        if self.is_meta_outdated {
            let meta = self.meta(&self.lists);
            self.store_meta(meta);
        }
    }
}
