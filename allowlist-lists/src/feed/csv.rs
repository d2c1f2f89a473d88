//! Comma-separated values: the prefixes of one or several columns.
//!
//! Invariant: each record has the configured columns and ends in the line in which it starts, so that unclosed quotes
//! cannot swallow the prefixes after them. A blank field gives no prefix.

use ::csv::{ReaderBuilder, StringRecord, Trim};
use allowlist_policy::{Column, Csv, Item};
use ipnet::IpNet;

use super::text::{decode, not_a_page, trim};
use super::{FeedError, Place, item, some_of};

/// The maximum number of column names that an error shows.
const SHOWN_COLUMNS: usize = 8;

pub(super) fn parse(
    rules: &Csv,
    bytes: &[u8],
    may_be_empty: bool,
) -> Result<Vec<IpNet>, FeedError> {
    let (start, text) = without_titles(not_a_page(decode(bytes)?)?, rules.skip);
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .delimiter(rules.delimiter)
        .trim(Trim::All)
        .comment(Some(b'#'))
        .from_reader(text.as_bytes());
    let mut header = (!rules.has_header()).then(StringRecord::new);
    let mut filter = item::Filter::new(&rules.filter);
    let mut prefixes = Vec::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).expect("text is in memory") {
        let line = || start + line_of(text, &record);
        if record.iter().any(|field| field.contains(['\n', '\r'])) {
            return Err(FeedError::OpenQuotes { line: line() });
        }
        if record.iter().all(|field| trim(field).is_empty()) {
            continue;
        }
        let Some(header) = &header else {
            for column in rules.columns() {
                find(column, &record, line)?;
            }
            header = Some(record.clone());
            continue;
        };
        let field = |column: &Column| {
            let number = find(column, header, line)?;
            record.get(number).ok_or_else(|| FeedError::NoColumn {
                line: line(),
                column: number,
                fields: record.len(),
            })
        };
        for condition in &rules.filter {
            field(&condition.field)?;
        }
        if !filter.passes(|column| field(column).ok().map(str::to_owned)) {
            continue;
        }
        let place = || Place::Line(line());
        match &rules.item {
            Item::Range([first, second]) | Item::Prefix([first, second]) => {
                let (first, second) = (field(first)?, field(second)?);
                item::take_pair(&rules.item, first, second, &mut prefixes, place)?;
            }
            Item::Token { separator } => {
                for column in &rules.columns {
                    item::take_tokens(field(column)?, separator.as_deref(), &mut prefixes, place)?;
                }
            }
            Item::Keys => {} // of JSON alone
        }
    }
    filter.check(may_be_empty)?;
    Ok(prefixes)
}

/// Returns the number of leading lines that were skipped (at most `titles`), and the text after them.
fn without_titles(text: &str, titles: usize) -> (usize, &str) {
    let mut rest = text;
    for skipped in 0..titles {
        match rest.split_once('\n') {
            Some((_, behind)) => rest = behind,
            None => return (skipped, ""),
        }
    }
    (titles, rest)
}

/// Returns the index of a column, from 0. For a column with a name, `header` has to contain that name exactly once.
fn find(
    column: &Column,
    header: &StringRecord,
    line: impl Fn() -> usize,
) -> Result<usize, FeedError> {
    let name = match column {
        Column::Number(number) => return Ok(*number),
        Column::Name(name) => name,
    };
    let is_it = |field: &str| trim(field) == name;
    let found = header.iter().position(is_it);
    let number = found.ok_or_else(|| FeedError::NoHeader {
        line: line(),
        column: name.clone(),
        found: some_of(header.iter(), SHOWN_COLUMNS),
    })?;
    if header.iter().skip(number + 1).any(is_it) {
        return Err(FeedError::ManyHeaders {
            line: line(),
            column: name.clone(),
        });
    }
    Ok(number)
}

/// Returns the number of the line, from 1, in which a record starts. The position in `record` is the end of the
/// previous record, after which comments and blank lines may follow.
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
