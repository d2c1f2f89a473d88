//! DNS messages of tests and of the benchmark (RFC 1035, 4.1), written without a library, so that a test can decide each
//! byte.

use std::net::Ipv4Addr;

/// The flags of a recursive query.
const QUERY: u16 = 0x0100;
/// The flags of a response to a recursive query.
pub const RESPONSE: u16 = 0x8180;

/// The type of records with an IPv4 address.
const A: u16 = 1;
/// The class of the internet.
const INTERNET: u16 = 1;
/// A compressed name: the name of the question, which follows the header.
const POINTER_TO_QUESTION: u16 = 0xc00c;
/// The time to live of each record, in seconds.
const TTL: u16 = 1;

/// Returns a message with a question for the IPv4 addresses of a name, and these addresses as its answer.
pub fn message(id: u16, flags: u16, name: &str, addresses: &[Ipv4Addr]) -> Vec<u8> {
    let mut message = numbers(&[id, flags, 1, addresses.len() as u16, 0, 0]);
    for label in name.split('.') {
        message.push(label.len() as u8);
        message.extend(label.bytes());
    }
    message.push(0);
    message.extend(numbers(&[A, INTERNET]));
    for address in addresses {
        message.extend(numbers(&[POINTER_TO_QUESTION, A, INTERNET, 0, TTL, 4]));
        message.extend(address.octets());
    }
    message
}

/// Returns a query for the IPv4 addresses of a name.
pub fn query(id: u16, name: &str) -> Vec<u8> {
    message(id, QUERY, name, &[])
}

fn numbers(numbers: &[u16]) -> Vec<u8> {
    numbers.iter().flat_map(|one| one.to_be_bytes()).collect()
}
