//! Lists of every shape that the configuration can describe, each with a small payload of its own, and what fails
//! them when the shape changes.

use allowlist_policy::{Column, Condition, Csv, Item, Json, Lines, Xml};

use super::*;

fn name(text: &str) -> Column {
    Column::Name(text.to_owned())
}

fn pair<const N: usize>(names: [&str; N]) -> [Column; N] {
    names.map(name)
}

fn only(field: Column, values: &[&str]) -> Vec<Condition> {
    let values = values.iter().map(|&value| value.to_owned()).collect();
    vec![Condition { field, values }]
}

fn separated(separator: &str) -> Item {
    Item::Token {
        separator: Some(separator.to_owned()),
    }
}

fn json(paths: &[&str], item: Item) -> Format {
    Format::Json(Json {
        item,
        ..selects(paths).into()
    })
}

fn xml(elements: &[&str], attribute: Option<&str>, item: Item) -> Xml {
    Xml {
        elements: elements.iter().map(|&name| name.to_owned()).collect(),
        attribute: attribute.map(name),
        item,
        filter: Vec::new(),
    }
}

/// The prefixes in words.
#[track_caller]
fn check_list(format: &Format, text: &str, expected: &str) {
    check(format, text, expected);
}

#[track_caller]
fn error(format: &Format, text: &str) -> FeedError {
    match parse(format, text.as_bytes(), TODAY) {
        Ok(list) => panic!("must be refused: {list:?}"),
        Err(error) => error,
    }
}

#[track_caller]
fn check_missing(format: &Format, text: &str, missing: &[&str]) {
    let FeedError::NothingSelected { selects, .. } = error(format, text) else {
        panic!("{}", error(format, text));
    };
    let expected: Vec<String> = missing.iter().map(|path| format!("{path:?}")).collect();
    assert_eq!(selects, expected.join(", "));
}

#[test]
fn each_selector_finds_something() {
    let two = Format::Json(selects(&["$.prefixes_ipv4[*]", "$.prefixes_ipv6[*]"]).into());
    let union = Format::Json(selects(&["$['prefixes_ipv4','prefixes_ipv6'][*]"]).into());
    let renamed = r#"{"ipv4_prefixes": ["192.0.2.0/24"], "prefixes_ipv6": ["2001:db8::/32"]}"#;
    check_missing(&two, renamed, &["$.prefixes_ipv4[*]"]);
    check_missing(&union, renamed, &["$['prefixes_ipv4'][*]"]);
    for whole in [&two, &union] {
        check_list(
            whole,
            r#"{"prefixes_ipv4": ["192.0.2.0/24"], "prefixes_ipv6": ["2001:db8::/32"]}"#,
            "192.0.2.0/24 2001:db8::/32",
        );
        // An empty array is a match, and so is null in its items.
        check_list(
            whole,
            r#"{"prefixes_ipv4": [], "prefixes_ipv6": ["2001:db8::/32", null, ""]}"#,
            "2001:db8::/32",
        );
        assert_eq!(
            error(whole, r#"{"prefixes_ipv4": [], "prefixes_ipv6": []}"#),
            FeedError::NoPrefixes
        );
    }
    // Below an empty array nothing can be found.
    let deep = Format::Json(selects(&["$.data[*].ip", "$.more[*].ip"]).into());
    check_list(
        &deep,
        r#"{"data": [], "more": [{"ip": "192.0.2.1"}]}"#,
        "192.0.2.1/32",
    );
    check_missing(
        &deep,
        r#"{"data": [{"address": "192.0.2.2"}], "more": [{"ip": "192.0.2.1"}]}"#,
        &["$.data[*].ip"],
    );
    // A region of one family, in a list that has both; and one that is gone.
    let regional = |region: &str| {
        let path = format!("$.prefixes[?@.scope=='{region}']['ipv4','ipv6']");
        Format::Json(selects(&["$.prefixes[?@.scope=='eu'].ipv4", &path]).into())
    };
    let text = r#"{"prefixes": [{"scope": "eu", "ipv4": "192.0.2.0/24"}, {"scope": "us", "ipv6": "2001:db8::/32"}]}"#;
    check_list(&regional("eu"), text, "192.0.2.0/24");
    check_list(&regional("us"), text, "192.0.2.0/24 2001:db8::/32");
    check_missing(
        &regional("ap"),
        text,
        &["$.prefixes[?@.scope=='ap']['ipv4','ipv6']"],
    );
    // Each part of a union of items is a selector: one item has to match it.
    let union = |selectors: &str| {
        let path = format!("$.list[*][{selectors}]");
        Format::Json(selects(&[&path]).into())
    };
    let one_has_both = r#"{"list": [{"x": "192.0.2.1"}, {"x": "192.0.2.2", "y": "192.0.2.3"}]}"#;
    check_list(
        &union("'x','y'"),
        one_has_both,
        "192.0.2.1/32 192.0.2.2/32 192.0.2.3/32",
    );
    check_list(
        &union("'x','y'"),
        r#"{"list": [{"x": "192.0.2.1"}, {"y": null}]}"#,
        "192.0.2.1/32",
    );
    for (selectors, missing) in [
        ("'x','z'", "$.list[*]['z']"),
        ("'z', \"x\"", "$.list[*]['z']"),
        ("'x','y','z'", "$.list[*]['z']"),
    ] {
        check_missing(&union(selectors), one_has_both, &[missing]);
    }
    let pairs = r#"{"list": [["192.0.2.1", "192.0.2.2"], ["192.0.2.3"]]}"#;
    check_list(
        &union("0,1"),
        pairs,
        "192.0.2.1/32 192.0.2.2/32 192.0.2.3/32",
    );
    check_missing(&union("0,2"), pairs, &["$.list[*][2]"]);
    let filters = Format::Json(selects(&["$.list[?@.r=='eu',?@.r=='us'].ip"]).into());
    check_missing(
        &filters,
        r#"{"list": [{"r": "eu", "ip": "192.0.2.1"}, {"r": "ap", "ip": "192.0.2.2"}]}"#,
        &["$.list[?@.r=='us'].ip"],
    );
    let below = Format::Json(selects(&["$..['x','y'][*]"]).into());
    check_missing(
        &below,
        r#"{"a": {"x": ["192.0.2.1"]}, "b": {"x": []}}"#,
        &["$..['y'][*]"],
    );
    // One match in all JSON lines is enough.
    let lines = Format::JsonLines(selects(&["$.v4", "$.v6"]).into());
    check_list(
        &lines,
        "{\"v4\": \"192.0.2.1\"}\n{\"v6\": \"2001:db8::1\"}\n",
        "192.0.2.1/32 2001:db8::1/128",
    );
    check_missing(
        &lines,
        "{\"v4\": \"192.0.2.1\"}\n{\"six\": \"2001:db8::1\"}\n",
        &["$.v6"],
    );
}

#[test]
fn a_key_that_occurs_twice_fails() {
    let array = Format::Json(selects(&["$.a.hooks[*]"]).into());
    let twice = |text: &str| match error(&array, text) {
        FeedError::DuplicateKey { place, line, key } => (place.to_string(), line, key),
        other => panic!("{other}"),
    };
    assert_eq!(
        twice("{\"a\": {\n\"hooks\": [\"192.0.2.0/24\"],\n\"hooks\": [\"198.51.100.0/24\"]}}"),
        ("$.a".to_owned(), 3, "hooks".to_owned())
    );
    assert_eq!(
        twice(r#"{"a": {"hooks": ["192.0.2.0/24"]}, "x": [0, {"k": 1, "\u006b": 2}]}"#),
        ("$.x[1]".to_owned(), 1, "k".to_owned())
    );
    // Keys of different objects, and of different letters.
    check_list(
        &array,
        r#"{"a": {"hooks": ["192.0.2.0/24"], "Hooks": []}, "hooks": 1}"#,
        "192.0.2.0/24",
    );
    // A value within keeps its kind.
    check_list(
        &Format::Json(
            selects(&["$.x[?@.n == 1.5 && @.m == -2 && @.b == true && @.z == null].ip"]).into(),
        ),
        r#"{"x": [{"n": 1.5, "m": -2, "b": true, "z": null, "ip": "192.0.2.1"}]}"#,
        "192.0.2.1/32",
    );
}

#[test]
fn json_of_other_shapes() {
    let range = json(&["$.ranges[*]"], Item::Range(pair(["start", "end"])));
    check_list(
        &range,
        r#"{"ranges": [{"start": "192.0.2.4", "end": "192.0.2.9"}, {"start": "2001:db8::", "end": "2001:db8::1", "x": 1}, {"start": null, "end": ""}]}"#,
        "192.0.2.4/30 192.0.2.8/31 2001:db8::/127",
    );
    assert!(matches!(
        error(&range, r#"{"ranges": [{"start": "192.0.2.4"}]}"#),
        FeedError::NoMember { .. }
    ));
    for wrong in [
        r#"{"ranges": [{"start": "192.0.2.4", "end": ""}]}"#,
        r#"{"ranges": [{"start": "192.0.2.4", "end": "9"}]}"#,
        r#"{"ranges": [{"start": "192.0.2.4", "end": "192.0.2.1"}]}"#,
    ] {
        assert!(
            matches!(error(&range, wrong), FeedError::Prefix { .. }),
            "{wrong}"
        );
    }
    assert!(matches!(
        error(&range, r#"{"ranges": ["192.0.2.4"]}"#),
        FeedError::NotAnObject { .. }
    ));
    let prefix = json(&["$[*]"], Item::Prefix(pair(["address", "length"])));
    check_list(
        &prefix,
        r#"[{"address": "192.0.2.0", "length": 24}, {"address": "2001:db8::", "length": "32"}]"#,
        "192.0.2.0/24 2001:db8::/32",
    );
    for wrong in [
        r#"[{"address": "192.0.2.1", "length": 24}]"#,
        r#"[{"address": "192.0.2.0", "length": 33}]"#,
        r#"[{"address": "192.0.2.0", "length": null}]"#,
        r#"[{"address": "192.0.2.0/24", "length": 24}]"#,
    ] {
        assert!(
            matches!(error(&prefix, wrong), FeedError::Prefix { .. }),
            "{wrong}"
        );
    }
    check_list(
        &json(&["$[*].ips"], separated(",")),
        r#"[{"ips": "192.0.2.1, 198.51.100.0/24"}, {"ips": "2001:db8::1,"}]"#,
        "192.0.2.1/32 198.51.100.0/24 2001:db8::1/128",
    );
    check_list(
        &json(&["$[*]"], separated(" ")),
        r#"["192.0.2.1  192.0.2.2\n192.0.2.3"]"#,
        "192.0.2.1/32 192.0.2.2/32 192.0.2.3/32",
    );
    let keys = json(&["$.nodes"], Item::Keys);
    check_list(
        &keys,
        r#"{"nodes": {"192.0.2.1": {"city": "Alofi"}, "2001:db8::/32": null}}"#,
        "192.0.2.1/32 2001:db8::/32",
    );
    assert!(matches!(
        error(&keys, r#"{"nodes": {"alofi": 1}}"#),
        FeedError::Prefix { .. }
    ));
    let filtered = Format::JsonLines(Json {
        filter: only(name("direction"), &["egress"]),
        ..selects(&["$.cidr"]).into()
    });
    check_list(
        &filtered,
        "{\"direction\": \"egress\", \"cidr\": \"192.0.2.0/24\"}\n{\"direction\": \"ingress\", \"cidr\": \"no\"}\n{\"note\": 1}\n",
        "192.0.2.0/24",
    );
    assert!(matches!(
        error(
            &filtered,
            "{\"direction\": \"out\", \"cidr\": \"192.0.2.0/24\"}\n"
        ),
        FeedError::Unmatched { key: "where", .. }
    ));
    let lines = Format::JsonLines(selects(&["$.cidr"]).into());
    assert_eq!(
        error(&lines, "{\n  \"cidr\": \"192.0.2.0/24\"\n}\n"),
        FeedError::OneDocument
    );
}

#[test]
fn a_document_that_is_a_page_of_several_has_a_note() {
    let items = Format::Json(selects(&["$.items[*]"]).into());
    let notes = |more: &str| {
        let text = format!("{{\"items\": [\"192.0.2.1\"]{more}}}");
        parse(&items, text.as_bytes(), TODAY).expect("a list").notes
    };
    for more in [
        r#", "next": "https://example.com/?page=2""#,
        r#", "links": {"next": "/?page=2"}"#,
        r#", "_links": {"next": {"href": "/?page=2"}}"#,
        r#", "meta": {"next_page": 2}"#,
        r#", "nextPageToken": "x""#,
        r#", "has_more": true"#,
    ] {
        assert_eq!(notes(more).len(), 1, "{more}");
    }
    for more in [
        "",
        r#", "next": null"#,
        r#", "next": """#,
        r#", "has_more": false"#,
    ] {
        assert!(notes(more).is_empty(), "{more}");
    }
}

#[test]
fn csv_of_other_shapes() {
    for (delimiter, between) in [(b'\t', "\t"), (b';', ";"), (b'|', " | "), (b' ', " ")] {
        let format = Format::Csv(Csv {
            delimiter,
            ..name("ip").into()
        });
        let rows = [
            "ip,region",
            "192.0.2.0/24,\"New, York\"",
            "2001:db8::/32,eu",
        ];
        let text = rows.join("\n").replacen(',', between, 1);
        let text = text
            .replace("24,", &format!("24{between}"))
            .replace("32,", &format!("32{between}"));
        check_list(&format, &text, "192.0.2.0/24 2001:db8::/32");
    }
    let titled = Format::Csv(Csv {
        skip: 2,
        ..name("ip").into()
    });
    check_list(
        &titled,
        "Addresses, as of 2026\n\"made by hand\nip,region\n192.0.2.0/24,us\n",
        "192.0.2.0/24",
    );
    // Lines are counted from the top of the file.
    let FeedError::Prefix { place, .. } = error(&titled, "a\nb\nip\n# c\nx\n") else {
        panic!("a place");
    };
    assert_eq!(place, Place::Line(5));
    let filtered = |values: &[&str]| {
        Format::Csv(Csv {
            filter: only(name("direction"), values),
            ..name("ip").into()
        })
    };
    let text = "direction,ip\negress,192.0.2.0/24\ningress,no address\nboth,198.51.100.0/24\n";
    check_list(&filtered(&["egress"]), text, "192.0.2.0/24");
    check_list(
        &filtered(&["egress", "both"]),
        text,
        "192.0.2.0/24 198.51.100.0/24",
    );
    assert!(matches!(
        error(&filtered(&["egress", "out"]), text),
        FeedError::Unmatched { key: "where", .. }
    ));
    assert!(matches!(
        error(&filtered(&["egress"]), &text.replace("direction", "kind")),
        FeedError::NoHeader { .. }
    ));
    let numbered = Format::Csv(Csv {
        filter: only(Column::Number(1), &["egress"]),
        ..Column::Number(0).into()
    });
    check_list(
        &numbered,
        "192.0.2.0/24,egress\n198.51.100.0/24,ingress\n",
        "192.0.2.0/24",
    );
    let of_two = |item| {
        Format::Csv(Csv {
            columns: Vec::new(),
            item,
            ..name("").into()
        })
    };
    check_list(
        &of_two(Item::Range(pair(["From", "To"]))),
        "Region,From,To\nus,192.0.2.4,192.0.2.9\neu,2001:db8::,2001:db8::1\n",
        "192.0.2.4/30 192.0.2.8/31 2001:db8::/127",
    );
    check_list(
        &of_two(Item::Prefix([Column::Number(0), Column::Number(1)])),
        "192.0.2.0,24\n198.51.100.0,255.255.255.0\n2001:db8::,/32\n,\n",
        "192.0.2.0/24 198.51.100.0/24 2001:db8::/32",
    );
    let several = Format::Csv(Csv {
        columns: vec![name("v4"), name("v6")],
        item: separated(" "),
        ..name("").into()
    });
    check_list(
        &several,
        "v4,v6\n192.0.2.1 192.0.2.2,2001:db8::1\n192.0.2.3,\n",
        "192.0.2.1/32 192.0.2.2/32 192.0.2.3/32 2001:db8::1/128",
    );
    assert!(matches!(
        error(&several, "v4,six\n192.0.2.1,\n"),
        FeedError::NoHeader { .. }
    ));
    assert!(matches!(
        error(&several, "v4,v6,v4\n192.0.2.1,,\n"),
        FeedError::ManyHeaders { .. }
    ));
}

#[test]
fn xml_by_element_and_attribute() {
    let texts = Format::Xml(xml(&["ip", "net"], None, Item::default()));
    check_list(
        &texts,
        "<?xml version=\"1.0\"?>\n<!-- 198.51.100.9 -->\n<l:list xmlns:l='urn:l'><l:ip>\n 192.0.2.1 </l:ip><net><![CDATA[192.0.2.0/24]]></net><ip>2001:db8&#58;:1</ip><ip/><x>no</x></l:list>\n",
        "192.0.2.0/24 192.0.2.1/32 2001:db8::1/128",
    );
    assert!(matches!(
        error(&texts, "<list><ip>192.0.2.1</ip></list>"),
        FeedError::Unmatched { key: "element", .. }
    ));
    let one = Format::Xml(xml(&["ip"], None, Item::default()));
    // Nothing is read across what lies between.
    for wrong in [
        "<l><ip>192.0.2.<!-- x -->1</ip></l>",
        "<l><ip>192.0.2.<?x y?>1</ip></l>",
    ] {
        assert!(
            matches!(error(&one, wrong), FeedError::Prefix { .. }),
            "{wrong}"
        );
    }
    assert!(matches!(
        error(&one, "<l><ip>192.0.2.1<b>9</b></ip></l>"),
        FeedError::NotAText { .. }
    ));
    for wrong in [
        "<l><ip>192.0.2.1</l>",
        "<l><ip>&own;</ip></l>",
        "<!DOCTYPE l [<!ENTITY own '192.0.2.1'>]><l><ip>&own;</ip></l>",
        "<l><ip>192.0.2.1</ip></l><l/>",
        "<l><ip>192.0.2.1</ip></l>more",
        "192.0.2.1",
    ] {
        let error = error(&one, wrong);
        assert!(
            matches!(
                error,
                FeedError::NotXml { .. } | FeedError::Truncated { .. }
            ),
            "{wrong}: {error}"
        );
    }
    // At any length.
    let whole = "<?xml version=\"1.0\"?><l><ip>192.0.2.1</ip><ip>192.0.2.22</ip></l>";
    for end in 1..whole.len() {
        error(&one, &whole[..end]);
    }
    check_list(&one, whole, "192.0.2.1/32 192.0.2.22/32");
    let attribute = Xml {
        filter: only(name("type"), &["egress"]),
        ..xml(&["range"], Some("cidr"), Item::default())
    };
    check_list(
        &Format::Xml(attribute.clone()),
        "<r><range type='egress' cidr='192.0.2.0/24'/><range type='other' cidr='x'/><range><type>egress</type><cidr>2001:db8::/32</cidr></range></r>",
        "192.0.2.0/24 2001:db8::/32",
    );
    let attribute = Format::Xml(attribute);
    assert!(matches!(
        error(
            &attribute,
            "<r><range type='egress' net='192.0.2.0/24'/></r>"
        ),
        FeedError::NoMember { .. }
    ));
    assert!(matches!(
        error(
            &attribute,
            "<r><range type='egress'><cidr>192.0.2.1</cidr><cidr>192.0.2.2</cidr></range></r>"
        ),
        FeedError::ManyMembers { .. }
    ));
    let range = Format::Xml(xml(&["r"], None, Item::Range(pair(["from", "to"]))));
    check_list(
        &range,
        "<l><r from='192.0.2.4' to='192.0.2.9'/><r><from>2001:db8::</from><to>2001:db8::1</to></r></l>",
        "192.0.2.4/30 192.0.2.8/31 2001:db8::/127",
    );
    let prefix = Format::Xml(xml(&["r"], None, Item::Prefix(pair(["ip", "mask"]))));
    check_list(
        &prefix,
        "<l><r ip='192.0.2.0' mask='24'/></l>",
        "192.0.2.0/24",
    );
}

#[test]
fn text_with_other_comments_and_keywords() {
    let lines = |comments: &[&str], keywords: &[&str]| {
        Format::Lines(Lines {
            comments: comments.iter().map(|&text| text.to_owned()).collect(),
            keywords: keywords.iter().map(|&text| text.to_owned()).collect(),
        })
    };
    check_list(
        &lines(&["//", "!"], &[]),
        "! a list\n192.0.2.0/24 // office\n// 198.51.100.0/24\n",
        "192.0.2.0/24",
    );
    let rpsl = lines(&["#", "%"], &["route:", "route6:"]);
    check_list(
        &rpsl,
        "% a registry\nroute:      192.0.2.0/24\ndescr:      x\norigin:     AS64496\n\nroute6:     2001:db8::/32\n",
        "192.0.2.0/24 2001:db8::/32",
    );
    assert!(matches!(
        error(&rpsl, "route: 192.0.2.0/24\n"),
        FeedError::Unmatched { key: "keyword", .. }
    ));
    check_list(
        &lines(&["#", ";"], &["allow"]),
        "# nginx\nallow 192.0.2.0/24;\nallow\t2001:db8::/32;  # office\ndeny all;\n",
        "192.0.2.0/24 2001:db8::/32",
    );
}

#[test]
fn a_list_that_may_be_empty() {
    let empty = |format: &Format, text: &str| {
        parse_part(format, text.as_bytes(), TODAY, true).map(|list| list.prefixes)
    };
    let filtered = Csv {
        filter: only(name("direction"), &["egress"]),
        ..name("ip").into()
    };
    let cases = [
        (Format::Text, "# none today\n"),
        (Format::Text, ""),
        (Format::json_array(), "[]"),
        (Format::JsonLines(selects(&["$.ip"]).into()), "\n"),
        (
            Format::JsonLines(selects(&["$.ip"]).into()),
            "{\"note\": 1}\n",
        ),
        (Format::Csv(name("ip").into()), "ip,region\n"),
        (
            Format::Csv(filtered),
            "ip,direction\n192.0.2.0/24,ingress\n",
        ),
        (Format::Xml(xml(&["ip"], None, Item::default())), "<l/>"),
    ];
    for (format, text) in cases {
        assert_eq!(empty(&format, text), Ok(Vec::new()), "{format} {text:?}");
        assert!(
            parse(&format, text.as_bytes(), TODAY).is_err(),
            "{format} {text:?}"
        );
    }
    // The shape has to be right even so.
    for (format, text) in [
        (Format::json_array(), ""),
        (Format::json_array(), "{}"),
        (
            Format::Json(selects(&["$.a[*]", "$.b[*]"]).into()),
            "{\"a\": []}",
        ),
        (Format::Csv(name("ip").into()), "address,region\n"),
        (Format::Text, "<html>"),
        (Format::Xml(xml(&["ip"], None, Item::default())), ""),
    ] {
        assert!(empty(&format, text).is_err(), "{format} {text:?}");
    }
}
