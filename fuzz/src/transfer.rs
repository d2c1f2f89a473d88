//! HTTP transfers of a list: only a complete transfer is accepted.
//!
//! The input selects the list, compression, framing, truncation and the end of the response. The requests are real, to
//! servers on loopback, so that the whole HTTP stack is fuzzed.

use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use allowlist_lists::source;
use allowlist_policy::{self as policy, Format, Http, Origin, Source};
use allowlist_tests::vendor::{Answer, End, Http2, Vendor, gzip};
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

/// The maximum number of lines: longer lists reach no other states.
const MAX_LINES: usize = 64;
/// The number of input bytes before the lines.
const HEAD: usize = 5;
const PATH: &str = "/";
/// The servers keep the sockets of their connections open, so they are replaced after this number of connections.
const CONNECTIONS: usize = 300;

/// The servers, and the client's state.
struct Setting {
    plain: Vendor,
    http2: Vendor,
    ca_file: NamedTempFile,
    runtime: Runtime,
    connections: usize,
}

static SETTING: LazyLock<Mutex<Setting>> = LazyLock::new(|| Mutex::new(setting()));

fn setting() -> Setting {
    let http2 = Vendor::start_http2(Http2::whole("")).expect("a vendor");
    let ca_file = NamedTempFile::new().expect("a file");
    std::fs::write(&ca_file, http2.ca_pem().expect("it has one")).expect("a file");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    Setting {
        plain: Vendor::start([]).expect("a vendor"),
        http2,
        ca_file,
        runtime: runtime.expect("a runtime"),
        connections: 0,
    }
}

/// One transfer.
struct Transfer {
    prefixes: Vec<String>,
    format: Format,
    is_gzip: bool,
    /// The complete body.
    body: Vec<u8>,
    /// The number of bytes of the body that the server sends.
    sent: usize,
    framing: Framing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    Close,
    Http2 { has_length: bool, end: End },
}

impl Transfer {
    /// Decodes an input; returns `None` if it is too short.
    fn decode(input: &[u8]) -> Option<Self> {
        let (head, lines) = input.split_at_checked(HEAD)?;
        let [kind, framing, split, cut, how] = *head else {
            return None;
        };
        let mut prefixes: Vec<String> = lines
            .chunks_exact(2)
            .take(MAX_LINES)
            .map(|pair| format!("198.18.{}.{}/32", pair[0], pair[1]))
            .collect();
        if prefixes.is_empty() {
            return None;
        }
        let (format, text) = if kind & 1 == 0 {
            (Format::Text, prefixes.join("\n"))
        } else {
            let array = format!("[\"{}\"]", prefixes.join("\", \""));
            (Format::json_array(), array)
        };
        prefixes.sort();
        prefixes.dedup();
        let is_gzip = kind & 2 != 0;
        let body = if is_gzip {
            let (first, second) = text
                .as_bytes()
                .split_at(usize::from(split) % (text.len() + 1));
            [gzip(first), gzip(second)].concat()
        } else {
            text.into_bytes()
        };
        // Half of the transfers are complete.
        let sent = match cut & 1 {
            0 => body.len(),
            _ => usize::from(cut >> 1) % body.len(),
        };
        let is_whole = sent == body.len();
        let end = match (how % 5, is_whole) {
            (0, true) => End::Stream,
            (1, true) => End::Trailers,
            (2, true) => End::StreamAndReset,
            (0..=2, false) => End::Reset(u32::from(how % 3) * 8),
            (3, _) => End::GoAway(0),
            _ => End::Close,
        };
        let framing = match framing % 5 {
            0 => Framing::Length,
            1 => Framing::Chunks,
            2 => Framing::Close,
            3 => Framing::Http2 {
                has_length: false,
                end,
            },
            _ => Framing::Http2 {
                has_length: true,
                end,
            },
        };
        Some(Self {
            prefixes,
            format,
            is_gzip,
            body,
            sent,
            framing,
        })
    }

    fn is_whole(&self) -> bool {
        self.sent == self.body.len()
    }

    /// Reports whether a client can detect that the transfer is complete.
    fn is_marked_whole(&self) -> bool {
        self.is_whole()
            && match self.framing {
                Framing::Length | Framing::Chunks => true,
                Framing::Close => self.format != Format::Text,
                Framing::Http2 { end, .. } => {
                    matches!(end, End::Stream | End::Trailers | End::StreamAndReset)
                }
            }
    }

    fn answer(&self) -> Answer {
        let sent = &self.body[..self.sent];
        let mut head = "HTTP/1.1 200 OK\r\nConnection: close\r\n".to_owned();
        if self.is_gzip {
            head += "Content-Encoding: gzip\r\n";
        }
        let mut body = Vec::new();
        match self.framing {
            Framing::Length => {
                head += &format!("Content-Length: {}\r\n", self.body.len());
                body.extend(sent);
            }
            Framing::Chunks => {
                head += "Transfer-Encoding: chunked\r\n";
                for chunk in sent.chunks(40) {
                    body.extend(format!("{:x}\r\n", chunk.len()).bytes());
                    body.extend(chunk);
                    body.extend(b"\r\n");
                }
                if self.is_whole() {
                    body.extend(b"0\r\n\r\n");
                }
            }
            Framing::Close => body.extend(sent),
            Framing::Http2 { has_length, end } => {
                return Answer::Http2(Http2 {
                    length: has_length.then_some(self.body.len()),
                    is_gzip: self.is_gzip,
                    body: sent.to_vec(),
                    end,
                });
            }
        }
        Answer::Raw([head.as_bytes(), b"\r\n", &body].concat())
    }
}

/// Runs the transfer that an input describes.
///
/// # Panics
/// If an incomplete list is accepted, or a complete one is refused.
pub fn run(input: &[u8]) {
    let Some(transfer) = Transfer::decode(input) else {
        return;
    };
    let mut setting = SETTING.lock().unwrap_or_else(PoisonError::into_inner);
    setting.connections += 1;
    if setting.connections > CONNECTIONS {
        *setting = self::setting();
    }
    let vendor = match transfer.framing {
        Framing::Http2 { .. } => &setting.http2,
        _ => &setting.plain,
    };
    vendor.answer(PATH, transfer.answer());
    let http = Http {
        ca_file: Some(setting.ca_file.path().to_owned()),
        ca_only: true,
        timeout: Duration::from_mins(1),
        ..Http::new(
            vec![vendor.url(PATH).parse().expect("a URL")],
            transfer.format.clone(),
        )
    };
    let source = Source::new("fuzz", Origin::Http(http));
    match setting.runtime.block_on(source::fetch(&source, &[])) {
        Ok(policy::Answer::List(list)) => {
            let mut accepted: Vec<String> = list.prefixes.iter().map(ToString::to_string).collect();
            accepted.sort();
            assert!(
                transfer.is_whole(),
                "accepted an incomplete list: {accepted:?}"
            );
            assert_eq!(accepted, transfer.prefixes);
        }
        Ok(policy::Answer::Unchanged(_)) => panic!("there is no earlier list"),
        Err(error) => assert!(
            !transfer.is_marked_whole(),
            "a complete transfer was refused: {error}"
        ),
    }
}
