//! Conditional requests.

use allowlist_lists::source::{self, FetchError, FetchErrorCause, Fetched};
use allowlist_policy::{Format, Http, Origin, Page, Pattern, Validator};
use allowlist_tests::vendor::{Answer, Vendor, header};

use super::{LIST, ask, check_list, http, urls, vendor};

const MONDAY: &str = "Mon, 09 Nov 2026 14:14:02 GMT";

fn fetch_again(
    vendor: &Vendor,
    paths: &[&str],
    known: &[Validator],
) -> Result<source::Answer, FetchError> {
    let paths: Vec<_> = paths.iter().map(|path| vendor.url(path)).collect();
    ask(Origin::Http(urls(&paths)), known)
}

#[track_caller]
fn list(answer: Result<source::Answer, FetchError>) -> Fetched {
    match answer {
        Ok(source::Answer::List(fetched)) => fetched,
        Ok(source::Answer::Unchanged(_)) => panic!("must be a list"),
        Err(error) => panic!("{error}"),
    }
}

#[track_caller]
fn check_unchanged(answer: Result<source::Answer, FetchError>) {
    match answer {
        Ok(source::Answer::Unchanged(_)) => {}
        Ok(source::Answer::List(_)) => panic!("must be unchanged"),
        Err(error) => panic!("{error}"),
    }
}

fn validator(etag: Option<&str>, last_modified: Option<&str>) -> Validator {
    Validator {
        etag: etag.map(str::to_owned),
        last_modified: last_modified.map(str::to_owned),
    }
}

/// Returns the validator that a request contained.
fn sent_validator(vendor: &Vendor, index: usize) -> Validator {
    let requests = vendor.requests();
    let head = &requests[index];
    validator(
        header(head, "if-none-match"),
        header(head, "if-modified-since"),
    )
}

#[test]
fn validators_are_returned_unchanged() {
    let versions = [
        (Some("\"abc\""), None),
        (Some("W/\"abc\""), None),
        (Some("without-quotes"), None),
        (None, Some(MONDAY)),
        (Some("\"abc\""), Some(MONDAY)),
    ];
    for (etag, last_modified) in versions {
        let vendor = vendor([("/list", Answer::Version(etag, last_modified, LIST.into()))]);
        let first = list(fetch_again(&vendor, &["/list"], &[]));
        let expected = validator(etag, last_modified);
        assert_eq!(first.validators, std::slice::from_ref(&expected));
        assert_eq!(sent_validator(&vendor, 0), Validator::default());
        check_unchanged(fetch_again(&vendor, &["/list"], &first.validators));
        assert_eq!(sent_validator(&vendor, 1), expected);
        // Another version is complete, with its own validator.
        let newer = Answer::Version(Some("\"newer\""), None, LIST.into());
        vendor.answer("/list", newer);
        let next = list(fetch_again(&vendor, &["/list"], &first.validators));
        assert_eq!(next.validators, [validator(Some("\"newer\""), None)]);
        check_list(Ok(next));
    }
}

#[test]
fn a_server_may_stop_sending_validators() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    let known = [validator(Some("\"abc\""), Some(MONDAY))];
    let fetched = list(fetch_again(&vendor, &["/list"], &known));
    assert_eq!(sent_validator(&vendor, 0), known[0]);
    assert_eq!(fetched.validators, [Validator::default()]);
}

#[test]
fn invalid_validators_are_not_stored() {
    let long = "x".repeat(1025);
    for etag in [long.as_str(), ""] {
        let answer = Answer::Full(200, vec![("ETag", etag.to_owned())], LIST.into());
        let vendor = vendor([("/list", answer)]);
        let fetched = list(fetch_again(&vendor, &["/list"], &[]));
        assert_eq!(fetched.validators, [Validator::default()]);
    }
    // An invalid validator from a damaged state is not sent.
    let vendor = vendor([("/list", Answer::json(LIST))]);
    let known = [validator(Some("\"a\"\r\nx-more: b"), None)];
    check_list(Ok(list(fetch_again(&vendor, &["/list"], &known))));
    assert_eq!(sent_validator(&vendor, 0), Validator::default());
}

#[test]
fn each_of_two_lists_can_change() {
    let one = r#"["192.0.2.0/24", "198.51.100.7"]"#;
    let vendor = vendor([
        ("/one", Answer::Version(Some("\"1\""), None, one.into())),
        (
            "/two",
            Answer::Version(Some("\"2\""), None, r#"["192.0.2.9"]"#.into()),
        ),
    ]);
    let paths = ["/one", "/two"];
    let first = list(fetch_again(&vendor, &paths, &[]));
    check_unchanged(fetch_again(&vendor, &paths, &first.validators));
    assert_eq!(vendor.requests().len(), 4);

    let newer = Answer::Version(Some("\"3\""), None, r#"["2001:db8::/32"]"#.into());
    vendor.answer("/two", newer);
    let next = list(fetch_again(&vendor, &paths, &first.validators));
    assert_eq!(
        next.validators,
        [
            validator(Some("\"1\""), None),
            validator(Some("\"3\""), None)
        ]
    );
    check_list(Ok(next));
    // The unchanged part was fetched again, without a condition.
    assert_eq!(vendor.requests().len(), 7);
    assert_eq!(sent_validator(&vendor, 4), validator(Some("\"1\""), None));
    assert_eq!(sent_validator(&vendor, 5), validator(Some("\"2\""), None));
    assert_eq!(sent_validator(&vendor, 6), Validator::default());
    assert!(vendor.requests()[6].starts_with("GET /one "));
}

#[test]
fn validators_of_other_urls_are_not_sent() {
    let vendor = vendor([("/list", Answer::Version(Some("\"1\""), None, LIST.into()))]);
    let known = vec![validator(Some("\"1\""), None); 2];
    check_list(Ok(list(fetch_again(&vendor, &["/list"], &known))));
    assert_eq!(sent_validator(&vendor, 0), Validator::default());
}

#[test]
fn not_modified_without_a_validator_is_an_error() {
    let vendor = vendor([("/list", Answer::Status(304))]);
    let url = vendor.url("/list");
    let error = ask(Origin::Http(http(&url)), &[Validator::default()]).expect_err("no list");
    assert!(
        matches!(
            *error.cause,
            FetchErrorCause::Status { status, .. } if status.as_u16() == 304
        ),
        "{error}"
    );
}

/// A row can expire on a day on which the server's page does not change.
#[test]
fn pages_with_expiring_rows_are_fetched_unconditionally() {
    let page = |row: &str| format!("<h1>Webhooks</h1><p>192.0.2.1<p>192.0.2.2 {row}").into_bytes();
    let cases = [
        ("will be deprecated on 5 April 2999", true),
        ("was deprecated on 5 April 2020", false),
        ("will be deprecated some day", false),
    ];
    for (row, expires) in cases {
        let version = Answer::Version(Some("\"1\""), Some(MONDAY), page(row));
        let whole = Answer::Version(
            Some("\"2\""),
            None,
            b"<h1>Webhooks</h1><p>192.0.2.3".to_vec(),
        );
        let vendor = vendor([("/page", version), ("/whole", whole)]);
        let urls = urls(&["/page", "/whole"].map(|path| vendor.url(path)));
        let section = Pattern::new("Webhooks").expect("a regular expression");
        let page = Page {
            section: Some(section),
            ..Page::default()
        };
        let origin = Origin::Http(Http {
            format: Format::Html(page),
            ..urls
        });
        let first = list(ask(origin.clone(), &[]));
        assert_eq!(first.validators.is_empty(), expires, "{row}");
        let again = ask(origin, &first.validators);
        if expires {
            assert_eq!(list(again).prefixes, first.prefixes, "{row}");
            assert_eq!(sent_validator(&vendor, 2), Validator::default(), "{row}");
        } else {
            check_unchanged(again);
        }
    }
}

/// A date is valid for one URL, and a redirect may lead to another URL later.
#[test]
fn dates_are_not_stored_for_redirects() {
    let vendor = vendor([
        ("/latest", Answer::Redirect("/november".into())),
        (
            "/november",
            Answer::Version(Some("\"november\""), Some(MONDAY), LIST.into()),
        ),
    ]);
    let first = list(fetch_again(&vendor, &["/latest"], &[]));
    assert_eq!(first.validators, [validator(Some("\"november\""), None)]);
    check_unchanged(fetch_again(&vendor, &["/latest"], &first.validators));
    // A stored date of the first URL is not sent to the target of its redirect.
    let known = [validator(None, Some(MONDAY))];
    check_list(Ok(list(fetch_again(&vendor, &["/latest"], &known))));
    assert_eq!(sent_validator(&vendor, 4), known[0]);
    assert_eq!(sent_validator(&vendor, 5), Validator::default());
}
