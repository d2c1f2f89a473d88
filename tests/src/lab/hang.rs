//! A file or a folder that never answers: every access to it blocks in the kernel until the test ends that.
//!
//! It is the root of a FUSE file system whose server reads no request, so nothing depends on time: while a
//! [`Hang`] lives, no read below it can have ended. As with a network file system whose server is gone, a
//! process that waits can be killed.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Mounts a FUSE file system over a file or a directory, and returns the server's side of it. `name` is the source that
/// `mount` shows. Needs private mounts, as a [`super::Scratch`] makes them.
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

/// See the module.
pub struct Hang {
    path: PathBuf,
    /// The server's side. Closing it ends what waits with an error.
    server: Option<File>,
}

impl Hang {
    /// Covers a file or a folder that is there. Needs private mounts, as a [`super::Scratch`] makes them.
    pub fn over(path: &Path) -> anyhow::Result<Self> {
        let server = mount_fuse("hang", path)?;
        Ok(Self {
            path: path.to_owned(),
            server: Some(server),
        })
    }

    /// Covers a file or a folder that is there by a file system whose server has ended: every access fails with `ENOTCONN`.
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
