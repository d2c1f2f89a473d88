//! Reads DNS messages (RFC 1035) as far as the egress policy needs them: the question of a query, and the addresses in
//! an answer.
//!
//! The kernel programs and the host run the same code: [`Message`] gives the bytes, [`Repeat`] runs the loops, and
//! [`Sink`] takes the addresses. The reader allocates nothing, follows no compression pointer, and reads each byte at
//! most twice. It is strict: a message that deviates from the format is not believed.
//!
//! An answer is believed only if it repeats a question that was noted when the query was sent; its addresses are those
//! of the whole answer section, because a resolver puts the records of the aliases (CNAME) of a name there, and nothing
//! else.

mod name;

use crate::packet::Address;

pub use self::name::{NAME_BYTES, NameKey, Noted, WildcardKey};

/// The size of the header of a message, in bytes.
pub const HEADER: u32 = 12;
/// The record type of an IPv4 address (RFC 1035, 3.4.1).
pub const A: u16 = 1;
/// The record type of an alias (RFC 1035, 3.3.1).
pub const CNAME: u16 = 5;
/// The record type of an IPv6 address (RFC 3596, 2.1).
pub const AAAA: u16 = 28;
/// The class of Internet records (RFC 1035, 3.2.4).
const INTERNET: u16 = 1;
/// The maximum length of a label in bytes (RFC 1035, 2.3.4).
const MAX_LABEL: u8 = 63;
/// The first two bits of a label's length that mark a compression pointer (RFC 1035, 4.1.4).
const POINTER: u8 = 0xc0;
/// The maximum time to live that is believed, in seconds: 7 days, as RFC 8767, 4, recommends for caches.
pub const MAX_TTL: u32 = 604_800;
/// The number of steps in which an answer section is read: one for each record, and one for each uncompressed label of
/// their names. Later records are ignored.
const MAX_STEPS: u32 = 512;

/// The bytes of a message: offsets count from its header.
pub trait Message {
    /// Returns the byte at an offset; `None` after the end.
    fn u8_at(&self, offset: u32) -> Option<u8>;
    /// Returns the 16-bit number at an offset; `None` if it exceeds the end.
    fn u16_at(&self, offset: u32) -> Option<u16>;
    /// Returns the 32-bit number at an offset; `None` if it exceeds the end.
    fn u32_at(&self, offset: u32) -> Option<u32>;
    /// Returns the 64-bit number at an offset; `None` if it exceeds the end.
    fn u64_at(&self, offset: u32) -> Option<u64>;
}

/// A loop with a state.
pub trait Step {
    /// Executes the step with an index from 0; returns whether the loop continues.
    fn step(&mut self, index: u32) -> bool;
}

/// Runs loops: the kernel has a helper for this, which the verifier checks once instead of once per iteration.
pub trait Repeat {
    /// Executes up to `limit` steps, until one returns false.
    fn repeat<S: Step>(limit: u32, state: &mut S);
}

/// Takes the addresses of an answer.
pub trait Sink {
    /// Takes an address, and its time to live in seconds.
    fn take(&mut self, address: Address, ttl: u32);
}

/// A message in memory.
#[derive(Clone, Copy, Debug)]
pub struct Bytes<'b>(pub &'b [u8]);

impl Bytes<'_> {
    fn array<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        self.0.get(offset as usize..)?.first_chunk().copied()
    }
}

impl Message for Bytes<'_> {
    fn u8_at(&self, offset: u32) -> Option<u8> {
        self.array(offset).map(u8::from_be_bytes)
    }

    fn u16_at(&self, offset: u32) -> Option<u16> {
        self.array(offset).map(u16::from_be_bytes)
    }

    fn u32_at(&self, offset: u32) -> Option<u32> {
        self.array(offset).map(u32::from_be_bytes)
    }

    fn u64_at(&self, offset: u32) -> Option<u64> {
        self.array(offset).map(u64::from_be_bytes)
    }
}

/// Plain loops, for the host.
#[derive(Clone, Copy, Debug)]
pub struct PlainLoops;

impl Repeat for PlainLoops {
    fn repeat<S: Step>(limit: u32, state: &mut S) {
        for index in 0..limit {
            if !state.step(index) {
                break;
            }
        }
    }
}

/// The kind of a message for the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// A standard query with one question.
    Query,
    /// A response without an error, with one question.
    Answer,
    /// A response that was truncated (the TC bit), with one question; the client repeats its query by TCP.
    Truncated,
    /// A response with an error, such as NXDOMAIN.
    Error,
}

/// The header of a message.
///
/// VERIFIER: words of 4 bytes, since the compiler may load two smaller fields at once, from an address that is not
/// aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The id by which the client recognises the answer, a number of 16 bits.
    pub id: u32,
    /// The kind of message.
    pub kind: Kind,
    /// The number of records in the answer section, a number of 16 bits.
    pub answers: u32,
}

/// Reads the header; `None` for a message that is neither a standard query nor a response to one, or that has not
/// exactly one question.
#[inline(always)]
pub fn header(message: &impl Message) -> Option<Header> {
    const RESPONSE: u16 = 0x8000;
    const OPCODE: u16 = 0x7800;
    const TRUNCATED: u16 = 0x0200;
    const RESPONSE_CODE: u16 = 0x000f;
    let flags = message.u16_at(2)?;
    if flags & OPCODE != 0 || message.u16_at(4)? != 1 {
        return None;
    }
    let kind = if flags & RESPONSE == 0 {
        Kind::Query
    } else if flags & RESPONSE_CODE != 0 {
        Kind::Error
    } else if flags & TRUNCATED != 0 {
        Kind::Truncated
    } else {
        Kind::Answer
    };
    Some(Header {
        id: message.u16_at(0)?.into(),
        kind,
        answers: message.u16_at(6)?.into(),
    })
}

/// Reads the question of a query into `noted`, whose name must be empty: its name in lower case, and its type. Returns
/// `None` for a question that is not for the addresses of a host name; `noted` may then have a part of the name.
#[inline(always)]
pub fn read_question<M: Message, R: Repeat>(message: &M, noted: &mut Noted) -> Option<()> {
    let mut labels = Labels {
        message,
        at: HEADER,
        is_whole: false,
    };
    R::repeat(u32::from(u8::MAX), &mut labels);
    // Without the empty label, the name in the message is one byte longer than its text: the length of the first label.
    let length = labels.at - HEADER;
    if !labels.is_whole || !(2..=NAME_BYTES + 1).contains(&length) {
        return None;
    }
    noted.set_length(length - 1);
    let kind = kind_of_question(message, HEADER + length + 1)?;
    noted.set_kind(kind);
    let mut copy = Copy {
        message,
        label: message.u8_at(HEADER)?,
        noted,
        is_valid: true,
    };
    R::repeat(length - 1, &mut copy);
    copy.is_valid.then_some(())
}

/// Reads an answer, and gives its addresses to `sink`, in the order of the records. Returns `None` if the answer does
/// not repeat the question in `noted`, or deviates from the format; addresses before the deviation were then given to
/// `sink`.
#[inline(always)]
pub fn read_answer<M: Message, R: Repeat, S: Sink>(
    message: &M,
    header: &Header,
    noted: &Noted,
    sink: &mut S,
) -> Option<()> {
    let length = noted.length();
    let mut compare = Compare {
        message,
        label: message.u8_at(HEADER)?,
        noted,
        is_equal: true,
    };
    R::repeat(length, &mut compare);
    let end = HEADER + 1 + length;
    if !compare.is_equal || compare.label != 0 || message.u8_at(end)? != 0 {
        return None;
    }
    if kind_of_question(message, end + 1)? != noted.kind() {
        return None;
    }
    let mut records = Records {
        message,
        sink,
        at: end + 5,
        left: header.answers,
        ttl: MAX_TTL,
        is_valid: true,
    };
    R::repeat(MAX_STEPS, &mut records);
    records.is_valid.then_some(())
}

/// Returns the type of a question at the offset after its name; `None` unless it is [`A`] or [`AAAA`] in the class of the
/// Internet.
#[inline(always)]
fn kind_of_question(message: &impl Message, at: u32) -> Option<u16> {
    let kind = message.u16_at(at)?;
    let is_internet = message.u16_at(at + 2)? == INTERNET;
    (is_internet && (kind == A || kind == AAAA)).then_some(kind)
}

/// Finds the end of a name without compression.
struct Labels<'m, M> {
    message: &'m M,
    /// The offset of the next label; in the end, that of the empty label.
    at: u32,
    is_whole: bool,
}

impl<M: Message> Step for Labels<'_, M> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        match self.message.u8_at(self.at) {
            Some(0) => {
                self.is_whole = true;
                false
            }
            Some(length @ 1..=MAX_LABEL) => {
                self.at += u32::from(length) + 1;
                self.at <= HEADER + NAME_BYTES + 1
            }
            _ => false,
        }
    }
}

/// Returns a byte of a host name in lower case; `None` for a byte that host names in a configuration do not have.
#[inline(always)]
const fn host_byte(byte: u8) -> Option<u8> {
    match byte {
        b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => Some(byte),
        b'A'..=b'Z' => Some(byte | 0x20),
        _ => None,
    }
}

/// Copies the text of a name, one byte per step, from the byte after the first label's length.
struct Copy<'m, M> {
    message: &'m M,
    /// The number of bytes that are left of the present label.
    label: u8,
    noted: &'m mut Noted,
    is_valid: bool,
}

impl<M: Message> Step for Copy<'_, M> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let byte = self.message.u8_at(HEADER + 1 + index);
        let text = match (byte, self.label) {
            (Some(length), 0) => {
                self.label = length;
                Some(b'.')
            }
            (Some(byte), _) => {
                self.label -= 1;
                host_byte(byte)
            }
            (None, _) => None,
        };
        match text {
            Some(byte) => self.noted.set_byte(index, byte),
            None => self.is_valid = false,
        }
        self.is_valid
    }
}

/// Compares the text of a name with the noted one, as [`Copy`] copies it.
struct Compare<'m, M> {
    message: &'m M,
    /// The number of bytes that are left of the present label.
    label: u8,
    noted: &'m Noted,
    is_equal: bool,
}

impl<M: Message> Step for Compare<'_, M> {
    #[inline(always)]
    fn step(&mut self, index: u32) -> bool {
        let byte = self.message.u8_at(HEADER + 1 + index);
        let wanted = self.noted.byte(index);
        self.is_equal = match (byte, self.label) {
            (Some(length), 0) => {
                self.label = length;
                wanted == b'.' && length <= MAX_LABEL
            }
            (Some(byte), _) => {
                self.label -= 1;
                matches!(host_byte(byte), Some(byte) if byte == wanted)
            }
            (None, _) => false,
        };
        self.is_equal
    }
}

/// Reads the records of the answer section: in each step, a label of a record's name, or the rest of a record.
struct Records<'m, M, S> {
    message: &'m M,
    sink: &'m mut S,
    at: u32,
    left: u32,
    /// The shortest time to live of the aliases so far: an address is valid no longer than the alias that leads to it.
    ttl: u32,
    is_valid: bool,
}

impl<M: Message, S: Sink> Step for Records<'_, M, S> {
    #[inline(always)]
    fn step(&mut self, _index: u32) -> bool {
        if self.left == 0 {
            return false;
        }
        let name_end = match self.message.u8_at(self.at) {
            Some(0) => 1,
            Some(POINTER..) => 2,
            Some(length @ 1..=MAX_LABEL) => {
                self.at += u32::from(length) + 1;
                return true;
            }
            _ => 0,
        };
        if name_end == 0 || self.record(self.at + name_end).is_none() {
            self.is_valid = false;
        }
        self.is_valid
    }
}

impl<M: Message, S: Sink> Records<'_, M, S> {
    /// Reads a record from the offset after its name, and moves to the next record; returns `None` if the record has a
    /// wrong format.
    #[inline(always)]
    fn record(&mut self, at: u32) -> Option<()> {
        let message = self.message;
        let kind = message.u16_at(at)?;
        let class = message.u16_at(at + 2)?;
        let ttl = message.u32_at(at + 4)?;
        let length = u32::from(message.u16_at(at + 8)?);
        let data = at + 10;
        // A time to live with the first bit set counts as 0 (RFC 2181, 8).
        let ttl = if ttl >> 31 != 0 { 0 } else { ttl };
        let ttl = if ttl < self.ttl { ttl } else { self.ttl };
        let address = match (class, kind, length) {
            (INTERNET, A, 4) => Address::V4(message.u32_at(data)?),
            (INTERNET, AAAA, 16) => Address::V6([message.u64_at(data)?, message.u64_at(data + 8)?]),
            (INTERNET, A | AAAA, _) => return None,
            (INTERNET, CNAME, _) => {
                self.ttl = ttl;
                self.go_to(data + length);
                return Some(());
            }
            _ => {
                self.go_to(data + length);
                return Some(());
            }
        };
        self.sink.take(address, ttl);
        self.go_to(data + length);
        Some(())
    }

    /// Moves to the record at an offset.
    #[inline(always)]
    const fn go_to(&mut self, at: u32) {
        self.at = at;
        self.left -= 1;
    }
}

#[cfg(test)]
mod tests;
