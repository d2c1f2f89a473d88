//! Four numbers with dots between them that are no address: of versions and of sections.

use super::*;

#[test]
fn version_numbers_and_section_numbers_are_no_addresses() {
    let cases = [
        ("<p>Requires agent version 8.4.2.1 or newer", "", 1),
        ("<p>Version: 8.4.2.1", "", 1),
        ("<p>version <b>8.4.2.1</b>", "", 1),
        ("<p>build 8.4.2.1", "", 1),
        ("<p>Build number 8.4.2.1", "", 1),
        ("<p>(release 8.4.2.1)", "", 1),
        ("<p>firmware 8.4.2.1", "", 1),
        ("<p>versions 8.4.2.1 and 8.4.3.1", "", 2),
        ("<p>at least 8.4.2.1", "", 1),
        ("<p>Agent 8.4.2.1 or later", "", 1),
        ("<p>version newer than 8.4.2.1", "", 1),
        ("<p>version:8.4.2.1", "", 1),
        ("<p>see section 4.1.2.3", "", 1),
        ("<h3>4.1.2.3 Configure the agent</h3>", "", 1),
        (
            "<table><tr><th>Name<th>Version<tr><td>a<td>8.4.2.1</table>",
            "",
            1,
        ),
        ("<dl><dt>Firmware version<dd>8.4.2.1</dl>", "", 1),
        ("<p>v8.4.2.1", "", 0),
        ("<h3>45.11.36.9</h3>", "45.11.36.9", 0),
        ("<h3>45.11.36.9 (US)</h3>", "45.11.36.9", 0),
        ("<p>45.11.36.9 Frankfurt", "45.11.36.9", 0),
        ("<p>release notes: 45.11.36.9", "45.11.36.9", 0),
        ("<p>version 45.11.36.0/24", "45.11.36.0/24", 0),
    ];
    for (html, expected, notes) in cases {
        let page = format!("<h1>IPs</h1><p>52.1.1.1</p>{html}");
        let list = parse_html(&Page::default(), page.as_bytes(), TODAY)
            .unwrap_or_else(|error| panic!("{html}: {error}"));
        assert_eq!(list.notes.len(), notes, "of {html}: {:?}", list.notes);
        assert_eq!(
            listed(&Ok(list)).trim_end_matches("52.1.1.1").trim_end(),
            expected,
            "of {html}"
        );
    }
    check_beside(&[
        ("<p>4.1.2.3 Configure the agent", "Section"),
        ("<p>version 8.4.2.1, 8.4.2.2", "Version"),
    ]);
}
