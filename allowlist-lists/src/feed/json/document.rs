//! Parses one JSON document so that no member is lost.
//!
//! Invariant: an object with a key that occurs twice fails the document, since readers differ in which of the two
//! members they take.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::super::text::trim;
use super::super::{FeedError, Place, shown};
use super::path::member;

/// The maximum estimated memory of a parsed JSON document, in bytes; a larger document fails with
/// [`FeedError::TooMuchMemory`]. A small object takes a hundred times its text. The largest list that a vendor is known
/// to have takes a third of this.
pub(in crate::feed) const MOST_BYTES: usize = 64 << 20;
/// The estimated memory of a JSON object without members, in bytes; such an object has room for 11 members.
const BYTES_OF_OBJECT: usize = 640;
/// The estimated memory of a JSON array with up to 4 items, in bytes.
const BYTES_OF_ARRAY: usize = 128;
/// The estimated memory of each further array item or object member, in bytes, with the spare room that the parser
/// allocates with it.
const BYTES_OF_ITEM: usize = 64;
/// The estimated memory of a string or a member's name, without its text, in bytes.
const BYTES_OF_STRING: usize = 16;

/// Parses a text that consists of one JSON document.
///
/// # Errors
/// The text is not one JSON document, is truncated, too large or too deep, or has a key twice in one object.
pub(super) fn parse(text: &str) -> Result<Value, FeedError> {
    if memory(text) > MOST_BYTES {
        return Err(FeedError::TooMuchMemory);
    }
    let twice = RefCell::new(None);
    let mut reader = serde_json::Deserializer::from_str(text);
    let node = Node {
        at: &At::Root,
        twice: &twice,
    };
    let document = node
        .deserialize(&mut reader)
        .and_then(|document| reader.end().map(|()| document));
    document.map_err(|error| {
        if let Some((place, key)) = twice.take() {
            return FeedError::DuplicateKey {
                place: Place::Path(place),
                line: error.line(),
                key: shown(&key),
            };
        }
        let problem = error.to_string();
        if error.is_eof() {
            FeedError::Truncated { length: text.len() }
        } else if problem.starts_with("recursion limit") {
            FeedError::TooDeep
        } else {
            FeedError::NotJson {
                problem,
                start: shown(trim(text)),
            }
        }
    })
}

/// Returns an estimate of the memory that a JSON document takes once it is parsed, in bytes, from its text alone.
fn memory(text: &str) -> usize {
    let mut memory = text.len();
    let mut is_in_string = false;
    let mut is_escaped = false;
    for byte in text.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_in_string => is_escaped = true,
            b'"' => {
                is_in_string = !is_in_string;
                memory += BYTES_OF_STRING / 2;
            }
            b',' if !is_in_string => memory += BYTES_OF_ITEM,
            b'[' if !is_in_string => memory += BYTES_OF_ARRAY,
            b'{' if !is_in_string => memory += BYTES_OF_OBJECT,
            _ => {}
        }
    }
    memory
}

/// The place of a node in a JSON document: the node's own name or index, linked to the place of its parent.
enum At<'a> {
    Root,
    Member(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
}

impl fmt::Display for At<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => out.write_str("$"),
            Self::Member(above, name) => write!(out, "{above}{}", member(name)),
            Self::Item(above, index) => write!(out, "{above}[{index}]"),
        }
    }
}

/// A deserializer of one JSON value at the place `at`. If an object has a key twice, it stores the object's path and
/// the key in `twice`.
struct Node<'a> {
    at: &'a At<'a>,
    twice: &'a RefCell<Option<(String, String)>>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let at = At::Item(self.at, items.len());
            let node = Node {
                at: &at,
                twice: self.twice,
            };
            match sequence.next_element_seed(node)? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut members = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if members.contains_key(&key) {
                *self.twice.borrow_mut() = Some((self.at.to_string(), key));
                return Err(A::Error::custom("a key occurs twice"));
            }
            let at = At::Member(self.at, &key);
            let node = Node {
                at: &at,
                twice: self.twice,
            };
            let value = entries.next_value_seed(node)?;
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}
