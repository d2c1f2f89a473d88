//! The cost of malicious pages.

use super::*;

/// Each page would produce a tree or a search that is quadratic in its length.
#[test]
fn malicious_pages_are_parsed_quickly() {
    let numbered = |text: &str| -> String {
        (0..8_000)
            .map(|number| text.replace('#', &number.to_string()))
            .collect()
    };
    let pages = [
        "<div>".repeat(40_000),
        format!("{}{}", numbered("<b x=#>"), "<p>".repeat(12_000)),
        numbered("<p><b x=#></p>"),
        format!("<p {}>", numbered(" a#")),
        format!("<p {}>", numbered("/a#")),
        "<table>".repeat(12_000),
        "<table><tr><td>".repeat(12_000),
        format!(
            "<table>{}",
            "<tr><td rowspan=0 colspan=1000>".repeat(12_000)
        ),
        format!("<ul><li>{}retired", "192.0.2.1<br>".repeat(12_000)),
        format!("<table><tr>{}", "<td>192.0.2.1<td>retired".repeat(12_000)),
        format!("<table><tr>{}<tr><td>192.0.2.1", numbered("<th>a#")),
        format!(
            "<table>{}<tr><td>192.0.2.1<td>192.0.2.2",
            numbered("<tr><th>a#<th>b#")
        ),
        format!(
            "<table><tr>{}{}",
            numbered("<th>a#"),
            "<tr><td colspan=200>192.0.2.1".repeat(12_000)
        ),
        format!(
            "{}{}",
            "<details><summary>will be retired on 5 April 2030</summary>".repeat(400),
            "192.0.2.1<br>".repeat(40_000)
        ),
        "<p>".repeat(80_000),
        ">".repeat(40_000),
        "- ".repeat(12_000),
        "[".repeat(40_000),
        "*a ".repeat(40_000),
        "192.0.2.1 - ".repeat(12_000),
        "192.0.2.1-".repeat(12_000),
        "v192.0.2.1".repeat(40_000),
        "v192.0.2.1/".repeat(40_000),
        "a:192.0.2.1(US)[".repeat(12_000),
        "v192.0.2.1.".repeat(40_000),
        "a@192.0.2.1.".repeat(40_000),
        "2001:db8::1=".repeat(40_000),
        "(https://".repeat(40_000),
        format!("{}{}", "a".repeat(40_000), ".!".repeat(40_000)),
        "1<sup>1</sup>".repeat(12_000),
        "1<b>1</b>.".repeat(12_000),
        "<s>192.0.2.1</s>".repeat(12_000),
        "192.0.2.1 to ".repeat(12_000),
        "192.0.2.1 /24 ".repeat(12_000),
        format!(
            "<table><tr><th>Start<th>End<th>Prefix{}",
            "<tr><td rowspan=0>192.0.2.1<td rowspan=0>192.0.2.2<td rowspan=0>/24".repeat(12_000)
        ),
        format!(
            "<table><tr><th>Start<th>End<tr><td rowspan=0>{}<td rowspan=0>x{}",
            "192.0.2.1<br>".repeat(8_000),
            "<tr><td>/24".repeat(8_000)
        ),
    ];
    for page in pages {
        let _ = if page.starts_with('<') {
            parse_html(&region("US"), page.as_bytes(), TODAY)
        } else {
            parse_markdown(&Page::default(), page.as_bytes(), TODAY)
        };
    }
}

/// Each page has many lines below the same labels, or many labels over the same lines.
#[test]
fn malicious_labels_are_parsed_quickly() {
    const ROW: &str = "<tr><td>192.0.2.1<td>192.0.2.2";
    let numbered = |text: &str, count: usize| -> String {
        (0..count)
            .map(|number| text.replace('#', &number.to_string()))
            .collect()
    };
    let lines = "192.0.2.1<br>".repeat(8_000);
    let heads = format!("<tr>{}", numbered("<th>#", 200)).repeat(10);
    let pages = [
        format!("<table>{}{ROW}", numbered("<tr><th>#<th>x", 8_000)),
        format!(
            "<table>{}{ROW}",
            numbered("<tr><th>#<th colspan=200>x#", 8_000)
        ),
        format!(
            "<table>{}",
            numbered(&format!("<tr><th>#<th colspan=200>x#{ROW}"), 5_000)
        ),
        format!("<table>{heads}<tr><td colspan=200>{lines}"),
        format!(
            "<table>{heads}{}",
            "<tr><td colspan=200>192.0.2.1".repeat(8_000)
        ),
        format!(
            "<table><tr><th>{}<tr><td>{lines}",
            "was never retired ".repeat(10)
        ),
        format!("{}{lines}", numbered("<ul><li>US #", 200)),
        numbered("<dl><dt>US #<dd>192.0.2.1</dl>", 8_000),
        format!("<dl>{}<dd>{lines}</dl>", numbered("<dt>US #", 8_000)),
        format!(
            "<dl><dt>{}</dt>{}",
            "was never retired ".repeat(8_000),
            numbered("<div>#:</div><div>192.0.2.1</div>", 8_000)
        ),
        format!(
            "<h1>{}</h1>{}",
            "u ".repeat(80_000),
            numbered("<h2>#</h2>192.0.2.1", 8_000)
        ),
    ];
    let rules = [
        region("US"),
        Page {
            section: Some(pattern("[Uu] [Ss]|^7$")),
            column: Some(pattern("no such column")),
            ..Page::default()
        },
        Page::default(),
    ];
    for page in pages {
        for rules in &rules {
            let _ = parse_html(rules, page.as_bytes(), TODAY);
        }
    }
}
