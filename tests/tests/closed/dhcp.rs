//! A closed host gets and renews its lease from a real DHCP server, and hears its DHCPv6 server.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::Ipv6Addr;
use std::os::unix::fs::PermissionsExt as _;

use allowlist_tests::lab::{FrameSender, frame};
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use nix::sys::signal::Signal;
use serde_json::json;

use super::*;

/// What the client calls with each event. The host has the address that it gets from the start, since
/// a link of the laboratory has no other.
const SCRIPT: &str = "#!/bin/sh\necho \"event $1 $ip\"\n";

/// The one address that is leased, to the host's end of the link; no time for the server to ask
/// around whether it is taken.
fn server(site: &Testbed) -> anyhow::Result<Program> {
    let leases = site.scratch.write("leases", "")?;
    let config = site.scratch.write(
        "udhcpd.conf",
        format!(
            "start 198.51.100.1\nend 198.51.100.1\nstatic_lease 02:00:00:00:00:0a 198.51.100.1\n\
             interface eth0\nlease_file {}\npidfile {}\noption subnet 255.255.255.0\noption lease 3600\n",
            leases.display(),
            site.scratch.file("udhcpd.pid").display(),
        ),
    )?;
    let mut command = site.peer.command("udhcpd")?;
    command.arg("-f").arg(config);
    let server = Program::start(command)?;
    server.wait_for_line("started", SOON)?;
    Ok(server)
}

/// Asks three times, a second apart, and ends if nobody answers.
fn client(site: &Testbed) -> anyhow::Result<Program> {
    let script = site.scratch.write("script", SCRIPT)?;
    fs::set_permissions(&script, Permissions::from_mode(0o700))?;
    let mut command = site.host.command("udhcpc")?;
    command.args(["-f", "-n", "-i", "eth0", "-t", "3", "-T", "1", "-s"]);
    command.arg(script);
    Program::start(command)
}

/// Whether both programs are here.
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

/// A first lease, by packets that no address is needed for, and a renewal, by sockets.
fn is_leased_and_renewed(attach_mode: &str) -> anyhow::Result<()> {
    let site = Testbed::new()?;
    let _server = server(&site)?;
    let _filter = close(&site, "", &["--attach-mode", attach_mode])?;
    let mut client = client(&site)?;
    client.wait_for_line("event bound 198.51.100.1", SOON)?;
    let first = site.counted("eth0")?;
    client.signal(Signal::SIGUSR1)?;
    client.wait_for_line("event renew 198.51.100.1", SOON)?;
    let renewed = site.counted("eth0")?;
    // An offer and its confirmation; then one more confirmation. A slow client asks again.
    let counts = [&first, &renewed].map(|counted| packets(counted, "pass dhcp"));
    ensure!(
        counts[0] >= 2 && counts[1] > counts[0],
        "{first}, {renewed}"
    );
    ensure!(renewed == json!({"pass dhcp": counts[1]}), "{renewed}");
    Ok(())
}

#[test]
fn a_lease_is_got_and_renewed() {
    require_root!();
    if !are_installed() {
        skip!("needs udhcpc and udhcpd: `apt-get install udhcpc udhcpd`");
    }
    for attach_mode in ["native", "generic"] {
        is_leased_and_renewed(attach_mode)
            .unwrap_or_else(|error| panic!("{attach_mode}: {error:?}"));
    }
}

/// In either mode, the filter comes before the client's packet socket.
#[test]
fn without_the_exception_there_is_no_lease() -> anyhow::Result<()> {
    require_root!();
    if !are_installed() {
        skip!("needs udhcpc and udhcpd: `apt-get install udhcpc udhcpd`");
    }
    let sites = [Testbed::new()?, Testbed::new()?];
    let mut running = Vec::new();
    for (site, attach_mode) in sites.iter().zip(["native", "generic"]) {
        let lines = "return_traffic = 'off'\nkeep.dhcp = false";
        let filter = close(site, lines, &["--attach-mode", attach_mode])?;
        running.push((site, server(site)?, filter, client(site)?));
    }
    for (site, _server, _filter, client) in &mut running {
        ensure!(!client.wait(SOON)?.success(), "{}", client.output());
        ensure!(
            !client.stdout().contains("event bound"),
            "{}",
            client.output()
        );
        let counted = site.counted("eth0")?;
        // The server has answered, though not before it was ready.
        ensure!(packets(&counted, "drop default") > 0, "{counted}");
    }
    Ok(())
}

#[test]
fn answers_of_dhcpv6_servers_arrive() -> anyhow::Result<()> {
    require_root!();
    let [_, v6] = FAMILIES;
    for kept in [true, false] {
        let site = Testbed::new()?;
        let _filter = close(&site, &format!("keep.dhcp = {kept}"), &[])?;
        let on_link = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
        let mut add = site.host.command("ip")?;
        add.args([
            "address",
            "add",
            &format!("{on_link}/64"),
            "dev",
            "eth0",
            "nodad",
        ]);
        ensure!(add.status()?.success(), "no address on the link");
        let sender = FrameSender::new(&site.peer, "eth0")?;
        let client = site
            .host
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 546)))?;
        let on_link = SocketAddr::from((on_link, 546));
        // From another port, from another network, and as servers answer.
        for (from, to, word) in [
            (548, on_link, b"other"),
            (547, v6.host(546), b"route"),
            (547, on_link, b"reply"),
        ] {
            sender.send(&frame::udp(v6.peer(from), to, word))?;
        }
        let (timeout, expected, counted) = if kept {
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
        site.check_counted("eth0", &counted)?;
    }
    Ok(())
}
