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
        assert_eq!(error.code(), ErrorCode::InvalidRequest);
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
        "" is not a valid name in the format nft: use up to 128 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        "1office" is not a valid name in the format nft: use up to 128 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        "-a" is not a valid name in the format nft: use up to 128 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is not a valid name in the format nft: use up to 128 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is not a valid name in the format ipset: use up to 28 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is not a valid name in the format iptables: use up to 28 letters, digits, `-` and `_`, and start with a letter, such as "allowlist"
        INPUT is a built-in chain or target of iptables, whose rules the export would replace; use another name, such as "allowlist"
        ACCEPT is a built-in chain or target of iptables, whose rules the export would replace; use another name, such as "allowlist""#]].assert_eq(&errors.join("\n"));
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
        assert_eq!(error.code(), ErrorCode::ListEmpty);
        errors.insert(error.to_string());
        assert_eq!(export(format, &options("vendor"), &[]), Err(error));
    }
    let errors: Vec<_> = errors.into_iter().collect();
    expect!["vendor has no prefix to export, and an empty list would lock everyone out of a firewall; check its sources with `allowlist fetch`"].assert_eq(&errors.join("\n"));
}

#[test]
fn a_security_group_has_at_most_1000_rules() {
    assert!(export_one(Format::AwsSecurityGroup, "a", &apart(1000)).is_ok());
    let error = export_one(Format::AwsSecurityGroup, "a", &apart(1001)).expect_err("too many");
    assert_eq!(error.code(), ErrorCode::Refused);
    expect!["1001 IPv4 prefixes do not fit into a security group, which has up to 1000 rules; export fewer sources, or run allowlist on the servers"].assert_eq(&error.to_string());
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
        mysql-grant requires a user; set --user to the user that the vendor requires
        mysql-grant requires a database; set --database to the database that the vendor requires
        "u'@'%" is not a valid user for mysql-grant: use up to 32 letters, digits, `-` and `_`
        "%" is not a valid database for mysql-grant: use up to 64 letters, digits, `-` and `_`
        "uuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuuu" is not a valid user for mysql-grant: use up to 32 letters, digits, `-` and `_`
        vendor has only IPv6 prefixes (1), but the host of a MySQL account is an IPv4 prefix or one address; filter IPv6 on the database server"#]].assert_eq(&errors.map(|error| error.to_string()).join("\n"));
}
