//! Which files were touched: sources that are files are read again when somebody writes them.
//!
//! The folders are watched and not the files, since most editors put a new file in the old one's place.
//! Where the kernel cannot tell, as on network file systems, `every` has to do.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use log::warn;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// Watches some files.
pub(super) struct Files {
    /// Kept for its threads; none where nothing can be watched.
    _watcher: Option<RecommendedWatcher>,
    touched: Arc<Touched>,
}

/// Those that were written since somebody asked.
#[derive(Default)]
struct Touched {
    files: Mutex<BTreeSet<PathBuf>>,
    bell: Notify,
}

/// A file, and what it led to when it was looked at first.
struct Watched {
    path: PathBuf,
    /// Where a symbolic link leads.
    target: Option<PathBuf>,
}

impl Watched {
    fn new(path: &Path) -> Self {
        let target = fs::canonicalize(path).ok();
        Self {
            target: target.filter(|target| target.file_name() != path.file_name() || is_link(path)),
            path: path.to_owned(),
        }
    }

    /// Whether what happened there may be of this file. Of a link anything may be: any step of its way may lead
    /// elsewhere now.
    fn is_at(&self, path: &Path) -> bool {
        self.target.is_some() || path.file_name() == self.path.file_name()
    }
}

/// Whether a link is on the way to the file, in its folder or further up.
fn is_link(path: &Path) -> bool {
    path.ancestors().any(Path::is_symlink)
}

impl Files {
    /// Watches these. What cannot be watched is warned of.
    pub(super) fn watch<'p>(paths: impl Iterator<Item = &'p Path>) -> Self {
        let touched = Arc::new(Touched::default());
        let files: Vec<Watched> = paths.map(Watched::new).collect();
        let folders: BTreeSet<PathBuf> = files
            .iter()
            .flat_map(|file| [Some(&*file.path), file.target.as_deref()])
            .filter_map(|path| folder(path?))
            .collect();
        if folders.is_empty() {
            return Self {
                _watcher: None,
                touched,
            };
        }
        let heard = {
            let touched = Arc::clone(&touched);
            move |event: notify::Result<notify::Event>| touched.hear(&event, &files)
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

    /// The files that somebody wrote, renamed or removed, as soon as there are some.
    pub(super) async fn touched(&self) -> BTreeSet<PathBuf> {
        loop {
            let files = std::mem::take(&mut *self.touched.lock());
            if !files.is_empty() {
                return files;
            }
            self.touched.bell.notified().await;
        }
    }
}

impl Touched {
    fn hear(&self, event: &notify::Result<notify::Event>, files: &[Watched]) {
        let is_meant = |file: &&Watched| match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => false,
            // Which files these were, was too much to tell.
            Ok(event) if event.need_rescan() => true,
            Ok(event) => event.paths.iter().any(|path| file.is_at(path)),
            Err(_) => true,
        };
        let meant = files.iter().filter(is_meant);
        let meant: Vec<_> = meant.map(|file| file.path.clone()).collect();
        if !meant.is_empty() {
            self.lock().extend(meant);
            self.bell.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<PathBuf>> {
        // Whoever panicked with it left it whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn folder(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder.to_owned()
    })
}
