//! The list parsers: arbitrary bytes either are refused with a message, or parse to a list that satisfies the
//! invariants of `feed`.

use std::sync::LazyLock;

use allowlist_lists::feed::{self, FeedError, List, check_prefix, find_link};
use allowlist_policy::{Column, Format, Page, Pattern, Select};
use jiff::civil::{Date, date};

/// An arbitrary date.
const TODAY: Date = date(2026, 11, 24);

/// All formats, and page formats with all filters.
static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let select = |path| Select::new(path).expect("a JSONPath");
    let pattern = |text| Some(pattern(text));
    let part = Page {
        section: pattern("."),
        region: pattern("US|EU"),
        ..Page::default()
    };
    let column = Page {
        column: pattern("IP"),
        exclude_row: pattern("old"),
        exclude_code: true,
        ..Page::default()
    };
    vec![
        Format::Text,
        Format::json_array(),
        Format::Json(vec![select("$.addresses[*]"), select("$..cidr")].into()),
        Format::JsonLines(vec![select("$.cidr")].into()),
        Format::Csv(Column::Number(0).into()),
        Format::Csv(Column::Name("ip".to_owned()).into()),
        Format::Html(Page::default()),
        Format::Html(part.clone()),
        Format::Html(column.clone()),
        Format::Markdown(Page::default()),
        Format::Markdown(part),
        Format::Markdown(column),
    ]
});

/// Parses the bytes as a list of each format.
///
/// # Panics
/// If a message is empty, if a list violates an invariant of `feed`, or if the program panics.
pub fn run(input: &[u8]) {
    for format in FORMATS.iter() {
        check(feed::parse(format, input, TODAY));
    }
    if let Err(error) = find_link(input, &pattern("a")) {
        assert_ne!(error.to_string(), "");
    }
}

fn check(list: Result<List, FeedError>) {
    let List {
        prefixes, notes, ..
    } = match list {
        Ok(list) => list,
        Err(error) => {
            assert_ne!(error.to_string(), "");
            return;
        }
    };
    assert!(!prefixes.is_empty());
    assert!(prefixes.is_sorted_by(|a, b| a < b), "{prefixes:?}");
    for prefix in &prefixes {
        assert_eq!(check_prefix(*prefix), Ok(*prefix));
    }
    assert!(notes.len() <= 21, "{notes:?}");
    assert!(notes.iter().all(|note| !note.is_empty()));
    let words: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    let array = format!("[\"{}\"]", words.join("\", \""));
    let texts = [
        (Format::Text, words.join("\n")),
        (Format::json_array(), array),
    ];
    for (format, text) in texts {
        let again = feed::parse(&format, text.as_bytes(), TODAY).map(|list| list.prefixes);
        assert_eq!(again.as_ref(), Ok(&prefixes), "{format}");
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a regular expression")
}
