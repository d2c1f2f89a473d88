//! Lists of the addresses of names.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use allowlist_lists::list_update::evaluate_update;
use allowlist_lists::source::{self, FetchError, FetchErrorCause, Fetched, NameError};
use allowlist_policy::error_code::ErrorCode::NameFailed;
use allowlist_policy::{Family, Feed, Lookup, Origin, Source};
use allowlist_tests::name_server::{NameServer, Reply};
use expect_test::expect_file;
use ipnet::IpNet;

use super::{Errors, fetch_origin, written};

const NAME: &str = "hooks.example.com";

fn server(reply: Reply) -> NameServer {
    NameServer::start([(NAME, reply)]).expect("a name server")
}

fn lookup(names: &[&str], servers: &[SocketAddr]) -> Lookup {
    Lookup {
        resolvers: servers.to_vec(),
        timeout: Duration::from_secs(20),
        ..Lookup::new(names.iter().map(|&name| name.to_owned()).collect())
    }
}

fn fetch(server: &NameServer) -> Result<Fetched, FetchError> {
    fetch_origin(Origin::Names(lookup(&[NAME], &[server.address()])))
}

fn hasty(servers: &[SocketAddr], milliseconds: u64) -> Result<Fetched, FetchError> {
    fetch_origin(Origin::Names(Lookup {
        timeout: Duration::from_millis(milliseconds),
        ..lookup(&[NAME], servers)
    }))
}

#[track_caller]
fn check(fetched: Result<Fetched, FetchError>, expected: &[&str], again: u64) {
    let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(written(&fetched), expected);
    assert_eq!(fetched.again, Some(Duration::from_secs(again)));
    assert_eq!(fetched.validators, []);
}

/// Checks the error of a fetch of names.
#[track_caller]
fn check_error(fetched: &Result<Fetched, FetchError>, is_expected: impl Fn(&NameError) -> bool) {
    let cause = fetched.as_ref().map_err(|error| &*error.cause);
    assert!(
        matches!(cause, Err(FetchErrorCause::Name(error)) if is_expected(error)),
        "{fetched:?}"
    );
}

fn is_gone(error: &NameError) -> bool {
    matches!(error, NameError::NoSuchName { .. })
}

fn is_without_addresses(error: &NameError) -> bool {
    matches!(error, NameError::NoAddresses { .. })
}

/// Returns a snapshot with a placeholder for the server's address.
fn errors_of(server: &NameServer) -> Errors {
    let mut errors = Errors::default();
    errors.name(&server.address().to_string(), "<server>");
    errors
}

#[test]
fn a_name_has_the_addresses_of_both_families() {
    let server = server(Reply::records([
        "hooks.example.com 300 A 192.0.2.2",
        "hooks.example.com 300 A 192.0.2.1",
        "hooks.example.com 120 AAAA 2001:db8::1",
    ]));
    check(
        fetch(&server),
        &["192.0.2.1/32", "192.0.2.2/32", "2001:db8::1/128"],
        120,
    );
    // The queries are fully qualified, and none is repeated.
    let mut queries = server.questions();
    queries.sort();
    let expected = ["udp hooks.example.com. A", "udp hooks.example.com. AAAA"];
    assert_eq!(queries, expected);
    // There is no cache.
    server.reply(NAME, Reply::records(["hooks.example.com 300 A 192.0.2.9"]));
    check(fetch(&server), &["192.0.2.9/32"], 300);
}

#[test]
fn one_family_is_enough() {
    let record = "hooks.example.com 60 AAAA 2001:db8::1";
    check(
        fetch(&server(Reply::records([record]))),
        &["2001:db8::1/128"],
        60,
    );
}

#[test]
fn a_time_to_live_has_a_floor() {
    let server = server(Reply::records(["hooks.example.com 1 A 192.0.2.1"]));
    check(fetch(&server), &["192.0.2.1/32"], 30);
}

#[test]
fn several_names_form_one_list() {
    let server = NameServer::start([
        (
            "a.example.com",
            Reply::records(["a.example.com 600 A 192.0.2.1"]),
        ),
        (
            "b.example.com",
            Reply::records([
                "b.example.com 400 A 192.0.2.1",
                "b.example.com 500 AAAA 2001:db8::1",
            ]),
        ),
    ])
    .expect("a name server");
    let names = |names| fetch_origin(Origin::Names(lookup(names, &[server.address()])));
    check(
        names(&["a.example.com", "B.Example.COM."]),
        &["192.0.2.1/32", "2001:db8::1/128"],
        400,
    );
    // The list fails if one name fails.
    let mut errors = errors_of(&server);
    let gone = names(&["a.example.com", "c.example.com"]);
    check_error(&gone, is_gone);
    errors.add("one does not exist", &gone, NameFailed);
    let invalid = names(&["a..example.com"]);
    check_error(&invalid, |error| {
        matches!(error, NameError::NotAName { .. })
    });
    errors.add("not a name", &invalid, NameFailed);
    errors.check(&expect_file!["snapshots/names.txt"]);
}

#[test]
fn a_removed_name_fails() {
    let server = server(Reply::records(["hooks.example.com 60 A 192.0.2.1"]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    server.reply(NAME, Reply::NoSuchName);
    check_error(&fetch(&server), is_gone);
}

#[test]
fn a_name_without_addresses_fails() {
    let server = server(Reply::records([]));
    let fetched = fetch(&server);
    check_error(&fetched, is_without_addresses);
    let mut errors = errors_of(&server);
    errors.add("no records", &fetched, NameFailed);
    errors.check(&expect_file!["snapshots/name_without_addresses.txt"]);
}

#[test]
fn aliases_are_followed() {
    // In one answer, by several queries, and both.
    let server = NameServer::start([
        (
            NAME,
            Reply::records([
                "hooks.example.com 600 CNAME hooks.gslb.example.com",
                "hooks.gslb.example.com 90 CNAME pool.example.net",
            ]),
        ),
        (
            "pool.example.net",
            Reply::records([
                "pool.example.net 500 CNAME one.pool.example.net",
                "one.pool.example.net 700 A 192.0.2.1",
                "one.pool.example.net 700 AAAA 2001:db8::1",
            ]),
        ),
        (
            "one.pool.example.net",
            Reply::records([
                "one.pool.example.net 700 A 192.0.2.1",
                "one.pool.example.net 700 AAAA 2001:db8::1",
            ]),
        ),
    ])
    .expect("a name server");
    check(fetch(&server), &["192.0.2.1/32", "2001:db8::1/128"], 90);
}

#[test]
fn unrelated_records_are_ignored() {
    let server = server(Reply::records([
        "hooks.example.com 600 CNAME pool.example.net",
        "pool.example.net 600 A 192.0.2.1",
        "evil.example.net 600 A 203.0.113.66",
        "evil.example.net 600 CNAME pool.example.net",
    ]));
    server.reply("pool.example.net", Reply::records([]));
    check(fetch(&server), &["192.0.2.1/32"], 600);
}

#[test]
fn aliases_without_addresses_fail() {
    let to_nothing = ["hooks.example.com 60 CNAME pool.example.net"];
    let server = server(Reply::records(to_nothing));
    // The end of the chain does not exist, or has no records.
    let mut errors = errors_of(&server);
    let fetched = fetch(&server);
    check_error(&fetched, is_gone);
    errors.add("the alias's target does not exist", &fetched, NameFailed);
    server.reply("pool.example.net", Reply::records([]));
    let fetched = fetch(&server);
    check_error(&fetched, is_without_addresses);
    errors.add("the alias's target has no records", &fetched, NameFailed);
    errors.check(&expect_file!["snapshots/aliases.txt"]);
}

#[test]
fn aliases_in_a_circle_fail() {
    let circle = [
        "hooks.example.com 60 CNAME pool.example.net",
        "pool.example.net 60 CNAME hooks.example.com",
    ];
    for lines in [&circle[..], &circle[..1]] {
        let server = server(Reply::records(lines.iter().copied()));
        server.reply("pool.example.net", Reply::records([circle[1]]));
        check_error(&fetch(&server), is_without_addresses);
    }
}

#[test]
fn truncated_answers_are_repeated_over_tcp() {
    let record = "hooks.example.com 60 A 192.0.2.1".to_owned();
    let server = server(Reply::OverTcp(vec![record]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    let queries = server.questions();
    assert!(
        queries.contains(&"tcp hooks.example.com. A".to_owned()),
        "{queries:?}"
    );
}

#[test]
fn a_name_has_a_maximum_number_of_addresses() {
    let lines = |count: usize| {
        let line = |number| {
            format!(
                "hooks.example.com 60 A 198.18.{}.{}",
                number / 256,
                number % 256
            )
        };
        Reply::OverTcp((0..count).map(line).collect())
    };
    let server = server(lines(1025));
    let fetched = fetch(&server);
    let is_count = |error: &NameError| matches!(error, NameError::TooMany { found: 1025, .. });
    check_error(&fetched, is_count);
    let mut errors = errors_of(&server);
    errors.add("1025 addresses", &fetched, NameFailed);
    errors.check(&expect_file!["snapshots/too_many_addresses.txt"]);
    server.reply(NAME, lines(1024));
    assert_eq!(fetch(&server).expect("fits").prefixes.len(), 1024);
}

/// A fetch does not merge answers; addresses of earlier answers stay for the grace period.
#[test]
fn answers_are_not_merged() {
    let list = |address: &str| vec![format!("hooks.example.com 60 A {address}")];
    let server = server(Reply::Rotating(vec![list("192.0.2.1"), list("192.0.2.2")]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    check(fetch(&server), &["192.0.2.2/32"], 60);
    check(fetch(&server), &["192.0.2.1/32"], 60);
}

#[test]
fn errors_name_the_failing_server() {
    let mut errors = Errors::default();
    for reply in [
        Reply::ServerFailure,
        Reply::Refused,
        Reply::FormatError,
        Reply::NotImplemented,
    ] {
        let title = format!("{reply:?}");
        let server = server(reply);
        let address = server.address();
        errors.name(&address.to_string(), "<server>");
        let fetched = fetch(&server);
        check_error(
            &fetched,
            |error| matches!(error, NameError::Refused { server, .. } if *server == address),
        );
        errors.add(&title, &fetched, NameFailed);
    }
    errors.check(&expect_file!["snapshots/failing_name_servers.txt"]);
}

#[test]
fn an_invalid_answer_is_ignored_until_the_timeout() {
    let mut errors = Errors::default();
    let record = || vec!["hooks.example.com 60 A 203.0.113.66".to_owned()];
    for reply in [
        Reply::Silence,
        Reply::Garbage,
        Reply::WrongId(record()),
        Reply::WrongQuestion(record()),
        Reply::Late(Duration::from_mins(1), record()),
    ] {
        let title = format!("{reply:?}");
        let server = server(reply);
        let address = server.address();
        errors.name(&address.to_string(), "<server>");
        let fetched = hasty(&[address], 700);
        check_error(
            &fetched,
            |error| matches!(error, NameError::Timeout { server, .. } if *server == address),
        );
        errors.add(&title, &fetched, NameFailed);
    }
    errors.check(&expect_file!["snapshots/silent_name_servers.txt"]);
}

#[test]
fn late_answers_are_accepted() {
    let record = "hooks.example.com 60 A 192.0.2.1".to_owned();
    let server = server(Reply::Late(Duration::from_millis(300), vec![record]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
}

#[test]
fn the_next_server_is_queried_when_one_fails() {
    let good = server(Reply::records(["hooks.example.com 60 A 192.0.2.1"]));
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let silent = silent.local_addr().expect("an address");
    for bad in [
        server(Reply::ServerFailure),
        server(Reply::Refused),
        server(Reply::Silence),
    ] {
        check(
            hasty(&[bad.address(), good.address()], 3000),
            &["192.0.2.1/32"],
            60,
        );
    }
    check(
        hasty(&[silent, good.address()], 3000),
        &["192.0.2.1/32"],
        60,
    );
    // NXDOMAIN is an answer, so no other server is queried.
    let authoritative = server(Reply::NoSuchName);
    check_error(
        &hasty(&[authoritative.address(), good.address()], 3000),
        is_gone,
    );
}

#[test]
fn ipv4_mapped_addresses_fail() {
    let server = server(Reply::records([
        "hooks.example.com 60 AAAA ::ffff:192.0.2.1",
    ]));
    let fetched = fetch(&server);
    check_error(&fetched, |error| matches!(error, NameError::Address { .. }));
    let mut errors = errors_of(&server);
    errors.add("an IPv4-mapped address", &fetched, NameFailed);
    errors.check(&expect_file!["snapshots/mapped_address.txt"]);
}

const V4: &str = "hooks.example.com 300 A 192.0.2.1";
const V6: &str = "hooks.example.com 300 AAAA 2001:db8::1";

/// Returns the replies that make a family fail.
fn failures() -> Vec<Reply> {
    vec![
        Reply::ServerFailure,
        Reply::Refused,
        Reply::NotImplemented,
        Reply::FormatError,
        Reply::NoSuchName,
        Reply::Silence,
        Reply::records(["hooks.example.com 300 AAAA ::ffff:192.0.2.1"]),
    ]
}

/// Returns a timeout in milliseconds: short for silent servers, since their tests wait for it.
fn patience(reply: &Reply) -> u64 {
    let is_silent = |reply: &Reply| matches!(reply, Reply::Silence);
    match reply {
        Reply::ByFamily(replies) if replies.iter().any(is_silent) => 2000,
        reply if is_silent(reply) => 2000,
        _ => 30_000,
    }
}

#[test]
fn one_family_is_updated_while_the_other_fails() {
    let mut errors = Errors::default();
    let good = || [Reply::records([V4]), Reply::records([V6])];
    for failing in [Family::V4, Family::V6] {
        for reply in failures() {
            let title = format!("{failing:?} {reply:?}");
            let is_missing = matches!(reply, Reply::NoSuchName);
            let [v4, v6] = good();
            // The IPv4-mapped address is an AAAA record, so only IPv6 can fail by it.
            let (reply, expected) = match failing {
                Family::V4 if matches!(reply, Reply::Records(_)) => continue,
                Family::V4 => (Reply::by_family(reply, v6), "2001:db8::1/128"),
                Family::V6 => (Reply::by_family(v4, reply), "192.0.2.1/32"),
            };
            let milliseconds = patience(&reply);
            let server = server(reply);
            errors.name(&server.address().to_string(), "<server>");
            let fetched = hasty(&[server.address()], milliseconds);
            let fetched = fetched.expect("the addresses of the other family");
            assert_eq!(written(&fetched), [expected]);
            assert_eq!(fetched.kept, [failing]);
            // The next query is made before the records expire.
            assert_eq!(fetched.again, Some(Duration::from_mins(1)));
            let [note] = &fetched.notes[..] else {
                panic!("{:?}", fetched.notes)
            };
            let (record, leave_out) = match failing {
                Family::V4 => (" A ", "families = [\"ipv6\"]"),
                Family::V6 => (" AAAA ", "families = [\"ipv4\"]"),
            };
            assert!(note.contains(leave_out), "{note}");
            assert!(note.contains(record) || note.contains("::ffff:"), "{note}");
            assert!(!is_missing || !note.contains("spelling"), "{note}");
            errors.text(&title, note.clone());
        }
    }
    errors.check(&expect_file!["snapshots/notes_of_one_family.txt"]);
}

#[test]
fn a_family_that_fails_beside_one_without_records_fails_the_name() {
    for reply in failures() {
        let is_missing = matches!(reply, Reply::NoSuchName);
        let milliseconds = patience(&reply);
        let server = server(Reply::by_family(Reply::records([]), reply));
        let error = hasty(&[server.address()], milliseconds).expect_err("no addresses");
        // NXDOMAIN and an answer without records both mean that the name has no addresses.
        let means_none = matches!(
            &*error.cause,
            FetchErrorCause::Name(NameError::NoSuchName { .. } | NameError::NoAddresses { .. })
        );
        assert_eq!(means_none, is_missing, "{error}");
    }
}

#[test]
fn a_family_can_be_left_out() {
    let server = server(Reply::by_family(Reply::records([V4]), Reply::ServerFailure));
    let only = |family| {
        fetch_origin(Origin::Names(Lookup {
            families: vec![family],
            ..lookup(&[NAME], &[server.address()])
        }))
    };
    check(only(Family::V4), &["192.0.2.1/32"], 300);
    assert_eq!(server.questions(), ["udp hooks.example.com. A"]);
    assert!(only(Family::V6).is_err());
}

#[test]
fn queries_are_repeated_without_edns() {
    let lines = [V4, V6].map(str::to_owned).to_vec();
    let server = server(Reply::NoEdns(lines));
    check(fetch(&server), &["192.0.2.1/32", "2001:db8::1/128"], 300);
}

#[test]
fn addresses_synthesized_by_dns64_are_ignored() {
    // 192.0.2.1 in the well-known prefix 64:ff9b::/96, and in a prefix of this network, 2001:db8:64::/96.
    let well_known = "hooks.example.com 300 AAAA 64:ff9b::c000:201";
    let own = "hooks.example.com 300 AAAA 2001:db8:64::c000:201";
    let probe = |lines: &[&str]| Reply::records(lines.iter().copied());
    let shown = [
        "ipv4only.arpa 60 AAAA 2001:db8:64::c000:aa",
        "ipv4only.arpa 60 AAAA 2001:db8:64::c000:ab",
    ];
    let without_translator = ["ipv4only.arpa 60 A 192.0.0.170"];
    let both = ["192.0.2.1/32", "2001:db8:64::c000:201/128"];
    for (record, probed, expected) in [
        (well_known, probe(&without_translator), &both[..1]),
        (own, probe(&shown), &both[..1]),
        // Without a translator, the address is the owner's choice.
        (own, probe(&without_translator), &both[..]),
    ] {
        let server = server(Reply::records([V4, record]));
        server.reply("ipv4only.arpa", probed);
        check(fetch(&server), expected, 300);
    }
    // Without A records, the gate decides.
    let alone = server(Reply::records([well_known]));
    check(fetch(&alone), &["64:ff9b::c000:201/128"], 300);
}

/// The last addresses of the failing family stay, and the change of the other family is applied.
#[test]
fn each_family_keeps_its_own_last_answer() {
    let source = Source::new("vendor", Origin::Names(lookup(&[NAME], &[])));
    let now = jiff::Timestamp::now();
    let prefixes = |texts: &[&str]| -> Vec<IpNet> {
        let parse = |text: &&str| text.parse().expect("a prefix");
        texts.iter().map(parse).collect()
    };
    let server = server(Reply::records(["hooks.example.com 60 A 192.0.2.9"]));
    server.reply(
        NAME,
        Reply::by_family(
            Reply::records(["hooks.example.com 60 A 9.9.9.9"]),
            Reply::ServerFailure,
        ),
    );
    let last = Feed::new(prefixes(&["1.1.1.1/32", "2606:4700::1/128"]), now);
    let answer = source::Answer::List(fetch(&server).expect("A records"));
    let update = evaluate_update(&source, Some(&last), answer, false, now).expect("passes");
    assert_eq!(
        update.feed.prefixes,
        prefixes(&["9.9.9.9/32", "2606:4700::1/128"])
    );
    assert_eq!(update.difference.removed, prefixes(&["1.1.1.1/32"]));
    assert_eq!(update.feed.notes.len(), 1);
}
