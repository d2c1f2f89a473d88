//! DNS messages: the reader that the kernel programs and the host share, compared with `hickory-proto`.
//!
//! The reader is stricter than `hickory-proto` in what it believes, and does not read what it does not need. So a message
//! that only one of the two accepts is wrong in few cases, which [`run`] names.

use std::net::IpAddr;

use allowlist_common::dns::{
    self, A, AAAA, Bytes, CNAME, HEADER, Kind, MAX_TTL, NAME_BYTES, Noted, PlainLoops, Sink,
};
use allowlist_common::packet::Address;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable as _, BinEncoder, NameEncoding};

/// The number of steps in which the reader reads an answer section.
const MAX_STEPS: usize = 512;
/// Questions that were noted before a message is read, in addition to the message's own.
const NOTED: [(&str, u16); 3] = [
    ("www.example.com", A),
    ("www.example.com", AAAA),
    ("a.example", A),
];

/// The addresses that a message gave, with their times to live.
#[derive(Default)]
struct Taken(Vec<(Address, u32)>);

impl Sink for Taken {
    fn take(&mut self, address: Address, ttl: u32) {
        self.0.push((address, ttl));
    }
}

/// A response that a resolver could send, in the parts that matter here.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The labels of the name in the question.
    pub name: Vec<Vec<u8>>,
    /// The type of the question.
    pub kind: u16,
    /// The response code.
    pub code: u8,
    /// Whether the response is truncated.
    pub is_truncated: bool,
    /// Whether names are compressed.
    pub is_compressed: bool,
    /// Whether there is a record of EDNS.
    pub has_edns: bool,
    /// The sections: answers, authorities, additional records.
    pub sections: [Vec<Entry>; 3],
}

/// A record of a [`Reply`].
#[derive(Clone, Debug)]
pub struct Entry {
    /// The labels of the name that the record belongs to.
    pub owner: Vec<Vec<u8>>,
    /// The class.
    pub class: u16,
    /// The time to live in seconds.
    pub ttl: u32,
    /// The type and the data.
    pub data: RData,
}

impl Reply {
    /// Returns a response without an error, and with no records.
    pub fn new(name: &str, kind: u16) -> Self {
        Self {
            name: labels(name),
            kind,
            code: 0,
            is_truncated: false,
            is_compressed: true,
            has_edns: true,
            sections: [Vec::new(), Vec::new(), Vec::new()],
        }
    }

    /// Returns the message, as `hickory-proto` encodes it.
    ///
    /// # Panics
    /// If the message is too long.
    pub fn encode(&self) -> Vec<u8> {
        let mut message = Message::response(0x1234, OpCode::Query);
        let mut metadata = Metadata::new(0x1234, MessageType::Response, OpCode::Query);
        metadata.response_code = ResponseCode::from(0, self.code);
        metadata.truncation = self.is_truncated;
        message.metadata = metadata;
        message.add_query(Query::query(name_of(&self.name), self.kind.into()));
        let [answers, authorities, additionals] = &self.sections;
        message.add_answers(answers.iter().map(Entry::record));
        message.add_authorities(authorities.iter().map(Entry::record));
        message.add_additionals(additionals.iter().map(Entry::record));
        if self.has_edns {
            message.set_edns(Edns::new());
        }
        let mut bytes = Vec::new();
        let mut encoder = BinEncoder::new(&mut bytes);
        if !self.is_compressed {
            encoder.set_name_encoding(NameEncoding::Uncompressed);
        }
        message.emit(&mut encoder).expect("the message is short");
        bytes
    }
}

impl Entry {
    fn record(&self) -> Record {
        let mut record = Record::from_rdata(name_of(&self.owner), self.ttl, self.data.clone());
        record.dns_class = self.class.into();
        record
    }
}

/// Returns the labels of a name; none for an empty text.
pub fn labels(name: &str) -> Vec<Vec<u8>> {
    let labels = name.split('.').filter(|label| !label.is_empty());
    labels.map(|label| label.as_bytes().to_vec()).collect()
}

/// Returns a name as `hickory-proto` has it.
///
/// # Panics
/// If the name or a label is too long.
pub fn name_of(labels: &[Vec<u8>]) -> Name {
    let mut name = Name::from_labels(labels.iter().map(Vec::as_slice)).expect("a short name");
    name.set_fqdn(true);
    name
}

/// Reads a message, as the answer to its own question and to others; returns the number of addresses that were believed.
///
/// # Panics
/// If `hickory-proto` and the reader accept the message, but differ in the question, or in an address or its time to
/// live; if the reader refuses a message that a resolver could send as an answer to the noted question; if it takes
/// an address from a message with another question; or if it panics.
pub fn run(input: &[u8]) -> usize {
    let theirs = Message::from_vec(input).ok();
    let own = question(input);
    if let Some(theirs) = &theirs {
        let wanted = question_of(theirs);
        if let Some(own) = &own {
            assert_eq!(Some(content(own)), wanted);
        } else {
            // The reader follows no pointers, which have no use in the first name of a message.
            assert!(
                wanted.is_none() || !has_plain_question(input, theirs),
                "refused the question {wanted:?}"
            );
        }
    }
    let others = NOTED.map(|(name, kind)| {
        let query = Reply::new(name, kind).encode();
        question(&query).expect("a question for addresses")
    });
    let all = own.iter().chain(&others);
    all.map(|noted| answer(input, theirs.as_ref(), noted)).sum()
}

/// Reads the question of a message.
fn question(input: &[u8]) -> Option<Noted> {
    let bytes = Bytes(input);
    let mut noted = Noted::EMPTY;
    dns::header(&bytes)?;
    dns::read_question::<_, PlainLoops>(&bytes, &mut noted)?;
    assert!((1..=NAME_BYTES).contains(&noted.length()));
    Some(noted)
}

/// Returns the text of the name, and the type.
fn content(noted: &Noted) -> (String, u16) {
    let text = (0..noted.length()).map(|index| char::from(noted.byte(index)));
    (text.collect(), noted.kind())
}

/// Reads a message as the answer to `noted`; returns the number of addresses that were believed.
fn answer(input: &[u8], theirs: Option<&Message>, noted: &Noted) -> usize {
    let bytes = Bytes(input);
    let mut taken = Taken::default();
    let is_believed = dns::header(&bytes).is_some_and(|header| {
        header.kind == Kind::Answer
            && dns::read_answer::<_, PlainLoops, _>(&bytes, &header, noted, &mut taken).is_some()
    });
    let count = if is_believed { taken.0.len() } else { 0 };
    let Some(theirs) = theirs else {
        return count;
    };
    if question_of(theirs) != Some(content(noted)) {
        assert!(!is_believed && taken.0.is_empty(), "another question");
        return 0;
    }
    let (expected, steps) = addresses_of(theirs);
    if is_believed && steps <= MAX_STEPS {
        assert_eq!(taken.0, expected);
    }
    assert!(expected.starts_with(&taken.0), "{:?}", taken.0);
    let is_right = theirs.metadata.message_type == MessageType::Response
        && theirs.metadata.response_code == ResponseCode::NoError
        && !theirs.metadata.truncation
        && has_plain_question(input, theirs);
    assert!(is_believed || !is_right, "refused {theirs:?}");
    count
}

/// Returns the name in lower case and the type of the question, if it is the only one and one for the addresses of a
/// host name.
fn question_of(message: &Message) -> Option<(String, u16)> {
    let [query] = &message.queries[..] else {
        return None;
    };
    let kind = query.query_type().into();
    if message.metadata.op_code != OpCode::Query
        || query.query_class() != DNSClass::IN
        || ![A, AAAA].contains(&kind)
        || query.name().is_root()
    {
        return None;
    }
    let is_host = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let labels = query.name().iter().map(|label| {
        let text = str::from_utf8(label).ok()?;
        label.iter().all(is_host).then(|| text.to_ascii_lowercase())
    });
    Some((labels.collect::<Option<Vec<_>>>()?.join("."), kind))
}

/// Reports whether the question's name has no compression pointers.
fn has_plain_question(input: &[u8], message: &Message) -> bool {
    let plain = message.queries.first().map(|query| {
        let labels = query.name().iter();
        let mut bytes: Vec<u8> = labels
            .flat_map(|label| [&[label.len() as u8], label].concat())
            .collect();
        bytes.push(0);
        bytes
    });
    plain.is_some_and(|plain| input[HEADER as usize..].starts_with(&plain))
}

/// Returns the addresses in the answer section with their times to live, and the maximum number of steps in which the
/// section can be read.
fn addresses_of(message: &Message) -> (Vec<(Address, u32)>, usize) {
    let mut addresses = Vec::new();
    let mut steps = 0;
    let mut shortest = MAX_TTL;
    for record in &message.answers {
        steps += 1 + usize::from(record.name.num_labels());
        let ttl = match record.ttl {
            ttl @ 0..=0x7fff_ffff => ttl.min(shortest),
            _ => 0,
        };
        if record.dns_class != DNSClass::IN {
            continue;
        }
        let address: IpAddr = match &record.data {
            RData::A(address) => address.0.into(),
            RData::AAAA(address) => address.0.into(),
            other => {
                if other.record_type() == RecordType::from(CNAME) {
                    shortest = ttl;
                }
                continue;
            }
        };
        addresses.push((address.into(), ttl));
    }
    (addresses, steps)
}

#[cfg(test)]
mod tests;
