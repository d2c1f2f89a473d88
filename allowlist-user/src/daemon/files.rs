//! Watches the files of sources, which are read again after a write.
//!
//! Watches their directories, since most editors replace a file. Network file systems send no notifications; there
//! the source is read at its interval (`every`).
//!
//! Invariant: a file system that hangs disables the watch of its own files only.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use allowlist_files::bounded::within;
use log::warn;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

/// The time limit for the setup of a watch on a file. A slower setup continues in the background.
const SETUP: Duration = Duration::from_secs(1);

/// A watch on files.
#[derive(Default)]
pub(super) struct Files {
    /// The watcher, which owns its threads; `None` if no file can be watched.
    _watcher: Option<Arc<Mutex<RecommendedWatcher>>>,
    touched: Arc<Touched>,
}

/// The state that the watcher's thread shares with [`Files::touched`].
#[derive(Default)]
struct Touched {
    /// The files that were written, renamed or removed since the last call of [`Files::touched`].
    files: Mutex<BTreeSet<PathBuf>>,
    /// Wakes [`Files::touched`] when `files` gets an entry.
    bell: Notify,
    /// The files whose changes are reported.
    watched: Mutex<Vec<Watched>>,
}

/// A watched file.
struct Watched {
    path: PathBuf,
    /// The file's path with all symbolic links resolved when the watch was set up; `None` if the path has no link, or
    /// the file was missing.
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

    /// Returns whether an event at `path` may concern this file. For a file behind a symbolic link, every event may,
    /// since any directory of the link may have changed.
    fn is_at(&self, path: &Path) -> bool {
        self.target.is_some() || path.file_name() == self.path.file_name()
    }
}

/// Returns whether a component of the path is a symbolic link.
fn is_link(path: &Path) -> bool {
    path.ancestors().any(Path::is_symlink)
}

impl Files {
    /// Sets up a watch for each file, in parallel. A failure is logged.
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
                    "cannot watch the files of sources ({error}); a changed file is read only at the interval of its source (`every`)"
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

    /// Waits until watched files were written, renamed or removed, and returns their paths.
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
            // The kernel has dropped events.
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

/// Watches the directories of one file. If the setup exceeds the time limit, it continues in the background, and its
/// end counts as a write, since the file may have changed before.
fn watch_one(path: &Path, watcher: &Arc<Mutex<RecommendedWatcher>>, touched: &Arc<Touched>) {
    let (file, watcher, touched) = (path.to_owned(), Arc::clone(watcher), Arc::clone(touched));
    let (late_file, late_touched) = (path.to_owned(), Arc::clone(&touched));
    let work = move || {
        let file = Watched::new(&file);
        let folders: BTreeSet<PathBuf> = [Some(&*file.path), file.target.as_deref()]
            .into_iter()
            .filter_map(|path| folder(path?))
            .collect();
        // Access the directories here: the watcher's own thread must not block.
        for folder in &folders {
            let _ = fs::metadata(folder);
        }
        lock(&touched.watched).push(file);
        for folder in &folders {
            if let Err(error) = lock(&watcher).watch(folder, RecursiveMode::NonRecursive) {
                warn!(
                    "cannot watch the folder {} ({error}); a changed file in it is read only at the interval of its source (`every`)",
                    folder.display()
                );
            }
        }
    };
    let late = move |()| late_touched.add(vec![late_file]);
    // A place of its own, so that a blocked watch does not block reads of the file.
    if let Err(error) = within(&path.join("watch"), SETUP, work, late) {
        warn!(
            "the file {} is not watched yet ({error}); until then, it is read only at the interval of its source (`every`)",
            path.display()
        );
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic leaves the data consistent.
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
