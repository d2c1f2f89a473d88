//! Sources of every kind and their options, and what is said of those that do not go together.

use std::time::Duration;

use super::{check_wrong, parse_right, url};
use crate::policy::{
    Column, Condition, Csv, Direction, Family, Format, Gate, Http, Item, Json, Lines, Lookup,
    Origin, Page, Pattern, PerFamily, Secret, Select, Source, Xml,
};

/// The one source of a text.
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
fn options_of_what_is_fetched() {
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
fn what_is_demanded() {
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
fn a_number_of_addresses_is_a_part_a_number_or_a_prefix_length() {
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
fn what_is_on_this_host_is_trusted_more() {
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
        "the catalogue's own demand is in force"
    );
}

#[test]
fn names_what_does_not_go_with_a_format() {
    let cases = [
        (
            "file = 'a'\nselect = ['$']",
            "3:10: sources.x.select: needs a `format` that it belongs to; add one",
        ),
        (
            "file = 'a'\nformat = 'text'\ncolumn = 1",
            "4:10: sources.x.column: makes no sense with format = \"text\"; remove it",
        ),
        (
            "file = 'a'\nformat = 'csv'",
            "1:10: sources.x: has format \"csv\" and no `column`; write its number, from 0, or its name in the header line",
        ),
        (
            "file = 'a'\nformat = 'csv'\ncolumn = true",
            "4:10: sources.x.column: is not a column; write its number, from 0, or its name in the header line",
        ),
        (
            "file = 'a'\nformat = 'jsonl'",
            "1:10: sources.x: has format \"jsonl\" and no `select`; add the member of each line, such as select = [\"$.cidr\"]",
        ),
        (
            "file = 'a'\nformat = 'json'\nselect = ['hooks']",
            "4:11: sources.x.select[0]: \"hooks\" is not a JSONPath: parser error at its character 1; write one such as \"$[*]\" or \"$.hooks[*]\"",
        ),
        (
            "file = 'a'\nformat = 'html'\npage = { region = '(' }",
            "4:19: sources.x.page.region: \"(\" is not a regular expression: unclosed group",
        ),
        (
            "file = 'a'\nformat = 'html'\npage = { region = 'US', row = 'x' }",
            "4:25: sources.x.page.row: unknown key; the keys here are section, region, column, exclude_row, exclude_code",
        ),
        (
            "file = 'a'\nformat = 'html'",
            "1:10: sources.x: has format \"html\" and no `page`; add where on the page the list is, such as page = { section = \"(?i)webhooks\" }",
        ),
        (
            "url = 'https://example.com/'\nformat = 'markdown'",
            "1:10: sources.x: has format \"markdown\" and no `page`; add where on the page the list is, such as page = { section = \"(?i)webhooks\" }",
        ),
        (
            "url = 'https://example.com/'\nformat = 'markdown'\npage = { exclude_row = 'old', exclude_code = true }",
            "4:8: sources.x.page: does not say where on the page the list is; add `section`, `region` or `column`",
        ),
    ];
    check_each(&cases);
}

#[test]
fn formats_of_other_shapes() {
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
fn keys_of_other_shapes_that_are_wrong() {
    let two = "does not name two fields; write such as [\"start\", \"end\"]";
    let cases = [
        ("file = 'a'\nformat = 'json'\nrange = ['start']", format!("4:9: sources.x.range: {two}")),
        (
            "file = 'a'\nformat = 'json'\nrange = 'start'",
            "4:9: sources.x.range: is a string; it must be an array".to_owned(),
        ),
        (
            "file = 'a'\nformat = 'json'\nrange = ['a', 'b']\nseparator = ','",
            "5:13: sources.x.separator: is one way to read an item, and there is another already; remove one"
                .to_owned(),
        ),
        (
            "file = 'a'\nformat = 'csv'\ncolumn = 0\ndelimiter = ';;'",
            "5:13: sources.x.delimiter: is not a delimiter; write one character, such as \";\", \"|\" or \"\\t\""
                .to_owned(),
        ),
        (
            "file = 'a'\nformat = 'csv'\ncolumn = 0\nskip = -1",
            "5:8: sources.x.skip: is not a number of title lines; write 0 to 1000".to_owned(),
        ),
        (
            "file = 'a'\nformat = 'csv'\ncolumn = 0\nelement = 'ip'",
            "5:11: sources.x.element: makes no sense with format = \"csv\"; remove it".to_owned(),
        ),
        (
            "file = 'a'\nformat = 'xml'",
            "1:10: sources.x: has format \"xml\" and no `element`; write the name of the elements that hold prefixes"
                .to_owned(),
        ),
        (
            "file = 'a'\nrange = ['a', 'b']",
            "3:9: sources.x.range: needs a `format` that it belongs to; add one".to_owned(),
        ),
        (
            "url = 'https://example.com/'\nformat = 'text'\nnewest = true",
            "4:10: sources.x.newest: chooses among links, and there is no `discover`; add the pattern of their addresses"
                .to_owned(),
        ),
        (
            "file = 'a'\nformat = 'csv'\ncolumn = 0\nwhere = { kind = [] }",
            "5:18: sources.x.where.kind: is empty; write a value".to_owned(),
        ),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(text, message)| (*text, message.as_str()))
        .collect();
    check_each(&cases);
}

#[test]
fn names_what_does_not_go_together() {
    let cases = [
        (
            "file = 'a'\nttl_floor = '1s'",
            "3:13: sources.x.ttl_floor: makes no sense for a file; remove it",
        ),
        (
            "file = 'a'\nregions = ['EU']",
            "3:11: sources.x.regions: makes no sense for a file; remove it",
        ),
        (
            "names = ['a.example.com']\nurl = 'https://example.com/'",
            "1:10: sources.x: has `names` and `url`, and one origin is possible; make each a source",
        ),
        (
            "names = ['192.0.2.1']",
            "2:10: sources.x.names[0]: \"192.0.2.1\" is an address; write it under `prefixes`",
        ),
        (
            "names = ['bücher.test']",
            "2:10: sources.x.names[0]: \"bücher.test\" is not written as the DNS has it; write \
             \"xn--bcher-kva.test\"",
        ),
        (
            "names = ['a.example.com']\nfamilies = []",
            "3:12: sources.x.families: is empty: no address would count; write families = [\"ipv4\"] or [\"ipv6\"], or remove the key for both",
        ),
        (
            "names = ['a.example.com']\nfamilies = ['ipv5']",
            "3:13: sources.x.families[0]: \"ipv5\" is not a family; write \"ipv4\" or \"ipv6\"",
        ),
        (
            "url = 'https://example.com/'\nformat = 'text'\nca_only = true",
            "4:11: sources.x.ca_only: needs `ca_file`; add the file that has the authority, or remove the key",
        ),
        (
            "names = ['localhost']",
            "2:10: sources.x.names[0]: \"localhost\" is not a full host name; write one such as \"egress.example.com\"",
        ),
        (
            "names = ['a.example.com']\nresolvers = ['dns.example.com']",
            "3:14: sources.x.resolvers[0]: \"dns.example.com\" is not a name server; write its address, such as \"192.0.2.53\" or \"127.0.0.1:5353\"",
        ),
        (
            "names = ['a.example.com']\nmin = 5\nmax = 4",
            "4:7: sources.x.max: leaves no list that passes: `min` is 5 and `max` is 4",
        ),
        (
            "names = ['a.example.com']\nmax_shrink = 50",
            "3:14: sources.x.max_shrink: is not a part of the whole; write a number from 0.0 to 1.0, such as 0.5",
        ),
        (
            "names = ['a.example.com']\nmin_prefix_len = { v4 = 33 }",
            "3:25: sources.x.min_prefix_len.v4: is not a prefix length; write 0 to 32",
        ),
        (
            "url = 'https://example.com/'\nformat = 'text'\nheaders = { Host = 'x' }",
            "4:13: sources.x.headers.Host: is for this program to say; remove it",
        ),
        (
            "url = 'https://example.com/'\nformat = 'text'\nheaders = { X = \"hush\\nhush\" }",
            "4:13: sources.x.headers.X: is not a header's value; write visible ASCII in one line",
        ),
        (
            "url = []\nformat = 'text'",
            "2:7: sources.x.url: is empty; write the address of a list",
        ),
        (
            "provider = 'github'\nselect = ['$.web[*]']",
            "3:10: sources.x.select: is the provider's to say; remove it, or write the source out as `allowlist providers show github` prints it",
        ),
        (
            "provider = 'github'\ndirection = 'inbound'",
            "3:13: sources.x.direction: \"inbound\" is the provider's to say; write \"any\" if it does not matter here, or remove it",
        ),
    ];
    check_each(&cases);
}

/// A source, and what is said of it.
#[track_caller]
fn check_each(cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        check_wrong(
            &format!("[sources.x]\n{text}"),
            &format!("a.toml:{expected}"),
        );
    }
}

#[test]
fn directions_are_not_mixed() {
    let service = "[services.web]\nports = ['tcp/443']\nallow = ['x']\n[sources.x]\n";
    let expected = "a.toml:3:10: services.web.allow[0]: \"x\" lists where this host connects to, and not who connects to it; if both are meant, set direction = \"any\" in [sources.x]";
    for outbound in [
        "provider = 'pagerduty-events-hosts'",
        "names = ['events.example.com']\ndirection = 'outbound'",
    ] {
        check_wrong(&format!("{service}{outbound}"), expected);
    }
    for fine in [
        "provider = 'pagerduty-events-hosts'\ndirection = 'any'",
        "names = ['events.example.com']",
    ] {
        parse_right(&format!("{service}{fine}"));
    }
}

#[test]
fn whom_to_tell() {
    let config = parse_right(
        r#"
        history_size = "1MiB"
        [on_change]
        command = ["/usr/local/bin/tell", "--quiet"]
        webhook = "https://hooks.example.com/allowlist"
        timeout = "5s"
        "#,
    );
    assert_eq!(config.hook.command, ["/usr/local/bin/tell", "--quiet"]);
    assert_eq!(
        config.hook.webhook,
        Some(url("https://hooks.example.com/allowlist"))
    );
    assert_eq!(config.hook.timeout, Duration::from_secs(5));
    assert_eq!(config.history_bytes, 1 << 20);
    for (text, expected) in [
        (
            "[on_change]",
            "1:1: on_change: tells nobody; add `command` or `webhook`, or remove it",
        ),
        (
            "[on_change]\ncommand = ['tell']",
            "2:11: on_change.command: \"tell\" is not an absolute path; write where the program is",
        ),
        (
            "history_size = '1GB'",
            "1:16: history_size: is not a size; write bytes, or \"64KiB\" or \"8MiB\", up to \"1024MiB\"",
        ),
    ] {
        check_wrong(text, &format!("a.toml:{expected}"));
    }
}
