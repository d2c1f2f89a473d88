//! A file or directory whose accesses block in the kernel until the test removes it.
//!
//! It is the root of a FUSE file system whose server reads no requests, so no test depends on time: no access completes
//! while the [`Hang`] exists. A blocked process can be killed, as with a network file system whose server is down.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a FUSE file system over a file or directory, and returns the descriptor of its server. `name` is the source that
/// `mount` shows. Requires private mounts, as [`super::Scratch`] creates them.
pub(super) fn mount_fuse(name: &str, path: &Path) -> anyhow::Result<File> {
    let server = File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .context("cannot open /dev/fuse")?;
    let kind = if path.is_dir() { "40000" } else { "100000" };
    let options = format!(
        "fd={},rootmode={kind},user_id=0,group_id=0",
        server.as_raw_fd()
    );
    mount(
        Some(name),
        path,
        Some("fuse"),
        MsFlags::empty(),
        Some(&*options),
    )
    .with_context(|| format!("cannot mount over {}", path.display()))?;
    Ok(server)
}

/// A file or directory whose accesses block.
pub struct Hang {
    path: PathBuf,
    /// The descriptor of the server. Closing it makes blocked accesses fail.
    server: Option<File>,
}

impl Hang {
    /// Covers an existing file or directory. Requires private mounts, as [`super::Scratch`] creates them.
    pub fn over(path: &Path) -> anyhow::Result<Self> {
        let server = mount_fuse("hang", path)?;
        Ok(Self {
            path: path.to_owned(),
            server: Some(server),
        })
    }

    /// Covers an existing file or directory with a file system whose server has ended: accesses fail with `ENOTCONN`.
    pub fn failing(path: &Path) -> anyhow::Result<Self> {
        let mut hang = Self::over(path)?;
        drop(hang.server.take());
        Ok(hang)
    }
}

impl Drop for Hang {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
