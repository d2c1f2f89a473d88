//! Which files were touched: sources that are files are read again when somebody writes them.
//!
//! The folders are watched and not the files, since most editors put a new file in the old one's place.
//! Where the kernel cannot tell, as on network file systems, `every` has to do.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use log::warn;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

/// More than this wait for nobody: the next one tells as much.
const WAITING: usize = 64;

/// Watches some files.
pub(super) struct Files {
    /// Kept for its threads; none where nothing can be watched.
    _watcher: Option<RecommendedWatcher>,
    touched: mpsc::Receiver<PathBuf>,
}

impl Files {
    /// Watches these. What cannot be watched is warned of.
    pub(super) fn watch<'p>(paths: impl Iterator<Item = &'p Path>) -> Self {
        let (tell, touched) = mpsc::channel(WAITING);
        let files: BTreeSet<PathBuf> = paths.map(Path::to_owned).collect();
        let folders: BTreeSet<PathBuf> = files
            .iter()
            .filter_map(|file| file.parent())
            .map(|folder| {
                if folder.as_os_str().is_empty() {
                    PathBuf::from(".")
                } else {
                    folder.to_owned()
                }
            })
            .collect();
        if folders.is_empty() {
            return Self {
                _watcher: None,
                touched,
            };
        }
        let names: BTreeSet<_> = files
            .iter()
            .filter_map(|file| Some((file.file_name()?.to_owned(), file.clone())))
            .collect();
        let heard = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else {
                return;
            };
            if matches!(event.kind, EventKind::Access(_)) {
                return;
            }
            for path in event.paths {
                for (name, file) in &names {
                    if path.file_name() == Some(name) {
                        let _ = tell.try_send(file.clone());
                    }
                }
            }
        };
        let watcher = notify::recommended_watcher(heard).map(|mut watcher| {
            for folder in &folders {
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    warn!(
                        "{} cannot be watched, so a change there counts only when its time comes (`every`): {error}",
                        folder.display()
                    );
                }
            }
            watcher
        });
        if let Err(error) = &watcher {
            warn!(
                "files cannot be watched, so a change counts only when its time comes (`every`): {error}"
            );
        }
        Self {
            _watcher: watcher.ok(),
            touched,
        }
    }

    /// The next file that somebody wrote, renamed or removed.
    pub(super) async fn touched(&mut self) -> PathBuf {
        match self.touched.recv().await {
            Some(path) => path,
            None => std::future::pending().await, // nothing is watched
        }
    }
}
