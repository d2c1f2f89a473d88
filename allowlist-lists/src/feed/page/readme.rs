//! The blocks of `ReadMe`'s Markdown: `[block:code]`, a JSON document, `[/block]`.
//!
//! Invariant: the content that such a block shows becomes plain Markdown, so that no JSON escape, such as `\n`, is
//! attached to an address. Blocks that show no text are removed.

use std::borrow::Cow;

use serde_json::Value;

use crate::feed::FeedError;

const START: &str = "[block:";
const END: &str = "[/block]";
/// The maximum number of columns of a table that are read, even if the table's block states more.
const MOST_COLUMNS: usize = 100;

/// Returns a `ReadMe` document with each `[block:…]` replaced by plain Markdown.
pub(super) fn unfold(text: &str) -> Result<Cow<'_, str>, FeedError> {
    if !text.lines().any(|line| kind(line).is_some()) {
        return Ok(Cow::Borrowed(text));
    }
    let mut plain = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let Some(kind) = kind(line) else {
            plain.push_str(&heading(line));
            plain.push('\n');
            continue;
        };
        let wrong = |problem: String| FeedError::Block {
            line: index + 1,
            kind: kind.to_owned(),
            problem,
        };
        let mut json = String::new();
        loop {
            match lines.next() {
                Some((_, line)) if line.trim() == END => break,
                Some((_, line)) => json.extend([line, "\n"]),
                None => return Err(wrong(format!("no line `{END}` ends it"))),
            }
        }
        let block = serde_json::from_str(&json).map_err(|error| wrong(error.to_string()))?;
        // Blank lines separate it from the surrounding text.
        plain.extend(["\n", &show(kind, &block), "\n\n"]);
    }
    Ok(Cow::Owned(plain))
}

fn kind(line: &str) -> Option<&str> {
    line.trim().strip_prefix(START)?.strip_suffix(']')
}

/// Returns a line of Markdown; if the line is a heading such as `#Title`, a space is inserted after its `#`.
fn heading(line: &str) -> Cow<'_, str> {
    let text = line.trim_start_matches('#');
    let level = line.len() - text.len();
    if (1..=6).contains(&level) && text.starts_with(char::is_alphanumeric) {
        return Cow::Owned(format!("{} {text}", &line[..level]));
    }
    Cow::Borrowed(line)
}

fn show(kind: &str, block: &Value) -> String {
    let text = |key: &str| block[key].as_str().unwrap_or_default();
    match kind {
        "code" => {
            let codes = block["codes"].as_array().map_or(&[][..], Vec::as_slice);
            let codes = codes.iter().filter_map(|code| code["code"].as_str());
            codes.map(fenced).collect::<Vec<_>>().join("\n")
        }
        "html" => text("html").replace("\n\n", "\n"),
        "callout" => format!("{}\n\n{}", text("title"), text("body")),
        "api-header" => format!("## {}", text("title")),
        "parameters" => parameters(block),
        _ => String::new(),
    }
}

/// Returns `code` as a fenced code block of Markdown, whose fence has more backticks than any run of them in `code`.
fn fenced(code: &str) -> String {
    let longest = code.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}\n{code}\n{fence}\n")
}

/// Returns a `ReadMe` block of the kind `parameters` as a Markdown table. The cells have the keys `row-column`, and the
/// headers `h-column`.
fn parameters(block: &Value) -> String {
    let size = |key: &str| {
        let size = block[key]
            .as_u64()
            .and_then(|size| usize::try_from(size).ok());
        // At most the number of cells, independent of the size that the block states.
        size.unwrap_or(0)
            .min(block["data"].as_object().map_or(0, serde_json::Map::len))
    };
    let columns = size("cols").min(MOST_COLUMNS);
    let row = |name: &str| {
        let cells = (0..columns).map(|column| {
            let cell = block["data"][format!("{name}-{column}")].as_str();
            cell.unwrap_or_default()
                .replace('|', "\\|")
                .replace('\n', "<br>")
        });
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let mut table = row("h");
    table.push_str(&format!("|{}\n", "--|".repeat(columns)));
    table.extend((0..size("rows")).map(|number| row(&number.to_string())));
    table
}
