//! A vendor's HTTP server on loopback, which serves lists and misbehaves in the ways of real vendors.
//!
//! Uses `std` sockets and threads: misbehaviour needs raw bytes, which an HTTP library prevents, and a thread inside a
//! network namespace can start the server there.
//!
//! Invariants: the server listens in the namespace of the thread that started it, on 127.0.0.1 by default; its threads
//! have ended when the value is dropped. Of a request it reads only the path and the conditional headers.

mod answer;
mod certificates;
mod http2;

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::sys::socket;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

pub use answer::{Answer, gzip, header};
pub use certificates::Certificates;
pub use http2::{End, Http2};

/// A running server. Stops when it is dropped.
pub struct Vendor {
    address: SocketAddr,
    ca_pem: Option<String>,
    listener: TcpListener,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    answers: Mutex<Vec<(String, Answer)>>,
    tls: Option<Arc<ServerConfig>>,
    /// The heads of all requests, in the order of arrival.
    requests: Mutex<Vec<String>>,
    /// The open connections; `None` while the server stops.
    streams: Mutex<Option<Vec<TcpStream>>>,
}

impl Vendor {
    /// Starts an HTTP server with these answers by path; other paths get 404.
    pub fn start(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Result<Self> {
        Self::start_with(Ipv4Addr::LOCALHOST.into(), answers, None)
    }

    /// Starts an HTTP server on an address of the namespace.
    pub fn start_at(
        address: IpAddr,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
    ) -> Result<Self> {
        Self::start_with(address, answers, None)
    }

    /// Starts an HTTPS server with a certificate for `127.0.0.1` and `localhost`.
    pub fn start_tls(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Result<Self> {
        Self::start_tls_at(Ipv4Addr::LOCALHOST.into(), answers)
    }

    /// Starts an HTTPS server on an address of the namespace, with a certificate for it.
    pub fn start_tls_at(
        address: IpAddr,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
    ) -> Result<Self> {
        Self::start_tls_with(Certificates::good(address)?, address, answers)
    }

    /// Starts an HTTPS server with these certificates.
    pub fn start_tls_with(
        certificates: Certificates,
        address: IpAddr,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
    ) -> Result<Self> {
        Self::start_with(address, answers, Some(certificates))
    }

    /// Starts an HTTP/2 server with one answer for all paths.
    pub fn start_http2(answer: Http2) -> Result<Self> {
        let address = Ipv4Addr::LOCALHOST.into();
        let certificates = Certificates::good(address)?.for_http2();
        Self::start_tls_with(certificates, address, [("/", Answer::Http2(answer))])
    }

    fn start_with(
        address: IpAddr,
        answers: impl IntoIterator<Item = (&'static str, Answer)>,
        certificates: Option<Certificates>,
    ) -> Result<Self> {
        let listener = TcpListener::bind((address, 0)).with_context(|| {
            format!(
                "cannot listen on {address} (it must be an address of this namespace, on an interface that is up)"
            )
        })?;
        let (ca_pem, tls) = match certificates {
            Some(Certificates { ca_pem, server }) => (Some(ca_pem), Some(server)),
            None => (None, None),
        };
        let answers = answers
            .into_iter()
            .map(|(path, answer)| (path.to_owned(), answer));
        let shared = Arc::new(Shared {
            answers: Mutex::new(answers.collect()),
            tls,
            requests: Mutex::default(),
            streams: Mutex::new(Some(Vec::new())),
        });
        let accepting = thread::spawn({
            let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
            move || accept(&listener, &shared)
        });
        Ok(Self {
            address: listener.local_addr()?,
            ca_pem,
            listener,
            shared,
            accepting: Some(accepting),
        })
    }

    /// Returns the address and port of the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the URL of a path, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        let scheme = if self.ca_pem.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{}{path}", self.address)
    }

    /// Returns the certificate of the authority, if the server uses TLS.
    pub fn ca_pem(&self) -> Option<&str> {
        self.ca_pem.as_deref()
    }

    /// Sets or replaces the answer for a path.
    pub fn answer(&self, path: &str, answer: Answer) {
        let mut answers = lock(&self.shared.answers);
        answers.retain(|(known, _)| known != path);
        answers.push((path.to_owned(), answer));
    }

    /// Returns the request lines and headers, in the order of arrival.
    pub fn requests(&self) -> Vec<String> {
        lock(&self.shared.requests).clone()
    }
}

impl Drop for Vendor {
    fn drop(&mut self) {
        // Not with a last connection, because the dropping thread may be in another namespace.
        let _ = socket::shutdown(self.listener.as_raw_fd(), socket::Shutdown::Both);
        for stream in lock(&self.shared.streams).take().into_iter().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

impl fmt::Debug for Vendor {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_tuple("Vendor").field(&self.url("/")).finish()
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    let mut connections = Vec::new();
    while let Ok((stream, _)) = listener.accept() {
        let Ok(copy) = stream.try_clone() else {
            continue;
        };
        match &mut *lock(&shared.streams) {
            Some(streams) => streams.push(copy),
            None => break,
        }
        let shared = Arc::clone(shared);
        // A client that closes the connection is a test case, not a failure of the server.
        connections.push(thread::spawn(move || drop(serve(stream, &shared))));
    }
    for connection in connections {
        let _ = connection.join();
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let Some(tls) = &shared.tls else {
        let (head, answer) = receive(&mut stream, shared)?;
        match answer {
            Answer::Tunnel(to) => tunnel(&mut stream, to)?,
            answer => answer.send(&head, &mut stream)?,
        }
        return stream.shutdown(Shutdown::Both);
    };
    let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    let by_http2 = lock(&shared.answers)
        .iter()
        .find_map(|(_, answer)| match answer {
            Answer::Http2(answer) => Some(answer.clone()),
            _ => None,
        });
    if let Some(answer) = by_http2 {
        answer.serve(&mut stream)?;
        stream.conn.send_close_notify();
        stream.flush()?;
        return stream.sock.shutdown(Shutdown::Both);
    }
    let (head, answer) = receive(&mut stream, shared)?;
    let is_ended = !matches!(answer, Answer::Unended(_));
    answer.send(&head, &mut stream)?;
    if is_ended {
        stream.conn.send_close_notify();
        stream.flush()?;
    }
    stream.sock.shutdown(Shutdown::Both)
}

fn receive(stream: &mut impl Read, shared: &Shared) -> io::Result<(String, Answer)> {
    let head = read_head(stream)?;
    let path = head.split_whitespace().nth(1).unwrap_or_default();
    let path = path.split('?').next().unwrap_or_default().to_owned();
    lock(&shared.requests).push(head.clone());
    let answer = lock(&shared.answers)
        .iter()
        .find(|(known, _)| *known == path)
        .map(|(_, answer)| answer.clone());
    Ok((head, answer.unwrap_or(Answer::Status(404))))
}

/// Copies bytes in both directions until one side closes the connection.
fn tunnel(client: &mut TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(to)?;
    client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        to_server.shutdown(Shutdown::Both)
    });
    let _ = io::copy(&mut server, client);
    client.shutdown(Shutdown::Both)?;
    let _ = there.join();
    Ok(())
}

fn read_head(stream: &mut impl Read) -> io::Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// Locks a mutex, also if it is poisoned: the panic has failed a test already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
