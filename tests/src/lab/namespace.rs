//! An anonymous network namespace.
//!
//! Invariant: only an open file, sockets and processes hold the namespace, so the kernel removes it with its links when
//! the value, its sockets and its processes are gone. Does not know the links of the namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread;

use anyhow::Context;
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::{Handle, LinkUnspec};

/// Each namespace's loopback interface has this index.
const LOOPBACK: u32 = 1;

/// Settings that keep the kernel from sending its own packets and from dropping the test's. They apply to interfaces that
/// are created later, independent of the machine's settings.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // 1: no link-local address, so neither router solicitations nor group membership for it.
    ("ipv6/conf/default/addr_gen_mode", "1"),
];

/// An anonymous network namespace.
pub struct Namespace {
    file: File,
}

impl Namespace {
    /// Creates a namespace in which only loopback is up.
    pub fn new() -> anyhow::Result<Self> {
        let made = thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        });
        let file = made
            .join()
            .unwrap_or_else(|panic| resume_unwind(panic))
            .context("cannot create a network namespace")?;
        let namespace = Self { file };
        for (name, value) in SETTINGS {
            namespace.set(name, value)?;
        }
        namespace.netlink(async |handle| {
            let up = LinkUnspec::new_with_index(LOOPBACK).up().build();
            handle
                .link()
                .set(up)
                .execute()
                .await
                .context("cannot bring loopback up")
        })?;
        Ok(namespace)
    }

    /// Writes a sysctl of the namespace below `/proc/sys/net`, such as `ipv4/conf/eth0/forwarding`.
    pub fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/net/{name}");
        self.run(|| fs::write(&path, value))
            .with_context(|| format!("cannot write {value} to {path}"))
    }

    /// Runs `task` in a thread inside the namespace, and waits for its end. Its sockets and threads stay in the namespace.
    ///
    /// Must not start a process: the kernel kills a [`Program`](super::Program) with the thread that started it.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("the namespace exists");
                task()
            });
            inside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Returns a command whose process runs inside the namespace.
    #[expect(
        unsafe_code,
        reason = "the child enters the namespace between fork and exec"
    )]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> io::Result<Command> {
        let file = self.file.try_clone()?;
        let mut command = Command::new(program);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || Ok(setns(&file, CloneFlags::CLONE_NEWNET)?));
        }
        Ok(command)
    }

    /// Runs `task` with a netlink connection to the namespace.
    pub(super) fn netlink<T: Send>(
        &self,
        task: impl AsyncFnOnce(Handle) -> anyhow::Result<T> + Send,
    ) -> anyhow::Result<T> {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let (connection, handle, _) =
                    rtnetlink::new_connection().context("cannot open a netlink socket")?;
                tokio::spawn(connection);
                task(handle).await
            })
        })
    }
}

impl AsFd for Namespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
