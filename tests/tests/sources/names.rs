//! The addresses of names.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use allowlist_tests::name_server::{NameServer, Reply};
use allowlist_user::policy::{Lookup, Origin};
use allowlist_user::source::{FetchError, Fetched};

use super::{check_words, fetch_origin, written};

const NAME: &str = "hooks.example.com";
const CHECK: &str = "check its spelling, and the vendor's documentation for a new name";

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

/// `expected` follows the names; `{server}` stands for the address.
#[track_caller]
fn check_refused(fetched: &Result<Fetched, FetchError>, server: SocketAddr, expected: &str) {
    let expected = expected.replace("{server}", &server.to_string());
    check_words(fetched, &format!("the addresses of {NAME}: {expected}"));
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
    // Fully qualified, and nothing is asked twice.
    let mut asked = server.questions();
    asked.sort();
    let expected = ["udp hooks.example.com. A", "udp hooks.example.com. AAAA"];
    assert_eq!(asked, expected);
    // Nor is anything remembered.
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
fn several_names_are_one_list() {
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
    // All of them, or none.
    check_words(
        &names(&["a.example.com", "c.example.com"]),
        &format!(
            "the addresses of a.example.com, c.example.com: c.example.com does not exist; {CHECK}"
        ),
    );
    check_words(
        &names(&["a..example.com"]),
        "the addresses of a..example.com: \"a..example.com\" is not a name: {*}; write one such as \
         \"hooks.example.com\"",
    );
}

#[test]
fn a_name_that_goes_away_fails() {
    let server = server(Reply::records(["hooks.example.com 60 A 192.0.2.1"]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    server.reply(NAME, Reply::NoSuchName);
    let gone = format!("{NAME} does not exist; {CHECK}");
    check_refused(&fetch(&server), server.address(), &gone);
}

#[test]
fn a_name_without_addresses_fails() {
    let server = server(Reply::records([]));
    let none = format!("{NAME} has no addresses; {CHECK}");
    check_refused(&fetch(&server), server.address(), &none);
}

#[test]
fn aliases_are_followed() {
    // In one answer, by several questions, and both.
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
fn an_address_counts_only_if_the_name_leads_to_it() {
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
fn aliases_that_lead_nowhere_fail() {
    let to_nothing = ["hooks.example.com 60 CNAME pool.example.net"];
    let server = server(Reply::records(to_nothing));
    // The end of the chain does not exist, or has nothing.
    let gone = format!("{NAME} does not exist; {CHECK}");
    check_refused(&fetch(&server), server.address(), &gone);
    server.reply("pool.example.net", Reply::records([]));
    let none = format!(
        "{NAME} has no addresses: its aliases lead to pool.example.net, which has none, or in a \
         circle; {CHECK}"
    );
    check_refused(&fetch(&server), server.address(), &none);
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
        let start = Instant::now();
        check_refused(
            &fetch(&server),
            server.address(),
            &format!("{NAME} has no addresses{{*}}; {CHECK}"),
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "it ends by itself"
        );
    }
}

#[test]
fn a_long_answer_comes_over_tcp() {
    let record = "hooks.example.com 60 A 192.0.2.1".to_owned();
    let server = server(Reply::OverTcp(vec![record]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    let asked = server.questions();
    assert!(
        asked.contains(&"tcp hooks.example.com. A".to_owned()),
        "{asked:?}"
    );
}

#[test]
fn a_name_has_no_more_addresses_than_can_be_meant() {
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
    check_refused(
        &fetch(&server),
        server.address(),
        &format!(
            "{NAME} has 1025 addresses, and at most 1024 are taken; check that it is the right name"
        ),
    );
    server.reply(NAME, lines(1024));
    assert_eq!(fetch(&server).expect("fits").prefixes.len(), 1024);
}

/// What was there lately stays for the grace period, which is not the fetch's to know.
#[test]
fn rotating_answers_are_each_a_list() {
    let list = |address: &str| vec![format!("hooks.example.com 60 A {address}")];
    let server = server(Reply::Rotating(vec![list("192.0.2.1"), list("192.0.2.2")]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
    check(fetch(&server), &["192.0.2.2/32"], 60);
    check(fetch(&server), &["192.0.2.1/32"], 60);
}

#[test]
fn a_server_that_fails_is_named() {
    let cases = [
        (Reply::ServerFailure, "Server Failure"),
        (Reply::Refused, "Query Refused"),
    ];
    for (reply, words) in cases {
        let server = server(reply);
        check_refused(
            &fetch(&server),
            server.address(),
            &format!(
                "{NAME} cannot be looked up: the name server {{server}} answers \"{words}\"; check \
                 that server, or set `resolvers`"
            ),
        );
    }
}

#[test]
fn what_is_no_answer_is_waited_out() {
    let record = || vec!["hooks.example.com 60 A 203.0.113.66".to_owned()];
    for reply in [
        Reply::Silence,
        Reply::Garbage,
        Reply::WrongId(record()),
        Reply::WrongQuestion(record()),
        Reply::Late(Duration::from_mins(1), record()),
    ] {
        println!("{reply:?}");
        let server = server(reply);
        let start = Instant::now();
        check_refused(
            &hasty(&[server.address()], 700),
            server.address(),
            &format!(
                "{NAME} cannot be looked up: no answer from the name server {{server}} in time; \
                 check that it is reachable, raise `timeout`, or set `resolvers`"
            ),
        );
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn a_late_answer_is_one() {
    let record = "hooks.example.com 60 A 192.0.2.1".to_owned();
    let server = server(Reply::Late(Duration::from_millis(300), vec![record]));
    check(fetch(&server), &["192.0.2.1/32"], 60);
}

#[test]
fn the_next_server_is_asked_when_one_fails() {
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
    // But not when one knows that there is nothing.
    let knowing = server(Reply::NoSuchName);
    let gone = format!("{NAME} does not exist; {CHECK}");
    let fetched = hasty(&[knowing.address(), good.address()], 3000);
    check_refused(&fetched, knowing.address(), &gone);
}

#[test]
fn an_address_that_no_packet_has_fails() {
    let server = server(Reply::records([
        "hooks.example.com 60 AAAA ::ffff:192.0.2.1",
    ]));
    check_refused(
        &fetch(&server),
        server.address(),
        &format!(
            "{NAME} has an address that cannot be used: \"::ffff:192.0.2.1/128\" is IPv4 written as \
             IPv6, which no packet carries; write \"192.0.2.1/32\"; ask the vendor"
        ),
    );
}
