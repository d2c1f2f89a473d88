//! Reads the keys that limit the number of addresses of a list, and its growth.

use std::ops::RangeInclusive;
use std::time::Duration;

use allowlist_policy::{Gate, PerFamily};

use super::super::document::{Node, Problems, Table};
use super::options::read_duration;

const WINDOW_RANGE: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(24 * 365);
/// The range of `max_growth`: a larger factor would not limit growth.
const GROWTH_RANGE: RangeInclusive<f64> = 0.0..=1e6;
/// The precision of a fraction of an address family, in bits: fractions are rounded to multiples of 2^-40.
const PARTS: u32 = 40;
/// The address families, each with the length of its addresses in bits.
const BITS: [(&str, u8); 2] = [("v4", 32), ("v6", 128)];

/// Reads `max_addresses`, `max_growth` and `growth_window`.
///
/// Without `max_addresses`, also reads `min_prefix_len`, since one prefix of the shortest allowed length must fit.
pub(super) fn read_size(gate: &mut Gate, table: &Table, problems: &mut Problems) {
    read_max_addresses(gate, table, problems);
    read_duration(
        table,
        "growth_window",
        &mut gate.growth_window,
        &WINDOW_RANGE,
        problems,
    );
    let Some(node) = table.get("max_growth") else {
        return;
    };
    match node.fraction() {
        Some(part) if GROWTH_RANGE.contains(&part) => {
            #[expect(
                clippy::cast_sign_loss,
                clippy::cast_possible_truncation,
                reason = "it is from 0 to a thousand million"
            )]
            let thousandths = (part * 1000.0).round() as u32;
            gate.max_growth = thousandths;
        }
        _ => node.wrong(
            problems,
            "is not a growth factor; write a number from 0.0 to 1000000.0, such as 1.0 for a list that may double",
        ),
    }
}

fn read_max_addresses(gate: &mut Gate, table: &Table, problems: &mut Problems) {
    let node = table.get("max_addresses");
    let is_for_all = |node: &Node| node.fraction().is_some();
    // A table may set one family only.
    let families = node.as_ref().filter(|node| !is_for_all(node));
    let families = families.and_then(|node| {
        let table = node.table(&mut Problems::default());
        if table.is_none() {
            node.wrong(problems, not_a_limit(BOTH_PREFIXES));
        }
        table
    });
    if let Some(families) = &families {
        families.only(&["v4", "v6"], problems);
    }
    let lengths = table
        .get("min_prefix_len")
        .and_then(|node| node.table(&mut Problems::default()));
    for (family, bits) in BITS {
        let stated = match &families {
            Some(families) => families.get(family),
            None => table.get("max_addresses").filter(is_for_all),
        };
        let (max, notable, all) = if bits == 32 {
            let notable = &mut gate.notable_addresses.v4;
            (&mut gate.max_addresses.v4, notable, PerFamily::ALL.v4)
        } else {
            let notable = &mut gate.notable_addresses.v6;
            (&mut gate.max_addresses.v6, notable, PerFamily::ALL.v6)
        };
        if let Some(node) = stated {
            let Some(addresses) = addresses(&node, bits, all) else {
                let prefix = format!("\"/{}\"", bits / 4);
                let example = match &families {
                    Some(_) => &*prefix,
                    None => BOTH_PREFIXES,
                };
                node.wrong(problems, not_a_limit(example));
                return;
            };
            *max = addresses;
        } else if let Some(length) = lengths
            .as_ref()
            .and_then(|lengths| lengths.get(family)?.integer())
            .and_then(|length| u8::try_from(length).ok())
        {
            // An allowed prefix length implies an allowed number of addresses.
            let size = size_of(bits, length);
            *max = (*max).max(size);
            *notable = (*notable).max(size.saturating_add(1));
        }
    }
}

/// An example of `max_addresses` for messages: a limit for each family, as the length of a prefix with that many
/// addresses.
const BOTH_PREFIXES: &str = "{ v4 = \"/8\", v6 = \"/32\" }";

/// Returns the message for an invalid `max_addresses`; `example` is a valid value with the length of a prefix.
fn not_a_limit(example: &str) -> String {
    format!(
        "is not a limit of addresses; write a fraction of the family's addresses, above 0.0 and up to 1.0, such as 0.01, or an integer from 1, or the size of a prefix, such as {example}"
    )
}

/// Reads a limit of addresses: a fraction of the family, an integer, or the length of a prefix with that many
/// addresses. `bits` is the family's address length, `all` its number of addresses. Returns `None` without a report if
/// the value is invalid.
fn addresses(node: &Node, bits: u8, all: u128) -> Option<u128> {
    if let Some(text) = node.string() {
        let length = text.strip_prefix('/')?.parse::<u8>().ok()?;
        return (length <= bits).then(|| size_of(bits, length));
    }
    if let Some(number) = node.integer() {
        return (number > 0).then_some(u128::from(number));
    }
    let part = node.fraction().filter(|part| *part > 0.0 && *part <= 1.0)?;
    #[expect(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "it is from 0 to the number of parts, which is a power of two"
    )]
    let parts = (part * (1_u64 << PARTS) as f64).round() as u128;
    // IPv4 is multiplied first, which loses no address; IPv6 is shifted first, so that the product fits.
    Some(if bits == 32 {
        (all * parts) >> PARTS
    } else {
        (all >> PARTS) * parts
    })
}

/// Returns the number of addresses in a prefix of this length; `bits` is the family's address length.
fn size_of(bits: u8, length: u8) -> u128 {
    1_u128
        .checked_shl(u32::from(bits.saturating_sub(length)))
        .unwrap_or(u128::MAX)
}
