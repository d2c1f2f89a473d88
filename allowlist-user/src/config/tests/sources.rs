//! Sources of each kind, their options, and the errors of options that exclude each other.

use std::time::Duration;

use allowlist_policy::{
    Column, Condition, Csv, Direction, Family, Format, Gate, Http, Item, Json, Lines, Lookup,
    Origin, Page, Pattern, PerFamily, Secret, Select, Source, Xml,
};
use expect_test::expect_file;

use super::{check_mistakes, parse_right, url};

/// Returns the source of a configuration with this `[sources.x]` table.
fn read(text: &str) -> Source {
    let config = parse_right(&format!("[sources.x]\n{text}"));
    let [source] = &config.policy.sources[..] else {
        panic!("{config:?}")
    };
    source.clone()
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a pattern")
}

fn selects<const N: usize>(texts: [&str; N]) -> Vec<Select> {
    texts
        .map(|text| Select::new(text).expect("a path"))
        .to_vec()
}

#[test]
fn formats() {
    let page = Page {
        section: Some(pattern("(?i)webhooks")),
        region: Some(pattern("^EU$")),
        column: Some(pattern("New IP")),
        exclude_row: Some(pattern("(?i)deprecat")),
        exclude_code: true,
        and: Vec::new(),
    };
    let of_two = Page {
        region: Some(pattern("US")),
        and: vec![Page {
            region: Some(pattern("EU")),
            ..Page::default()
        }],
        ..Page::default()
    };
    let of_page = "page = { section = '(?i)webhooks', region = '^EU$', column = 'New IP', exclude_row = '(?i)deprecat', exclude_code = true }";
    let cases = [
        ("format = 'text'", Format::Text),
        ("format = 'json'", Format::json_array()),
        (
            "format = 'json'\nselect = ['$.hooks[*]', '$.web[*]']",
            Format::Json(selects(["$.hooks[*]", "$.web[*]"]).into()),
        ),
        (
            "format = 'jsonl'\nselect = ['$.cidr']",
            Format::JsonLines(selects(["$.cidr"]).into()),
        ),
        (
            "format = 'csv'\ncolumn = 2",
            Format::Csv(Column::Number(2).into()),
        ),
        (
            "format = 'csv'\ncolumn = 'ip prefix'",
            Format::Csv(Column::Name("ip prefix".to_owned()).into()),
        ),
        (
            "format = 'html'\npage = { column = 'New IP' }",
            Format::Html(Page {
                column: Some(pattern("New IP")),
                ..Page::default()
            }),
        ),
        (
            &format!("format = 'html'\n{of_page}"),
            Format::Html(page.clone()),
        ),
        (
            "format = 'html'\npage = { region = ['US', 'EU'] }",
            Format::Html(of_two),
        ),
        (
            &format!("format = 'markdown'\n{of_page}"),
            Format::Markdown(page),
        ),
    ];
    for (text, expected) in cases {
        let source = read(&format!("url = 'https://example.com/'\n{text}"));
        let http = Http::new(vec![url("https://example.com/")], expected.clone());
        assert_eq!(source.origin, Origin::Http(http), "{text}");
        let source = read(&format!("file = 'list'\n{text}"));
        let path = "/etc/allowlist/list".into();
        let format = expected;
        assert_eq!(source.origin, Origin::File { path, format }, "{text}");
    }
}

#[test]
fn options_of_a_fetched_list() {
    let source = read(
        r#"
        url = ["https://example.com/v4", "http://example.com/v6"]
        format = "text"
        discover = 'ServiceTags_Public_\d+\.json$'
        unzip = '\.txt$'
        headers = { Accept = "text/plain", X-Token = "hush" }
        bearer_file = "token"
        allow_plain_http = true
        "#,
    );
    let urls = vec![url("https://example.com/v4"), url("http://example.com/v6")];
    let expected = Http {
        discover: Some(pattern(r"ServiceTags_Public_\d+\.json$")),
        unzip: vec![pattern(r"\.txt$")],
        headers: vec![
            ("accept".to_owned(), Secret("text/plain".to_owned())),
            ("x-token".to_owned(), Secret("hush".to_owned())),
        ],
        bearer_file: Some("/etc/allowlist/token".into()),
        allow_plain_http: true,
        ..Http::new(urls, Format::Text)
    };
    assert!(!format!("{source:?}").contains("hush"));
    assert_eq!(source.origin, Origin::Http(expected));
}

#[test]
fn options_of_names() {
    let source = read(
        r#"
        names = ["Egress.Example.com.", "b.example.com"]
        families = ["ipv6"]
        resolvers = ["192.0.2.53", "[2001:db8::53]:5353"]
        ttl_floor = "5s"
        timeout = "3s"
        "#,
    );
    let names = ["egress.example.com", "b.example.com"]
        .map(str::to_owned)
        .to_vec();
    let servers = ["192.0.2.53:53", "[2001:db8::53]:5353"];
    let expected = Lookup {
        families: vec![Family::V6],
        resolvers: servers
            .map(|server| server.parse().expect("an address"))
            .to_vec(),
        ttl_floor: Duration::from_secs(5),
        timeout: Duration::from_secs(3),
        ..Lookup::new(names)
    };
    assert_eq!(source.origin, Origin::Names(expected));
}

#[test]
fn names_below_a_name_are_wildcards() {
    let lookup = |text: &str| match read(text).origin {
        Origin::Names(lookup) => lookup,
        other => panic!("{other:?}"),
    };
    let long = [&"a".repeat(63)[..]; 4].join(".");
    let found = lookup(&format!(
        "names = ['*.Example.com.', 'example.com', '*.a.example.com', 'B.example.com', '{}']",
        &long[..253]
    ));
    assert_eq!(found.wildcards, ["example.com", "a.example.com"]);
    assert_eq!(found.names, ["example.com", "b.example.com", &long[..253]]);
    assert_eq!(
        found.patterns()[..2],
        ["example.com".to_owned(), "b.example.com".to_owned()]
    );
    assert_eq!(found.patterns()[3..], ["*.example.com", "*.a.example.com"]);
    assert!(found.believes_answers, "the default");
    // Nothing can be resolved, so an empty list is complete.
    let min = |names: &str| read(&format!("names = [{names}]")).gate.min;
    assert_eq!(min("'*.example.com'"), 0);
    assert_eq!(min("'*.example.com', 'example.com'"), Gate::default().min);
    for (answers, believes) in [("believe", true), ("poll", false)] {
        let found = lookup(&format!("names = ['a.example.com']\nanswers = '{answers}'"));
        assert_eq!(found.believes_answers, believes);
    }
}

#[test]
fn mistakes_in_names() {
    let long = [&"a".repeat(63)[..]; 4].join(".");
    let cases = [
        "names = []",
        "names = ['*']",
        "names = ['*.']",
        "names = ['*.com']",
        "names = ['*.com.']",
        "names = ['*.*.x.y']",
        "names = ['*x.example.com']",
        "names = ['a.*.example.com']",
        "names = ['example.*']",
        "names = ['**.example.com']",
        "names = ['*.192.0.2.1']",
        "names = ['*.2001:db8::1']",
        "names = ['*.bücher.test']",
        "names = ['*..example.com']",
        "names = ['*.example.com', '*.example.com']",
        &format!("names = ['{}']", &long[..254]),
        "names = ['*.example.com']\nanswers = 'poll'",
        "names = ['a.example.com', '*.example.com']\nanswers = 'poll'",
        "names = ['a.example.com']\nanswers = 'trust'",
        "names = ['a.example.com']\nanswers = true",
        "url = 'https://example.com/'\nformat = 'text'\nanswers = 'poll'",
        "prefixes = ['192.0.2.1']\nanswers = 'believe'",
        "provider = 'github'\nanswers = 'poll'",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-of-names.txt"],
    );
}

/// The names of a provider are from the catalogue; how they are resolved is the configuration's.
#[test]
fn options_of_a_provider_of_names() {
    let lookup = |text: &str| {
        let source = read(&format!("provider = 'pagerduty-events-hosts'\n{text}"));
        match source.origin {
            Origin::Names(lookup) => lookup,
            other => panic!("{other:?}"),
        }
    };
    let plain = lookup("");
    assert!(!plain.names.is_empty());
    assert_eq!(plain, Lookup::new(plain.names.clone()));
    let text = "answers = 'poll'\nfamilies = ['ipv6']\nresolvers = ['192.0.2.53']\nttl_floor = '5s'\ntimeout = '3s'";
    let expected = Lookup {
        believes_answers: false,
        families: vec![Family::V6],
        resolvers: vec!["192.0.2.53:53".parse().expect("an address")],
        ttl_floor: Duration::from_secs(5),
        timeout: Duration::from_secs(3),
        ..plain
    };
    assert_eq!(lookup(text), expected);
}

#[test]
fn gate_options() {
    let source = read(
        r#"
        names = ["egress.example.com"]
        min = 2
        max = 9
        must_cover = ["203.0.113.9", "2001:db8::/48"]
        min_prefix_len = { v4 = 24, v6 = 48 }
        allow_special_use = true
        max_shrink = 0.25
        max_growth = 3.5
        growth_window = "2days"
        max_addresses = { v4 = 0.001, v6 = "/32" }
        grace = "0s"
        max_age = "3days"
        every = "5m"
        direction = "outbound"
        "#,
    );
    let expected = Gate {
        min: 2,
        max: Some(9),
        must_cover: ["203.0.113.9/32", "2001:db8::/48"]
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        min_prefix_len_v4: 24,
        min_prefix_len_v6: 48,
        allow_special_use: true,
        max_shrink: 250,
        max_growth: 3500,
        growth_window: Duration::from_hours(48),
        max_addresses: PerFamily {
            v4: (1 << 32) / 1000,
            v6: 1 << 96,
        },
        ..Gate::default()
    };
    assert_eq!(source.gate, expected);
    assert_eq!(
        (source.grace, source.every),
        (Duration::ZERO, Duration::from_mins(5))
    );
    assert_eq!(source.max_age, Duration::from_hours(72));
    assert_eq!(source.direction, Direction::Outbound);
}

#[test]
fn max_addresses_is_a_fraction_a_number_or_a_prefix_length() {
    let max = |text: &str| {
        let source = read(&format!("names = [\"a.example.com\"]\n{text}"));
        (source.gate.max_addresses.v4, source.gate.max_addresses.v6)
    };
    let (v4, v6) = ((1 << 32) / 50, 1 << 112);
    assert_eq!(max(""), (v4, v6));
    assert_eq!(max("max_addresses = 1.0"), (1 << 32, 1 << 125));
    assert_eq!(max("max_addresses = 0.5"), (1 << 31, 1 << 124));
    assert_eq!(max("max_addresses = 4096"), (4096, 4096));
    assert_eq!(max("max_addresses = { v4 = 4096 }"), (4096, v6));
    assert_eq!(max("max_addresses = { v6 = '/64' }"), (v4, 1 << 64));
    // A width that is allowed is a number of addresses that is allowed, unless one is stated.
    assert_eq!(
        max("min_prefix_len = { v4 = 0, v6 = 3 }"),
        (1 << 32, 1 << 125)
    );
    assert_eq!(max("min_prefix_len = { v4 = 24 }"), (v4, v6));
    let both = "min_prefix_len = { v4 = 0 }\nmax_addresses = { v4 = '/16' }";
    assert_eq!(max(both), (1 << 16, v6));
}

#[test]
fn local_sources_have_other_defaults() {
    let fetched = read("url = 'https://example.com/'\nformat = 'text'");
    assert_eq!(
        (fetched.gate, fetched.grace),
        (Gate::default(), Source::GRACE)
    );
    let file = read("file = 'lab.txt'");
    assert!(file.gate.allow_special_use);
    assert_eq!(file.grace, Duration::ZERO);
    // Answers of name servers take turns, so that all of one may be gone in the next.
    let names = read("names = ['a.example.com']");
    assert_eq!(
        (names.gate.max_shrink, names.gate.allow_special_use),
        (1000, false)
    );
}

#[test]
fn providers_with_parameters_and_regions() {
    let source = read("provider = 'zendesk'\nparameters = { subdomain = 'acme' }");
    let Origin::Http(http) = &source.origin else {
        panic!("{source:?}")
    };
    assert_eq!(http.urls, [url("https://acme.zendesk.com/ips")]);
    let source = read("provider = 'intercom'\nregions = ['EU', 'AU']\nevery = '2h'\nmin = 1");
    let Origin::Http(http) = &source.origin else {
        panic!("{source:?}")
    };
    assert_eq!(http.urls.len(), 2, "{http:?}");
    assert_eq!(
        (source.every, source.gate.min),
        (Duration::from_hours(2), 1)
    );
    assert!(
        source.gate.max.is_some(),
        "the catalogue's own limit applies"
    );
}

#[test]
fn mistakes_in_options_of_a_format() {
    let cases = [
        "file = 'a'\nselect = ['$']",
        "file = 'a'\nformat = 'text'\ncolumn = 1",
        "file = 'a'\nformat = 'csv'",
        "file = 'a'\nformat = 'csv'\ncolumn = true",
        "file = 'a'\nformat = 'jsonl'",
        "file = 'a'\nformat = 'json'\nselect = ['hooks']",
        "file = 'a'\nformat = 'html'\npage = { region = '(' }",
        "file = 'a'\nformat = 'html'\npage = { region = 'US', row = 'x' }",
        "file = 'a'\nformat = 'html'",
        "url = 'https://example.com/'\nformat = 'markdown'",
        "url = 'https://example.com/'\nformat = 'markdown'\npage = { exclude_row = 'old', exclude_code = true }",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-format.txt"],
    );
}

#[test]
fn formats_of_structured_items() {
    let name = |text: &str| Column::Name(text.to_owned());
    let conditions = |field: Column, values: &[&str]| {
        let values = values.iter().map(|&value| value.to_owned()).collect();
        vec![Condition { field, values }]
    };
    let array = || Json::from(selects(["$[*]"]));
    let cases = [
        (
            "format = 'json'\nrange = ['start', 'end']",
            Format::Json(Json {
                item: Item::Range([name("start"), name("end")]),
                ..array()
            }),
        ),
        (
            "format = 'json'\nkeys = true",
            Format::Json(Json {
                item: Item::Keys,
                ..selects(["$"]).into()
            }),
        ),
        (
            "format = 'jsonl'\nselect = ['$[*]']\nseparator = ','\nwhere = { kind = ['a', 'b'] }",
            Format::JsonLines(Json {
                item: Item::Token {
                    separator: Some(",".to_owned()),
                },
                filter: conditions(name("kind"), &["a", "b"]),
                ..array()
            }),
        ),
        (
            "format = 'csv'\nprefix = [0, 1]\ndelimiter = \"\\t\"\nskip = 2\nwhere = { 3 = 7 }",
            Format::Csv(Csv {
                columns: Vec::new(),
                item: Item::Prefix([Column::Number(0), Column::Number(1)]),
                delimiter: b'\t',
                skip: 2,
                filter: conditions(Column::Number(3), &["7"]),
            }),
        ),
        (
            "format = 'csv'\ncolumn = ['v4', 'v6']",
            Format::Csv(Csv {
                columns: vec![name("v4"), name("v6")],
                ..name("v4").into()
            }),
        ),
        (
            "format = 'xml'\nelement = 'range'\nattribute = 'cidr'",
            Format::Xml(Xml {
                elements: vec!["range".to_owned()],
                attribute: Some(name("cidr")),
                item: Item::default(),
                filter: Vec::new(),
            }),
        ),
        (
            "comments = ['//']\nkeyword = 'allow'",
            Format::Lines(Lines {
                comments: vec!["//".to_owned()],
                keywords: vec!["allow".to_owned()],
            }),
        ),
        ("comments = ['#', ';']", Format::Text),
    ];
    for (text, expected) in cases {
        let source = read(&format!("file = '/srv/list'\n{text}"));
        let path = "/srv/list".into();
        assert_eq!(
            source.origin,
            Origin::File {
                path,
                format: expected.clone()
            },
            "{text}"
        );
    }
    assert_eq!(read("file = 'a'\nmin = 0").gate.min, 0);
}

#[test]
fn mistakes_in_options_of_structured_items() {
    let cases = [
        "file = 'a'\nformat = 'json'\nrange = ['start']",
        "file = 'a'\nformat = 'json'\nrange = 'start'",
        "file = 'a'\nformat = 'json'\nrange = ['a', 'b']\nseparator = ','",
        "file = 'a'\nformat = 'csv'\ncolumn = 0\ndelimiter = ';;'",
        "file = 'a'\nformat = 'csv'\ncolumn = 0\nskip = -1",
        "file = 'a'\nformat = 'csv'\ncolumn = 0\nelement = 'ip'",
        "file = 'a'\nformat = 'xml'",
        "file = 'a'\nrange = ['a', 'b']",
        "url = 'https://example.com/'\nformat = 'text'\nnewest = true",
        "file = 'a'\nformat = 'csv'\ncolumn = 0\nwhere = { kind = [] }",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-items.txt"],
    );
}

#[test]
fn mistakes_of_options_that_exclude_each_other() {
    let cases = [
        "file = 'a'\nttl_floor = '1s'",
        "file = 'a'\nregions = ['EU']",
        "names = ['a.example.com']\nurl = 'https://example.com/'",
        "names = ['192.0.2.1']",
        "names = ['bücher.test']",
        "names = ['a.example.com']\nfamilies = []",
        "names = ['a.example.com']\nfamilies = ['ipv5']",
        "url = 'https://example.com/'\nformat = 'text'\nca_only = true",
        "names = ['localhost']",
        "names = ['a.example.com']\nresolvers = ['dns.example.com']",
        "names = ['a.example.com']\nmin = 5\nmax = 4",
        "names = ['a.example.com']\nmax_shrink = 50",
        "names = ['a.example.com']\nmin_prefix_len = { v4 = 33 }",
        "url = 'https://example.com/'\nformat = 'text'\nheaders = { Host = 'x' }",
        "url = 'https://example.com/'\nformat = 'text'\nheaders = { X = \"hush\\nhush\" }",
        "url = []\nformat = 'text'",
        "provider = 'github'\nselect = ['$.web[*]']",
        "provider = 'github'\ndirection = 'inbound'",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-exclusive.txt"],
    );
}

#[test]
fn directions_are_not_mixed() {
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['x']\n[sources.x]\n";
    let outbound = [
        "provider = 'pagerduty-events-hosts'",
        "names = ['events.example.com']\ndirection = 'outbound'",
    ];
    check_mistakes(
        outbound.map(|source| format!("{service}{source}")),
        &expect_file!["snapshots/mistakes-direction.txt"],
    );
    for fine in [
        "provider = 'pagerduty-events-hosts'\ndirection = 'any'",
        "names = ['events.example.com']",
    ] {
        parse_right(&format!("{service}{fine}"));
    }
}

#[test]
fn on_change_options() {
    let config = parse_right(
        r#"
        history_size = "1MiB"
        [on_change]
        command = ["/usr/local/bin/notify", "--quiet"]
        webhook = "https://hooks.example.com/allowlist"
        timeout = "5s"
        "#,
    );
    assert_eq!(config.hook.command, ["/usr/local/bin/notify", "--quiet"]);
    assert_eq!(
        config.hook.webhook,
        Some(url("https://hooks.example.com/allowlist"))
    );
    assert_eq!(config.hook.timeout, Duration::from_secs(5));
    assert_eq!(config.history_bytes, 1 << 20);
    let mistakes = [
        "[on_change]",
        "[on_change]\ncommand = ['notify']",
        "[on_change]\nwebhook = 'http://hooks.example.com/'",
        "history_size = '1GB'",
    ];
    check_mistakes(
        mistakes.map(str::to_owned),
        &expect_file!["snapshots/mistakes-hook.txt"],
    );
}
