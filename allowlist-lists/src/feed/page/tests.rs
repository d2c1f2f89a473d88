//! Addresses, labels and notes on pages, and the errors of pages that are not read.

use std::fmt::Write as _;

use allowlist_policy::Pattern;
use expect_test::expect_file;
use jiff::civil::date;

use super::deprecation::{Fate, fate};
use super::*;
use crate::feed::tests::answers::{Answers, kind};

mod beside;
mod boundaries;
mod deprecated;
mod harm;
mod numbers;
mod words;

const TODAY: Date = date(2026, 11, 24);

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a regular expression")
}

fn region(text: &str) -> Page {
    Page {
        region: Some(pattern(text)),
        ..Page::default()
    }
}

/// Returns the prefixes without the length of single addresses, or the kind of the error.
fn listed(list: &Result<List, FeedError>) -> String {
    match list {
        Ok(list) => {
            let words = list.prefixes.iter().map(ToString::to_string);
            let words: Vec<String> = words.map(|word| word.replace("/32", "")).collect();
            words.join(" ")
        }
        Err(error) => kind(error),
    }
}

/// Compares the prefixes of a page, or the kind of its error, and returns the text of an error.
#[track_caller]
fn check(rules: &Page, html: &str, expected: &str) -> Option<String> {
    let page = format!("<html>{html}");
    let list = parse_html(rules, page.as_bytes(), TODAY);
    assert_eq!(listed(&list), expected, "of {html}");
    list.err().map(|error| error.to_string())
}

/// The list, or the kind of the refusal.
fn outcome(list: Result<List, FeedError>) -> String {
    match list {
        Err(FeedError::Unclear { problem, .. }) => format!("{problem:?}"),
        Err(FeedError::Prefix { .. }) => "refused".to_owned(),
        other => listed(&other),
    }
}

/// Checks each text beside an address that is right.
#[track_caller]
fn check_beside(cases: &[(&str, &str)]) {
    for (html, expected) in cases {
        let page = format!("<h1>IPs</h1><p>52.1.1.1</p>{html}");
        let answer = outcome(parse_html(&Page::default(), page.as_bytes(), TODAY));
        let words: Vec<&str> = answer
            .split(' ')
            .filter(|word| *word != "52.1.1.1")
            .collect();
        assert_eq!(words.join(" "), *expected, "of {html}");
    }
}

#[track_caller]
fn check_markdown(text: &str, expected: &str) -> Option<String> {
    let list = parse_markdown(&Page::default(), text.as_bytes(), TODAY);
    assert_eq!(listed(&list), expected, "of {text}");
    list.err().map(|error| error.to_string())
}

#[test]
fn tokens() {
    let mut answers = Answers::default();
    let cases = [
        (
            "(192.0.2.1), \"192.0.2.2\"; `192.0.2.3`: *192.0.2.4*.",
            "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4",
        ),
        (
            "<table><tr><td>2001:db8::.<td>[2001:db8:1::1]:<td>“192.0.2.0/24”",
            "192.0.2.0/24 2001:db8::/128 2001:db8:1::1/128",
        ),
        (
            "192.0.2.1&nbsp;192.0.2.2 &#8203;192.0.2.3,&zwnj;192.0.2.4",
            "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4",
        ),
        (
            "<p>192.0.2.1<p>192.0.2.2<br>192.0.2.3<div>192.0.2.4</div>192.0.2.5",
            "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4 192.0.2.5",
        ),
        ("<b>192.0</b>.2.<i>1</i>", "192.0.2.1"),
        (
            "192.0.2.4 - 192.0.2.7 and 192.0.2.1 -",
            "192.0.2.1 192.0.2.4/30",
        ),
        // A dash between the items of a list looks like one between the ends of a range.
        ("192.0.2.1 - 192.0.2.2 - 192.0.2.3", "NotAPrefix"),
        // Prose: dates, versions, times, cards, names, paths.
        (
            "2026-11-22 1.2.3 v1.2.3.4 10:30:45 00:11:22:33:44:55 std::net a :: b ... 1...4 \
             http://203.0.113.7/ 203.0.113.7:x 192.0.2.1",
            "192.0.2.1",
        ),
        ("7.17.943.944", "NotAPrefix"),
        ("192.0.2.1:443", "NotAPrefix"),
        ("192.0.2.01", "NotAPrefix"),
        ("1:2:3:4:5:6:7", "NotAPrefix"),
        (
            "<h1>A</h1><h3>B</h3><p>x 18.175.75.25013.43.212.141",
            "Glued",
        ),
        ("<span>192.0.2.1</span><span>198.51.100.7</span>", "Glued"),
        ("<p>131.0.72.0/222400:cb00::/32", "Glued"),
        ("192.0.2.0/255.255.255.0", "Netmask"),
    ];
    for (html, expected) in cases {
        answers.add(html, check(&Page::default(), html, expected));
    }
    answers.check(&expect_file!["snapshots/tokens.txt"]);
}

#[test]
fn texts_that_are_no_page() {
    let mut answers = Answers::default();
    for text in [
        "[\"192.0.2.1\"]",
        "192.0.2.1\n192.0.2.2",
        "192.0.2.1 < 192.0.2.2 <3",
    ] {
        let list = parse_html(&Page::default(), text.as_bytes(), TODAY);
        assert_eq!(listed(&list), "NotAPage");
        answers.add(text, list.err().map(|error| error.to_string()));
    }
    answers.check(&expect_file!["snapshots/not_a_page.txt"]);
}

#[test]
fn hidden_elements_are_not_read() {
    for element in [
        "svg", "script", "style", "noscript", "template", "iframe", "canvas",
    ] {
        let html = format!("<p>192.0.2.1<{element}><title>7.17.943.944</title></{element}>");
        check(&Page::default(), &html, "192.0.2.1");
    }
    let attributes = "<!-- 203.0.113.1 --><title>203.0.113.2</title><a href='203.0.113.3' title='203.0.113.4'>192.0.2.1</a>";
    check(&Page::default(), attributes, "192.0.2.1");
}

#[test]
fn regions() {
    let cases = [
        (
            "^US$",
            "<ul><li>US: 192.0.2.1<li>EU: 192.0.2.2</ul>",
            "192.0.2.1",
        ),
        // A heading that names several regions is not the label of all addresses.
        (
            "US",
            "<p>US and EU<ul><li><b>US</b> 192.0.2.1<li>EU 192.0.2.2</ul>",
            "192.0.2.1",
        ),
        (
            "US",
            "<p>US and EU<table><tr><td>US<td>192.0.2.1<tr><td>EU<td>192.0.2.2</table>",
            "192.0.2.1",
        ),
        (
            "US",
            "<p>US</p><table><tr><td>a<td>192.0.2.1<tr><td>b<td>192.0.2.2</table>",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "US",
            "<ul><li>US<ul><li>192.0.2.1<li>192.0.2.2</ul><li>EU<ul><li>192.0.2.3</ul></ul>",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "US",
            "<details><summary>US</summary>192.0.2.1</details><details><summary>EU</summary>192.0.2.2</details>",
            "192.0.2.1",
        ),
        (
            "US",
            "<b>US</b><p>Allow each of these:<p>192.0.2.1<p>192.0.2.2<p>EU<p>192.0.2.3",
            "192.0.2.1 192.0.2.2",
        ),
        // A label ends at a sentence after its addresses, and at a heading.
        (
            "US",
            "<p>US<p>192.0.2.1<p>Some others are here.<p>192.0.2.2",
            "192.0.2.1",
        ),
        (
            "US",
            "<p>US<p>192.0.2.1<h2>Others</h2><p>192.0.2.2",
            "192.0.2.1",
        ),
        (
            "US",
            "<table><caption>US</caption><tr><td>192.0.2.1</table><table><caption>EU</caption><tr><td>192.0.2.2</table>",
            "192.0.2.1",
        ),
        (
            "^US$",
            "<p>Allow US 192.0.2.1 192.0.2.2 EU 192.0.2.3 IP 192.0.2.4",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "US",
            "<table><tr><td>192.0.2.1<td>US<tr><td>192.0.2.2<td>EU</table>",
            "192.0.2.1",
        ),
        (
            "US",
            "<pre>US\n192.0.2.1\n192.0.2.2\nEU\n192.0.2.3</pre>",
            "192.0.2.1 192.0.2.2",
        ),
    ];
    for (label, html, expected) in cases {
        check(&region(label), html, expected);
    }
}

#[test]
fn columns() {
    let column = |text: &str| Page {
        column: Some(pattern(text)),
        ..Page::default()
    };
    let cases = [
        // A head in the middle is of the rows below it alone.
        (
            "Old",
            "<table><tr><th>Old<th>New<tr><td>192.0.2.1<td>192.0.2.2<tr><th>New<th>Old<tr><td>192.0.2.3<td>192.0.2.4</table>",
            "192.0.2.1 192.0.2.4",
        ),
        // Both rows of a header apply, to all columns that they span.
        (
            "Old",
            "<table><tr><th rowspan=2>Region<th colspan=2>Old<th>New<tr><th>a<th>b<th>c\
             <tr><td>US<td>192.0.2.1<td>192.0.2.2<td>192.0.2.3</table>",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "b",
            "<table><tr><td>a<td>b<tr><td>192.0.2.1<td>192.0.2.2</table>",
            "192.0.2.2",
        ),
        // Header cells beside addresses head nothing.
        (
            "US",
            "<table><tr><th><th>US<tr><th>192.0.2.9<td>192.0.2.1</table>",
            "192.0.2.1",
        ),
        (
            "Old",
            "<p>192.0.2.9<table><tr><th>Old<tr><td><table><tr><td>192.0.2.1</table></table>",
            "192.0.2.1",
        ),
    ];
    for (header, html, expected) in cases {
        check(&column(header), html, expected);
    }
}

#[test]
fn announcements() {
    let until = |year, month, day| Fate::Until(date(year, month, day));
    let cases = [
        ("", Fate::Stays),
        ("sg1.example.com", Fate::Stays),
        ("Will be deprecated on 5 April 2020", until(2020, 4, 5)),
        ("Will be deprecated 5th April, 2020", until(2020, 4, 5)),
        ("will be retired on April 5, 2020.", until(2020, 4, 5)),
        (
            "These will be fully decommissioned on Sunday, the 5th of Apr 2020",
            until(2020, 4, 5),
        ),
        ("to be removed on 2020-04-05", until(2020, 4, 5)),
        ("will no longer be used after 5-Apr-2020", until(2020, 4, 5)),
        ("On 5 April 2020 these will be removed", until(2020, 4, 5)),
        ("Will be deprecated in February 2020", until(2020, 2, 29)),
        (
            "We'll be retiring it: it will be retired 04/05/2020",
            Fate::Sometime,
        ),
        ("will be deprecated soon", Fate::Sometime),
        ("will be deprecated on 31 April 2020", Fate::Sometime),
        ("will be deprecated | 5 April 2020", until(2020, 4, 5)),
        (
            "The IP address was deprecated on 28 March 2030.",
            Fate::Gone,
        ),
        ("has been removed", Fate::Gone),
        (
            "Deprecated 28 March 2018, not used in recent versions",
            until(2018, 3, 28),
        ),
        ("deprecated", Fate::Gone),
        ("(Retired)", Fate::Gone),
        ("no longer used", Fate::Gone),
        ("no longer than a day", Fate::Stays),
        ("is not deprecated", Fate::Stays),
        ("will not be removed", Fate::Stays),
        ("has not yet been retired", Fate::Stays),
        ("non-deprecated", Fate::Stays),
        ("removed", Fate::Gone),
        ("Hyphens removed from names", Fate::Unclear),
        (
            "Will be retired on 5 April 2030 | was deprecated",
            Fate::Gone,
        ),
        (
            "will be retired on 5 April 2030 and will be removed on 1 May 2029",
            until(2029, 5, 1),
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(fate(text), expected, "of {text:?}");
    }
}

#[test]
fn notes_state_what_a_page_says_of_its_addresses() {
    let cases: [(&str, &str, usize); 10] = [
        (
            "<table><tr><td>192.0.2.1<br>192.0.2.2<td>Will be deprecated on 5 April 2027<tr><td>192.0.2.3<td></table>",
            "192.0.2.1 192.0.2.2 192.0.2.3",
            1,
        ),
        (
            "<ul><li>192.0.2.1<li>192.0.2.2 (deprecated)</ul>",
            "192.0.2.1",
            1,
        ),
        // The text of a line with addresses applies to the line, other text to the cell and the row.
        (
            "<table><tr><td>192.0.2.1<br>192.0.2.2, retired<td>192.0.2.3</table>",
            "192.0.2.1 192.0.2.3",
            1,
        ),
        (
            "<table><tr><td>192.0.2.1<br>retired<td>192.0.2.2<tr><td>192.0.2.3</table>",
            "192.0.2.3",
            2,
        ),
        // Lines of code are lines.
        (
            "<pre>192.0.2.1\n192.0.2.2 # retired\n</pre>",
            "192.0.2.1",
            1,
        ),
        (
            "<p>Deprecated:<ul><li>192.0.2.1</ul><p>In use:<ul><li>192.0.2.2</ul>",
            "192.0.2.2",
            1,
        ),
        (
            "<table><tr><th>Retired<th>New<tr><td>192.0.2.1<td>192.0.2.2</table>",
            "192.0.2.2",
            1,
        ),
        ("<p>192.0.2.1 <del>192.0.2.2</del>", "192.0.2.1", 1),
        (
            "<p>192.0.2.1 and 192.0.2.2<p>192.0.2.1 was retired",
            "192.0.2.1 192.0.2.2",
            1,
        ),
        ("<p>192.0.2.1 will be retired some day", "192.0.2.1", 1),
    ];
    let mut answers = Answers::default();
    for (html, expected, notes) in cases {
        let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
        assert_eq!(list.notes.len(), notes, "of {html}");
        for note in &list.notes {
            answers.add(html, Some(note.clone()));
        }
        assert_eq!(listed(&Ok(list)), expected, "of {html}");
    }
    let html = "<p>192.0.2.1 was retired";
    answers.add(html, check(&Page::default(), html, "AllLeftOut"));
    answers.check(&expect_file!["snapshots/notes.txt"]);
}

#[test]
fn rows_can_be_excluded() {
    let rules = Page {
        exclude_row: Some(pattern("(?i)sandbox")),
        ..Page::default()
    };
    let html = "<table><tr><td>192.0.2.1<td>Sandbox<tr><td>192.0.2.2<td></table>\
                <ul><li>192.0.2.3<br>sandbox 192.0.2.4<li>192.0.2.5</ul><p>sandbox: 192.0.2.6<p>192.0.2.7";
    let list = parse_html(&rules, html.as_bytes(), TODAY).expect("a list");
    assert_eq!(list.notes.len(), 3);
    let mut answers = Answers::default();
    for note in &list.notes {
        answers.add(html, Some(note.clone()));
    }
    answers.check(&expect_file!["snapshots/excluded_rows.txt"]);
    assert_eq!(listed(&Ok(list)), "192.0.2.2 192.0.2.5 192.0.2.7");
}

#[test]
fn notes_are_few() {
    let mut html = String::from("<p>203.0.113.1");
    for number in 0..100 {
        write!(html, "<p>192.0.2.{number} was retired").expect("memory");
    }
    let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
    assert_eq!(list.notes.len(), 21);
    assert!(list.notes[20].contains("80"), "{}", list.notes[20]);
    let mut answers = Answers::default();
    answers.add("100 notes", Some(list.notes[20].clone()));
    let items = "<br>192.0.2.1<br>192.0.2.2<br>192.0.2.3<br>192.0.2.4<br>192.0.2.5";
    let html = format!("192.0.2.9<table><tr><td>{items}<td>retired</table>");
    let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
    answers.add("5 prefixes", Some(list.notes[0].clone()));
    answers.check(&expect_file!["snapshots/many_notes.txt"]);
}

#[test]
fn markdown() {
    let mut answers = Answers::default();
    let cases = [
        (
            "---\nip: 203.0.113.1\n---\n- `192.0.2.1`\n- **192.0.2.2**\n",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "| a | b |\n|--|--|\n| x | 192.0.2.1<br>192.0.2.2<br>|\n",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "<!-- 203.0.113.1 -->\n192.0.2.1\n192.0.2.2\n",
            "192.0.2.1 192.0.2.2",
        ),
        ("~~192.0.2.1~~ 192.0.2.2", "192.0.2.2"),
        (
            "[block:html]\n{\"html\": \"<p>192.0.2.1</p>\\n\\n<p>192.0.2.2</p>\"}\n[/block]",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "[block:parameters]\n{\"data\": {\"h-0\": \"Region\", \"h-1\": \"IPs\", \"0-0\": \"US\", \"0-1\": \"192.0.2.1\\n192.0.2.2\"}, \"cols\": 2, \"rows\": 1}\n[/block]",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "[block:code]\n{\"codes\": [{\"code\": \"```\\n192.0.2.1\"}, {\"code\": \"192.0.2.2\"}]}\n[/block]",
            "192.0.2.1 192.0.2.2",
        ),
        (
            "[block:callout]\n{\"title\": \"x\", \"body\": \"192.0.2.1\"}\n[/block]",
            "192.0.2.1",
        ),
        ("x\n[block:code]\n{\"codes\": [\n", "Block"),
        ("[block:code]\n192.0.2.1\n[/block]", "Block"),
        (" <!DOCTYPE html><p>192.0.2.1", "WebPage"),
    ];
    for (text, expected) in cases {
        answers.add(text, check_markdown(text, expected));
    }
    answers.check(&expect_file!["snapshots/markdown.txt"]);
}

#[test]
fn links() {
    let mut answers = Answers::default();
    let mut check = |html: &str, text: &str, expected: &str| {
        let answer = match find_link(html.as_bytes(), &pattern(text)) {
            Ok(link) => link,
            Err(error) => {
                answers.add(&format!("{text} in {html}"), Some(error.to_string()));
                kind(&error)
            }
        };
        assert_eq!(answer, expected);
    };
    let page = "<a href='/a.json?x=1&amp;y=2'>a</a><a href=' /b.zip '>b</a><a href='/a.json?x=1&amp;y=2'>again</a><a>none</a>";
    check(page, r"\.json", "/a.json?x=1&y=2");
    check(page, "zip$", "/b.zip");
    check(page, "csv$", "NoLink");
    check("<p>/a.csv", "csv$", "NoLink");
    check(page, "^/", "ManyLinks");
    answers.check(&expect_file!["snapshots/links.txt"]);
}
