//! Secrets: they are sent only to their origin, and appear in no message.

use std::fs;
use std::path::PathBuf;

use allowlist_policy::error_code::ErrorCode::InvalidCredentials;
use allowlist_policy::{Http, Source};
use allowlist_tests::vendor::{Answer, Vendor, header};
use expect_test::expect_file;

use super::{Errors, LIST, check_list, fetch, http, secret, vendor};

/// Returns a source with all kinds of credentials, each of which contains `hush`.
fn with_secrets(url: &str, folder: &std::path::Path) -> Http {
    let url = url.replace("http://", "http://me:hush-password@");
    Http {
        headers: vec![
            secret("X-Api-Key", "hush-key"),
            secret("cookie", "hush-cookie"),
        ],
        bearer_file: Some(token(folder, b"hush-token\n")),
        ..http(&url)
    }
}

fn token(folder: &std::path::Path, text: &[u8]) -> PathBuf {
    let path = folder.join("token");
    fs::write(&path, text).expect("a file");
    path
}

#[test]
fn each_request_has_the_token_and_the_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    let vendor = vendor([
        ("/old", Answer::Redirect("/list".into())),
        ("/list", Answer::json(LIST)),
    ]);
    check_list(fetch(with_secrets(&vendor.url("/old"), folder.path())));
    for request in vendor.requests() {
        assert_eq!(header(&request, "authorization"), Some("Bearer hush-token"));
        assert_eq!(header(&request, "x-api-key"), Some("hush-key"));
    }
    // The token is read for each fetch, because it may be renewed at any time.
    let mut source = with_secrets(&vendor.url("/list"), folder.path());
    token(folder.path(), b"  hush-other \r\n");
    source.headers.clear();
    check_list(fetch(source.clone()));
    let last = vendor.requests().pop().expect("a request");
    assert_eq!(header(&last, "authorization"), Some("Bearer hush-other"));
    // Only a password.
    source.bearer_file = None;
    check_list(fetch(source));
    let last = vendor.requests().pop().expect("a request");
    assert_eq!(
        header(&last, "authorization"),
        Some("Basic bWU6aHVzaC1wYXNzd29yZA==")
    );
}

#[test]
fn a_password_is_sent_to_its_origin_only() {
    let elsewhere = vendor([("/list", Answer::json(LIST))]);
    let vendor = vendor([
        ("/old", Answer::Redirect("/list".into())),
        ("/list", Answer::json(LIST)),
        ("/away", Answer::Redirect(elsewhere.url("/list"))),
    ]);
    vendor.answer("/whole", Answer::Redirect(vendor.url("/list")));
    let basic = Some("Basic bWU6aHVzaA==");
    for path in ["/old", "/whole", "/away"] {
        let url = vendor.url(path).replace("http://", "http://me:hush@");
        check_list(fetch(http(&url)));
    }
    assert_eq!(vendor.requests().len(), 5);
    for request in vendor.requests() {
        assert_eq!(header(&request, "authorization"), basic, "{request}");
    }
    assert_eq!(header(&elsewhere.requests()[0], "authorization"), None);
}

#[test]
fn credentials_do_not_follow_a_redirect_to_another_origin() {
    let folder = tempfile::tempdir().expect("a folder");
    let elsewhere = vendor([("/list", Answer::json(LIST))]);
    let vendor = vendor([
        ("/away", Answer::Redirect(elsewhere.url("/list"))),
        ("/round", Answer::Redirect(elsewhere.url("/back"))),
        ("/old", Answer::Redirect("/list".into())),
        ("/list", Answer::json(LIST)),
    ]);
    elsewhere.answer("/back", Answer::Redirect(vendor.url("/old")));
    for path in ["/away", "/round"] {
        check_list(fetch(with_secrets(&vendor.url(path), folder.path())));
    }
    let has_no_secret = |request: &String| {
        assert!(!request.contains("hush"), "{request}");
        assert_eq!(header(request, "authorization"), None, "{request}");
    };
    elsewhere.requests().iter().for_each(has_no_secret);
    assert_eq!(elsewhere.requests().len(), 2);
    // The other origin chose the URL of the redirect back, and so its response.
    let requests = vendor.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    requests[2..].iter().for_each(has_no_secret);
}

#[test]
fn no_message_contains_a_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let vendor = vendor([
        ("/blocked", Answer::Status(403)),
        ("/noise", Answer::Noise),
        ("/cut", Answer::Truncated(LIST.into())),
        ("/page", Answer::html("<html>")),
        (
            "/away",
            Answer::Redirect("http://lists.example.com/?token=hush".into()),
        ),
        ("/loop", Answer::Redirect("/loop?token=hush#hush".into())),
    ]);
    let stopped = super::vendor([]).url("/list?token=hush");
    let mut urls = vec![stopped];
    for path in ["/blocked", "/noise", "/cut", "/page", "/away", "/loop"] {
        urls.push(vendor.url(&format!("{path}?token=hush#hush")));
    }
    for url in urls {
        let http = with_secrets(&url, folder.path());
        let shown = format!("{:?} {:?}", http.headers, http.bearer_file);
        assert!(!shown.contains("hush"), "{shown}");
        let name = Source::new("vendor", allowlist_policy::Origin::Http(http.clone()));
        assert!(!name.origin.to_string().contains("hush"), "{}", name.origin);
        let error = fetch(http).expect_err("must be refused");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hush"), "{shown}");
    }
    let nowhere = with_secrets("https://me:hush@nowhere.invalid/?token=hush", folder.path());
    let error = fetch(nowhere).expect_err("must be refused");
    let shown = format!("{error} {error:?}");
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn invalid_credentials_are_refused_and_not_quoted() {
    let folder = tempfile::tempdir().expect("a folder");
    let vendor = Vendor::start([("/list", Answer::json(LIST))]).expect("a vendor");
    let url = vendor.url("/list");
    let mut errors = Errors::of(&vendor);
    for (title, name, value) in [
        (
            "a line break in a value",
            "X-Api-Key",
            "hush\r\nX-More: hush",
        ),
        ("a blank in a name", "X Api Key", "hush"),
    ] {
        let fetched = fetch(Http {
            headers: vec![secret(name, value)],
            ..http(&url)
        });
        errors.add(title, &fetched, InvalidCredentials);
    }
    let mut with_file = |title: &str, file: PathBuf| {
        let fetched = fetch(Http {
            bearer_file: Some(file),
            ..http(&url)
        });
        errors.add(title, &fetched, InvalidCredentials);
        let error = fetched.expect_err("was checked");
        let text = format!("{error} {error:?}");
        assert!(!text.contains("hush"), "{text}");
    };
    with_file("an empty token", token(folder.path(), b" \n"));
    for (title, text) in [
        ("two lines", &b"hush\nhush\n"[..]),
        ("a blank", b"hu sh"),
        ("Latin-1", b"h\xfcsh"),
        ("a zero byte", b"hush\0"),
    ] {
        with_file(title, token(folder.path(), text));
    }
    with_file("a large token", token(folder.path(), &vec![b'h'; 20 << 10]));
    with_file("a folder", folder.path().to_owned());
    with_file("no file", folder.path().join("none"));
    errors.check(&expect_file!["snapshots/credentials.txt"]);
    assert!(vendor.requests().is_empty());
}
