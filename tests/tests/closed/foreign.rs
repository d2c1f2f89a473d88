//! Flows that a stranger initiated while everything passed: once the host is closed, they are no answers.

use std::net::{TcpListener, TcpStream};

use allowlist_tests::lab::{Ended, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::talk::{Server, ask_socket};
use super::*;

/// Where a server of the host listens; no service covers it.
const SERVED: u16 = 5353;
/// The port of a stranger.
const CLIENT: u16 = 40_000;

/// A server of the host, and strangers that send to it.
struct Strangers {
    servers: Vec<UdpSocket>,
    clients: Vec<UdpSocket>,
}

impl Strangers {
    fn new(site: &Testbed) -> anyhow::Result<Self> {
        let bind = |address: SocketAddr| UdpSocket::bind(address);
        Ok(Self {
            servers: site.host.run(|| {
                let all = FAMILIES.iter().map(|family| bind(family.host(SERVED)));
                all.collect::<Result<_, _>>()
            })?,
            clients: site.peer.run(|| {
                let all = FAMILIES.iter().map(|family| bind(family.peer(CLIENT)));
                all.collect::<Result<_, _>>()
            })?,
        })
    }

    /// Whether each question comes to the server.
    fn are_heard(&self, timeout: Duration) -> anyhow::Result<Vec<bool>> {
        let mut heard = Vec::new();
        for ((family, server), client) in FAMILIES.iter().zip(&self.servers).zip(&self.clients) {
            client.send_to(b"question", family.host(SERVED))?;
            heard.push(receive(server, timeout)?.is_some());
        }
        Ok(heard)
    }

    /// The server sends to each.
    fn reply(&self) -> anyhow::Result<()> {
        for (family, server) in FAMILIES.iter().zip(&self.servers) {
            server.send_to(b"reply", family.peer(CLIENT))?;
        }
        Ok(())
    }

    /// Each sends and gets a reply, so that both sides have sent. More than once, since an address may not be ready at first.
    fn talk(&self) -> anyhow::Result<()> {
        eventually(|| Ok(self.are_heard(NEVER)? == [true; 2]))?;
        for server in &self.servers {
            while receive(server, NEVER)?.is_some() {}
        }
        self.reply()
    }

    /// No packet of a stranger reaches the server any more, although the server goes on sending.
    fn are_shut_out(&self) -> anyhow::Result<()> {
        for _ in 0..3 {
            self.reply()?;
            ensure!(self.are_heard(NEVER)? == [false; 2], "a stranger is heard");
        }
        Ok(())
    }
}

/// The output of a command about flows.
fn flows(site: &Testbed, arguments: &[&str]) -> anyhow::Result<Value> {
    let ended = site.run(&[&["flows"], arguments, &["--json"]].concat())?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(serde_json::from_str(&ended.stdout)?)
}

/// The flows of one side, as the program lists them.
fn listed(site: &Testbed, initiator: &str) -> anyhow::Result<Vec<Value>> {
    let listed = flows(site, &["list"])?;
    let flows = listed["flows"].as_array().context("a list")?.clone();
    Ok(flows
        .into_iter()
        .filter(|flow| flow["initiated_by"] == initiator)
        .collect())
}

#[test]
fn in_observe_mode_does_not_become_an_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut filter = close(&site, "mode = \"observe\"", &[])?;
    let strangers = Strangers::new(&site)?;
    let server = Server::start(&site)?;
    strangers.talk()?;
    ensure!(
        listed(&site, "foreign")?.len() == 2,
        "{:?}",
        listed(&site, "foreign")?
    );
    let own = [
        ask_socket(&site, FAMILIES[0])?,
        ask_socket(&site, FAMILIES[1])?,
    ];
    for client in &own {
        ensure!(server.answers_to(client, 8, SOON)?);
    }
    let changed = site.run(&["mode", "enforce"])?;
    ensure!(changed.code == Some(0), "{changed:?}");
    strangers.are_shut_out()?;
    // Neither does a restart make it one.
    filter.stop(Signal::SIGKILL, SOON)?;
    let config = site.scratch.file("allowlist.toml").display().to_string();
    let _filter = site.filter(&["--config", &config])?;
    ensure!(site.run(&["mode", "enforce"])?.code == Some(0));
    strangers.are_shut_out()?;
    for client in &own {
        ensure!(
            server.answers_to(client, 8, SOON)?,
            "this host's own is answered"
        );
    }
    Ok(())
}

#[test]
fn before_the_start_does_not_become_an_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let strangers = Strangers::new(&site)?;
    let server = Server::start(&site)?;
    strangers.talk()?;
    let own = ask_socket(&site, FAMILIES[0])?;
    ensure!(server.answers_to(&own, 8, SOON)?);
    let _filter = close(&site, "", &[])?;
    strangers.are_shut_out()?;
    ensure!(
        server.answers_to(&own, 8, SOON)?,
        "a client that is older than the filter"
    );
    Ok(())
}

#[test]
fn while_the_default_was_to_pass_does_not_become_an_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = close(&site, "", &[])?;
    let config = site.scratch.file("allowlist.toml");
    let closed = std::fs::read_to_string(&config)?;
    let reload = |text: &str| -> anyhow::Result<()> {
        site.scratch.write("allowlist.toml", text)?;
        let ended: Ended = site.run(&["reload"])?;
        ensure!(ended.code == Some(0), "{ended:?}");
        Ok(())
    };
    reload(&closed.replace("default = \"drop\"", "default = \"pass\""))?;
    let strangers = Strangers::new(&site)?;
    strangers.talk()?;
    reload(&closed)?;
    strangers.are_shut_out()
}

/// The service's source sent first; once the service is gone, late replies of the server create no flow.
#[test]
fn to_a_service_that_is_gone_does_not_become_an_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = close(&site, "", &[])?;
    let config = site.scratch.file("allowlist.toml");
    let closed = std::fs::read_to_string(&config)?;
    let strangers = Strangers::new(&site)?;
    let served = format!(
        "{closed}\n[services.dns]\nports = [\"udp/{SERVED}\"]\nallow = [\"strangers\"]\n\
         [sources.strangers]\nprefixes = [\"{}\", \"{}\"]\n",
        FAMILIES[0].peer, FAMILIES[1].peer
    );
    site.scratch.write("allowlist.toml", served)?;
    ensure!(site.run(&["reload"])?.code == Some(0));
    strangers.talk()?;
    site.scratch.write("allowlist.toml", closed)?;
    ensure!(site.run(&["reload"])?.code == Some(0));
    strangers.are_shut_out()
}

/// A connection that a stranger opened, and one of which only a stray segment came.
#[test]
fn by_tcp_does_not_become_an_answer() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let _filter = close(&site, "mode = \"observe\"", &[])?;
    let family = FAMILIES[0];
    let listener = site.host.run(|| TcpListener::bind(family.host(SERVED)))?;
    let client = site
        .peer
        .run(|| TcpStream::connect_timeout(&family.host(SERVED), SOON))?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(SOON))?;
    }
    talk_once(&client, &server)?;
    ensure!(site.run(&["mode", "enforce"])?.code == Some(0));
    server.set_read_timeout(Some(NEVER))?;
    for _ in 0..3 {
        std::io::Write::write_all(&mut &server, b"reply")?;
        std::io::Write::write_all(&mut &client, b"question")?;
        let read = std::io::Read::read(&mut &server, &mut [0; 64]);
        ensure!(read.is_err(), "a stranger's segment came: {read:?}");
    }
    ensure!(listed(&site, "own")?.is_empty());
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

/// Answers to a flow that was cut are dropped, with their fragments, and no others are.
#[test]
fn flows_are_listed_and_cut() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let _filter = close(&site, "", &[])?;
    let clients = [
        ask_socket(&site, FAMILIES[0])?,
        ask_socket(&site, FAMILIES[1])?,
    ];
    for client in &clients {
        ensure!(server.answers_to(client, super::talk::FRAGMENTED, SOON)?);
    }
    let own = listed(&site, "own")?;
    ensure!(own.len() == 2, "{own:?}");
    let first = &own[0];
    assert_eq!(first["protocol"], "udp");
    assert_eq!(first["remote"], FAMILIES[0].peer);
    assert_eq!(first["remote_port"], 53);
    assert_eq!(first["local_port"], clients[0].local_addr()?.port());
    let remaining = first["remaining_seconds"].as_u64().context("a number")?;
    ensure!((1..=300).contains(&remaining), "{first}");
    let only = flows(&site, &["list", "2001:db8:1::/64"])?;
    ensure!(
        only["flows"]
            .as_array()
            .is_some_and(|flows| flows.len() == 1),
        "{only}"
    );

    let cut = flows(&site, &["cut", FAMILIES[0].peer])?;
    ensure!(
        cut["cut"].as_array().is_some_and(|flows| flows.len() == 1),
        "{cut}"
    );
    // The server sends unasked: whole, and in fragments.
    for length in [8, super::talk::FRAGMENTED] {
        for (client, heard) in clients.iter().zip([false, true]) {
            server.udp.send_to(&vec![7; length], client.local_addr()?)?;
            let timeout = if heard { SOON } else { NEVER };
            ensure!(
                receive(client, timeout)?.is_some() == heard,
                "{length} {heard}"
            );
        }
    }
    let nothing = flows(&site, &["cut", FAMILIES[0].peer])?;
    assert_eq!(nothing["cut"], serde_json::json!([]));
    // Once this host sends again, it is answered.
    ensure!(server.answers_to(&clients[0], 8, SOON)?);
    let wrong = site.run(&["flows", "cut", "nobody"])?;
    assert_eq!(wrong.code, Some(2), "{wrong:?}");
    Ok(())
}

/// A service that trusts some networks with every port takes nothing from this host's own connections.
#[test]
fn a_service_on_all_ports_leaves_this_host_its_answers() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let server = Server::start(&site)?;
    let lines = "[services.all]\nports = [\"any\"]\nallow = [\"friends\"]\n";
    let _filter = close(&site, lines, &[])?;
    for family in FAMILIES {
        ensure!(server.answers(&site, family, super::talk::FRAGMENTED, SOON)?);
        ensure!(server.accepts(&site, family, SOON)?);
        ensure!(super::talk::pings(&site, family, SOON)?);
    }
    let strangers = Strangers::new(&site)?;
    ensure!(strangers.are_heard(NEVER)? == [false; 2]);
    Ok(())
}
