//! Elements, comments and invisible characters within an address.

use super::*;

#[test]
fn raised_text_ends_a_word() {
    check_beside(&[
        ("<p>45.11.36.9<sup>2</sup>", "45.11.36.9"),
        ("<p>45.11.36.9<sub>2</sub>", "45.11.36.9"),
        ("<p>45.11.36.9<sup><a href='#n'>2</a></sup>", "45.11.36.9"),
        ("<p><a href='#n'><sup>2</sup></a>45.11.36.9", "45.11.36.9"),
        ("<p><b>45.11.36.9</b><sup>[2]</sup>", "45.11.36.9"),
        ("<p>45.11.36.9<sup>a</sup>", "45.11.36.9"),
        ("<p>45.11.0.0/16<sup>2</sup>", "45.11.0.0/16"),
        ("<p>2a00:1::9<sup>2</sup>", "2a00:1::9/128"),
        ("<p>2a00:1::/48<sup>2</sup>", "2a00:1::/48"),
        (
            "<ruby>45.11.36.9<rp>(</rp><rt>2</rt><rp>)</rp></ruby>",
            "45.11.36.9",
        ),
        // Without the raised text there is no address.
        ("<p>45.11.36.<sup>9</sup>", "Raised"),
        ("<p>45.11<sup>.36.9</sup>", "Raised"),
        ("<p><sup>45.11.36</sup>.9", "Raised"),
        ("<p>2a00:1:<sup>:9</sup>", "Raised"),
        ("<p>2a00:1::<sup>9</sup>", "Raised"),
        ("<p>45.11.0.0/<sup>16</sup>", "refused"),
        ("<p>45.11.0.0/1<sup>6</sup>", "refused"),
    ]);
}

#[test]
fn a_boundary_between_two_digits_is_refused() {
    let inline = [
        "<b>2</b>",
        "<i>2</i>",
        "<em>2</em>",
        "<span>2</span>",
        "<a href='#n'>2</a>",
        "<a href='#n' class='footnote'>2</a>",
        "<code>2</code>",
        "<small>2</small>",
        "<mark>2</mark>",
        "<ins>2</ins>",
        "<u>2</u>",
        "<abbr title='x'>2</abbr>",
        "<q>2</q>",
        "<font>2</font>",
        "<label>2</label>",
        "<x-note>2</x-note>",
        "<!-- x -->2",
        "<wbr>2",
        "<img src='x'>2",
        "<input>2",
        "<svg></svg>2",
        "<script></script>2",
        "<span hidden>x</span>2",
        "<span style='display: NONE !important'>x</span>2",
    ];
    for inline in inline {
        for (before, after) in [
            ("45.11.36.9", ""),
            ("45.11.36.", ".9"),
            ("45.11.0.0/1", ""),
            ("2a00:1::1", ""),
            ("2a00:1::a", ""),
            ("2a00:1::/3", ""),
            ("45.11.36.1-", ""),
        ] {
            let html = format!("<p>52.1.1.1 <p>{before}{inline}{after}");
            let answer = outcome(parse_html(&Page::default(), html.as_bytes(), TODAY));
            let is_digit = before.ends_with(|c: char| c.is_ascii_hexdigit());
            if is_digit {
                assert_eq!(answer, "Markup", "of {html}");
            } else {
                assert_ne!(answer, "52.1.1.1", "of {html}");
            }
        }
    }
    for (text, expected) in [
        ("45.11.36.9[2](#n)", "Markup"),
        ("45.11.36.9*2*", "Markup"),
        ("45.11.36.9<b>2</b>", "Markup"),
        ("45.11.36.9`2`", "Markup"),
        ("45.11.36.9<!-- -->2", "Markup"),
        ("45.11.36.9<sup>2</sup>", "45.11.36.9 52.1.1.1"),
        ("45.11.36.9[^2]\n\n[^2]: note", "45.11.36.9 52.1.1.1"),
        (
            "45.11.36.9[^2]\n\n[^2]: a longer note",
            "45.11.36.9 52.1.1.1",
        ),
        ("45.11.36.9[^2]", "45.11.36.9 52.1.1.1"),
        ("45.11.36.9[2]\n\n[2]: /note", "Markup"),
        ("45.11.36.9^2^", "refused"),
        ("45.11.36.9_2_", "refused"),
        ("45.11.36.9~~2~~", "StruckOut"),
        ("45\\.11\\.36\\.9", "45.11.36.9 52.1.1.1"),
        (
            "| IP |\n|--|\n| 45.11.36.9<sup>2</sup> |",
            "45.11.36.9 52.1.1.1",
        ),
        ("| IP |\n|--|\n| 45.11.36.9[2](#n) |", "Markup"),
    ] {
        let page = format!("52.1.1.1\n\n{text}\n");
        let answer = outcome(parse_markdown(&Page::default(), page.as_bytes(), TODAY));
        assert_eq!(answer, expected, "of {text}");
    }
}

#[test]
fn a_boundary_beside_punctuation_is_clear() {
    check_beside(&[
        (
            "<p><span>45.11.</span><span>36.0/24</span>",
            "45.11.36.0/24",
        ),
        ("<p>45.<b>11</b>.36.<i>9</i>", "45.11.36.9"),
        ("<p>45.11.<wbr>36.<wbr>9", "45.11.36.9"),
        ("<p>45.11<!-- -->.36.9", "45.11.36.9"),
        ("<p>45.11.36.0<b>/</b>24", "45.11.36.0/24"),
        ("<p>45.11.36.0/<b>24</b>", "45.11.36.0/24"),
        ("<p>45.11.<span hidden>99.</span>36.9", "45.11.36.9"),
        ("<p>4&#53;.11.36.9", "45.11.36.9"),
    ]);
    let page = b"<p>2a00:<b>1</b>:<wbr>:/<i>48</i>";
    assert_eq!(
        outcome(parse_html(&Page::default(), page, TODAY)),
        "2a00:1::/48"
    );
}

#[test]
fn what_is_not_shown_within_an_address_is_refused() {
    for c in [
        "&shy;",
        "&#8203;",
        "&ZeroWidthSpace;",
        "&zwnj;",
        "&zwj;",
        "&lrm;",
        "&#8288;",
        "&#65279;",
        "&#xfe0f;",
    ] {
        for (html, expected) in [
            (format!("45.11.36.9{c}2"), "Invisible"),
            (format!("45.11.{c}36.9"), "Invisible"),
            (format!("45.11.36.0{c}/24"), "Invisible"),
            (format!("2a00:1:{c}:9"), "Invisible"),
            (format!("45.11.36.9{c}52.1.1.1"), "Invisible"),
            (format!("{c}45.11.36.9{c}"), "45.11.36.9 52.1.1.1"),
            (format!("45.11.36.9,{c}45.11.36.9"), "45.11.36.9 52.1.1.1"),
        ] {
            let page = format!("<p>52.1.1.1<p>{html}");
            let answer = outcome(parse_html(&Page::default(), page.as_bytes(), TODAY));
            assert_eq!(answer, expected, "of {html}");
        }
    }
    check_beside(&[
        ("<p>&#8238;9.63.11.54&#8236;", "Reordered"),
        ("<p><bdo dir=rtl>9.63.11.54</bdo>", "Reordered"),
    ]);
}

#[test]
fn what_no_reader_sees_is_left_out_with_a_note() {
    for html in [
        "<p hidden>45.11.36.9",
        "<p style='color: red; display:none'>45.11.36.9",
        "<p style='visibility:hidden'>45.11.36.9",
        "<div style='font-size:0px'><p>45.11.36.9</div>",
        "<p>x<span hidden>45.11.36.9</span>y",
        "<table><tr hidden><td>45.11.36.9</table>",
        "<dialog>45.11.36.9</dialog>",
        "<ul><li hidden>45.11.36.9</ul>",
        "<h2 hidden>45.11.36.9</h2>",
    ] {
        let page = format!("<h1>IPs</h1><p>52.1.1.1</p>{html}");
        let list = parse_html(&Page::default(), page.as_bytes(), TODAY).expect("a list");
        assert_eq!(list.notes.len(), 1, "of {html}");
        assert!(list.notes[0].contains("45.11.36.9/32"), "{:?}", list.notes);
        assert_eq!(listed(&Ok(list)), "52.1.1.1", "of {html}");
    }
    // Text that can be opened is read.
    check_beside(&[
        (
            "<div role=tabpanel hidden><p>45.11.36.9</div>",
            "45.11.36.9",
        ),
        ("<div hidden=until-found>45.11.36.9</div>", "45.11.36.9"),
        (
            "<details><summary>x</summary>45.11.36.9</details>",
            "45.11.36.9",
        ),
        ("<select><option>45.11.36.9</select>", "45.11.36.9"),
        ("<textarea>45.11.36.9</textarea>", "45.11.36.9"),
        ("<dialog open>45.11.36.9</dialog>", "45.11.36.9"),
        ("<p style='display:block'>45.11.36.9", "45.11.36.9"),
        ("<template>45.11.36.9</template>", ""),
        ("<noscript>45.11.36.9</noscript>", ""),
        // Hidden text has no effect on visible text, and fails no page.
        ("<h2 hidden>Deprecated</h2><p>45.11.36.9", "45.11.36.9"),
        ("<p>45.11.36.9 <span hidden>deprecated</span>", "45.11.36.9"),
        ("<p>45.11.36.9<p hidden>1.2.3.999", "45.11.36.9"),
    ]);
}

#[test]
fn struck_out_text_may_stand_beside_what_is_not() {
    let page = |html: &str| {
        let page = format!("<p>52.1.1.1<p>{html}");
        parse_html(&Page::default(), page.as_bytes(), TODAY)
    };
    for (html, left_out) in [
        ("<del>45.11.36.9</del>", "45.11.36.9/32"),
        ("<s>45.11.36.9</s> 52.1.1.1", "45.11.36.9/32"),
        ("<del>45.11.36.9</del><ins>52.1.1.1</ins>", "45.11.36.9/32"),
        (
            "<span style='text-decoration: line-through'>45.11.36.9</span>",
            "45.11.36.9/32",
        ),
        ("</p><del><p>45.11.36.9</p></del>", "45.11.36.9/32"),
        ("<del>45.11.36.0/24</del>", "45.11.36.0/24"),
    ] {
        let list = page(html).unwrap_or_else(|error| panic!("{html}: {error}"));
        assert_eq!(
            list.notes,
            [format!(
                "left out {left_out}, struck out: {:?}",
                left_out.trim_end_matches("/32")
            )],
            "of {html}"
        );
        assert_eq!(listed(&Ok(list)), "52.1.1.1", "of {html}");
    }
    for html in [
        "45.11.36.9<del>2</del>",
        "<del>4</del>5.11.36.9",
        "45.11.<s>36</s><ins>37</ins>.9",
        "45.11.36.0<del>/24</del>",
        "45.11.36.1 - <del>45.11.36.9</del>",
    ] {
        assert_eq!(outcome(page(html)), "StruckOut", "of {html}");
    }
}
