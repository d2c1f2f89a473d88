//! A name server on loopback, over UDP and TCP: answers well, badly, late and not at all.
//!
//! Invariants: it listens on 127.0.0.1, with one port for both protocols; it answers only from its configured replies;
//! when it is dropped, its threads have ended. Does not compress, cache or follow aliases: a reply has to contain the
//! whole chain.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::socket;

/// The interval at which a waiting thread checks whether it should end.
const TICK: Duration = Duration::from_millis(20);

/// The reply for a name. Records are lines such as `hooks.example.com 60 A 192.0.2.1`; an answer has the records of the
/// requested type, and the aliases.
#[derive(Clone, Debug)]
pub enum Reply {
    /// These records.
    Records(Vec<String>),
    /// Several lists in rotation; each query for A records selects the next one.
    Rotating(Vec<Vec<String>>),
    /// A truncated answer over UDP, and the whole one over TCP.
    OverTcp(Vec<String>),
    /// The records, after a delay.
    Late(Duration, Vec<String>),
    /// NXDOMAIN.
    NoSuchName,
    /// SERVFAIL.
    ServerFailure,
    /// REFUSED.
    Refused,
    /// FORMERR.
    FormatError,
    /// NOTIMP.
    NotImplemented,
    /// FORMERR in reply to queries with EDNS, as from a server that does not support EDNS, and the records to others.
    NoEdns(Vec<String>),
    /// One reply for the A records, and another for the AAAA records.
    ByFamily(Box<[Reply; 2]>),
    /// No reply.
    Silence,
    /// Bytes that are not a DNS message.
    Garbage,
    /// The records, with a message id that differs from that of the query.
    WrongId(Vec<String>),
    /// The records, as a reply to a query for another name.
    WrongQuestion(Vec<String>),
}

impl Reply {
    /// Returns a reply that has one part for A records, and another for AAAA records.
    pub fn by_family(v4: Self, v6: Self) -> Self {
        Self::ByFamily(Box::new([v4, v6]))
    }

    /// Returns a reply with these records, one per line.
    pub fn records<'l>(lines: impl IntoIterator<Item = &'l str>) -> Self {
        Self::Records(lines.into_iter().map(str::to_owned).collect())
    }
}

/// A running name server. Stops when it is dropped.
pub struct NameServer {
    address: SocketAddr,
    listener: TcpListener,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    replies: Mutex<Vec<(Name, Reply)>>,
    /// The protocol, name and type of each query, in the order of arrival.
    questions: Mutex<Vec<String>>,
    stopping: AtomicBool,
}

impl NameServer {
    /// Starts a server with these replies by name; other names do not exist.
    pub fn start<'n>(replies: impl IntoIterator<Item = (&'n str, Reply)>) -> Result<Self> {
        let (listener, udp) = bind()?;
        let shared = Arc::new(Shared {
            replies: Mutex::default(),
            questions: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        udp.set_read_timeout(Some(TICK))?;
        let threads = vec![
            thread::spawn({
                let shared = Arc::clone(&shared);
                move || serve_udp(&udp, &shared)
            }),
            thread::spawn({
                let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
                move || serve_tcp(&listener, &shared)
            }),
        ];
        let server = Self {
            address: listener.local_addr()?,
            listener,
            shared,
            threads,
        };
        for (name, reply) in replies {
            server.reply(name, reply);
        }
        Ok(server)
    }

    /// Returns the address and port of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets or replaces the reply for a name.
    pub fn reply(&self, name: &str, reply: Reply) {
        let name = parse_name(name);
        let mut replies = lock(&self.shared.replies);
        replies.retain(|(known, _)| *known != name);
        replies.push((name, reply));
    }

    /// Returns the queries, such as `udp hooks.example.com. A`, in the order of arrival.
    pub fn questions(&self) -> Vec<String> {
        lock(&self.shared.questions).clone()
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for NameServer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("NameServer").field(&self.address).finish()
    }
}

/// Binds the same port for UDP and TCP. Tries several ports, because another test may use one of the two.
fn bind() -> Result<(TcpListener, UdpSocket)> {
    for _ in 0..100 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen")?;
        if let Ok(udp) = UdpSocket::bind(listener.local_addr()?) {
            return Ok((listener, udp));
        }
    }
    anyhow::bail!("no port is free for both UDP and TCP")
}

fn serve_udp(udp: &UdpSocket, shared: &Arc<Shared>) {
    let mut buffer = [0; 4096];
    let mut late = Vec::new();
    while !shared.stopping.load(Ordering::Relaxed) {
        let Ok((length, client)) = udp.recv_from(&mut buffer) else {
            continue;
        };
        let Some((wait, answer)) = answer(&buffer[..length], shared, false) else {
            continue;
        };
        // A client that went away is its own affair.
        if wait.is_zero() {
            let _ = udp.send_to(&answer, client);
        } else if let Ok(udp) = udp.try_clone() {
            let shared = Arc::clone(shared);
            late.push(thread::spawn(move || {
                if pause(wait, &shared) {
                    let _ = udp.send_to(&answer, client);
                }
            }));
        }
    }
    for thread in late {
        let _ = thread.join();
    }
}

fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        let shared = Arc::clone(shared);
        connections.push(thread::spawn(move || drop(serve_stream(stream, &shared))));
    }
    for connection in connections {
        let _ = connection.join();
    }
}

/// Serves a TCP connection, on which each message follows its length.
fn serve_stream(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    stream.set_read_timeout(Some(TICK))?;
    loop {
        let mut length = [0; 2];
        read(&mut stream, &mut length, shared)?;
        let mut question = vec![0; u16::from_be_bytes(length).into()];
        read(&mut stream, &mut question, shared)?;
        let Some((wait, answer)) = answer(&question, shared, true) else {
            continue;
        };
        if !pause(wait, shared) {
            return stream.shutdown(Shutdown::Both);
        }
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&length.to_be_bytes())?;
        stream.write_all(&answer)?;
    }
}

fn read(stream: &mut TcpStream, mut buffer: &mut [u8], shared: &Shared) -> io::Result<()> {
    while !buffer.is_empty() {
        match stream.read(buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => buffer = &mut buffer[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if shared.stopping.load(Ordering::Relaxed) {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits, and reports whether the server still runs.
fn pause(wait: Duration, shared: &Shared) -> bool {
    let mut left = wait;
    while !left.is_zero() && !shared.stopping.load(Ordering::Relaxed) {
        let step = left.min(TICK);
        thread::sleep(step);
        left -= step;
    }
    !shared.stopping.load(Ordering::Relaxed)
}

/// Returns the reply to a query and its delay; `None` for no reply.
fn answer(question: &[u8], shared: &Shared, is_tcp: bool) -> Option<(Duration, Vec<u8>)> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let protocol = if is_tcp { "tcp" } else { "udp" };
    lock(&shared.questions).push(format!(
        "{protocol} {} {}",
        query.name(),
        query.query_type()
    ));
    let mut reply = reply_to(&query, shared);
    if let Reply::ByFamily(replies) = reply {
        let [v4, v6] = *replies;
        reply = if query.query_type() == RecordType::A {
            v4
        } else {
            v6
        };
    }
    let mut message = Message::response(question.metadata.id, question.metadata.op_code);
    message.metadata.recursion_available = true;
    message.add_query(query.clone());
    let mut wait = Duration::ZERO;
    match reply {
        Reply::NoEdns(_) if question.edns.is_some() => {
            message.metadata.response_code = ResponseCode::FormErr;
        }
        Reply::Records(lines) | Reply::NoEdns(lines) => add(&mut message, &query, &lines),
        Reply::Rotating(lists) => add(&mut message, &query, &lists[0]),
        Reply::OverTcp(lines) if is_tcp => add(&mut message, &query, &lines),
        Reply::OverTcp(_) => message.metadata.truncation = true,
        Reply::Late(late, lines) => {
            wait = late;
            add(&mut message, &query, &lines);
        }
        Reply::ByFamily(_) => panic!("a family's reply is not by family again"),
        Reply::FormatError => message.metadata.response_code = ResponseCode::FormErr,
        Reply::NotImplemented => message.metadata.response_code = ResponseCode::NotImp,
        Reply::NoSuchName => message.metadata.response_code = ResponseCode::NXDomain,
        Reply::ServerFailure => message.metadata.response_code = ResponseCode::ServFail,
        Reply::Refused => message.metadata.response_code = ResponseCode::Refused,
        Reply::Silence => return None,
        Reply::Garbage => return Some((wait, b"220 mail.example.com ESMTP".to_vec())),
        Reply::WrongId(lines) => {
            message.metadata.id = message.metadata.id.wrapping_add(1);
            add(&mut message, &query, &lines);
        }
        Reply::WrongQuestion(lines) => {
            add(&mut message, &query, &lines);
            let other = Query::query(parse_name("other.example.com"), query.query_type());
            message.queries = vec![other];
        }
    }
    Some((wait, message.to_vec().ok()?))
}

fn reply_to(query: &Query, shared: &Shared) -> Reply {
    let mut replies = lock(&shared.replies);
    let Some((_, reply)) = replies.iter_mut().find(|(name, _)| name == query.name()) else {
        return Reply::NoSuchName;
    };
    let now = reply.clone();
    if let Reply::Rotating(lists) = reply
        && query.query_type() == RecordType::A
    {
        lists.rotate_left(1);
    }
    now
}

fn add(message: &mut Message, query: &Query, lines: &[String]) {
    let records = lines.iter().map(|line| record(line));
    message.add_answers(records.filter(|record| {
        let record_type = record.record_type();
        record_type == query.query_type() || record_type == RecordType::CNAME
    }));
}

fn record(line: &str) -> Record {
    let words: Vec<_> = line.split_whitespace().collect();
    let [owner, ttl, record_type, data] = words[..] else {
        panic!("{line:?} is not a record");
    };
    let data = match record_type {
        "A" => RData::A(A(data.parse().expect("an IPv4 address"))),
        "AAAA" => RData::AAAA(AAAA(data.parse().expect("an IPv6 address"))),
        "CNAME" => RData::CNAME(CNAME(parse_name(data))),
        other => panic!("this name server has no records of the type {other}"),
    };
    Record::from_rdata(parse_name(owner), ttl.parse().expect("seconds"), data)
}

fn parse_name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).expect("a name");
    name.set_fqdn(true);
    name
}

/// Locks a mutex, also if it is poisoned: the panic has failed a test already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
