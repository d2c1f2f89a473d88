//! Characters glued to an address, and words that mean one thing together.

use super::*;

#[test]
fn what_is_glued_to_an_address_is_refused() {
    let addresses = ["45.11.36.9", "45.11.36.0/24", "2a00:1::9", "2a00:1::/32"];
    let glue = [
        "†", "‡", "²", "¹", "₂", "①", "٢", "२", "２", "&amp;", "=", "+", "~", "^", "%", "$", "#",
        "\\", "é", "中", "x", "IP", "—", "―", "−", "~2", "…", "·", "／24", "．9", "。9", "：9",
        "\u{336}", "\u{20e3}", "°", "™", "→", "½", "&#8203;2", "..", "...", "_2", "!2", "?2",
    ];
    for address in addresses {
        for glue in glue {
            for word in [format!("{address}{glue}"), format!("{glue}{address}")] {
                if word == format!("{glue}{address}")
                    && glue.ends_with(|c: char| c.is_ascii_digit())
                {
                    // Another number.
                    continue;
                }
                let page = format!("<p>52.1.1.1<p>{word}");
                let answer = outcome(parse_html(&Page::default(), page.as_bytes(), TODAY));
                let is_refused = ["refused", "Invisible", "Unclear"].contains(&&*answer);
                // The end of a sentence before the address is a separator.
                let is_known = word.starts_with(['.', '。', '．', '：', '·', '…', '!', '?', '#']);
                assert!(
                    is_refused || is_known && answer != "52.1.1.1",
                    "{answer}, of {word}"
                );
            }
        }
    }
    check_beside(&[
        ("<p>45.11.36.1—45.11.36.9", "refused"),
        ("<p>45.11.36.1&45.11.36.9", "refused"),
        ("<p>45.11.36.1+45.11.36.9", "refused"),
        ("<p>ip=45.11.36.9", "refused"),
        ("<p>IP2a00:1::9", "refused"),
        ("<p>2a00:1::9US", "refused"),
        ("<p>US2a00:2600:1::/48", "refused"),
        ("<p>x-a:2a00:1::/48", "refused"),
        ("<p>x:2a00:1::/4845.11.36.1=", "refused"),
        ("<p>US:2a00:1::/48", "2a00:1::/48"),
        ("<p>Range:2a00:1::/48", "2a00:1::/48"),
        ("<p>ip6:2a00:1::/48", "2a00:1::/48"),
        ("<p>2a00:1::9%eth0", "refused"),
        ("<p>2a00:1::1—2a00:1::9", "refused"),
        ("<p>45．11．36．9", "refused"),
        ("<p>４５.11.36.9", "refused"),
        ("<p>45.11.36.٩", "refused"),
        ("<p>2a00：1：：9", "refused"),
        ("<p>45[.]11[.]36[.]9", "refused"),
        ("<p>45.11.36.[9]", "refused"),
        ("<p>45.11.36.*", "refused"),
        ("<p>45.11.36/24", "refused"),
        ("<p>IP/45.11.36.9", "refused"),
        ("<p>IP.45.11.36.9", "refused"),
        ("<p>US-45.11.36.9", "refused"),
        ("<p>45.11.36.9.Next", "refused"),
        ("<p>45.11.36.9.US45.11.36.300", "refused"),
        ("<p>45.11.36.9@x", "refused"),
        ("<p>+ip4:45.11.36.9", "refused"),
        ("<p>45.11.36.9https://a.example/", "refused"),
        ("<p>https://a.example/,45.11.36.9", "Glued"),
        ("<p>45.11.36.9。", "45.11.36.9"),
        ("<p>45.11.36.9(https://a.example/)", "45.11.36.9"),
        ("<p>https://a.example/(45.11.36.9)", "45.11.36.9"),
        ("<p>(https://a.example/) 45.11.36.9", "45.11.36.9"),
        ("<p>45.11.36.9(admin@a.example)", "45.11.36.9"),
        ("<p>「45.11.36.9」", "45.11.36.9"),
    ]);
}

#[test]
fn commas_and_semicolons_of_all_scripts_are_separators() {
    for separator in [",", ";", "|", "，", "、", "；", "､", "،", "؛", "｜", "﹐"] {
        let page = format!("<p>45.11.36.1{separator}45.11.36.2{separator}2a00:1::9");
        assert_eq!(
            outcome(parse_html(&Page::default(), page.as_bytes(), TODAY)),
            "45.11.36.1 45.11.36.2 2a00:1::9/128",
            "of {page}"
        );
    }
}

/// Words that are certainly no address need no note; doubtful ones have one.
#[test]
fn what_looks_like_an_address_and_is_not_read_is_told() {
    for (word, notes) in [
        ("https://45.11.36.9/x", 0),
        ("user@45.11.36.9", 0),
        ("45.11.36.9.nip.io", 0),
        ("1.2.0.192.in-addr.arpa", 0),
        ("Chrome/120.0.0.1", 0),
        ("v8.4.2.1", 0),
        ("1.2.3.4-beta", 0),
        ("AWS::S3::Bucket", 0),
        ("arn:aws:iam::123456789012:role/x", 0),
        ("std::f32::consts", 0),
        ("2026-11-24T10:30:45Z", 0),
        ("mac=00:11:22:33:44:55", 0),
        ("x.45.11.36.9", 1),
        ("45.11.36.9/x", 1),
        ("45.11.36.9:x", 1),
        ("openssl-1.2.3.4", 1),
        ("1.2.3.x", 1),
    ] {
        let page = format!("<p>52.1.1.1<p>{word}");
        let list = parse_html(&Page::default(), page.as_bytes(), TODAY)
            .unwrap_or_else(|error| panic!("{word}: {error}"));
        assert_eq!(list.notes.len(), notes, "of {word}: {:?}", list.notes);
        assert_eq!(listed(&Ok(list)), "52.1.1.1", "of {word}");
    }
}

const RANGE: &str = "45.11.36.4/30 45.11.36.8/31";

#[test]
fn words_and_signs_between_two_addresses() {
    check_beside(&[
        ("<p>45.11.36.4 to 45.11.36.9", RANGE),
        ("<p>From 45.11.36.4 to 45.11.36.9", RANGE),
        ("<p>US: 45.11.36.4 through 45.11.36.9", RANGE),
        ("<p>45.11.36.4 thru 45.11.36.9", RANGE),
        ("<p>45.11.36.4 up to 45.11.36.9", RANGE),
        ("<p>45.11.36.4 ... 45.11.36.9", RANGE),
        ("<p>45.11.36.4 … 45.11.36.9", RANGE),
        ("<p>45.11.36.4 — 45.11.36.9", RANGE),
        ("<p>45.11.36.4 – 45.11.36.9", RANGE),
        ("<p>45.11.36.4 <b>to</b> 45.11.36.9", RANGE),
        ("<p>between 45.11.36.4 and 45.11.36.9", RANGE),
        ("<p>45.11.36.4 and 45.11.36.9", "45.11.36.4 45.11.36.9"),
        ("<p>45.11.36.4 / 45.11.36.9", "45.11.36.4 45.11.36.9"),
        ("<p>45.11.36.4 &amp; 45.11.36.9", "45.11.36.4 45.11.36.9"),
        ("<p>We moved from 45.11.36.4 to 45.11.36.9", "Range"),
        ("<p>45.11.36.4 → 45.11.36.9", "Range"),
        ("<p>45.11.36.4 -> 45.11.36.9", "Range"),
        ("<p>45.11.36.4 => 45.11.36.9", "Range"),
        ("<p>\"45.11.36.4\" - \"45.11.36.9\"", "Range"),
        ("<p>45.11.36.4 to 45.11.36.9 to 45.11.36.12", "Range"),
        ("<p>45.11.36.0/24 to 45.11.38.0/24", "Range"),
        ("<p>45.11.36.0/24 - 45.11.38.0/24", "refused"),
        ("<p>45.11.36.9 to 45.11.36.4", "refused"),
        ("<p>2a00:1::1 to 45.11.36.4", "refused"),
        ("<p>45.11.36.4 -45.11.36.9", "refused"),
        ("<p>45.11.36.4 -<br>45.11.36.9", "Range"),
        ("<p>45.11.36.4<br>to<br>45.11.36.9", "Range"),
        ("<p>45.11.36.4<br>to 45.11.36.9", "Range"),
        ("<p>45.11.36.4<br>- 45.11.36.9", "45.11.36.4 45.11.36.9"),
        ("<p>First IP: 45.11.36.4, last IP: 45.11.36.9", "Range"),
        ("<ul><li>Start: 45.11.36.4<li>End: 45.11.36.9</ul>", "Range"),
        (
            "<dl><dt>From<dd>45.11.36.4<dt>To<dd>45.11.36.9</dl>",
            "Range",
        ),
        ("<p>45.11.36.0 /24", "45.11.36.0/24"),
        ("<p>45.11.36.0 / 24", "45.11.36.0/24"),
        ("<p>45.11.36.0 (/24)", "45.11.36.0/24"),
        ("<p>45.11.36.0<sup>/24</sup>", "45.11.36.0/24"),
        ("<p>45.11.36.9 /24", "refused"),
        ("<p>45.11.36.0/24 /25", "refused"),
        ("<p>45.11.36.0<br>/24", "Length"),
        ("<p>45.11.36.0 | /24", "Length"),
        ("<p>45.11.36.0 /24 - 45.11.38.0 /24", "Range"),
    ]);
    assert_eq!(
        outcome(parse_html(&Page::default(), b"<p>2a00:1:: /48", TODAY)),
        "2a00:1::/48"
    );
    for (text, expected) in [
        ("45.11.36.4 to 45.11.36.9", RANGE),
        ("45.11.36.0 /24", "45.11.36.0/24"),
        (
            "| From | To |\n|--|--|\n| 45.11.36.4 | 45.11.36.9 |",
            "Range",
        ),
        (
            "| Start IP | End IP |\n|--|--|\n| 45.11.36.4 | 45.11.36.9 |",
            RANGE,
        ),
        (
            "| Network | Prefix |\n|--|--|\n| 45.11.36.0 | /24 |",
            "45.11.36.0/24",
        ),
    ] {
        let answer = outcome(parse_markdown(&Page::default(), text.as_bytes(), TODAY));
        assert_eq!(answer, expected, "of {text}");
    }
}

#[test]
fn two_cells_are_one_range_or_prefix() {
    let table = |head: &str, row: &str| {
        let cells = |tag: &str, row: &str| -> String {
            let cells: Vec<String> = row
                .split('|')
                .map(|cell| format!("<{tag}>{cell}</{tag}>"))
                .collect();
            cells.concat()
        };
        format!(
            "<table><tr>{}<tr>{}</table>",
            cells("th", head),
            cells("td", row)
        )
    };
    let cases = [
        ("Start|End", "45.11.36.4|45.11.36.9", RANGE),
        ("First IP|Last IP", "45.11.36.4|45.11.36.9", RANGE),
        (
            "Region|IP range start|IP range end",
            "US|45.11.36.4|45.11.36.9",
            RANGE,
        ),
        (
            "Begin address|Region|End address",
            "45.11.36.4|US|45.11.36.9",
            RANGE,
        ),
        ("Start|End", "45.11.36.4|", "45.11.36.4"),
        ("Start|End", "45.11.36.4|9", "Range"),
        ("Start|End", "45.11.36.4<br>45.11.37.0|45.11.36.9", "Range"),
        (
            "Start|End",
            "45.11.36.4<br>45.11.36.8|45.11.36.7<br>45.11.36.9",
            RANGE,
        ),
        // Ranges, or moves.
        ("From|To", "45.11.36.4|45.11.36.9", "Range"),
        ("IP|Region|IP", "45.11.36.4|to|45.11.36.9", "Range"),
        ("Network|Prefix", "45.11.36.0|/24", "45.11.36.0/24"),
        ("Network|Prefix", "45.11.36.0|24", "45.11.36.0/24"),
        (
            "Network|Netmask",
            "45.11.36.0|255.255.255.0",
            "45.11.36.0/24",
        ),
        ("Network|Prefix length", "45.11.36.0|24", "45.11.36.0/24"),
        ("Prefix length|Network", "24|45.11.36.0", "45.11.36.0/24"),
        ("Network|Region|CIDR", "45.11.36.0|US|/24", "45.11.36.0/24"),
        (
            "Network|Prefix",
            "45.11.36.0<br>45.11.38.0|/24<br>/25",
            "45.11.36.0/24 45.11.38.0/25",
        ),
        ("Network|Prefix", "45.11.36.0<br>45.11.38.0|/24", "Length"),
        ("Network|Prefix", "45.11.36.9|/24", "refused"),
        ("Network|Prefix", "45.11.36.0/24|/24", "45.11.36.0/24"),
        ("Network|Prefix", "45.11.36.0/24|/25", "Length"),
        ("a|b", "45.11.36.0|/24", "45.11.36.0/24"),
        ("IP|Port", "45.11.36.4|24", "45.11.36.4"),
        ("IP|Agent version", "45.11.36.4|8.4.2.1", "45.11.36.4"),
    ];
    for (head, row, expected) in cases {
        check_beside(&[(&table(head, row), expected)]);
    }
    // With either column selected.
    for column in ["Start", "End"] {
        let rules = Page {
            column: Some(pattern(column)),
            ..Page::default()
        };
        check(&rules, &table("Start|End", "45.11.36.4|45.11.36.9"), RANGE);
    }
    check_beside(&[
        (
            "<table><tr><th>Start<td>45.11.36.4<tr><th>End<td>45.11.36.9</table>",
            "Range",
        ),
        (
            "<table><tr><th>Region<th colspan=2>IP ranges<tr><td>US<td>45.11.36.4<td>45.11.36.9</table>",
            "Range",
        ),
        (
            "<table><tr><th>Network<th>Prefix<tr><td>45.11.36.0<td rowspan=2>/24<tr><td>45.11.37.0</table>",
            "45.11.36.0/24 45.11.37.0/24",
        ),
        (
            "<table><tr><th>Network<th>Prefix<tr><td rowspan=2>45.11.36.0<td>/24<tr><td>/25</table>",
            "Length",
        ),
        (
            "<table><tr><td><table><tr><th>Start<th>End<tr><td>45.11.36.4<td>45.11.36.9</table></table>",
            RANGE,
        ),
    ]);
}
