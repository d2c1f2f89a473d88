//! Which files were touched: sources that are files are read again when somebody writes them.
//!
//! The folders are watched and not the files, since most editors put a new file in the old one's place.
//! Where the kernel cannot tell, as on network file systems, `every` has to do.
//!
//! Invariant: a file system that does not answer costs the watch on its own files alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use log::warn;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use crate::bounded::within;

/// How long the setup of a watch may take. One that takes longer is set up later.
const SETUP: Duration = Duration::from_secs(1);

/// Watches some files.
#[derive(Default)]
pub(super) struct Files {
    /// Kept for its threads; none where nothing can be watched.
    _watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
    touched: Arc<Touched>,
}

/// Those that were written since somebody asked.
#[derive(Default)]
struct Touched {
    files: Mutex<BTreeSet<PathBuf>>,
    bell: Notify,
    watched: Mutex<Vec<Watched>>,
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
    /// Watches these, all at once. What cannot be watched is warned of.
    pub(super) fn watch<'p>(paths: impl Iterator<Item = &'p Path>) -> Self {
        let touched = Arc::new(Touched::default());
        let paths: BTreeSet<&Path> = paths.collect();
        if paths.is_empty() {
            return Self::default();
        }
        let heard = {
            let touched = Arc::clone(&touched);
            move |event: notify::Result<notify::Event>| touched.hear(&event)
        };
        let watcher = match notify::recommended_watcher(heard) {
            Ok(watcher) => Arc::new(Mutex::new(watcher)),
            Err(error) => {
                warn!(
                    "files cannot be watched, so a change counts only when its time comes (`every`): {error}"
                );
                return Self {
                    _watcher: None,
                    touched,
                };
            }
        };
        thread::scope(|scope| {
            for path in paths {
                scope.spawn(|| watch_one(path, &watcher, &touched));
            }
        });
        Self {
            _watcher: Some(watcher),
            touched,
        }
    }

    /// The files that somebody wrote, renamed or removed, as soon as there are some.
    pub(super) async fn touched(&self) -> BTreeSet<PathBuf> {
        loop {
            let files = std::mem::take(&mut *lock(&self.touched.files));
            if !files.is_empty() {
                return files;
            }
            self.touched.bell.notified().await;
        }
    }
}

impl Touched {
    fn hear(&self, event: &notify::Result<notify::Event>) {
        let is_meant = |file: &&Watched| match event {
            Ok(event) if matches!(event.kind, EventKind::Access(_)) => false,
            // Which files these were, was too much to tell.
            Ok(event) if event.need_rescan() => true,
            Ok(event) => event.paths.iter().any(|path| file.is_at(path)),
            Err(_) => true,
        };
        let watched = lock(&self.watched);
        let meant = watched.iter().filter(is_meant);
        let meant: Vec<_> = meant.map(|file| file.path.clone()).collect();
        drop(watched);
        self.add(meant);
    }

    fn add(&self, files: Vec<PathBuf>) {
        if !files.is_empty() {
            lock(&self.files).extend(files);
            self.bell.notify_one();
        }
    }
}

/// Watches the folders of one file, within a time limit. A watch that is set up later counts as a write, since there
/// may have been one.
fn watch_one(path: &Path, watcher: &Arc<Mutex<RecommendedWatcher>>, touched: &Arc<Touched>) {
    let (file, watcher, touched) = (path.to_owned(), Arc::clone(watcher), Arc::clone(touched));
    let (late_file, late_touched) = (path.to_owned(), Arc::clone(&touched));
    let work = move || {
        let file = Watched::new(&file);
        let folders: BTreeSet<PathBuf> = [Some(&*file.path), file.target.as_deref()]
            .into_iter()
            .filter_map(|path| folder(path?))
            .collect();
        // The watcher's own thread must not wait for a file system.
        for folder in &folders {
            let _ = fs::metadata(folder);
        }
        lock(&touched.watched).push(file);
        for folder in &folders {
            if let Err(error) = lock(&watcher).watch(folder, RecursiveMode::NonRecursive) {
                warn!(
                    "{} cannot be watched, so a change there counts only when its time comes (`every`): {error}",
                    folder.display()
                );
            }
        }
    };
    let late = move |()| late_touched.add(vec![late_file]);
    // A place of its own: a watch that waits does not keep the file from being read.
    if let Err(error) = within(&path.join("watch"), SETUP, work, late) {
        warn!(
            "{} is not watched yet, so a change counts only when its time comes (`every`): {error}",
            path.display()
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked with it left it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(file: &Path) -> Option<PathBuf> {
    let folder = file.parent()?;
    Some(if folder.as_os_str().is_empty() {
        PathBuf::from(".")
    } else {
        folder.to_owned()
    })
}
