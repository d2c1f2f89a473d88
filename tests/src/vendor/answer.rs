//! The answers of a vendor's server, and their encoding.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::Http2;

/// The answer for a path.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Status 200 with a body of this content type.
    Body(&'static str, Vec<u8>),
    /// Status 200 with a body that is sent compressed.
    Gzip(Vec<u8>),
    /// Another status, with a short HTML body.
    Status(u16),
    /// A status, with headers, and a body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Status 200 with an `ETag`, a `Last-Modified` or both; 304 to a client with that version.
    Version(Option<&'static str>, Option<&'static str>, Vec<u8>),
    /// Status 302 to this URL.
    Redirect(String),
    /// The first bytes of a longer body, and then the end of the connection.
    Truncated(Vec<u8>),
    /// A chunked body whose last chunk is missing.
    CutChunks(Vec<u8>),
    /// A complete answer whose compressed body is truncated.
    CutGzip(Vec<u8>),
    /// A body without a length, which ends with the connection; over TLS without `close_notify`.
    Unended(Vec<u8>),
    /// These bytes, from the status line on, and the end of the connection.
    Raw(Vec<u8>),
    /// The answer of an HTTP/2 server; only for `Vendor::start_http2`.
    Http2(Http2),
    /// Status 200 and a body without end.
    Endless,
    /// A body that is sent one byte at a time.
    Drip,
    /// No answer.
    Silence,
    /// Bytes that are not HTTP.
    Noise,
    /// A proxy's tunnel: all bytes to and from that address.
    Tunnel(SocketAddr),
}

impl Answer {
    /// Returns an answer with a JSON text.
    pub fn json(text: impl Into<String>) -> Self {
        Self::Body("binary/octet-stream", text.into().into_bytes())
    }

    /// Returns an answer with an HTML page.
    pub fn html(text: impl Into<String>) -> Self {
        Self::Body("text/html; charset=utf-8", text.into().into_bytes())
    }

    /// Sends the answer to the request with this head.
    pub(super) fn send(self, head: &str, stream: &mut (impl Read + Write)) -> io::Result<()> {
        match self {
            Self::Body(content_type, body) => {
                send(stream, 200, &[("Content-Type", content_type)], &body)?;
            }
            Self::Gzip(body) => {
                send(stream, 200, &[("Content-Encoding", "gzip")], &gzip(&body))?;
            }
            Self::CutGzip(body) => {
                let mut body = gzip(&body);
                body.truncate(body.len() / 2);
                send(stream, 200, &[("Content-Encoding", "gzip")], &body)?;
            }
            Self::Status(status) => {
                let body = format!("<html><body>{status}</body></html>");
                let html = [("Content-Type", "text/html")];
                send(stream, status, &html, body.as_bytes())?;
            }
            Self::Full(status, headers, body) => {
                let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
                send(stream, status, &headers.collect::<Vec<_>>(), &body)?;
            }
            Self::Version(etag, last_modified, body) => {
                let has = |name, version: Option<&str>| {
                    version.is_some() && header(head, name) == version
                };
                let known = has("if-none-match", etag) || has("if-modified-since", last_modified);
                let headers = [("ETag", etag), ("Last-Modified", last_modified)];
                let headers = headers
                    .iter()
                    .filter_map(|(name, value)| Some((*name, (*value)?)));
                let headers = headers.collect::<Vec<_>>();
                if known {
                    send(stream, 304, &headers, b"")?;
                } else {
                    send(stream, 200, &headers, &body)?;
                }
            }
            Self::Redirect(to) => send(stream, 302, &[("Location", &to)], b"")?,
            Self::Truncated(body) => {
                let length = (body.len() + 1).to_string();
                start(stream, 200, &[("Content-Length", &length)])?;
                stream.write_all(&body)?;
            }
            Self::CutChunks(body) => {
                start(stream, 200, &[("Transfer-Encoding", "chunked")])?;
                write!(stream, "{:x}\r\n", body.len())?;
                stream.write_all(&body)?;
                stream.write_all(b"\r\n40\r\nnot completed")?;
            }
            Self::Unended(body) => {
                start(stream, 200, &[])?;
                stream.write_all(&body)?;
            }
            Self::Raw(bytes) => stream.write_all(&bytes)?,
            Self::Endless => {
                start(stream, 200, &[])?;
                loop {
                    stream.write_all(&[b' '; 16 << 10])?;
                }
            }
            Self::Drip => {
                start(stream, 200, &[])?;
                loop {
                    stream.write_all(b" ")?;
                    stream.flush()?;
                    thread::sleep(Duration::from_millis(20));
                }
            }
            // Until the client closes the connection, or the server is dropped.
            Self::Silence => while stream.read(&mut [0; 1024])? > 0 {},
            Self::Noise => stream.write_all(b"\x15\x03\x01 220 mail.example.com ESMTP\r\n")?,
            // `serve` handles these, because they need the socket.
            Self::Tunnel(_) | Self::Http2(_) => send(stream, 501, &[], b"")?,
        }
        stream.flush()
    }
}

/// Returns the value of a header in a request, independent of the case of its name.
pub fn header<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

fn send(
    stream: &mut impl Write,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let length = body.len().to_string();
    let mut headers = headers.to_vec();
    // These have no body, and a length would be an error.
    if !matches!(status, 204 | 304) {
        headers.push(("Content-Length", &length));
    }
    start(stream, status, &headers)?;
    stream.write_all(body)
}

fn start(stream: &mut impl Write, status: u16, headers: &[(&str, &str)]) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {status} Test\r\n")?;
    for (name, value) in headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    write!(stream, "Connection: close\r\n\r\n")
}

/// Returns the bytes as one gzip member.
///
/// # Panics
/// Never, because writing to memory does not fail.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("it is in memory");
    encoder.finish().expect("it is in memory")
}
