//! Rules by name with systemd-resolved as the local resolver.
//!
//! The real systemd-resolved runs in the testbed's network namespace, and in a mount namespace with files of the test in
//! place of `/run`, `/etc/resolv.conf` and the databases of users; so does the daemon, which reads from these files which
//! servers systemd-resolved queries. Neither has D-Bus.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;

use allowlist_tests::lab::{Cgroup, Program, Testbed, add_addresses, eventually};
use allowlist_tests::{require_root, skip};
use anyhow::{Context as _, ensure};

use super::asker::Asker;
use super::forwarding::{self, policy, table};
use super::names::{SOON, serve_on};
use super::*;

/// The address of systemd-resolved on the host.
const LOCAL: &str = "127.0.0.53:53";
/// The servers that systemd-resolved queries, one after the other: addresses of the peer.
const UPSTREAM: [&str; 2] = ["198.51.100.2", "203.0.113.53"];
/// The resolvers of the policy where it does not follow those of the host.
const RESOLVERS: &str = "resolvers = [\"127.0.0.53\", \"198.51.100.2\"]\n";

/// The path of the program in Debian's package.
const PROGRAM: &str = "lib/systemd/systemd-resolved";

/// Runs a program with the files of a folder, `$0`, at their usual places.
const WITH_FILES: &str = "
mount --bind \"$0/resolv.conf\" /etc/resolv.conf
mount --bind \"$0/passwd\" /etc/passwd
mount --bind \"$0/group\" /etc/group
mount --bind \"$0/run\" /run
exec \"$@\"
";

/// The folder into which `.ci/run` unpacks the packages with systemd-resolved, or the root folder if it is installed.
fn installation() -> Option<PathBuf> {
    let test = std::env::current_exe().ok()?;
    let unpacked = test
        .ancestors()
        .map(|folder| folder.join("systemd-resolved"));
    let mut folders = unpacked.chain([PathBuf::from("/")]);
    folders.find(|folder| folder.join(PROGRAM).is_file())
}

/// The files of a host with systemd-resolved.
struct Files {
    folder: PathBuf,
    installation: PathBuf,
}

impl Files {
    fn new(testbed: &Testbed, installation: PathBuf) -> anyhow::Result<Self> {
        let folder = testbed.scratch.file("host");
        fs::create_dir(&folder)?;
        fs::create_dir_all(folder.join("run/systemd/resolved.conf.d"))?;
        fs::write(folder.join("resolv.conf"), "nameserver 127.0.0.53\n")?;
        for (file, line) in [
            (
                "passwd",
                "systemd-resolve:x:64999:64999::/:/usr/sbin/nologin\n",
            ),
            ("group", "systemd-resolve:x:64999:\n"),
        ] {
            let all = fs::read_to_string(Path::new("/etc").join(file))?;
            let others = all
                .lines()
                .filter(|line| !line.starts_with("systemd-resolve:"));
            let others: String = others.flat_map(|line| [line, "\n"]).collect();
            fs::write(folder.join(file), others + line)?;
        }
        Ok(Self {
            folder,
            installation,
        })
    }

    /// Returns a command that runs a program on the host, with these files.
    fn command<'a>(
        &self,
        testbed: &Testbed,
        words: impl IntoIterator<Item = &'a OsStr>,
    ) -> anyhow::Result<Command> {
        let mut command = testbed.host.command("unshare")?;
        command
            .args(["--mount", "sh", "-euc", WITH_FILES])
            .arg(&self.folder)
            .args(words);
        Ok(command)
    }

    /// Starts systemd-resolved in a cgroup, with a server that it queries, and returns when it is ready.
    fn resolved(
        &self,
        testbed: &Testbed,
        cgroup: &Cgroup,
        server: &str,
    ) -> anyhow::Result<Program> {
        let conf = format!(
            "[Resolve]\nDNS=\nDNS={server}\nFallbackDNS=\nDomains=\nDNSSEC=no\nDNSOverTLS=no\nLLMNR=no\n\
             MulticastDNS=no\nCache=yes\nDNSStubListener=yes\n"
        );
        fs::write(
            self.folder.join("run/systemd/resolved.conf.d/test.conf"),
            conf,
        )?;
        let socket = self.folder.join("run/notify");
        let _ = fs::remove_file(&socket);
        let manager = UnixDatagram::bind(&socket)?;
        manager.set_read_timeout(Some(SOON))?;
        // systemd-resolved gives up the privileges of root before it is ready.
        fs::set_permissions(&socket, Permissions::from_mode(0o666))?;
        // The program's private library, of the same version.
        let library = format!("usr/lib/{}-linux-gnu/systemd", std::env::consts::ARCH);
        let library = self.installation.join(library);
        let library = format!("LD_LIBRARY_PATH={}", library.display());
        let program = self.installation.join(PROGRAM);
        let words = [
            "env",
            &library,
            "NOTIFY_SOCKET=/run/notify",
            "SYSTEMD_LOG_LEVEL=debug",
            "SYSTEMD_LOG_TARGET=console",
        ];
        let words = words.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = self.command(testbed, words)?;
        cgroup.hold(&mut command)?;
        let resolved = Program::start(command)?;
        let mut buffer = [0; 4096];
        loop {
            let received = manager.recv(&mut buffer);
            let length = received.with_context(|| {
                format!("systemd-resolved is not ready:\n{}", resolved.output())
            })?;
            let text = String::from_utf8_lossy(&buffer[..length]);
            if text.lines().any(|line| line == "READY=1") {
                return Ok(resolved);
            }
        }
    }

    /// Starts the daemon with lines of `[egress]` and other tables.
    fn daemon(&self, testbed: &Testbed, cgroup: &Cgroup, rest: &str) -> anyhow::Result<Program> {
        let text = format!("at_start = \"drop\"\n{}", config(cgroup, rest));
        let path = testbed.scratch.write("allowlist.toml", text)?;
        let run = testbed.command(&["run".as_ref(), "--config".as_ref(), path.as_os_str()])?;
        let words = [run.get_program()].into_iter().chain(run.get_args());
        let daemon = Program::start(self.command(testbed, words)?)?;
        daemon.wait_for_line("ready", SOON)?;
        Ok(daemon)
    }
}

fn local() -> SocketAddr {
    LOCAL.parse().expect("it is one")
}

#[test]
fn answers_of_resolved_are_believed() -> anyhow::Result<()> {
    require_root!();
    let Some(installation) = installation() else {
        skip!("needs systemd-resolved, which .ci/run unpacks");
    };
    let (testbed, outside) = (Testbed::new()?, Cgroup::new()?);
    let _server = serve_on(&testbed.peer, UPSTREAM[0], 53, &table())?;
    let files = Files::new(&testbed, installation)?;
    let start = || files.resolved(&testbed, &outside, UPSTREAM[0]);
    let cached = "cache hit for cached.example.com IN A";
    forwarding::check(&testbed, &outside, local(), RESOLVERS, start, cached)
}

/// As on most hosts: systemd-resolved is judged like every program, and the policy names no resolvers. The daemon reads
/// the servers that systemd-resolved queries from its file.
#[test]
fn the_servers_of_a_judged_resolved_are_followed() -> anyhow::Result<()> {
    require_root!();
    let Some(installation) = installation() else {
        skip!("needs systemd-resolved, which .ci/run unpacks");
    };
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let (service, programs) = (
        cgroup.child("systemd-resolved.service")?,
        cgroup.child("programs")?,
    );
    add_addresses(&testbed.peer, "eth0", &[UPSTREAM[1].parse()?])?;
    let first = serve_on(&testbed.peer, UPSTREAM[0], 53, &table())?;
    let files = Files::new(&testbed, installation)?;
    let resolved = files.resolved(&testbed, &service, UPSTREAM[0])?;
    let daemon = files.daemon(&testbed, &cgroup, &policy(""))?;
    let program = Asker::new(&testbed, &programs, local())?;
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    assert_eq!(program.resolve("first.example.com")?, ["ok", "ok"]);
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);

    // The network changes, and with it the server.
    drop((resolved, first));
    let _second = serve_on(&testbed.peer, UPSTREAM[1], 53, &table())?;
    let resolved = files.resolved(&testbed, &service, UPSTREAM[1])?;
    let line = daemon.wait_for_line("the resolvers of this host have changed", SOON)?;
    ensure!(line.ends_with("127.0.0.53, 203.0.113.53"), "{line}");
    // systemd-resolved may have been refused its first queries.
    eventually(|| Ok(program.resolve("later.example.com")? == ["ok"]))
        .with_context(|| resolved.output())?;
    assert_eq!(program.resolve("other.example.com")?, ["EPERM"]);
    // The former server is a stranger.
    let calls = [("udp_connect", UPSTREAM[0], 53)];
    eventually(|| Ok(call(&testbed.host, &programs, &calls)? == ["EPERM"]))
}
