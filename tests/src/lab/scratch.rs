//! Folders that only this thread and what it starts can see: one on a BPF file system, one in memory.
//!
//! Invariant: both live on mounts of a private mount namespace, so pins and files vanish with the
//! last process that uses them, and the machine's own mounts stay as they are. Needs root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// There on every kernel with BPF, mounted or not, so that no mount point has to be made on disk.
const BPF_MOUNT: &str = "/sys/fs/bpf";
/// A folder of the BPF file system above.
const FILES_MOUNT: &str = "/sys/fs/bpf/files";

/// The mount namespaces that this process made, by number.
static PRIVATE: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// Tells apart the scratches that share mounts.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// One instance's folders. Make it in the thread that starts what uses it: other threads that run
/// already do not see them.
pub struct Scratch {
    pins: PathBuf,
    files: PathBuf,
}

impl Scratch {
    /// New, empty folders.
    pub fn new() -> anyhow::Result<Self> {
        private_mounts()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scratch = Self {
            pins: Path::new(BPF_MOUNT).join(format!("pins-{number}")),
            files: Path::new(FILES_MOUNT).join(number.to_string()),
        };
        fs::create_dir(&scratch.pins)?;
        fs::create_dir(&scratch.files)?;
        Ok(scratch)
    }

    /// On a BPF file system.
    pub fn pin_dir(&self) -> &Path {
        &self.pins
    }

    /// The path of a file; nothing is made.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// What makes `allowlist run` use these folders and no other.
    pub fn arguments(&self) -> [OsString; 6] {
        [
            "--pin-dir".into(),
            self.pins.clone().into(),
            "--state-dir".into(),
            self.file("state").into(),
            "--socket".into(),
            self.file("socket").into(),
        ]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // At the latest they go with the mounts.
        let _ = fs::remove_dir_all(&self.pins);
        let _ = fs::remove_dir_all(&self.files);
    }
}

/// Moves this thread to mounts of its own, once.
fn private_mounts() -> anyhow::Result<()> {
    let mut private = PRIVATE.lock().unwrap_or_else(PoisonError::into_inner);
    if private.contains(&mount_namespace()?) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    // Else what is mounted below would appear on the machine, where / is usually shared.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    mount_new("bpf", BPF_MOUNT)?;
    fs::create_dir(FILES_MOUNT)?;
    mount_new("tmpfs", FILES_MOUNT)?;
    private.push(mount_namespace()?);
    Ok(())
}

fn mount_new(kind: &str, target: &str) -> anyhow::Result<()> {
    mount(
        Some(kind),
        target,
        Some(kind),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| format!("cannot mount a {kind} file system on {target}"))
}

fn mount_namespace() -> anyhow::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/mnt")?.ino())
}
