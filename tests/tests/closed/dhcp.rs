//! A closed host gets and renews its lease from a real DHCP server, and receives answers of a DHCPv6 server.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt as _;

use allowlist_tests::lab::{FrameSender, eventually, frame};
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::json;

use super::*;

/// The script that the client runs for each event. It sets no address, because the host has the leased address from the
/// start.
const SCRIPT: &str = "#!/bin/sh\necho \"event $1 $ip\"\n";

/// Starts a server that leases one address to the host's end of the link. A static lease is not probed for conflicts.
fn server(testbed: &Testbed) -> anyhow::Result<Program> {
    let leases = testbed.scratch.write("leases", "")?;
    let config = testbed.scratch.write(
        "udhcpd.conf",
        format!(
            "start 198.51.100.1\nend 198.51.100.1\nstatic_lease 02:00:00:00:00:0a 198.51.100.1\n\
             interface eth0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\noption lease 3600\n",
            leases.display(),
            testbed.scratch.file("udhcpd.pid").display(),
        ),
    )?;
    let mut command = testbed.peer.command("udhcpd")?;
    command.arg("-f").arg(config);
    let server = Program::start(command)?;
    server.wait_for_line("started", SOON)?;
    Ok(server)
}

/// Starts a client that sends three requests, one per second, and ends if no server answers.
fn client(testbed: &Testbed) -> anyhow::Result<Program> {
    let script = testbed.scratch.write("script", SCRIPT)?;
    fs::set_permissions(&script, Permissions::from_mode(0o700))?;
    let mut command = testbed.host.command("udhcpc")?;
    command.args(["-f", "-n", "-i", "eth0", "-t", "3", "-T", "1", "-s"]);
    command.arg(script);
    Program::start(command)
}

/// Reports whether both programs are installed.
fn are_installed() -> bool {
    ["udhcpc", "udhcpd"].iter().all(|program| {
        let started = std::process::Command::new(program)
            .arg("--help")
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .status();
        !matches!(started, Err(error) if error.kind() == ErrorKind::NotFound)
    })
}

/// Checks a first lease, with raw packets, and a renewal, with UDP sockets.
fn is_leased_and_renewed(attach_mode: &str) -> anyhow::Result<()> {
    let testbed = Testbed::new()?;
    let _server = server(&testbed)?;
    let _filter = close(&testbed, "", &["--attach-mode", attach_mode])?;
    let mut client = client(&testbed)?;
    client.wait_for_line("event bound 198.51.100.1", SOON)?;
    let first = testbed.counted("eth0")?;
    client.signal(Signal::SIGUSR1)?;
    client.wait_for_line("event renew 198.51.100.1", SOON)?;
    let renewed = testbed.counted("eth0")?;
    // An offer and an acknowledgement, then another acknowledgement; more if the client repeats a request.
    let counts = [&first, &renewed].map(|counted| packets(counted, "pass dhcp"));
    ensure!(
        counts[0] >= 2 && counts[1] > counts[0],
        "{first}, {renewed}"
    );
    ensure!(renewed == json!({"pass dhcp": counts[1]}), "{renewed}");
    Ok(())
}

#[test]
fn a_lease_is_obtained_and_renewed() {
    require_root!();
    if !are_installed() {
        skip!("needs udhcpc and udhcpd: `apt-get install udhcpc udhcpd`");
    }
    for attach_mode in ["native", "generic"] {
        is_leased_and_renewed(attach_mode)
            .unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
    }
}

/// In both attach modes, the filter runs before the client's packet socket.
#[test]
fn without_the_exemption_there_is_no_lease() -> anyhow::Result<()> {
    require_root!();
    if !are_installed() {
        skip!("needs udhcpc and udhcpd: `apt-get install udhcpc udhcpd`");
    }
    let testbeds = [Testbed::new()?, Testbed::new()?];
    let mut running = Vec::new();
    for (testbed, attach_mode) in testbeds.iter().zip(["native", "generic"]) {
        let lines = "return_traffic = 'off'\nkeep.dhcp = false";
        let filter = close(testbed, lines, &["--attach-mode", attach_mode])?;
        running.push((testbed, server(testbed)?, filter, client(testbed)?));
    }
    for (testbed, _server, _filter, client) in &mut running {
        ensure!(!client.wait(SOON)?.success(), "{}", client.output());
        ensure!(
            !client.stdout().contains("event bound"),
            "{}",
            client.output()
        );
        let counted = testbed.counted("eth0")?;
        // The server may have missed the first requests, but it has answered.
        ensure!(packets(&counted, "drop default") > 0, "{counted}");
    }
    Ok(())
}

#[test]
fn answers_of_dhcpv6_servers_arrive() -> anyhow::Result<()> {
    require_root!();
    let [_, v6] = FAMILIES;
    for is_exempt in [true, false] {
        let testbed = Testbed::new()?;
        let _filter = close(&testbed, &format!("keep.dhcp = {is_exempt}"), &[])?;
        let on_link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
        let mut add = testbed.host.command("ip")?;
        add.args([
            "address",
            "add",
            &format!("{on_link}/64"),
            "dev",
            "eth0",
            "nodad",
        ]);
        ensure!(add.status()?.success(), "cannot add the link-local address");
        // The kernel adds the route to the address later, and drops packets until then.
        eventually(|| {
            let mut show = testbed.host.command("ip")?;
            show.args(["-6", "route", "show", "table", "local"]);
            let routes = String::from_utf8(show.output()?.stdout)?;
            Ok(routes.contains(&format!("{on_link} dev eth0")))
        })?;
        let sender = FrameSender::new(&testbed.peer, "eth0")?;
        let client = testbed
            .host
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546)))?;
        let on_link = SocketAddr::from((on_link, 546));
        // From another port, to a global address, and as DHCPv6 servers answer.
        for (from, to, payload) in [
            (548, on_link, b"other"),
            (547, v6.host(546), b"route"),
            (547, on_link, b"reply"),
        ] {
            sender.send(&frame::udp(v6.peer(from), to, payload))?;
        }
        let (timeout, expected, counted) = if is_exempt {
            let reply = (b"reply".to_vec(), v6.peer(0).ip());
            (
                SOON,
                Some(reply),
                json!({"pass dhcp": 1, "drop default": 2}),
            )
        } else {
            (NEVER, None, json!({"drop default": 3}))
        };
        assert_eq!(receive(&client, timeout)?, expected);
        testbed.check_counted("eth0", &counted)?;
    }
    Ok(())
}
