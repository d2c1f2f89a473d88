//! `source` against a vendor on loopback that answers well, badly and not at all.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::policy::{Feed, Http, Origin, Source};
use allowlist_user::source::{self, FetchError};

const LIST: &str = r#"["198.51.100.7", "192.0.2.0/24", "2001:db8::/32", "192.0.2.0/24"]"#;
const PREFIXES: [&str; 3] = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"];

fn http(url: &str) -> Http {
    Http {
        timeout: Duration::from_secs(10),
        max_bytes: 64 << 10,
        ..Http::new(url.parse().expect("a URL"))
    }
}

fn fetch(http: Http) -> Result<Feed, FetchError> {
    fetch_origin(Origin::Http(http))
}

fn fetch_origin(origin: Origin) -> Result<Feed, FetchError> {
    run(async { source::fetch(&Source::new("vendor", origin)).await })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

#[track_caller]
fn check_list(fetched: Result<Feed, FetchError>) {
    let feed = fetched.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(
        feed.prefixes
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        PREFIXES
    );
}

/// `expected` follows the source and the URL; `{url}` stands for the vendor's.
#[track_caller]
fn check_refused(vendor: &Vendor, path: &str, expected: &str) {
    check_error(&fetch(http(&vendor.url(path))), vendor, path, expected);
}

#[track_caller]
fn check_error(fetched: &Result<Feed, FetchError>, vendor: &Vendor, path: &str, expected: &str) {
    let error = fetched.as_ref().expect_err("must be refused").to_string();
    let expected = expected.replace("{url}", &vendor.url(""));
    assert_eq!(
        error,
        format!("source vendor: {}: {expected}", vendor.url(path))
    );
}

#[test]
fn fetches_a_list() {
    let vendor = Vendor::start([("/list", Answer::json(LIST))]).expect("a vendor");
    check_list(fetch(http(&vendor.url("/list"))));
    let request = &vendor.requests()[0];
    let agent = format!("user-agent: allowlist/{}", env!("CARGO_PKG_VERSION"));
    assert!(request.lines().any(|line| line == agent), "{request}");
    assert!(
        request.lines().any(|line| line == "accept-encoding: gzip"),
        "{request}"
    );
}

#[test]
fn decompresses() {
    let vendor = Vendor::start([("/list", Answer::Gzip(LIST.into()))]).expect("a vendor");
    check_list(fetch(http(&vendor.url("/list"))));
}

#[test]
fn refuses_what_is_not_a_list() {
    let vendor = Vendor::start([
        (
            "/page",
            Answer::html("<!DOCTYPE html><html><title>Just a moment…</title>"),
        ),
        ("/empty", Answer::json("")),
        ("/nobody", Answer::json("[]")),
        ("/moved", Answer::json(r#"{"Temporarily": "Broken"}"#)),
        (
            "/host-bits",
            Answer::json(r#"["192.0.2.1", "203.0.113.9/24"]"#),
        ),
        ("/cut", Answer::json(r#"["192.0.2.1", "203.0."#)),
        ("/blocked", Answer::Status(403)),
        ("/busy", Answer::Status(503)),
        ("/asked-too-often", Answer::Status(429)),
        ("/nothing-new", Answer::Status(204)),
        ("/truncated", Answer::Truncated(LIST.into())),
        ("/noise", Answer::Noise),
    ])
    .expect("a vendor");
    let cases = [
        (
            "/page",
            "got a web page, not a list: \"<!DOCTYPE html><html><title>Just a moment…</title>\"; use \
             the address of the list itself, and open it in a browser to see what the page says",
        ),
        (
            "/empty",
            "is empty; a list names at least one prefix: check where it comes from",
        ),
        (
            "/nobody",
            "names no prefix; a list names at least one: check where it comes from",
        ),
        (
            "/moved",
            "is an object with the keys \"Temporarily\", not an array; it must be an array of \
             strings such as [\"192.0.2.1\", \"198.51.100.0/24\"]",
        ),
        (
            "/host-bits",
            "$[1]: \"203.0.113.9/24\" has host bits set; write \"203.0.113.0/24\" for the network \
             or \"203.0.113.9/32\" for the one address",
        ),
        (
            "/cut",
            "breaks off after 21 bytes; the transfer was cut short: try again",
        ),
        (
            "/blocked",
            "the server answered 403 Forbidden; check the URL and whether the vendor blocks this \
             host's address",
        ),
        (
            "/busy",
            "the server answered 503 Service Unavailable; the vendor has a problem: try again later",
        ),
        (
            "/asked-too-often",
            "the server answered 429 Too Many Requests; it is asked too often: raise `every`",
        ),
        (
            "/nothing-new",
            "the server answered 204 No Content; check the URL",
        ),
        (
            "/missing",
            "the server answered 404 Not Found; the list has moved: look for its new address in the \
             vendor's documentation",
        ),
        (
            "/truncated",
            "the answer broke off after 65 bytes: end of file before message length reached; \
             nothing of it is used: try again",
        ),
        (
            "/noise",
            "cannot be reached: invalid HTTP version parsed; check the URL, this host's name \
             resolution, its route and its proxy",
        ),
    ];
    for (path, expected) in cases {
        check_refused(&vendor, path, expected);
    }
}

#[test]
fn gives_up_in_time() {
    let vendor = Vendor::start([("/silence", Answer::Silence), ("/drip", Answer::Drip)]);
    let vendor = vendor.expect("a vendor");
    for path in ["/silence", "/drip"] {
        let start = Instant::now();
        let hasty = Http {
            timeout: Duration::from_millis(500),
            ..http(&vendor.url(path))
        };
        check_error(
            &fetch(hasty),
            &vendor,
            path,
            "no complete answer within 500ms; check that the host is reachable, or raise `timeout`",
        );
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
    }
}

#[test]
fn reads_no_more_than_it_may() {
    let vendor = Vendor::start([
        ("/endless", Answer::Endless),
        ("/bomb", Answer::Gzip(vec![b' '; 4 << 20])),
        ("/fits", Answer::json(padded(64 << 10))),
        ("/does-not-fit", Answer::json(padded((64 << 10) + 1))),
    ])
    .expect("a vendor");
    for path in ["/endless", "/bomb", "/does-not-fit"] {
        check_refused(
            &vendor,
            path,
            "is larger than 65536 bytes; if the list is meant to be that long, raise `max_size`",
        );
    }
    check_list(fetch(http(&vendor.url("/fits"))));
}

fn padded(length: usize) -> String {
    LIST.to_owned() + &" ".repeat(length - LIST.len())
}

#[test]
fn follows_redirects_that_stay_safe() {
    let vendor = Vendor::start([("/list", Answer::json(LIST))]).expect("a vendor");
    let hops = Vendor::start([
        ("/here", Answer::Redirect(vendor.url("/list"))),
        (
            "/away",
            Answer::Redirect("http://lists.example.com/list?token=secret".into()),
        ),
        ("/loop", Answer::Redirect("/loop".into())),
        ("/file", Answer::Redirect("file:///etc/passwd".into())),
        ("/6", Answer::Redirect("/5".into())),
        ("/5", Answer::Redirect("/4".into())),
        ("/4", Answer::Redirect("/3".into())),
        ("/3", Answer::Redirect("/2".into())),
        ("/2", Answer::Redirect("/1".into())),
        ("/1", Answer::Redirect(vendor.url("/list"))),
    ])
    .expect("a vendor");
    check_list(fetch(http(&hops.url("/here"))));
    check_list(fetch(http(&hops.url("/5"))));
    check_refused(
        &hops,
        "/away",
        "redirects to http://lists.example.com/list, which is not https; configure the https \
         address of the list",
    );
    let too_many = |last: &str| {
        format!(
            "redirects more than 5 times, last to {last}; configure the final address of the list"
        )
    };
    check_refused(&hops, "/loop", &too_many("{url}/loop"));
    check_refused(&hops, "/6", &too_many(&vendor.url("/list")));
    check_refused(
        &hops,
        "/file",
        "the server answered 302 Found; configure the final address of the list",
    );
}

#[test]
fn https_does_not_lead_back_to_http() {
    let plain = Vendor::start([("/list", Answer::json(LIST))]).expect("a vendor");
    let vendor = Vendor::start_tls([("/down", Answer::Redirect(plain.url("/list")))]);
    let vendor = vendor.expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let trusting = Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        ..http(&vendor.url("/down"))
    };
    let error = fetch(trusting).expect_err("must be refused").to_string();
    assert!(
        error.ends_with(&format!(
            "redirects to {}, which is not https; configure the https address of the list",
            plain.url("/list")
        )),
        "{error}"
    );
    assert!(plain.requests().is_empty());
}

#[test]
fn trusts_its_ca_file_and_nobody_else() {
    let vendor = Vendor::start_tls([("/list", Answer::json(LIST))]).expect("a vendor");
    let stranger = Vendor::start_tls([]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let url = vendor.url("/list");
    let trusting = |ca_file| {
        fetch(Http {
            ca_file: Some(ca_file),
            ..http(&url)
        })
    };

    check_list(trusting(ca_file(&vendor, folder.path())));

    let error = trusting(ca_file(&stranger, folder.path())).expect_err("must be refused");
    let untrusted = "the server cannot be trusted: invalid peer certificate: ";
    assert!(
        error
            .to_string()
            .starts_with(&format!("source vendor: {url}: {untrusted}")),
        "{error}"
    );
    // The system's authorities do not know the vendor, or there are none.
    let error = fetch(http(&url)).expect_err("must be refused");
    assert!(
        error.to_string().ends_with(", set ca_file")
            || error.to_string().ends_with(", or set ca_file"),
        "{error}"
    );

    let empty = folder.path().join("empty.pem");
    fs::write(&empty, "nothing\n").expect("a file");
    let error = trusting(empty.clone())
        .expect_err("must be refused")
        .to_string();
    let expected = format!(
        "source vendor: {url}: ca_file {} cannot be used: it holds no certificate; it must hold PEM \
         certificates",
        empty.display()
    );
    assert_eq!(error, expected);
}

fn ca_file(vendor: &Vendor, folder: &Path) -> std::path::PathBuf {
    let path = folder.join("ca.pem");
    fs::write(&path, vendor.ca_pem().expect("a TLS vendor has one")).expect("a file");
    path
}

#[test]
fn says_what_cannot_be_reached() {
    // A port that was free a moment ago.
    let url = Vendor::start([]).expect("a vendor").url("/list");
    let error = fetch(http(&url)).expect_err("must be refused").to_string();
    let expected = format!(
        "source vendor: {url}: cannot be reached: tcp connect error: Connection refused (os error \
         111); check the URL, this host's name resolution, its route and its proxy"
    );
    assert_eq!(error, expected);
}

#[test]
fn repeats_no_secret() {
    let vendor = Vendor::start([("/list", Answer::Status(403))]).expect("a vendor");
    let url = vendor
        .url("/list?token=hush")
        .replace("http://", "http://me:hush@");
    let stopped = Vendor::start([]).expect("a vendor").url("/?token=hush");
    for url in [
        url.as_str(),
        stopped.as_str(),
        "https://me:hush@nowhere.invalid/?token=hush",
    ] {
        let error = fetch(http(url)).expect_err("must be refused");
        assert!(
            !format!("{error} {error:?}").contains("hush"),
            "{error} {error:?}"
        );
    }
}

#[test]
fn reads_files() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |text: &str| {
        let path = folder.path().join("office.txt");
        fs::write(&path, text).expect("a file");
        Origin::File(path)
    };
    check_list(fetch_origin(file(
        "# the office\r\n198.51.100.7\r\n\r\n192.0.2.0/24 # and the annex\r\n2001:db8::/32",
    )));
    let error = |origin: Origin| {
        fetch_origin(origin)
            .expect_err("must be refused")
            .to_string()
    };
    let path = folder.path().display();
    assert_eq!(
        error(file("192.0.2.1\n192.0.2.0/33\n")),
        format!(
            "source vendor: {path}/office.txt: line 2: \"192.0.2.0/33\" is not a prefix: its length \
             is more than 32; write one from /0 to /32"
        ),
    );
    assert_eq!(
        error(Origin::File(folder.path().join("none"))),
        format!(
            "source vendor: {path}/none: cannot be read: No such file or directory (os error 2); \
             check the path and its permissions"
        ),
    );
    assert_eq!(
        error(Origin::File(folder.path().to_owned())),
        format!("source vendor: {path}: is not a file; name a file that holds a prefix a line"),
    );
}

#[test]
fn what_is_compiled_in_is_as_old_as_its_check() {
    let origin = Origin::BuiltIn {
        prefixes: PREFIXES
            .map(|prefix| prefix.parse().expect("a prefix"))
            .to_vec(),
        checked: "2026-11-22",
    };
    let feed = fetch_origin(origin).expect("is always there");
    assert_eq!(feed.fetched.to_string(), "2026-11-22T00:00:00Z");
    assert_eq!(feed.prefixes.len(), PREFIXES.len());
}
