//! Tests of the laboratory, on which all other tests depend.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use allowlist_tests::lab::{
    FrameSender, LinkKind, Namespace, Program, Scratch, VethEnd, add_addresses, connect, frame,
};
use allowlist_tests::require_root;
use etherparse::SlicedPacket;
use ipnet::IpNet;
use nix::sys::signal::{Signal, kill};
use nix::sys::statfs::{FsType, fstatfs};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_mins(1);

/// Two namespaces with a link between them, both ends named `eth0`.
struct Pair {
    host: Namespace,
    peer: Namespace,
}

impl Pair {
    fn new() -> anyhow::Result<Self> {
        let (host, peer) = (Namespace::new()?, Namespace::new()?);
        connect(
            LinkKind::Silent,
            VethEnd {
                namespace: &host,
                name: "eth0",
                addresses: &networks(["198.51.100.1/24", "2001:db8:1::1/64"]),
            },
            VethEnd {
                namespace: &peer,
                name: "eth0",
                addresses: &networks(["198.51.100.2/24", "2001:db8:1::2/64"]),
            },
        )?;
        Ok(Self { host, peer })
    }
}

fn networks<const N: usize>(texts: [&str; N]) -> [IpNet; N] {
    texts.map(|text| text.parse().expect("a network"))
}

fn udp_socket(namespace: &Namespace, address: &str) -> anyhow::Result<UdpSocket> {
    let socket = namespace.run(|| UdpSocket::bind(address))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

#[test]
fn frames_arrive_at_a_socket() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new()?;
    let socket = udp_socket(&pair.host, "[::]:9000")?;
    let sender = FrameSender::new(&pair.peer, "eth0")?;
    for (source, destination) in [
        ("203.0.113.7:5000", "198.51.100.1:9000"),
        ("[2001:db8:7::7]:5000", "[2001:db8:1::1]:9000"),
    ] {
        let source: SocketAddr = source.parse()?;
        let payload = source.to_string();
        let frame = frame::udp(source, destination.parse()?, payload.as_bytes());
        let mut buffer = [0; 64];
        // All namespaces share a CPU's receive queue, which another test may fill for a moment.
        let mut received = Err(std::io::ErrorKind::TimedOut.into());
        for _ in 0..10 {
            sender.send(&frame)?;
            received = socket.recv_from(&mut buffer);
            if received.is_ok() {
                break;
            }
        }
        let (length, from) = received?;
        assert_eq!(&buffer[..length], source.to_string().as_bytes());
        assert_eq!(
            (from.ip().to_canonical(), from.port()),
            (source.ip(), source.port())
        );
    }
    Ok(())
}

#[test]
fn frames_are_well_formed() -> anyhow::Result<()> {
    for (source, destination) in [
        ("203.0.113.7:5000", "198.51.100.1:9000"),
        ("[2001:db8:7::7]:5000", "[2001:db8:1::1]:9000"),
    ] {
        let (from, to): (SocketAddr, SocketAddr) = (source.parse()?, destination.parse()?);
        let whole = [
            frame::tcp_syn(from, to),
            frame::udp(from, to, b"payload"),
            frame::echo_request(from.ip(), to.ip()),
            frame::tagged(frame::tcp_syn(from, to), &[(0x88a8, 7), (0x8100, 8)]),
        ];
        for frame in &whole {
            let parsed = SlicedPacket::from_ethernet(frame)?;
            assert!(parsed.transport.is_some(), "{parsed:?}");
        }
        assert_eq!(SlicedPacket::from_ethernet(&whole[3])?.link_exts.len(), 2);

        let fragment = frame::later_fragment(from.ip(), to.ip(), 17, &[0; 32]);
        let parsed = SlicedPacket::from_ethernet(&fragment)?;
        assert!(
            parsed.is_ip_payload_fragmented() && parsed.transport.is_none(),
            "{parsed:?}"
        );
    }
    Ok(())
}

#[test]
fn connections_can_have_any_added_source_address() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new()?;
    let sources: Vec<IpAddr> = (0..150)
        .map(|n| IpAddr::from([10, 0, 0, n]))
        .chain((0..150).map(|n| IpAddr::from([0x2001, 0xdb8, 7, 0, 0, 0, 0, n])))
        .collect();
    add_addresses(&pair.peer, "eth0", &sources)?;
    let socket = udp_socket(&pair.host, "[::]:9000")?;
    for source in sources {
        let destination = if source.is_ipv4() {
            "198.51.100.1:9000"
        } else {
            "[2001:db8:1::1]:9000"
        };
        let client = pair.peer.run(|| UdpSocket::bind((source, 0)))?;
        client.send_to(b"x", destination)?;
        let (_, from) = socket.recv_from(&mut [0; 8])?;
        assert_eq!(from.ip().to_canonical(), source);
    }
    Ok(())
}

#[test]
fn a_connection_carries_data_both_ways() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new()?;
    let listener = pair.host.run(|| TcpListener::bind("[::]:443"))?;
    for host in ["198.51.100.1:443", "[2001:db8:1::1]:443"] {
        let client = pair
            .peer
            .run(|| TcpStream::connect_timeout(&host.parse().expect("an address"), SOON))?;
        let (_, from) = listener.accept()?;
        assert_eq!(from.port(), client.local_addr()?.port());
    }
    Ok(())
}

/// The counters of other tests are exact only if the link carries no other packets.
#[test]
fn a_link_is_silent() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new()?;
    add_addresses(&pair.peer, "eth0", &["2001:db8:7::7".parse()?])?;
    thread::sleep(Duration::from_millis(1500));
    let received = pair
        .host
        .run(|| fs::read_to_string("/proc/thread-self/net/dev"))?;
    let eth0 = received
        .lines()
        .find(|line| line.contains("eth0"))
        .expect("eth0 is listed");
    let packets = eth0.split_whitespace().nth(2);
    assert_eq!(packets, Some("0"), "{eth0}");
    Ok(())
}

/// The kernel removes a link with the namespace of either end.
#[test]
fn dropping_a_namespace_removes_it() -> anyhow::Result<()> {
    require_root!();
    let Pair { host, peer } = Pair::new()?;
    let has_link = || {
        let interfaces = peer.run(|| fs::read_to_string("/proc/thread-self/net/dev"));
        interfaces.expect("procfs is mounted").contains("eth0")
    };
    assert!(has_link());
    drop(host);
    assert!(
        eventually(|| !has_link()),
        "the other namespace still exists"
    );
    Ok(())
}

#[test]
fn commands_run_inside() -> anyhow::Result<()> {
    require_root!();
    let pair = Pair::new()?;
    let mut command = pair.host.command("cat")?;
    command.arg("/proc/self/net/dev");
    let mut cat = Program::start(command)?;
    cat.wait_for_line("eth0", SOON)?;
    assert!(cat.wait(SOON)?.success());
    assert_eq!(cat.stdout().lines().count(), 4, "{}", cat.output());
    assert_eq!(cat.stderr(), "");
    Ok(())
}

#[test]
fn dropping_a_program_ends_its_process() -> anyhow::Result<()> {
    let sleeper = sleep()?;
    let id = Pid::from_raw(sleeper.id().cast_signed());
    assert_eq!(kill(id, None), Ok(()));
    drop(sleeper);
    assert!(kill(id, None).is_err());
    Ok(())
}

#[test]
fn a_process_ends_with_the_thread_that_started_it() -> anyhow::Result<()> {
    let mut sleeper = thread::spawn(sleep)
        .join()
        .expect("the thread does not panic")?;
    let status = sleeper.wait(SOON)?;
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(Signal::SIGKILL as i32)
    );
    Ok(())
}

#[test]
fn failures_show_what_a_process_printed() -> anyhow::Result<()> {
    let mut command = Command::new("sh");
    command.args(["-c", "echo one; echo two >&2; exit 3"]);
    let mut shell = Program::start(command)?;
    let error = shell
        .wait_for_line("ready", SOON)
        .expect_err("the process prints no such line")
        .to_string();
    assert!(error.contains("one") && error.contains("two"), "{error}");
    assert_eq!(shell.wait(SOON)?.code(), Some(3));
    assert_eq!(
        (shell.stdout().as_str(), shell.stderr().as_str()),
        ("one\n", "two\n")
    );
    Ok(())
}

fn sleep() -> anyhow::Result<Program> {
    let mut command = Command::new("sleep");
    command.arg("60");
    Program::start(command)
}

#[test]
fn scratch_directories_are_separate_and_private() -> anyhow::Result<()> {
    require_root!();
    let (one, two) = (Scratch::new()?, Scratch::new()?);
    assert_ne!(one.pin_dir(), two.pin_dir());
    let bpf = fstatfs(File::open(one.pin_dir())?)?.filesystem_type();
    assert_eq!(bpf, FsType(0xcafe_4a11));

    let path = one.write("allowlist.toml", "")?;
    assert!(path.is_file());
    // Process 1 has the machine's mounts.
    assert!(
        !Path::new("/proc/1/root")
            .join(path.strip_prefix("/")?)
            .exists()
    );
    drop(one);
    assert!(!path.exists());
    assert!(two.pin_dir().is_dir());
    Ok(())
}

fn eventually(condition: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + SOON;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}
