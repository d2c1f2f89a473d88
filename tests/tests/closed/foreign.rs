//! Foreign flows that began while all packets passed: after the host is closed, their packets are not answers.

use std::net::{TcpListener, TcpStream};

use allowlist_tests::lab::{Ended, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::conversations::{Server, client_socket};
use super::*;

/// The port of a server on the host, which no service covers.
const SERVED: u16 = 5353;
/// The port of the foreign clients.
const CLIENT: u16 = 40_000;

/// A server on the host, and foreign clients that send to it.
struct Strangers {
    servers: Vec<UdpSocket>,
    clients: Vec<UdpSocket>,
}

impl Strangers {
    fn new(testbed: &Testbed) -> anyhow::Result<Self> {
        let bind = |address: SocketAddr| UdpSocket::bind(address);
        Ok(Self {
            servers: testbed.host.run(|| {
                let all = FAMILIES.iter().map(|family| bind(family.host(SERVED)));
                all.collect::<Result<_, _>>()
            })?,
            clients: testbed.peer.run(|| {
                let all = FAMILIES.iter().map(|family| bind(family.peer(CLIENT)));
                all.collect::<Result<_, _>>()
            })?,
        })
    }

    /// Sends a datagram from each client, and reports whether the server receives it.
    fn are_received(&self, timeout: Duration) -> anyhow::Result<Vec<bool>> {
        let mut heard = Vec::new();
        for ((family, server), client) in FAMILIES.iter().zip(&self.servers).zip(&self.clients) {
            client.send_to(b"question", family.host(SERVED))?;
            heard.push(receive(server, timeout)?.is_some());
        }
        Ok(heard)
    }

    /// Sends a datagram from the server to each client.
    fn reply(&self) -> anyhow::Result<()> {
        for (family, server) in FAMILIES.iter().zip(&self.servers) {
            server.send_to(b"reply", family.peer(CLIENT))?;
        }
        Ok(())
    }

    /// Sends in both directions. Repeats the first direction, because an address may not be ready at first.
    fn talk(&self) -> anyhow::Result<()> {
        eventually(|| Ok(self.are_received(NEVER)? == [true; 2]))?;
        for server in &self.servers {
            while receive(server, NEVER)?.is_some() {}
        }
        self.reply()
    }

    /// Checks that no client reaches the server, although the server continues to send.
    fn are_dropped(&self) -> anyhow::Result<()> {
        for _ in 0..3 {
            self.reply()?;
            ensure!(
                self.are_received(NEVER)? == [false; 2],
                "a foreign packet passed"
            );
        }
        Ok(())
    }
}

/// Runs a `flows` command, and returns its output.
fn flows(testbed: &Testbed, arguments: &[&str]) -> anyhow::Result<Value> {
    let ended = testbed.run(&[&["flows"], arguments, &["--json"]].concat())?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// Returns the listed flows that this side initiated.
fn listed(testbed: &Testbed, initiator: &str) -> anyhow::Result<Vec<Value>> {
    let listed = flows(testbed, &["list"])?;
    let flows = listed["flows"].as_array().context("a list")?.clone();
    Ok(flows
        .into_iter()
        .filter(|flow| flow["initiated_by"] == initiator)
        .collect())
}

#[test]
fn foreign_flows_of_observe_mode_are_not_answers() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut filter = close(&testbed, "mode = \"observe\"", &[])?;
    let strangers = Strangers::new(&testbed)?;
    let server = Server::start(&testbed)?;
    strangers.talk()?;
    ensure!(
        listed(&testbed, "foreign")?.len() == 2,
        "{:?}",
        listed(&testbed, "foreign")?
    );
    let own = [
        client_socket(&testbed, FAMILIES[0])?,
        client_socket(&testbed, FAMILIES[1])?,
    ];
    for client in &own {
        ensure!(server.answers_to(client, 8, SOON)?);
    }
    let changed = testbed.run(&["mode", "enforce"])?;
    ensure!(changed.code == Some(0), "{changed:?}");
    strangers.are_dropped()?;
    // A restart does not change this.
    filter.stop(Signal::SIGKILL, SOON)?;
    let config = testbed.scratch.file("allowlist.toml").display().to_string();
    let _filter = testbed.filter(&["--config", &config])?;
    ensure!(testbed.run(&["mode", "enforce"])?.code == Some(0));
    strangers.are_dropped()?;
    for client in &own {
        ensure!(
            server.answers_to(client, 8, SOON)?,
            "an answer to the host is lost"
        );
    }
    Ok(())
}

#[test]
fn foreign_flows_from_before_the_start_are_not_answers() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let strangers = Strangers::new(&testbed)?;
    let server = Server::start(&testbed)?;
    strangers.talk()?;
    let own = client_socket(&testbed, FAMILIES[0])?;
    ensure!(server.answers_to(&own, 8, SOON)?);
    let _filter = close(&testbed, "", &[])?;
    strangers.are_dropped()?;
    ensure!(
        server.answers_to(&own, 8, SOON)?,
        "an answer to a client from before the start is lost"
    );
    Ok(())
}

#[test]
fn foreign_flows_of_a_passing_default_are_not_answers() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = close(&testbed, "", &[])?;
    let config = testbed.scratch.file("allowlist.toml");
    let closed = std::fs::read_to_string(&config)?;
    let reload = |text: &str| -> anyhow::Result<()> {
        testbed.scratch.write("allowlist.toml", text)?;
        let ended: Ended = testbed.run(&["reload"])?;
        ensure!(ended.code == Some(0), "{ended:?}");
        Ok(())
    };
    reload(&closed.replace("default = \"drop\"", "default = \"pass\""))?;
    let strangers = Strangers::new(&testbed)?;
    strangers.talk()?;
    reload(&closed)?;
    strangers.are_dropped()
}

/// A source of the service sent first. After the removal of the service, replies of the server create no flow.
#[test]
fn foreign_flows_of_a_removed_service_are_not_answers() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = close(&testbed, "", &[])?;
    let config = testbed.scratch.file("allowlist.toml");
    let closed = std::fs::read_to_string(&config)?;
    let strangers = Strangers::new(&testbed)?;
    let served = format!(
        "{closed}\n[services.dns]\nports = [\"udp/{SERVED}\"]\nallow = [\"strangers\"]\n\
         [sources.strangers]\nprefixes = [\"{}\", \"{}\"]\n",
        FAMILIES[0].peer, FAMILIES[1].peer
    );
    testbed.scratch.write("allowlist.toml", served)?;
    ensure!(testbed.run(&["reload"])?.code == Some(0));
    strangers.talk()?;
    testbed.scratch.write("allowlist.toml", closed)?;
    ensure!(testbed.run(&["reload"])?.code == Some(0));
    strangers.are_dropped()
}

/// A connection that another host opened in observe mode.
#[test]
fn foreign_tcp_connections_are_not_answers() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = close(&testbed, "mode = \"observe\"", &[])?;
    let family = FAMILIES[0];
    let listener = testbed
        .host
        .run(|| TcpListener::bind(family.host(SERVED)))?;
    let client = testbed
        .peer
        .run(|| TcpStream::connect_timeout(&family.host(SERVED), SOON))?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(SOON))?;
    }
    talk_once(&client, &server)?;
    ensure!(testbed.run(&["mode", "enforce"])?.code == Some(0));
    server.set_read_timeout(Some(NEVER))?;
    for _ in 0..3 {
        std::io::Write::write_all(&mut &server, b"reply")?;
        std::io::Write::write_all(&mut &client, b"question")?;
        let read = std::io::Read::read(&mut &server, &mut [0; 64]);
        ensure!(read.is_err(), "a foreign segment passed: {read:?}");
    }
    ensure!(listed(&testbed, "own")?.is_empty());
    Ok(())
}

fn talk_once(mut client: &TcpStream, mut server: &TcpStream) -> anyhow::Result<()> {
    use std::io::{Read as _, Write as _};
    client.write_all(b"question")?;
    server.read_exact(&mut [0; 8])?;
    server.write_all(b"answered")?;
    client.read_exact(&mut [0; 8])?;
    Ok(())
}

/// After `flows cut`, only answers to these flows are dropped, including fragments.
#[test]
fn flows_are_listed_and_cut() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let _filter = close(&testbed, "", &[])?;
    let clients = [
        client_socket(&testbed, FAMILIES[0])?,
        client_socket(&testbed, FAMILIES[1])?,
    ];
    for client in &clients {
        ensure!(server.answers_to(client, super::conversations::FRAGMENTED, SOON)?);
    }
    let own = listed(&testbed, "own")?;
    ensure!(own.len() == 2, "{own:?}");
    let first = &own[0];
    assert_eq!(first["protocol"], "udp");
    assert_eq!(first["remote"], FAMILIES[0].peer);
    assert_eq!(first["remote_port"], 53);
    assert_eq!(first["local_port"], clients[0].local_addr()?.port());
    let remaining = first["remaining_seconds"].as_u64().context("a number")?;
    ensure!((1..=300).contains(&remaining), "{first}");
    let only = flows(&testbed, &["list", "2001:db8:1::/64"])?;
    ensure!(
        only["flows"]
            .as_array()
            .is_some_and(|flows| flows.len() == 1),
        "{only}"
    );

    let cut = flows(&testbed, &["cut", FAMILIES[0].peer])?;
    ensure!(
        cut["cut"].as_array().is_some_and(|flows| flows.len() == 1),
        "{cut}"
    );
    // The server sends without a request: whole packets and fragments.
    for length in [8, super::conversations::FRAGMENTED] {
        for (client, passes) in clients.iter().zip([false, true]) {
            server.udp.send_to(&vec![7; length], client.local_addr()?)?;
            let timeout = if passes { SOON } else { NEVER };
            ensure!(
                receive(client, timeout)?.is_some() == passes,
                "{length} {passes}"
            );
        }
    }
    let nothing = flows(&testbed, &["cut", FAMILIES[0].peer])?;
    assert_eq!(nothing["cut"], serde_json::json!([]));
    // After the host sends again, answers pass.
    ensure!(server.answers_to(&clients[0], 8, SOON)?);
    let wrong = testbed.run(&["flows", "cut", "invalid"])?;
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    Ok(())
}

/// With a service on all ports, the host's own flows still get their answers.
#[test]
fn answers_pass_with_a_service_on_all_ports() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let server = Server::start(&testbed)?;
    let lines = "[services.all]\nports = [\"any\"]\nallow = [\"friends\"]\n";
    let _filter = close(&testbed, lines, &[])?;
    for family in FAMILIES {
        ensure!(server.answers(&testbed, family, super::conversations::FRAGMENTED, SOON)?);
        ensure!(server.accepts(&testbed, family, SOON)?);
        ensure!(super::conversations::pings(&testbed, family, SOON)?);
    }
    let strangers = Strangers::new(&testbed)?;
    ensure!(strangers.are_received(NEVER)? == [false; 2]);
    Ok(())
}
