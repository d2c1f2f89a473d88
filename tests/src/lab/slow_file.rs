//! A file whose reads return one byte after a tenth of a second. It is so long that no test reads all of the file.
//!
//! It is the root of a FUSE file system that a thread of this process serves. Requires private mounts, as
//! [`super::Scratch`] creates them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyOpen, Request, Session, SessionACL,
};
use nix::mount::{MntFlags, umount2};

use super::hang::mount_fuse;

/// The time that one read takes.
const PAUSE: Duration = Duration::from_millis(100);
/// The size of the file in bytes: a whole day of reads.
const SIZE: u64 = 864_000;

/// A slow file over another file, until the value is dropped.
pub struct SlowFile {
    path: PathBuf,
    _session: BackgroundSession,
}

impl SlowFile {
    /// Covers the file at `path`, which must exist.
    pub fn over(path: &Path) -> anyhow::Result<Self> {
        let server = OwnedFd::from(mount_fuse("slow", path)?);
        let session = Session::from_fd(SlowRoot, server, SessionACL::All, Config::default())?;
        Ok(Self {
            path: path.to_owned(),
            _session: session.spawn()?,
        })
    }
}

impl Drop for SlowFile {
    fn drop(&mut self) {
        // The thread of the session ends with the mount.
        let _ = umount2(&self.path, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

/// A file system whose root is the slow file.
struct SlowRoot;

impl Filesystem for SlowRoot {
    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let time = SystemTime::UNIX_EPOCH;
        let attributes = FileAttr {
            ino: inode,
            size: SIZE,
            blocks: SIZE.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm: 0o600,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&Duration::MAX, &attributes);
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        // Without the page cache, each read of the program is one request.
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        thread::sleep(PAUSE);
        if offset < SIZE {
            reply.data(b"#");
        } else {
            reply.error(Errno::EIO);
        }
    }
}
