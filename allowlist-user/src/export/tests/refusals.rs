//! The errors of exports that would be misread, or would lock everyone out.

use std::collections::BTreeSet;

use expect_test::expect;

use super::*;

#[test]
fn invalid_names_are_refused() {
    let long = "a".repeat(29);
    let longer = "a".repeat(129);
    let mut errors = Vec::new();
    for (format, given) in [
        (Format::Nft, ""),
        (Format::Nft, "1office"),
        (Format::Nft, "-a"),
        (Format::Nft, &longer),
        (Format::Ipset, &long),
        (Format::Iptables, &long),
    ] {
        let error = export_one(format, given, &prefixes(VENDOR)).expect_err("the name is invalid");
        assert!(matches!(error, ExportError::Name { .. }), "{error}");
        errors.push(error.to_string());
    }
    for (given, expected) in [("input", "INPUT"), ("Accept", "ACCEPT")] {
        let error = export_one(Format::Iptables, given, &prefixes(VENDOR)).expect_err("reserved");
        assert!(
            matches!(&error, ExportError::ReservedChain { chain } if chain == expected),
            "{error}"
        );
        errors.push(error.to_string());
    }
    expect![[r#"
        "" cannot be a name in the format nft: write at most 128 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        "1office" cannot be a name in the format nft: write at most 128 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        "-a" cannot be a name in the format nft: write at most 128 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" cannot be a name in the format nft: write at most 128 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" cannot be a name in the format ipset: write at most 28 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" cannot be a name in the format iptables: write at most 28 letters, digits, `-` and `_`, a letter first, such as "allowlist"
        INPUT is a word of iptables' own, and its rules would be lost; write another name, such as "allowlist"
        ACCEPT is a word of iptables' own, and its rules would be lost; write another name, such as "allowlist""#]].assert_eq(&errors.join("\n"));
    let hostile = [
        "a b", "a;b", "a\nb", "a'b", "a\"b", "a{b", "a$b", "a#b", "ä", "a.b", "a/b", "a\0",
    ];
    for (format, given) in Format::ALL
        .into_iter()
        .flat_map(|format| hostile.map(|name| (format, name)))
    {
        let error = export_one(format, given, &prefixes(VENDOR)).expect_err("the name is invalid");
        assert!(matches!(error, ExportError::Name { .. }), "{error}");
    }
    for format in [Format::Ipset, Format::Iptables] {
        export_one(format, &long[1..], &prefixes(VENDOR)).expect("the name has the maximum length");
    }
}

#[test]
fn an_empty_export_is_refused() {
    let mut errors = BTreeSet::new();
    for format in Format::ALL {
        let error = export_one(format, "vendor", &[]).expect_err("the list is empty");
        errors.insert(error.to_string());
        assert_eq!(export(format, &options("vendor"), &[]), Err(error));
    }
    let errors: Vec<_> = errors.into_iter().collect();
    expect!["vendor has no prefix to export, and a firewall that takes an empty list lets nobody in; see `allowlist fetch` for what its sources hold"].assert_eq(&errors.join("\n"));
}

#[test]
fn a_security_group_has_at_most_1000_rules() {
    assert!(export_one(Format::AwsSecurityGroup, "a", &apart(1000)).is_ok());
    let error = export_one(Format::AwsSecurityGroup, "a", &apart(1001)).expect_err("too many");
    expect!["1001 IPv4 prefixes do not fit into a security group, which has at most 1000 rules; export fewer sources, or put the filter on the host"].assert_eq(&error.to_string());
}

#[test]
fn invalid_accounts_are_refused() {
    let mysql = |user, database, texts: &[&str]| {
        let prefixes = prefixes(texts);
        let list = Listed {
            source: "vendor",
            origin: "the configuration",
            prefixes: &prefixes,
        };
        let options = Options {
            user,
            database,
            ..options("vendor")
        };
        export(Format::MysqlGrant, &options, &[list]).expect_err("the account is invalid")
    };
    let long = "u".repeat(33);
    let errors = [
        (None, Some("db1"), VENDOR),
        (Some("u"), None, VENDOR),
        (Some("u'@'%"), Some("db1"), VENDOR),
        (Some("u"), Some("%"), VENDOR),
        (Some(&*long), Some("db1"), VENDOR),
        (Some("u"), Some("db1"), &VENDOR[4..]),
    ]
    .map(|(user, database, texts)| mysql(user, database, texts));
    let [
        ExportError::NoAccount { what: "user" },
        ExportError::NoAccount { what: "database" },
        ExportError::Account { what: "user", .. },
        ExportError::Account {
            what: "database",
            longest: 64,
            ..
        },
        ExportError::Account {
            what: "user",
            longest: 32,
            ..
        },
        ExportError::NoHost { count: 1, .. },
    ] = &errors
    else {
        panic!("{errors:?}")
    };
    expect![[r#"
        mysql-grant makes accounts, and no user is given; name the one that the vendor asks for
        mysql-grant makes accounts, and no database is given; name the one that the vendor asks for
        "u'@'%" cannot be the user of mysql-grant: write at most 32 letters, digits, `-` and `_`
        "%" cannot be the database of mysql-grant: write at most 64 letters, digits, `-` and `_`
        "uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu" cannot be the user of mysql-grant: write at most 32 letters, digits, `-` and `_`
        vendor has IPv6 prefixes alone, 1 of them, and the host of a MySQL account is an IPv4 prefix or one address; filter IPv6 on the host"#]].assert_eq(&errors.map(|error| error.to_string()).join("\n"));
}
