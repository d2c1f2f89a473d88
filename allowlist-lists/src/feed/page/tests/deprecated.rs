//! Deprecation in headings, cells and words.

use super::*;

#[test]
fn headings_count_like_captions() {
    check_beside(&[
        ("<h2>Deprecated IPs</h2><p>45.11.36.9", ""),
        ("<h2>IP addresses (retired)</h2><p>45.11.36.9", ""),
        ("<h2>Removed IPs</h2><h3>US</h3><p>45.11.36.9", ""),
        (
            "<h2>Inactive</h2><p>45.11.36.9<h2>Active</h2><p>45.11.36.8",
            "45.11.36.8",
        ),
        ("<h2>IPs until 2026-01-15</h2><p>45.11.36.9", ""),
        ("<h2>IPs until 2027-01-15</h2><p>45.11.36.9", "45.11.36.9"),
        (
            "<h2>Current and deprecated IPs</h2><p>45.11.36.9",
            "45.11.36.9",
        ),
        (
            "<h2>Replacing deprecated IPs</h2><p>45.11.36.9",
            "45.11.36.9",
        ),
        (
            "<h2>IPs that are not deprecated</h2><p>45.11.36.9",
            "45.11.36.9",
        ),
    ]);
    let text = "# IPs\n\n52.1.1.1\n\n## Deprecated IPs\n\n45.11.36.9\n";
    check_markdown(text, "52.1.1.1");
}

#[test]
fn cells_and_brackets() {
    let gone = [
        "Removed",
        "removed",
        "Inactive",
        "Decommissioned",
        "Retired",
        "Deprecated",
        "Sunset",
        "Disabled",
        "Expired",
        "Revoked",
        "(removed on 2026-01-15)",
        "removed 2026-01-15",
        "Removed since January 2026",
        "until 2026-01-15",
        "Until 15 January 2026",
        "valid until 2026-01-15",
        "Active until 2026-01-15",
        "expires 2026-01-15",
        "sunset on 2026-01-15",
        "EOL 2026-01-15",
        "end of life: 2026-01-15",
        "no longer used",
        "not in use",
        "phased out",
        "retired 5<sup>th</sup> January 2026",
        "deprecation date: 2026-01-15",
    ];
    let stays = [
        "Active",
        "not deprecated",
        "no longer deprecated",
        "never removed",
        "not yet retired",
        "until 2027-01-15",
        "removed on 2027-01-15",
        "will be removed on 2027-01-15",
        "sunset on 5 April 2027",
        "replaces the deprecated ones",
        "instead of the retired one",
        "until further notice",
        "not active until 2027-01-15",
        "if deprecated",
        "may be removed",
        "hyphens removed",
        "being retired on 2027-01-15",
        "scheduled for removal",
        "will be deprecated soon",
        "until 04/05/2027",
    ];
    for (text, expected) in gone
        .map(|text| (text, ""))
        .into_iter()
        .chain(stays.map(|text| (text, "45.11.36.9")))
    {
        check_beside(&[
            (
                &format!("<table><tr><th>IP<th>Status<tr><td>45.11.36.9<td>{text}</table>"),
                expected,
            ),
            (&format!("<ul><li>45.11.36.9 ({text})</ul>"), expected),
            (&format!("<ul><li>45.11.36.9 - {text}</ul>"), expected),
        ]);
    }
    for (head, cell, expected) in [
        ("Deprecated", "yes", ""),
        ("Deprecated?", "✓", ""),
        ("Deprecated", "no", "45.11.36.9"),
        ("Deprecated", "", "45.11.36.9"),
        ("Deprecated", "-", "45.11.36.9"),
        ("Deprecated on", "2026-01-15", ""),
        ("Deprecated on", "2027-01-15", "45.11.36.9"),
        ("Deprecated", "see below", "45.11.36.9"),
        ("Valid until", "2026-01-15", ""),
    ] {
        let html = format!("<table><tr><th>IP<th>{head}<tr><td>45.11.36.9<td>{cell}</table>");
        check_beside(&[(&html, expected)]);
    }
}

/// A doubtful phrase is a note.
#[test]
fn unclear_announcements_are_notes() {
    for text in [
        "replaces the deprecated ones",
        "may be removed",
        "hyphens removed",
        "if deprecated",
        "not active until 2027-01-15",
        "deprecation policy",
        "current and deprecated",
        "Removed 45.11.36.8 and added 45.11.36.9",
    ] {
        assert_eq!(fate(text), Fate::Unclear, "of {text:?}");
    }
    let page = "<p>52.1.1.1<ul><li>45.11.36.9 (replaces the deprecated one)</ul>";
    let list = parse_html(&Page::default(), page.as_bytes(), TODAY).expect("a list");
    assert_eq!(list.notes.len(), 1, "{:?}", list.notes);
    let mut answers = Answers::default();
    answers.add(page, list.notes.first().cloned());
    answers.check(&expect_file!["../snapshots/unclear_deprecation.txt"]);
}
