//! The part of HTTP/2 (RFC 9113) that one answer needs, written by hand so that it can end in every way.
//!
//! Does not parse the request. Supports neither Huffman codes nor the dynamic table.

use std::io::{self, Read, Write};

/// The first bytes of a client.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The maximum payload of a frame that every client accepts, in bytes.
const MOST_OF_FRAME: usize = 16 << 10;
/// The stream of a connection's first request.
const STREAM: u32 = 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 answer with status 200, and its end.
#[derive(Clone, Debug)]
pub struct Http2 {
    /// The value of `content-length` in bytes, which may be false; `None` for an answer without this header.
    pub length: Option<usize>,
    /// Whether the answer has `content-encoding: gzip`.
    pub is_gzip: bool,
    /// The bytes of the body.
    pub body: Vec<u8>,
    /// The way in which the answer ends.
    pub end: End,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `END_STREAM`, with the last data.
    Stream,
    /// `END_STREAM`, with trailers.
    Trailers,
    /// `END_STREAM`, and then `RST_STREAM(NO_ERROR)`, as of a server that has read enough of a request.
    StreamAndReset,
    /// `RST_STREAM` with this code.
    Reset(u32),
    /// `GOAWAY` with this code, which names this stream as the last one, and then the end of the connection.
    GoAway(u32),
    /// The end of the connection.
    Close,
}

impl Http2 {
    /// Returns an answer with this body, without a length.
    pub fn whole(body: impl Into<Vec<u8>>) -> Self {
        Self {
            length: None,
            is_gzip: false,
            body: body.into(),
            end: End::Stream,
        }
    }

    /// Waits for a request, and answers it.
    pub(super) fn serve(&self, stream: &mut (impl Read + Write)) -> io::Result<()> {
        let mut preface = [0; PREFACE.len()];
        stream.read_exact(&mut preface)?;
        if preface != *PREFACE {
            return Err(io::ErrorKind::InvalidData.into());
        }
        send(stream, SETTINGS, 0, 0, &[])?;
        while receive(stream)? != HEADERS {}
        send(stream, SETTINGS, ACK, 0, &[])?;
        send(stream, HEADERS, END_HEADERS, STREAM, &self.head())?;
        let mut chunks = self.body.chunks(MOST_OF_FRAME).peekable();
        while let Some(chunk) = chunks.next() {
            let is_end =
                chunks.peek().is_none() && matches!(self.end, End::Stream | End::StreamAndReset);
            send(
                stream,
                DATA,
                if is_end { END_STREAM } else { 0 },
                STREAM,
                chunk,
            )?;
        }
        match self.end {
            End::Stream | End::StreamAndReset if self.body.is_empty() => {
                send(stream, DATA, END_STREAM, STREAM, &[])?;
            }
            End::Trailers => {
                // The field `age` without a value, by its number in the static table.
                send(
                    stream,
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    STREAM,
                    &[0x0f, 0x06, 0],
                )?;
            }
            End::Reset(code) => send(stream, RST_STREAM, 0, STREAM, &code.to_be_bytes())?,
            End::GoAway(code) => {
                let last = [STREAM.to_be_bytes(), code.to_be_bytes()].concat();
                send(stream, GOAWAY, 0, 0, &last)?;
            }
            End::Stream | End::StreamAndReset | End::Close => {}
        }
        if self.end == End::StreamAndReset {
            send(stream, RST_STREAM, 0, STREAM, &0_u32.to_be_bytes())?;
        }
        stream.flush()?;
        if matches!(self.end, End::Close | End::GoAway(_)) {
            return Ok(());
        }
        // Until the client closes: a reset connection may discard data that is still under way.
        while receive(stream).is_ok() {}
        Ok(())
    }

    /// Returns the block of header fields (RFC 7541).
    fn head(&self) -> Vec<u8> {
        let mut block = vec![0x88]; // :status 200
        let mut field = |index: u8, value: &str| {
            block.extend([0x0f, index - 15, value.len() as u8]);
            block.extend(value.as_bytes());
        };
        if self.is_gzip {
            field(26, "gzip");
        }
        if let Some(length) = self.length {
            field(28, &length.to_string());
        }
        block
    }
}

fn send(stream: &mut impl Write, kind: u8, flags: u8, of: u32, payload: &[u8]) -> io::Result<()> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()[1..])?;
    stream.write_all(&[kind, flags])?;
    stream.write_all(&of.to_be_bytes())?;
    stream.write_all(payload)
}

/// Reads the next frame, and returns its type.
fn receive(stream: &mut impl Read) -> io::Result<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head)?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    io::copy(&mut stream.take(length.into()), &mut io::sink())?;
    Ok(head[3])
}
