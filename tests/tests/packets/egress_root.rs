//! The egress policy attached to the root of cgroup v2, where it judges every program: only in the virtual machine, which
//! has no programs but these.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::path::Path;
use std::thread;
use std::time::Duration;

use allowlist_dataplane::{Dataplane, detach_all};
use allowlist_tests::dns_message::{RESPONSE, message, query};
use allowlist_tests::lab::{Namespace, Scratch};
use allowlist_tests::{egress, require_root, skip};
use allowlist_user::config::Config;

/// The variable that the virtual machine's first process sets.
const MACHINE: &str = "ALLOWLIST_VM";
/// The name that a rule lists.
const NAME: &str = "events.example.com";
const CONFIG: &str = r#"
[egress]
default = "refuse"

[egress.rules.partner]
to = ["partner", "named"]
ports = ["tcp/443"]

[sources.partner]
prefixes = ["203.0.113.0/24"]

[sources.named]
names = ["events.example.com"]
"#;
/// The time to wait for a message on loopback, in an emulated machine.
const PATIENCE: Duration = Duration::from_mins(2);
const ALLOWED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The address that the name server of the test answers.
const ANSWERED: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 77);

#[test]
fn the_root_of_the_cgroups_is_judged() -> anyhow::Result<()> {
    require_root!();
    if std::env::var_os(MACHINE).is_none() {
        skip!("it would judge every program of this machine; `cargo xtask vm` runs it");
    }
    Namespace::new()?.run(judge_all)
}

/// Attaches the policy to the root, and makes calls; in a network namespace without a route.
fn judge_all() -> anyhow::Result<()> {
    let scratch = Scratch::new()?;
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let resolver = server.local_addr()?;
    assert_ne!(connect(OTHER), Some(libc::EPERM), "before the policy");
    let dataplane = publish(scratch.pin_dir(), resolver)?;
    // There is no route, so an allowed call has another error.
    let is_judged = || {
        assert_eq!(connect(OTHER), Some(libc::EPERM));
        assert_eq!(connect(ALLOWED), Some(libc::ENETUNREACH));
    };
    is_judged();
    drop(dataplane);
    is_judged(); // the links are pinned: the policy outlives the process that attached it

    // An answer is read also without that process.
    assert_eq!(connect(ANSWERED), Some(libc::EPERM));
    thread::scope(|scope| -> io::Result<()> {
        scope.spawn(|| answer(&server));
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.connect(resolver)?;
        client.send(&query(0x1234, NAME))?;
        client.recv(&mut [0; 512])?;
        Ok(())
    })?;
    assert_eq!(connect(ANSWERED), Some(libc::ENETUNREACH));

    // Another process replaces the programs in the links, as an upgrade does, and keeps the learnt addresses.
    let dataplane = publish(scratch.pin_dir(), resolver)?;
    is_judged();
    assert_eq!(connect(ANSWERED), Some(libc::ENETUNREACH));
    drop(dataplane);
    detach_all(scratch.pin_dir())?;
    assert_ne!(connect(OTHER), Some(libc::EPERM), "after the detach");
    Ok(())
}

/// Connects, and returns the number of the error.
fn connect(address: Ipv4Addr) -> Option<i32> {
    let connected = TcpStream::connect((address, 443));
    connected.err().and_then(|error| error.raw_os_error())
}

/// Publishes the policy, attached to the root. No process is exempt.
fn publish(pins: &Path, resolver: SocketAddr) -> anyhow::Result<Dataplane> {
    let config = Config::parse(CONFIG, Path::new("allowlist.toml"))?;
    egress::publish(pins, &config, resolver, Vec::new())
}

/// Answers one query with [`ANSWERED`].
fn answer(server: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 512];
    let (length, client) = server.recv_from(&mut buffer)?;
    let query = buffer[..length]
        .first_chunk()
        .expect("a query has a header");
    let message = message(u16::from_be_bytes(*query), RESPONSE, NAME, &[ANSWERED]);
    server.send_to(&message, client).map(drop)
}
