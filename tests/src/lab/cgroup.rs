//! A cgroup of a test: programs and sockets are in it, and the egress policy is attached to it instead of the root.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{process, thread};

use allowlist_dataplane::cgroup_mount_point;
use anyhow::Context;

use super::{Namespace, Program};

/// The number of the next cgroup of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);
/// The time to wait for the processes of a cgroup to end, after they were killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// The time to wait for a process to make a socket, long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(3);

/// A program that binds a UDP socket, and prints the number of its descriptor.
const BIND: &str = "
import signal, socket, sys
made = socket.socket(socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
made.bind((sys.argv[1], int(sys.argv[2])))
print('socket', made.fileno(), flush=True)
signal.pause()
";

/// A cgroup of version 2, which is removed with this value, after its processes were killed.
pub struct Cgroup {
    /// The path below the root of cgroup v2.
    below_root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Creates an empty cgroup below the root.
    pub fn new() -> anyhow::Result<Self> {
        Self::at(&PathBuf::from(next_path()))
    }

    /// Creates an empty cgroup below the root, with the name of a systemd slice.
    pub fn slice() -> anyhow::Result<Self> {
        Self::at(&PathBuf::from(format!("{}.slice", next_path())))
    }

    /// Creates an empty cgroup below this one.
    pub fn child(&self, name: &str) -> anyhow::Result<Self> {
        Self::at(&self.below_root.join(name))
    }

    fn at(below_root: &Path) -> anyhow::Result<Self> {
        let root = cgroup_mount_point()?;
        let path = root.join(below_root.strip_prefix("/")?);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self {
            below_root: below_root.to_owned(),
            path,
        })
    }

    /// Returns the path of the cgroup's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path below the root of cgroup v2, as in the configuration.
    pub fn below_root(&self) -> &Path {
        &self.below_root
    }

    /// Makes a command run in the cgroup.
    #[expect(
        unsafe_code,
        reason = "the child enters the cgroup between fork and exec"
    )]
    pub fn hold<'c>(&self, command: &'c mut Command) -> anyhow::Result<&'c mut Command> {
        let procs: File = OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.procs"))?;
        // SAFETY: the closure makes one system call and allocates nothing. 0 is the writing process.
        unsafe {
            command.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(command)
    }

    /// Binds a UDP socket of this process in a namespace. It belongs to the cgroup, so the cgroup's programs see its
    /// calls and packets as those of a process in the cgroup.
    pub fn bind_udp(
        &self,
        namespace: &Namespace,
        address: SocketAddr,
    ) -> anyhow::Result<UdpSocket> {
        // A socket belongs to the cgroup of the process that makes it.
        let mut command = namespace.command("python3")?;
        command.args([
            "-c",
            BIND,
            &address.ip().to_string(),
            &address.port().to_string(),
        ]);
        self.hold(&mut command)?;
        let maker = Program::start(command)?;
        let line = maker.wait_for_line("socket", SOON)?;
        let number = line.trim_start_matches("socket ").parse()?;
        let socket = take_descriptor(maker.id(), number).context("cannot take the socket")?;
        Ok(socket.into())
    }
}

/// Returns a duplicate of an open descriptor of another process.
#[expect(unsafe_code, reason = "system calls that give open descriptors")]
fn take_descriptor(process: u32, number: i32) -> io::Result<OwnedFd> {
    let owned = |result: libc::c_long| {
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the result of a call below, which is a new descriptor without another owner.
        Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
    };
    // SAFETY: both calls take integers only.
    unsafe {
        let process = owned(libc::syscall(libc::SYS_pidfd_open, process, 0))?;
        owned(libc::syscall(
            libc::SYS_pidfd_getfd,
            process.as_raw_fd(),
            number,
            0,
        ))
    }
}

/// Returns a path that no other cgroup of the tests has.
fn next_path() -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("/allowlist-test-{}-{number}", process::id())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.path.join("cgroup.kill"), "1");
        let end = Instant::now() + PATIENCE;
        while let Err(error) = fs::remove_dir(&self.path) {
            if Instant::now() > end {
                eprintln!("cannot remove {}: {error}", self.path.display());
                return;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl AsRef<OsStr> for Cgroup {
    fn as_ref(&self) -> &OsStr {
        self.below_root.as_os_str()
    }
}
