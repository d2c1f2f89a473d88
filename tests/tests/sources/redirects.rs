//! The permitted targets of redirects.

use std::net::IpAddr;

use allowlist_lists::source::{AddressError, FetchError, FetchErrorCause, Fetched};
use allowlist_policy::error_code::ErrorCode::{AddressRefused, HttpStatus, RedirectRefused};
use allowlist_policy::{Http, Pattern};
use allowlist_tests::lab::{Namespace, add_addresses};
use allowlist_tests::vendor::{Answer, Vendor};
use expect_test::expect_file;

use super::{Errors, LIST, ca_file, check_list, fetch, http, vendor};

#[test]
fn safe_redirects_are_followed() {
    let list = vendor([("/list", Answer::json(LIST))]);
    let hops = vendor([
        ("/here", Answer::Redirect(list.url("/list"))),
        (
            "/away",
            Answer::Redirect("http://lists.example.com/list?token=secret".into()),
        ),
        ("/loop", Answer::Redirect("/loop".into())),
        ("/there", Answer::Redirect("/back".into())),
        ("/back", Answer::Redirect("/there".into())),
        ("/file", Answer::Redirect("file:///etc/passwd".into())),
        ("/nonsense", Answer::Redirect("https://[".into())),
        ("/6", Answer::Redirect("/5".into())),
        ("/5", Answer::Redirect("/4".into())),
        ("/4", Answer::Redirect("/3".into())),
        ("/3", Answer::Redirect("/2".into())),
        ("/2", Answer::Redirect("/1".into())),
        ("/1", Answer::Redirect(list.url("/list"))),
    ]);
    check_list(fetch(http(&hops.url("/here"))));
    check_list(fetch(http(&hops.url("/5"))));
    let mut errors = Errors::of(&hops);
    errors.name(&list.url(""), "<list>");
    for path in ["/away", "/loop", "/there", "/6", "/file"] {
        errors.add(path, &fetch(http(&hops.url(path))), RedirectRefused);
    }
    errors.add(
        "/nonsense",
        &fetch(http(&hops.url("/nonsense"))),
        HttpStatus,
    );
    errors.check(&expect_file!["snapshots/redirects.txt"]);
}

#[test]
fn all_redirect_statuses_are_followed() {
    for status in [301, 302, 303, 307, 308] {
        let to = vec![("Location", "/list".to_owned())];
        let vendor = vendor([
            ("/old", Answer::Full(status, to, Vec::new())),
            ("/list", Answer::json(LIST)),
        ]);
        check_list(fetch(http(&vendor.url("/old"))));
        assert!(vendor.requests()[1].starts_with("GET /list "));
    }
}

#[test]
fn redirects_from_https_to_http_are_refused() {
    let plain = vendor([("/list", Answer::json(LIST))]);
    let vendor = Vendor::start_tls([("/down", Answer::Redirect(plain.url("/list")))]);
    let vendor = vendor.expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let trusting = Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        ..http(&vendor.url("/down"))
    };
    let mut errors = Errors::of(&vendor);
    errors.name(&plain.url(""), "<plain>");
    errors.add("https to http", &fetch(trusting.clone()), RedirectRefused);
    errors.check(&expect_file!["snapshots/redirect_to_http.txt"]);
    assert!(plain.requests().is_empty());
    // Unless the operator allows plain HTTP for the list.
    check_list(fetch(Http {
        allow_plain_http: true,
        ..trusting
    }));
}

/// The address 0.0.0.0 reaches loopback but is not a loopback address.
#[test]
fn plain_http_needs_permission() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    let url = vendor.url("/list").replace("127.0.0.1", "0.0.0.0");
    let mut errors = Errors::default();
    errors.name(&url, "<url>");
    errors.add("http to 0.0.0.0", &fetch(http(&url)), AddressRefused);
    errors.check(&expect_file!["snapshots/plain_http.txt"]);
    assert!(vendor.requests().is_empty());
    check_list(fetch(Http {
        allow_plain_http: true,
        ..http(&url)
    }));
}

/// A public address, which belongs to loopback in the namespace of the tests.
const PUBLIC: &str = "203.0.113.9";
const PRIVATE: &str = "10.0.0.5";
const METADATA: &str = "169.254.169.254";

/// Runs a test in a namespace whose loopback interface has these addresses.
fn with_addresses<T: Send>(test: impl FnOnce() -> T + Send) -> T {
    let namespace = Namespace::new().expect("a namespace");
    let addresses = [PUBLIC, PRIVATE, METADATA].map(address);
    add_addresses(&namespace, "lo", &addresses).expect("addresses");
    namespace.run(test)
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn at(text: &str, answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Vendor {
    Vendor::start_at(address(text), answers).expect("a vendor")
}

/// Returns a source that allows plain HTTP.
fn plain(url: &str) -> Http {
    Http {
        allow_plain_http: true,
        ..http(url)
    }
}

#[track_caller]
fn check_address(fetched: Result<Fetched, FetchError>, is_local: bool) {
    let cause = fetched.expect_err("must not be requested").cause;
    let found = match *cause {
        FetchErrorCause::Address(AddressError::Local { .. }) => Some(true),
        FetchErrorCause::Address(AddressError::Private { .. }) => Some(false),
        _ => None,
    };
    assert_eq!(found, Some(is_local), "{cause}");
}

#[test]
fn redirects_from_public_to_private_addresses_are_refused() {
    with_addresses(|| {
        let list = at(PRIVATE, [("/list", Answer::json(LIST))]);
        let own = vendor([("/list", Answer::json(LIST))]);
        let by_name = own.url("/list").replace("127.0.0.1", "localhost");
        let page = Answer::html(format!("<a href='{}'>list</a>", list.url("/list")));
        let public = at(
            PUBLIC,
            [
                ("/private", Answer::Redirect(list.url("/list"))),
                ("/loopback", Answer::Redirect(own.url("/list"))),
                ("/by-name", Answer::Redirect(by_name)),
                ("/page", page),
                ("/twice", Answer::Redirect("/private".into())),
            ],
        );
        let allowed = |of: Http| Http {
            allow_private: true,
            ..of
        };
        for path in ["/private", "/loopback", "/by-name", "/twice"] {
            check_address(fetch(plain(&public.url(path))), false);
            assert_eq!((list.requests().len(), own.requests().len()), (0, 0));
        }
        let discovering = Http {
            discover: Some(Pattern::new("list").expect("a pattern")),
            ..plain(&public.url("/page"))
        };
        check_address(fetch(discovering.clone()), false);
        for path in ["/private", "/loopback", "/by-name", "/twice"] {
            check_list(fetch(allowed(plain(&public.url(path)))));
        }
        check_list(fetch(allowed(discovering)));
    });
}

#[test]
fn configured_servers_may_be_private_and_redirect_to_private_addresses() {
    with_addresses(|| {
        let own = vendor([("/list", Answer::json(LIST))]);
        let private = at(
            PRIVATE,
            [
                ("/list", Answer::json(LIST)),
                ("/moved", Answer::Redirect(own.url("/list"))),
            ],
        );
        check_list(fetch(plain(&private.url("/list"))));
        check_list(fetch(plain(&private.url("/moved"))));
        let by_name = own.url("/list").replace("127.0.0.1", "localhost");
        check_list(fetch(plain(&by_name)));
    });
}

#[test]
fn nothing_is_fetched_from_a_metadata_service() {
    with_addresses(|| {
        let metadata = at(METADATA, [("/list", Answer::json(LIST))]);
        let leads = [("/list", Answer::Redirect(metadata.url("/list")))];
        let (public, private) = (at(PUBLIC, leads.clone()), at(PRIVATE, leads));
        for vendor in [&public, &private, &metadata] {
            let url = vendor.url("/list");
            check_address(
                fetch(Http {
                    allow_private: true,
                    ..plain(&url)
                }),
                true,
            );
        }
        // The IPv4-mapped form of the address.
        let url = metadata
            .url("/list")
            .replace(METADATA, "[::ffff:169.254.169.254]");
        check_address(fetch(plain(&url)), true);
        assert!(metadata.requests().is_empty());
    });
}

#[test]
fn answers_of_private_servers_are_quoted_only_if_configured() {
    with_addresses(|| {
        let secret = [
            ("/words", Answer::json("hush: the secret")),
            ("/page", Answer::html("<html>hush")),
            ("/json", Answer::json(r#"{"hush": "hush"}"#)),
            ("/item", Answer::json(r#"["hush"]"#)),
        ];
        let private = at(PRIVATE, secret.clone());
        for (path, _) in secret {
            let public = at(PUBLIC, [("/list", Answer::Redirect(private.url(path)))]);
            let led = fetch(Http {
                allow_private: true,
                ..plain(&public.url("/list"))
            });
            let error = led.expect_err("not a list");
            assert!(!format!("{error} {error:?}").contains("hush"), "{error:?}");
            assert!(matches!(*error.cause, FetchErrorCause::Withheld), "{error}");
            let named = fetch(plain(&private.url(path))).expect_err("not a list");
            assert!(named.to_string().contains("hush"), "{named}");
        }
    });
}
