//! Answers that are not believed: copies and recordings of answers, answers to no query, answers from elsewhere, and
//! messages that are cut off.
//!
//! The test is the resolver itself, and holds a socket of the judged cgroup, so it decides the order of all messages.

use std::net::{Ipv4Addr, UdpSocket};

use allowlist_tests::dns_message::{RESPONSE, message, query};
use allowlist_tests::lab::{Cgroup, Program, Testbed, add_addresses, eventually};
use allowlist_tests::require_root;
use anyhow::{Context as _, ensure};

use super::asker::{connect, socket};
use super::names::{SOON, answers, rule, start_unpolled};

/// Two names that a rule lists.
const NAME: &str = "events.example.com";
const OTHER_NAME: &str = "api.example.com";

/// The bytes of the header up to the number of records. A shorter message is no answer.
const COUNTED: usize = 8;

/// The address of the host.
const HOST: &str = "198.51.100.1";
/// The resolver that gets the queries.
const RESOLVER: (&str, u16) = ("198.51.100.2", 5300);
/// Endpoints of the peer that are resolvers too, which get no queries.
const OTHER_RESOLVERS: [(&str, u16); 2] = [("198.51.100.3", 5300), ("198.51.100.2", 5301)];
/// Endpoints of the peer that are no resolvers.
const STRANGERS: [(&str, u16); 2] = [("198.51.100.4", 5300), ("198.51.100.2", 5302)];

/// Returns an address for an answer, which no rule lists.
const fn address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

/// Returns the answer to a query with an id for [`NAME`].
fn answer(id: u16, addresses: &[Ipv4Addr]) -> Vec<u8> {
    message(id, RESPONSE, NAME, addresses)
}

/// A program of the judged cgroup, and its resolver.
struct Conversation {
    _daemon: Program,
    resolver: UdpSocket,
    client: UdpSocket,
    /// The socket for [`Self::connect`].
    probe: UdpSocket,
    cgroup: Cgroup,
    testbed: Testbed,
}

impl Conversation {
    /// Starts the daemon with a rule for both names, and further lines of `[egress]`.
    fn start(settings: &str) -> anyhow::Result<Self> {
        let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
        let addresses = [OTHER_RESOLVERS[0].0, STRANGERS[0].0].map(str::parse);
        let [one, two] = addresses;
        add_addresses(&testbed.peer, "eth0", &[one?, two?])?;
        let resolvers = [RESOLVER, OTHER_RESOLVERS[0], OTHER_RESOLVERS[1]]
            .map(|(address, port)| format!("{address}:{port}"));
        let rule = rule(&[NAME, OTHER_NAME]);
        let settings = format!("resolvers = {resolvers:?}\n{settings}{rule}");
        let daemon = start_unpolled(&testbed, &cgroup, &settings)?;
        Ok(Self {
            _daemon: daemon,
            resolver: listen(&testbed, RESOLVER)?,
            client: socket(&testbed, &cgroup, HOST)?,
            probe: socket(&testbed, &cgroup, HOST)?,
            cgroup,
            testbed,
        })
    }

    /// Queries the resolver for a name from a socket, and waits until the resolver has received the query.
    fn ask(&self, socket: &UdpSocket, id: u16, name: &str) -> anyhow::Result<()> {
        let query = query(id, name);
        socket.send_to(&query, RESOLVER)?;
        let mut buffer = [0; 512];
        let (length, from) = self.resolver.recv_from(&mut buffer)?;
        ensure!(buffer[..length] == query && from == socket.local_addr()?);
        Ok(())
    }

    /// Sends a message to the client, and waits until the client has received it.
    fn send(&self, from: &UdpSocket, message: &[u8]) -> anyhow::Result<()> {
        send(from, &self.client, message)
    }

    /// Returns the result of a `connect` to an address: "ok" or "EPERM".
    fn connect(&self, to: Ipv4Addr) -> anyhow::Result<&'static str> {
        connect(&self.probe, to)
    }

    /// Returns the numbers of queries, of believed answers, of stored addresses and of malformed answers.
    fn counts(&self) -> anyhow::Result<[u64; 4]> {
        let count = |kind| answers(&self.testbed, kind);
        Ok([
            count("queries")?,
            count("answers")?,
            count("addresses")?,
            count("malformed")?,
        ])
    }
}

/// Binds an endpoint of the peer.
fn listen(testbed: &Testbed, (address, port): (&str, u16)) -> anyhow::Result<UdpSocket> {
    let bound = testbed.peer.run(|| UdpSocket::bind((address, port)));
    let socket = bound.with_context(|| format!("cannot bind {address}:{port}"))?;
    socket.set_read_timeout(Some(SOON))?;
    Ok(socket)
}

/// Sends a message from one socket to another, and waits until it was received.
fn send(from: &UdpSocket, to: &UdpSocket, message: &[u8]) -> anyhow::Result<()> {
    from.send_to(message, to.local_addr()?)?;
    let mut buffer = [0; 512];
    let length = to.recv(&mut buffer)?;
    ensure!(buffer[..length] == *message);
    Ok(())
}

#[test]
fn the_second_answer_to_a_query_is_not_believed() -> anyhow::Result<()> {
    require_root!();
    let all = Conversation::start("")?;
    all.ask(&all.client, 1, NAME)?;
    all.send(&all.resolver, &answer(1, &[address(1)]))?;
    all.send(&all.resolver, &answer(1, &[address(2)]))?;
    assert_eq!(all.connect(address(1))?, "ok");
    assert_eq!(all.connect(address(2))?, "EPERM");
    assert_eq!(all.counts()?, [1, 1, 1, 0]);
    Ok(())
}

#[test]
fn answers_that_nobody_asked_for_are_not_believed() -> anyhow::Result<()> {
    require_root!();
    let all = Conversation::start("")?;
    // To a socket that has sent no query.
    all.send(&all.resolver, &answer(1, &[address(1)]))?;
    assert_eq!(all.connect(address(1))?, "EPERM");
    // To a socket with a query, before its answer.
    all.ask(&all.client, 2, NAME)?;
    all.send(&all.resolver, &answer(3, &[address(2)]))?;
    assert_eq!(all.connect(address(2))?, "EPERM");
    // With the id of a query of another socket.
    let other = socket(&all.testbed, &all.cgroup, HOST)?;
    all.ask(&other, 4, NAME)?;
    send(&all.resolver, &other, &answer(2, &[address(3)]))?;
    all.send(&all.resolver, &answer(4, &[address(4)]))?;
    assert_eq!(all.connect(address(3))?, "EPERM");
    assert_eq!(all.connect(address(4))?, "EPERM");
    assert_eq!(all.counts()?, [2, 0, 0, 0]);
    // The true answers are still believed.
    all.send(&all.resolver, &answer(2, &[address(5)]))?;
    send(&all.resolver, &other, &answer(4, &[address(6)]))?;
    assert_eq!(all.connect(address(5))?, "ok");
    assert_eq!(all.connect(address(6))?, "ok");
    // To a socket with a query, after its answer.
    all.send(&all.resolver, &answer(5, &[address(7)]))?;
    assert_eq!(all.connect(address(7))?, "EPERM");
    assert_eq!(all.counts()?, [2, 2, 2, 0]);
    // With the id of a query, and for another listed name.
    all.ask(&all.client, 6, NAME)?;
    let forged = message(6, RESPONSE, OTHER_NAME, &[address(8)]);
    all.send(&all.resolver, &forged)?;
    assert_eq!(all.connect(address(8))?, "EPERM");
    assert_eq!(all.counts()?, [3, 2, 2, 1]);
    Ok(())
}

/// The address of the recorded answer is no longer allowed when the recording is sent: otherwise it would be allowed
/// anyway.
#[test]
fn a_recorded_answer_is_not_believed_again() -> anyhow::Result<()> {
    require_root!();
    let all = Conversation::start("linger = \"1s\"\n")?;
    let recorded = answer(1, &[address(1)]);
    all.ask(&all.client, 1, NAME)?;
    all.send(&all.resolver, &recorded)?;
    assert_eq!(all.counts()?, [1, 1, 1, 0]);
    eventually(|| Ok(all.connect(address(1))? == "EPERM"))?;
    // After the query.
    all.send(&all.resolver, &recorded)?;
    assert_eq!(all.connect(address(1))?, "EPERM");
    assert_eq!(all.counts()?, [1, 1, 1, 0]);
    // As the answer to a new query for the same name.
    all.ask(&all.client, 2, NAME)?;
    all.send(&all.resolver, &recorded)?;
    assert_eq!(all.connect(address(1))?, "EPERM");
    assert_eq!(all.counts()?, [2, 1, 1, 0]);
    // The new query is still believed its answer, which is not forgotten within the test's time.
    all.send(&all.resolver, &answer(2, &[address(2)]))?;
    assert_eq!(all.counts()?, [2, 2, 2, 0]);
    all.send(&all.resolver, &recorded)?;
    assert_eq!(all.connect(address(1))?, "EPERM");
    assert_eq!(all.counts()?, [2, 2, 2, 0]);
    Ok(())
}

#[test]
fn answers_from_elsewhere_are_not_believed() -> anyhow::Result<()> {
    require_root!();
    let all = Conversation::start("")?;
    all.ask(&all.client, 1, NAME)?;
    for (number, elsewhere) in (2..).zip(OTHER_RESOLVERS.into_iter().chain(STRANGERS)) {
        let socket = listen(&all.testbed, elsewhere)?;
        all.send(&socket, &answer(1, &[address(number)]))?;
        assert_eq!(all.connect(address(number))?, "EPERM", "{elsewhere:?}");
    }
    assert_eq!(all.counts()?, [1, 0, 0, 0]);
    all.send(&all.resolver, &answer(1, &[address(1)]))?;
    assert_eq!(all.connect(address(1))?, "ok");
    assert_eq!(all.counts()?, [1, 1, 1, 0]);
    Ok(())
}

#[test]
fn messages_that_are_cut_off_store_nothing() -> anyhow::Result<()> {
    require_root!();
    let all = Conversation::start("")?;
    let whole = answer(1, &[address(1)]);
    for length in 0..whole.len() {
        all.ask(&all.client, 1, NAME)?;
        all.send(&all.resolver, &whole[..length])?;
        assert_eq!(all.connect(address(1))?, "EPERM", "{length} bytes");
    }
    let queries = whole.len() as u64;
    let malformed = (whole.len() - COUNTED) as u64;
    assert_eq!(all.counts()?, [queries, 0, 0, malformed]);
    all.ask(&all.client, 1, NAME)?;
    all.send(&all.resolver, &whole)?;
    assert_eq!(all.connect(address(1))?, "ok");
    assert_eq!(all.counts()?, [queries + 1, 1, 1, malformed]);
    Ok(())
}
