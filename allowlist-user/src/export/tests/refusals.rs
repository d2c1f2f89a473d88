//! What is not written, and what is said instead.

use super::*;

#[test]
fn what_cannot_be_is_refused() {
    let name = |format: &str, name: &str, longest| {
        format!(
            "{name:?} cannot be a name in the format {format}: write at most {longest} letters, digits, \
             `-` and `_`, a letter first, such as \"allowlist\""
        )
    };
    let long = "a".repeat(29);
    let longer = "a".repeat(129);
    let word = |name| {
        format!(
            "{name} is a word of iptables' own, and its rules would be lost; write another name, such as \
             \"allowlist\""
        )
    };
    for (format, given, expected) in [
        (Format::Nft, "", name("nft", "", 128)),
        (Format::Nft, "1office", name("nft", "1office", 128)),
        (Format::Nft, "-a", name("nft", "-a", 128)),
        (Format::Nft, &longer, name("nft", &longer, 128)),
        (Format::Ipset, &long, name("ipset", &long, 28)),
        (Format::Iptables, &long, name("iptables", &long, 28)),
        (Format::Iptables, "input", word("INPUT")),
        (Format::Iptables, "Accept", word("ACCEPT")),
    ] {
        let error = export_one(format, given, &prefixes(VENDOR)).expect_err("it is wrong");
        assert_eq!(error.to_string(), expected);
    }
    let hostile = [
        "a b", "a;b", "a\nb", "a'b", "a\"b", "a{b", "a$b", "a#b", "ä", "a.b", "a/b", "a\0",
    ];
    for (format, given) in Format::ALL
        .into_iter()
        .flat_map(|format| hostile.map(|name| (format, name)))
    {
        let error = export_one(format, given, &prefixes(VENDOR)).expect_err("it is wrong");
        assert!(matches!(error, ExportError::Name { .. }), "{error}");
    }
    for format in [Format::Ipset, Format::Iptables] {
        export_one(format, &long[1..], &prefixes(VENDOR)).expect("it is just short enough");
    }
}

#[test]
fn nobody_is_no_list() {
    for format in Format::ALL {
        let error = export_one(format, "vendor", &[]).expect_err("nobody is listed");
        assert_eq!(
            error.to_string(),
            "vendor has no prefix to export, and a firewall that takes an empty list lets nobody in; see \
             `allowlist fetch` for what its sources hold"
        );
        assert_eq!(export(format, &options("vendor"), &[]), Err(error));
    }
}

#[test]
fn a_security_group_has_an_end() {
    assert!(export_one(Format::AwsSecurityGroup, "a", &apart(1000)).is_ok());
    let error = export_one(Format::AwsSecurityGroup, "a", &apart(1001)).expect_err("too many");
    assert_eq!(
        error.to_string(),
        "1001 IPv4 prefixes do not fit into a security group, which has at most 1000 rules; export fewer \
         sources, or put the filter on the host"
    );
}

#[test]
fn accounts_are_not_invented() {
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
        let error = export(Format::MysqlGrant, &options, &[list]).expect_err("it is wrong");
        error.to_string()
    };
    let long = "u".repeat(33);
    for (user, database, texts, expected) in [
        (None, Some("db1"), VENDOR, "no user is given"),
        (Some("u"), None, VENDOR, "no database is given"),
        (
            Some("u'@'%"),
            Some("db1"),
            VENDOR,
            "\"u'@'%\" cannot be the user",
        ),
        (
            Some("u"),
            Some("%"),
            VENDOR,
            "\"%\" cannot be the database of mysql-grant: write at most 64 ",
        ),
        (
            Some(&long),
            Some("db1"),
            VENDOR,
            "cannot be the user of mysql-grant: write at most 32 ",
        ),
        (
            Some("u"),
            Some("db1"),
            &VENDOR[4..],
            "vendor has IPv6 prefixes alone, 1 of them",
        ),
    ] {
        let error = mysql(user, database, texts);
        assert!(error.contains(expected), "{expected:?} is not in {error:?}");
    }
}
