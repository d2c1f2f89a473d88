//! The text of each export format. `whole` tests which addresses a text admits, `refusals` the errors.

mod refusals;
mod whole;

use std::net::{IpAddr, Ipv4Addr};

use allowlist_lists::feed;
use expect_test::expect;

use super::*;

/// Overlapping, adjacent, repeated and unsorted prefixes of both families.
const VENDOR: &[&str] = &[
    "203.0.113.9/32",
    "192.0.2.128/25",
    "192.0.2.0/25",
    "192.0.2.7/32",
    "2001:db8:1::/48",
    "2001:db8::/48",
];
const OFFICE: &[&str] = &["203.0.113.9/32", "2001:db8:ffff::1/128"];
const EVERYBODY: &[&str] = &["0.0.0.0/0", "::/0"];

fn options(name: &str) -> Options<'_> {
    let at = "2026-10-05T12:00:00.123456789Z".parse().expect("a time");
    Options {
        user: Some("reader"),
        database: Some("db_1"),
        ..Options::new(name, at)
    }
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    let prefix = |text: &&str| text.parse().expect("a prefix");
    texts.iter().map(prefix).collect()
}

/// Returns `count` addresses, no two of which merge.
fn apart(count: u32) -> Vec<IpNet> {
    let address = |number| IpAddr::from(Ipv4Addr::from_bits(number * 2));
    (0..count).map(|number| address(number).into()).collect()
}

fn export_one(format: Format, name: &str, prefixes: &[IpNet]) -> Result<String, ExportError> {
    let list = Listed {
        source: "vendor",
        origin: "https://vendor.example/list",
        prefixes,
    };
    export(format, &options(name), &[list])
}

/// Returns an export without its comments.
#[track_caller]
fn body(format: Format, texts: &[&str]) -> String {
    let text = export_one(format, "allow-list", &prefixes(texts)).expect("the export is valid");
    without_comments(&text)
}

fn without_comments(text: &str) -> String {
    let is_comment = |line: &&str| line.starts_with('#') || line.starts_with("-- ");
    let rest = text.lines().filter(|line| !is_comment(line));
    rest.flat_map(|line| [line, "\n"]).collect()
}

#[track_caller]
fn check(format: Format, texts: &[&str], expected: &str) {
    assert_eq!(body(format, texts), expected, "{format}");
}

#[test]
fn header_names_sources_and_origins() {
    let (vendor, office) = (prefixes(VENDOR), prefixes(OFFICE));
    let lists = [
        Listed {
            source: "vendor",
            origin: "https://vendor.example/list",
            prefixes: &vendor,
        },
        Listed {
            source: "off\nice",
            origin: "/etc/\r\noffice\n",
            prefixes: &office,
        },
    ];
    let text = export(Format::Plain, &options("allowlist"), &lists).expect("the export is valid");
    expect![[r##"
        # allowlist: 2 IPv4 and 2 IPv6 prefixes after merging, exported 2026-10-05T12:00:00Z
        # source vendor: 6 prefixes, from https://vendor.example/list
        # source off\nice: 2 prefixes, from /etc/\r\noffice\n
        # A source of allowlist reads it with `file = "PATH"`. One prefix per line, distinct, not merged.
        192.0.2.0/25
        192.0.2.7/32
        192.0.2.128/25
        203.0.113.9/32
        2001:db8::/48
        2001:db8:1::/48
        2001:db8:ffff::1/128
    "##]]
    .assert_eq(&text);
    let mut listed: Vec<_> = vendor.into_iter().chain(office).collect();
    listed.sort_unstable();
    listed.dedup();
    let today = jiff::civil::date(2026, 11, 24);
    let read =
        feed::parse(&allowlist_policy::Format::Text, text.as_bytes(), today).expect("is a list");
    assert_eq!(read.prefixes, listed);
}

#[test]
fn json_has_each_source_and_the_merged_prefixes() {
    let (vendor, office) = (prefixes(&VENDOR[..4]), prefixes(OFFICE));
    let lists = [("vendor", &vendor), ("office", &office)].map(|(source, prefixes)| Listed {
        source,
        origin: "\"the\nconfiguration\"",
        prefixes,
    });
    let text = export(Format::Json, &options("all"), &lists).expect("the export is valid");
    let document: serde_json::Value = serde_json::from_str(&text).expect("the text is JSON");
    let origin = "\"the\nconfiguration\"";
    assert_eq!(
        document,
        serde_json::json!({
            "generated": "2026-10-05T12:00:00Z",
            "name": "all",
            "sources": {
                "vendor": {
                    "origin": origin,
                    "prefixes": ["192.0.2.0/25", "192.0.2.7/32", "192.0.2.128/25", "203.0.113.9/32"],
                },
                "office": { "origin": origin, "prefixes": ["203.0.113.9/32", "2001:db8:ffff::1/128"] },
            },
            "prefixes": ["192.0.2.0/24", "203.0.113.9/32", "2001:db8:ffff::1/128"],
        })
    );
}

#[test]
fn nft_replaces_two_sets() {
    let start = "add table inet allow-list
add set inet allow-list v4 { type ipv4_addr; flags interval; }
add set inet allow-list v6 { type ipv6_addr; flags interval; }
flush set inet allow-list v4
flush set inet allow-list v6
";
    for (texts, elements) in [
        (
            VENDOR,
            "add element inet allow-list v4 {
    192.0.2.0/24,
    203.0.113.9/32,
}
add element inet allow-list v6 {
    2001:db8::/47,
}
",
        ),
        (
            EVERYBODY,
            "add element inet allow-list v4 {
    0.0.0.0/0,
}
add element inet allow-list v6 {
    ::/0,
}
",
        ),
        (
            &VENDOR[..1],
            "add element inet allow-list v4 {\n    203.0.113.9/32,\n}\n",
        ),
        (
            &OFFICE[1..],
            "add element inet allow-list v6 {\n    2001:db8:ffff::1/128,\n}\n",
        ),
    ] {
        check(Format::Nft, texts, &format!("{start}{elements}"));
    }
}

#[test]
fn ipset_fills_and_swaps() {
    let expected = |elements: &str| {
        format!(
            "create allow-list-v4 hash:net family inet hashsize 1024 maxelem 16777216 -exist
create allow-list-v6 hash:net family inet6 hashsize 1024 maxelem 16777216 -exist
create allow-list-t4 hash:net family inet hashsize 1024 maxelem 16777216 -exist
create allow-list-t6 hash:net family inet6 hashsize 1024 maxelem 16777216 -exist
flush allow-list-t4
flush allow-list-t6
{elements}swap allow-list-v4 allow-list-t4
swap allow-list-v6 allow-list-t6
destroy allow-list-t4
destroy allow-list-t6
"
        )
    };
    for (texts, elements) in [
        (
            VENDOR,
            "add allow-list-t4 192.0.2.0/24
add allow-list-t4 203.0.113.9/32
add allow-list-t6 2001:db8::/47
",
        ),
        (
            EVERYBODY,
            "add allow-list-t4 0.0.0.0/1
add allow-list-t4 128.0.0.0/1
add allow-list-t6 ::/1
add allow-list-t6 8000::/1
",
        ),
        (&OFFICE[1..], "add allow-list-t6 2001:db8:ffff::1/128\n"),
    ] {
        check(Format::Ipset, texts, &expected(elements));
    }
    let text = export_one(Format::Ipset, "a", &apart(1500)).expect("the export is valid");
    assert!(text.contains("create a-t4 hash:net family inet hashsize 2048 "));
    assert!(text.contains("create a-v4 hash:net family inet hashsize 1024 "));
}

#[test]
fn iptables_has_rules_for_both_families() {
    for (texts, rules) in [
        (
            VENDOR,
            "-4 -A ALLOW-LIST -s 192.0.2.0/24 -j ACCEPT
-4 -A ALLOW-LIST -s 203.0.113.9/32 -j ACCEPT
-6 -A ALLOW-LIST -s 2001:db8::/47 -j ACCEPT
",
        ),
        (
            EVERYBODY,
            "-4 -A ALLOW-LIST -s 0.0.0.0/0 -j ACCEPT\n-6 -A ALLOW-LIST -s ::/0 -j ACCEPT\n",
        ),
        (
            &VENDOR[..1],
            "-4 -A ALLOW-LIST -s 203.0.113.9/32 -j ACCEPT\n",
        ),
    ] {
        let expected =
            format!("*filter\n:ALLOW-LIST - [0:0]\n{rules}-A ALLOW-LIST -j RETURN\nCOMMIT\n");
        check(Format::Iptables, texts, &expected);
    }
}

#[test]
fn nginx_and_haproxy_lines() {
    check(
        Format::Nginx,
        VENDOR,
        "allow 192.0.2.0/24;\nallow 203.0.113.9/32;\nallow 2001:db8::/47;\ndeny all;\n",
    );
    check(
        Format::Haproxy,
        VENDOR,
        "192.0.2.0/24\n203.0.113.9/32\n2001:db8::/47\n",
    );
}

#[test]
fn aws_security_group_permissions() {
    let parsed = |texts| -> serde_json::Value {
        serde_json::from_str(&body(Format::AwsSecurityGroup, texts)).expect("the text is JSON")
    };
    let description = "allow-list as of 2026-10-05T12:00:00Z";
    let v6 = serde_json::json!({ "CidrIpv6": "2001:db8::/47", "Description": description });
    assert_eq!(
        parsed(VENDOR),
        serde_json::json!([{
            "IpProtocol": "tcp",
            "FromPort": 443,
            "ToPort": 443,
            "IpRanges": [
                { "CidrIp": "192.0.2.0/24", "Description": description },
                { "CidrIp": "203.0.113.9/32", "Description": description },
            ],
            "Ipv6Ranges": [v6],
        }])
    );
    assert_eq!(
        parsed(&VENDOR[4..]),
        serde_json::json!([
            { "IpProtocol": "tcp", "FromPort": 443, "ToPort": 443, "Ipv6Ranges": [v6] }
        ])
    );
}

#[test]
fn terraform_has_a_list_per_family() {
    check(
        Format::Terraform,
        &VENDOR[..4],
        "locals {
  allow_list_ipv4 = [
    \"192.0.2.0/24\",
    \"203.0.113.9/32\",
  ]
  allow_list_ipv6 = []
}
",
    );
}

#[test]
fn mysql_accounts_are_locked() {
    let text = export_one(
        Format::MysqlGrant,
        "all",
        &prefixes(&[VENDOR, OFFICE].concat()),
    )
    .expect("the export is valid");
    let comments: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("-- "))
        .collect();
    expect![[r#"
        -- all: 2 IPv4 and 2 IPv6 prefixes after merging, exported 2026-10-05T12:00:00Z
        -- source vendor: 8 prefixes, from https://vendor.example/list
        -- Load: mysql < FILE. Statements are independent; after an error, load the file again.
        -- New accounts are locked. This prints the statements that set a password and unlock them:
        --   SELECT CONCAT('ALTER USER ', QUOTE(User), '@', QUOTE(Host), ' IDENTIFIED BY ''PASSWORD'' ACCOUNT UNLOCK;')
        --   FROM mysql.user WHERE User = 'reader';
        -- The accounts have only SELECT; change that to the privileges that the vendor requires.
        -- The last statement prints the statements that drop the user's accounts outside of this list.
        -- 2001:db8::/47 is omitted: the host of an account is an IPv4 prefix or one address"#]].assert_eq(&comments.join("\n"));
    assert_eq!(
        without_comments(&text),
        "CREATE USER IF NOT EXISTS 'reader'@'192.0.2.0/255.255.255.0' ACCOUNT LOCK;
GRANT SELECT ON `db\\_1`.* TO 'reader'@'192.0.2.0/255.255.255.0';
CREATE USER IF NOT EXISTS 'reader'@'203.0.113.9' ACCOUNT LOCK;
GRANT SELECT ON `db\\_1`.* TO 'reader'@'203.0.113.9';
CREATE USER IF NOT EXISTS 'reader'@'2001:db8:ffff::1' ACCOUNT LOCK;
GRANT SELECT ON `db\\_1`.* TO 'reader'@'2001:db8:ffff::1';
SELECT CONCAT('DROP USER ', QUOTE(User), '@', QUOTE(Host), ';') AS not_in_this_list
FROM mysql.user WHERE User = 'reader' AND Host NOT IN (
'192.0.2.0/255.255.255.0',
'203.0.113.9',
'2001:db8:ffff::1');
"
    );
    let everybody = body(Format::MysqlGrant, EVERYBODY);
    for host in ["0.0.0.0/128.0.0.0", "128.0.0.0/128.0.0.0"] {
        assert!(everybody.contains(&format!("TO 'reader'@'{host}';")));
    }
}
