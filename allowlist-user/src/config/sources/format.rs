//! `format`, and the keys that go with one format only.

use super::super::document::{Node, Problems, Table};
use super::super::read::read_filled;
use crate::policy::{Column, Format, Page, Pattern, Select};

/// What `format = "…"` may say.
const FORMATS: [&str; 6] = ["json", "jsonl", "text", "csv", "html", "markdown"];

/// None where there is no `format`, or none that is known, which is reported.
pub(super) fn read_format(table: &Table, problems: &mut Problems) -> Option<Format> {
    let node = table.get("format");
    let Some(text) = node.as_ref().and_then(|node| node.text(problems)) else {
        for key in ["select", "column", "page"] {
            if let (None, Some(other)) = (&node, table.get(key)) {
                other.wrong(problems, "needs a `format` that it belongs to; add one");
            }
        }
        return None;
    };
    let selects = |problems: &mut Problems| {
        if table.get("select").is_none() {
            return vec![Select::new("$[*]").expect("it is a JSONPath")];
        }
        let otherwise =
            "nothing would be selected; write a JSONPath, such as select = [\"$.hooks[*]\"]";
        read_filled(table, "select", otherwise, problems, Select::new)
    };
    let (format, own) = match text {
        "text" => (Format::Text, ""),
        "json" => (Format::Json(selects(problems)), "select"),
        "jsonl" if table.get("select").is_none() => {
            table.wrong(
                problems,
                "has format \"jsonl\" and no `select`; add what each line has, such as select = [\"$.cidr\"]",
            );
            return None;
        }
        "jsonl" => (Format::JsonLines(selects(problems)), "select"),
        "csv" => (Format::Csv(read_column(table, problems)), "column"),
        "html" => (Format::Html(read_page(text, table, problems)), "page"),
        "markdown" => (Format::Markdown(read_page(text, table, problems)), "page"),
        _ => {
            let names = FORMATS.map(|name| format!("{name:?}")).join(" or ");
            node?.wrong(
                problems,
                format!("{text:?} is not known here; write {names}"),
            );
            return None;
        }
    };
    for key in ["select", "column", "page"] {
        if let Some(other) = table.get(key).filter(|_| key != own) {
            other.wrong(
                problems,
                format!("makes no sense with format = {text:?}; remove it"),
            );
        }
    }
    Some(format)
}

fn read_column(table: &Table, problems: &mut Problems) -> Column {
    let what = "write its number, from 0, or its name in the header line";
    let Some(node) = table.get("column") else {
        table.wrong(
            problems,
            format!("has format \"csv\" and no `column`; {what}"),
        );
        return Column::Number(0);
    };
    match (node.integer(), node.string()) {
        (Some(number), _) if number < 1000 => Column::Number(number as usize),
        (None, Some(name)) if !name.is_empty() => Column::Name(name.to_owned()),
        _ => {
            node.wrong(problems, format!("is not a column; {what}"));
            Column::Number(0)
        }
    }
}

/// A part of a page: an error page with status 200 may well name an address, such as the reader's own.
fn read_page(format: &str, table: &Table, problems: &mut Problems) -> Page {
    let Some(node) = table.get("page") else {
        table.wrong(
            problems,
            format!(
                "has format {format:?} and no `page`; add where on the page the list is, such as \
                 page = {{ section = \"(?i)webhooks\" }}"
            ),
        );
        return Page::default();
    };
    let Some(table) = node.table(problems) else {
        return Page::default();
    };
    if ["section", "region", "column"]
        .iter()
        .all(|key| table.get(key).is_none())
    {
        let message =
            "does not say where on the page the list is; add `section`, `region` or `column`";
        node.wrong(problems, message);
    }
    let keys = ["section", "region", "column", "exclude_row", "exclude_code"];
    table.only(&keys, problems);
    let mut pattern = |key| {
        let node = table.get(key)?;
        read_pattern(&node, problems)
    };
    Page {
        section: pattern("section"),
        region: pattern("region"),
        column: pattern("column"),
        exclude_row: pattern("exclude_row"),
        exclude_code: table
            .get("exclude_code")
            .and_then(|node| node.boolean(problems))
            .unwrap_or_default(),
    }
}

pub(super) fn read_pattern(node: &Node, problems: &mut Problems) -> Option<Pattern> {
    let text = node.text(problems)?;
    match Pattern::new(text) {
        Ok(pattern) => Some(pattern),
        Err(message) => {
            node.wrong(problems, message);
            None
        }
    }
}
