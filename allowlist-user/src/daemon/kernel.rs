//! The daemon's side of the kernel: commands to the thread of the data plane, and what this process has published.
//!
//! Invariant: only this thread writes to the kernel, and it runs one command at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use allowlist_dataplane::interface::InterfaceInfo;
use allowlist_dataplane::{AttachModeRequest, AttachedPrograms, Dataplane, Result, Write};
use allowlist_policy::compile::Tables;

use super::interfaces::indices_of;
use crate::cli::Paths;
use crate::effective::KnownIds;
use crate::generation_meta::GenerationMeta;
use crate::worker::Worker;

/// The thread of the data plane, and what this process has published last.
pub(super) struct Kernel {
    thread: Worker<Dataplane>,
    /// The number of the active generation after the last command; 0 before the first publish.
    generation: Arc<AtomicU32>,
    /// The names behind the ids of the kernel's counters.
    pub(super) ids: KnownIds,
    /// Whether `ids` names all ids of the counters in the kernel; if not, the counters restart at 0 with the first publish.
    pub(super) are_counts_known: bool,
    /// Whether the kernel may judge by another state than the daemon's, so that the next change publishes a generation
    /// even if it leaves the tables as they are.
    pub(super) is_behind: bool,
    /// The tables that this process published last; `None` before its first publish.
    pub(super) tables: Option<Arc<Tables>>,
    /// By name: the index that each configured interface had at the last publish. Missing interfaces have no entry.
    pub(super) published_on: BTreeMap<String, u32>,
}

impl Kernel {
    /// Starts the thread of the data plane, which opens the maps. Returns the handle, and the metadata of the
    /// generation whose counters the kernel has, empty if it is unknown.
    pub(super) async fn open(
        paths: &Paths,
        max_flows: Option<u32>,
    ) -> anyhow::Result<(Self, GenerationMeta)> {
        let pin_dir = paths.pin_dir.clone();
        let open = move || Dataplane::open(&pin_dir, max_flows);
        let mut kernel = Self {
            thread: Worker::start("dataplane", open).await?,
            generation: Arc::default(),
            ids: KnownIds::default(),
            are_counts_known: false,
            is_behind: false,
            tables: None,
            published_on: BTreeMap::new(),
        };
        let state_dir = paths.state_dir.clone();
        let read = move |dataplane: &mut Dataplane| {
            let known = GenerationMeta::of_counters(dataplane, &state_dir)?;
            anyhow::Ok((known, dataplane.counted_generation()))
        };
        let (known, counted) = kernel.run(read).await?;
        kernel.are_counts_known = known.is_some() || counted == 0;
        let meta = known.unwrap_or_default();
        kernel.ids = KnownIds {
            packets: meta.ids.clone(),
            egress: meta.egress_ids.clone(),
        };
        Ok((kernel, meta))
    }

    /// Runs a command on the thread of the data plane, and returns its result.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        command: impl FnOnce(&mut Dataplane) -> T + Send + 'static,
    ) -> T {
        let generation = Arc::clone(&self.generation);
        let run = move |dataplane: &mut Dataplane| {
            let result = command(dataplane);
            generation.store(dataplane.generation(), Ordering::Relaxed);
            result
        };
        self.thread.run(run).await
    }

    /// Returns the number of the active generation; 0 before the first publish.
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Applies a write, and returns the programs that were attached. With `confirm_within`, the kernel rolls the write
    /// back after this time unless it is confirmed. An error leaves the kernel as it was.
    pub(super) async fn apply(
        &mut self,
        write: Write,
        confirm_within: Option<Duration>,
    ) -> Result<AttachedPrograms> {
        let is_behind = std::mem::replace(&mut self.is_behind, true); // until the write is done
        let (write, attached) = self
            .run(move |dataplane| -> Result<_> {
                let attached = dataplane.apply(&write, confirm_within)?;
                Ok((write, attached))
            })
            .await?;
        self.is_behind = is_behind && matches!(write, Write::Mode { .. });
        if let Write::Generation(publication) = write {
            self.published_on = indices_of(&publication.names);
            self.ids.packets = publication.tables.ids.clone();
            if let Some(egress) = &publication.egress {
                self.ids.egress = egress.tables.ids.clone();
            }
            self.are_counts_known = true;
            self.tables = Some(publication.tables);
        }
        Ok(attached)
    }

    /// Attaches the filter to an interface, and returns the attached program.
    pub(super) async fn attach(
        &self,
        interface: InterfaceInfo,
        mode: AttachModeRequest,
        trace: bool,
    ) -> Result<AttachedPrograms> {
        self.run(move |dataplane| -> Result<_> {
            let attached = dataplane.attach(&interface, mode, trace)?;
            Ok(vec![(interface, attached)])
        })
        .await
    }
}
