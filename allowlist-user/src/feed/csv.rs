//! Comma-separated values: the prefixes of one column.
//!
//! Invariant: each record has the column and ends in the line in which it starts, so that quotes which
//! nobody closed cannot swallow the prefixes after them. A blank field names nobody.

use ::csv::{ReaderBuilder, StringRecord, Trim};
use ipnet::IpNet;

use super::text::{decode, not_a_page, trim};
use super::{FeedError, Place, some_of, take};
use crate::policy::Column;

/// How many columns an error shows.
const SHOWN_COLUMNS: usize = 8;

pub(super) fn parse(column: &Column, bytes: &[u8]) -> Result<Vec<IpNet>, FeedError> {
    let text = not_a_page(decode(bytes)?)?;
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let mut number = match column {
        Column::Number(number) => Some(*number),
        Column::Name(_) => None,
    };
    let mut prefixes = Vec::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).expect("text is in memory") {
        let line = || line_of(text, &record);
        if record.iter().any(|field| field.contains(['\n', '\r'])) {
            return Err(FeedError::OpenQuotes { line: line() });
        }
        if record.iter().all(|field| trim(field).is_empty()) {
            continue;
        }
        let Some(number) = number else {
            number = Some(find(column, &record, line)?);
            continue;
        };
        let Some(field) = record.get(number) else {
            return Err(FeedError::NoColumn {
                line: line(),
                column: number,
                fields: record.len(),
            });
        };
        let token = trim(field);
        if !token.is_empty() {
            take(token, &mut prefixes, || Place::Line(line()))?;
        }
    }
    Ok(prefixes)
}

/// Which column the header line calls so.
fn find(
    column: &Column,
    header: &StringRecord,
    line: impl Fn() -> usize,
) -> Result<usize, FeedError> {
    let name = match column {
        Column::Number(number) => return Ok(*number),
        Column::Name(name) => name,
    };
    header
        .iter()
        .position(|field| trim(field) == name)
        .ok_or_else(|| FeedError::NoHeader {
            line: line(),
            column: name.clone(),
            found: some_of(header.iter(), SHOWN_COLUMNS),
        })
}

/// Where a record starts, for which the reader gives the end of the one before: comments and blank lines
/// lie between.
fn line_of(text: &str, record: &StringRecord) -> usize {
    let mut start = record.position().map_or(0, |at| at.byte() as usize);
    for line in text[start..].split_inclusive(['\n', '\r']) {
        if !line.starts_with('#') && !line.trim_end_matches(['\n', '\r']).is_empty() {
            break;
        }
        start += line.len();
    }
    1 + text[..start].matches('\n').count()
}
