//! What is found on pages, and what is said of it.

use std::fmt::Write as _;

use jiff::civil::date;

use super::deprecation::{Fate, fate};
use super::*;
use crate::policy::Pattern;

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

fn listed(list: Result<List, FeedError>) -> String {
    match list {
        Ok(list) => {
            let words = list.prefixes.iter().map(ToString::to_string);
            let words: Vec<String> = words.map(|word| word.replace("/32", "")).collect();
            words.join(" ")
        }
        Err(error) => error.to_string(),
    }
}

#[track_caller]
fn check(rules: &Page, html: &str, expected: &str) {
    let page = format!("<html>{html}");
    let answer = listed(parse_html(rules, page.as_bytes(), TODAY));
    assert_eq!(answer, expected, "of {html}");
}

/// The list, or the kind of the refusal.
fn outcome(list: Result<List, FeedError>) -> String {
    match list {
        Err(FeedError::Unclear { problem, .. }) => format!("{problem:?}"),
        Err(FeedError::Prefix { .. }) => "refused".to_owned(),
        other => listed(other),
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
fn check_markdown(text: &str, expected: &str) {
    let answer = listed(parse_markdown(&Page::default(), text.as_bytes(), TODAY));
    assert_eq!(answer, expected, "of {text}");
}

#[test]
fn tokens() {
    let wrong = |token: &str, text: &str| {
        format!(
            "in {text:?}: {token:?} is not a prefix; write one such as \"203.0.113.0/24\", \
             \"2001:db8::/32\" or \"203.0.113.9\""
        )
    };
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
        // A dash between a list's items is not told from one between ends.
        (
            "192.0.2.1 - 192.0.2.2 - 192.0.2.3",
            &wrong(
                "192.0.2.1 - 192.0.2.2 - 192.0.2.3",
                "192.0.2.1 - 192.0.2.2 - 192.0.2.3",
            ),
        ),
        // Prose: dates, versions, times, cards, names, paths.
        (
            "2026-11-22 1.2.3 v1.2.3.4 10:30:45 00:11:22:33:44:55 std::net a :: b ... 1...4 \
             http://203.0.113.7/ 203.0.113.7:x 192.0.2.1",
            "192.0.2.1",
        ),
        ("7.17.943.944", &wrong("7.17.943.944", "7.17.943.944")),
        ("192.0.2.1:443", &wrong("192.0.2.1:443", "192.0.2.1:443")),
        ("192.0.2.01", &wrong("192.0.2.01", "192.0.2.01")),
        ("1:2:3:4:5:6:7", &wrong("1:2:3:4:5:6:7", "1:2:3:4:5:6:7")),
        (
            "<h1>A</h1><h3>B</h3><p>x 18.175.75.25013.43.212.141",
            "below \"A > B\", in \"x 18.175.75.25013.43.212.141\": \"18.175.75.25013.43.212.141\" is not \
             a prefix: it looks like \"18.175.75.250\" and \"13.43.212.141\" run together; separate them",
        ),
        (
            "<span>192.0.2.1</span><span>198.51.100.7</span>",
            "in \"192.0.2.1198.51.100.7\": \"192.0.2.1198.51.100.7\" is not a prefix: it looks like \
             \"192.0.2.119\" and \"8.51.100.7\" run together; separate them",
        ),
        (
            "<p>131.0.72.0/222400:cb00::/32",
            "in \"131.0.72.0/222400:cb00::/32\": \"131.0.72.0/222400:cb00::/32\" is not a prefix: it \
             looks like \"131.0.72.0/22\" and \"2400:cb00::/32\" run together; separate them",
        ),
        (
            "192.0.2.0/255.255.255.0",
            "in \"192.0.2.0/255.255.255.0\": \"192.0.2.0/255.255.255.0\" is not a prefix: it has a \
             netmask; write /24 instead",
        ),
    ];
    for (html, expected) in cases {
        check(&Page::default(), html, expected);
    }
}

#[test]
fn what_is_no_page() {
    for text in [
        "[\"192.0.2.1\"]",
        "192.0.2.1\n192.0.2.2",
        "192.0.2.1 < 192.0.2.2 <3",
    ] {
        assert_eq!(
            listed(parse_html(&Page::default(), text.as_bytes(), TODAY)),
            format!(
                "is not a web page, as it has no element: it starts with {text:?}; check `format`, and \
                 where it comes from"
            )
        );
    }
}

#[test]
fn what_is_not_shown() {
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
        // A label above all of them does not make them all it.
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
        // Neither a sentence after them nor a heading leaves a label in force.
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
        // Both rows of one head count, over as many columns as they span.
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
fn fates() {
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
fn what_a_page_says_of_its_addresses() {
    let cases: [(&str, &str, &[&str]); 10] = [
        (
            "<table><tr><td>192.0.2.1<br>192.0.2.2<td>Will be deprecated on 5 April 2027<tr><td>192.0.2.3<td></table>",
            "192.0.2.1 192.0.2.2 192.0.2.3",
            &[
                "192.0.2.1/32, 192.0.2.2/32 will be deprecated on 2027-04-05: \"192.0.2.1 192.0.2.2 | Will be deprecated on 5 April 2027\"",
            ],
        ),
        (
            "<ul><li>192.0.2.1<li>192.0.2.2 (deprecated)</ul>",
            "192.0.2.1",
            &["left out 192.0.2.2/32, deprecated: \"192.0.2.2 (deprecated)\""],
        ),
        // A line with addresses speaks for itself, one without for all of its cell and row.
        (
            "<table><tr><td>192.0.2.1<br>192.0.2.2, retired<td>192.0.2.3</table>",
            "192.0.2.1 192.0.2.3",
            &["left out 192.0.2.2/32, deprecated: \"192.0.2.2, retired\""],
        ),
        (
            "<table><tr><td>192.0.2.1<br>retired<td>192.0.2.2<tr><td>192.0.2.3</table>",
            "192.0.2.3",
            &[
                "left out 192.0.2.1/32, deprecated: \"retired\"",
                "left out 192.0.2.2/32, deprecated: \"192.0.2.1 retired | 192.0.2.2\"",
            ],
        ),
        // Lines of code are lines.
        (
            "<pre>192.0.2.1\n192.0.2.2 # retired\n</pre>",
            "192.0.2.1",
            &["left out 192.0.2.2/32, deprecated: \"192.0.2.2 # retired\""],
        ),
        (
            "<p>Deprecated:<ul><li>192.0.2.1</ul><p>In use:<ul><li>192.0.2.2</ul>",
            "192.0.2.2",
            &["left out 192.0.2.1/32, deprecated: \"Deprecated:\""],
        ),
        (
            "<table><tr><th>Retired<th>New<tr><td>192.0.2.1<td>192.0.2.2</table>",
            "192.0.2.2",
            &["left out 192.0.2.1/32, deprecated: \"Retired\""],
        ),
        (
            "<p>192.0.2.1 <del>192.0.2.2</del>",
            "192.0.2.1",
            &["left out 192.0.2.2/32, struck out: \"192.0.2.2\""],
        ),
        (
            "<p>192.0.2.1 and 192.0.2.2<p>192.0.2.1 was retired",
            "192.0.2.1 192.0.2.2",
            &["kept 192.0.2.1/32, listed elsewhere too, in spite of \"192.0.2.1 was retired\""],
        ),
        (
            "<p>192.0.2.1 will be retired some day",
            "192.0.2.1",
            &[
                "192.0.2.1/32 will be deprecated on a date that cannot be read: \"192.0.2.1 will be retired some day\"",
            ],
        ),
    ];
    for (html, expected, notes) in cases {
        let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
        assert_eq!(list.notes, notes, "of {html}");
        assert_eq!(listed(Ok(list)), expected, "of {html}");
    }
    check(
        &Page::default(),
        "<p>192.0.2.1 was retired",
        "names no prefix that is still good: left out 192.0.2.1/32, deprecated: \"192.0.2.1 was retired\"; open it, and correct `page`, or ask for the new list",
    );
}

#[test]
fn rows_that_the_configuration_leaves_out() {
    let rules = Page {
        exclude_row: Some(pattern("(?i)sandbox")),
        ..Page::default()
    };
    let html = "<table><tr><td>192.0.2.1<td>Sandbox<tr><td>192.0.2.2<td></table>\
                <ul><li>192.0.2.3<br>sandbox 192.0.2.4<li>192.0.2.5</ul><p>sandbox: 192.0.2.6<p>192.0.2.7";
    let list = parse_html(&rules, html.as_bytes(), TODAY).expect("a list");
    assert_eq!(list.notes.len(), 3);
    assert_eq!(
        list.notes[0],
        "left out 192.0.2.1/32 by exclude_row: \"192.0.2.1 | Sandbox\""
    );
    assert_eq!(listed(Ok(list)), "192.0.2.2 192.0.2.5 192.0.2.7");
}

#[test]
fn notes_are_few() {
    let mut html = String::from("<p>203.0.113.1");
    for number in 0..100 {
        write!(html, "<p>192.0.2.{number} was retired").expect("memory");
    }
    let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
    assert_eq!(list.notes.len(), 21);
    assert_eq!(list.notes[20], "and 80 more notes");
    let items = "<br>192.0.2.1<br>192.0.2.2<br>192.0.2.3<br>192.0.2.4<br>192.0.2.5";
    let html = format!("192.0.2.9<table><tr><td>{items}<td>retired</table>");
    let list = parse_html(&Page::default(), html.as_bytes(), TODAY).expect("a list");
    assert!(
        list.notes[0].starts_with(
            "left out 192.0.2.1/32, 192.0.2.2/32, 192.0.2.3/32 and 2 more, deprecated"
        )
    );
}

#[test]
fn markdown() {
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
        (
            "x\n[block:code]\n{\"codes\": [\n",
            "line 2: this [block:code] cannot be read: it has no [/block]; check where it comes from",
        ),
        (
            "[block:code]\n192.0.2.1\n[/block]",
            "line 1: this [block:code] cannot be read: trailing characters at line 1 column 6; check where it comes from",
        ),
        (
            " <!DOCTYPE html><p>192.0.2.1",
            "got a web page, not a list: \"<!DOCTYPE html><p>192.0.2.1\"; use the address of the list \
             itself, and open it in a browser to see what the page says",
        ),
    ];
    for (text, expected) in cases {
        check_markdown(text, expected);
    }
}

#[test]
fn links() {
    let find = |html: &str, text: &str| match find_link(html.as_bytes(), &pattern(text)) {
        Ok(link) => link,
        Err(error) => error.to_string(),
    };
    let page = "<a href='/a.json?x=1&amp;y=2'>a</a><a href=' /b.zip '>b</a><a href='/a.json?x=1&amp;y=2'>again</a><a>none</a>";
    assert_eq!(find(page, r"\.json"), "/a.json?x=1&y=2");
    assert_eq!(find(page, "zip$"), "/b.zip");
    assert_eq!(
        find(page, "csv$"),
        "no link on the page has an address that matches \"csv$\"; it links to \"/a.json?x=1&y=2\", \"/b.zip\": open it, and correct `discover` if its shape has changed"
    );
    assert_eq!(
        find("<p>/a.csv", "csv$"),
        "no link on the page has an address that matches \"csv$\"; it has no links: open it, and correct `discover` if its shape has changed"
    );
    assert_eq!(
        find(page, "^/"),
        "2 links on the page have addresses that match \"^/\": \"/a.json?x=1&y=2\", \"/b.zip\"; make `discover` match one"
    );
}
