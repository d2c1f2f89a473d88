//! Private directories of a thread and its child processes: one on a BPF file system, one in memory.
//!
//! Invariant: both are on mounts of a private mount namespace, so the kernel removes pins and files with the last process
//! that uses them, and the machine's mounts stay unchanged. Needs root.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Context;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// A mount point that exists on every kernel with BPF, so that none has to be created on disk.
const BPF_MOUNT: &str = "/sys/fs/bpf";
/// The mount point of the files, a directory of the BPF file system above.
const FILES_MOUNT: &str = "/sys/fs/bpf/files";

/// The inodes of the mount namespaces that this process has created.
static PRIVATE: Mutex<Vec<u64>> = Mutex::new(Vec::new());
/// The number of the next instance; several instances can share mounts.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// The directories of one instance. Create it before the threads and processes that use the directories, and in the
/// thread that starts them: others do not see the mounts.
pub struct Scratch {
    pins: PathBuf,
    files: PathBuf,
}

impl Scratch {
    /// Creates empty directories.
    pub fn new() -> anyhow::Result<Self> {
        private_mounts()?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scratch = Self {
            pins: Path::new(BPF_MOUNT).join(format!("pins-{number}")),
            files: Path::new(FILES_MOUNT).join(number.to_string()),
        };
        for folder in [&scratch.pins, &scratch.files] {
            fs::create_dir(folder)
                .with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(scratch)
    }

    /// Returns the directory on the BPF file system.
    pub fn pin_dir(&self) -> &Path {
        &self.pins
    }

    /// Returns the path of a file, without creating it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    /// Writes a file, and returns its path.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> anyhow::Result<PathBuf> {
        let path = self.file(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Returns the options that make `allowlist run` use these directories.
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
        // If this fails, the kernel removes the directories with the mounts.
        let _ = fs::remove_dir_all(&self.pins);
        let _ = fs::remove_dir_all(&self.files);
    }
}

/// Moves this thread to a private mount namespace, unless it is in one already.
fn private_mounts() -> anyhow::Result<()> {
    let mut private = PRIVATE.lock().unwrap_or_else(PoisonError::into_inner);
    if private.contains(&mount_namespace()?) {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("cannot create a mount namespace")?;
    // Without this, the mounts below would propagate to the machine, where / is usually shared.
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot make the mounts private")?;
    mount_new("bpf", BPF_MOUNT)?;
    fs::create_dir(FILES_MOUNT).with_context(|| format!("cannot create {FILES_MOUNT}"))?;
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
