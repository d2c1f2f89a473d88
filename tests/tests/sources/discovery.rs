//! Lists whose URL is a link on a page.

use allowlist_lists::source;
use allowlist_policy::error_code::ErrorCode::{
    HttpStatus, ListMalformed, NothingSelected, RedirectRefused,
};
use allowlist_policy::{Http, Origin, Pattern, Validator};
use allowlist_tests::vendor::{Answer, header};
use expect_test::expect_file;

use super::{Errors, LIST, ask, check_list, fetch, http, secret, vendor};

fn discovering(url: &str) -> Http {
    Http {
        discover: Some(Pattern::new(r"/tags-\d+\.json$").expect("a pattern")),
        ..http(url)
    }
}

fn page(link: &str) -> Answer {
    Answer::html(format!(
        "<html><a href='/help'>Help</a> <a href=\"{link}\">Download</a> <a href=\"{link}\">again</a>"
    ))
}

#[test]
fn a_link_on_a_page_leads_to_the_list() {
    let elsewhere = vendor([("/tags-2.json", Answer::json(LIST))]);
    let vendor = vendor([
        ("/same", page("/tags-1.json")),
        ("/relative/page", page("files/tags-1.json")),
        ("/moved", Answer::Redirect("/relative/page".into())),
        ("/other", page(&elsewhere.url("/tags-2.json"))),
        ("/tags-1.json", Answer::json(LIST)),
        ("/relative/files/tags-1.json", Answer::json(LIST)),
    ]);
    for path in ["/same", "/relative/page", "/moved", "/other"] {
        check_list(fetch(discovering(&vendor.url(path))));
    }
}

#[test]
fn a_page_without_the_one_link_is_refused() {
    let vendor = vendor([
        ("/none", page("/list.json")),
        (
            "/two",
            Answer::html("<a href='/tags-1.json'>old</a><a href='/tags-2.json'>new</a>"),
        ),
        ("/file", page("file:///srv/tags-1.json")),
        ("/plain", page("http://lists.example.com/tags-1.json")),
        ("/gone", page("/tags-9.json")),
        ("/no-page", Answer::Status(503)),
    ]);
    let mut errors = Errors::of(&vendor);
    for (path, code) in [
        ("/none", NothingSelected),
        ("/two", ListMalformed),
        ("/file", RedirectRefused),
        ("/plain", RedirectRefused),
        ("/no-page", HttpStatus),
        ("/gone", HttpStatus),
    ] {
        errors.add(path, &fetch(discovering(&vendor.url(path))), code);
    }
    errors.check(&expect_file!["snapshots/discovery.txt"]);
}

#[test]
fn the_page_is_fetched_unconditionally_and_the_list_conditionally() {
    let monday = "Mon, 09 Nov 2026 14:14:02 GMT";
    let vendor = vendor([
        ("/page", page("/tags-1.json")),
        (
            "/tags-1.json",
            Answer::Version(Some("\"1\""), Some(monday), LIST.into()),
        ),
    ]);
    let origin = Origin::Http(discovering(&vendor.url("/page")));
    let Ok(source::Answer::List(first)) = ask(origin.clone(), &[]) else {
        panic!("must be a list");
    };
    // A date could not distinguish an older file, so only the entity tag is stored.
    let expected = Validator {
        etag: Some("\"1\"".to_owned()),
        last_modified: None,
    };
    assert_eq!(first.validators, [expected]);
    let again = ask(origin, &first.validators);
    assert!(
        matches!(again, Ok(source::Answer::Unchanged(_))),
        "{again:?}"
    );
    let requests = vendor.requests();
    let tags = requests.iter().map(|head| header(head, "if-none-match"));
    assert_eq!(tags.collect::<Vec<_>>(), [None, None, None, Some("\"1\"")]);
}

#[test]
fn credentials_do_not_follow_a_link_to_another_origin() {
    let elsewhere = vendor([("/tags-2.json", Answer::json(LIST))]);
    let vendor = vendor([
        ("/page", page("/tags-1.json")),
        ("/other", page(&elsewhere.url("/tags-2.json"))),
        ("/tags-1.json", Answer::json(LIST)),
    ]);
    let with_key = |path: &str| Http {
        headers: vec![secret("X-Api-Key", "hush")],
        ..discovering(&vendor.url(path))
    };
    check_list(fetch(with_key("/page")));
    check_list(fetch(with_key("/other")));
    for request in vendor.requests() {
        assert_eq!(header(&request, "x-api-key"), Some("hush"), "{request}");
    }
    assert_eq!(header(&elsewhere.requests()[0], "x-api-key"), None);
}

#[test]
fn a_link_is_relative_to_the_base_that_the_page_states() {
    let vendor = vendor([
        (
            "/help/page",
            Answer::html("<base href='/lists/'><a href='files/tags-1.json'>Download</a>"),
        ),
        (
            "/help/files/tags-1.json",
            Answer::json("[\"203.0.113.66\"]"),
        ),
        ("/lists/files/tags-1.json", Answer::json(LIST)),
    ]);
    check_list(fetch(discovering(&vendor.url("/help/page"))));
}

#[test]
fn the_newest_of_several_lists_is_fetched() {
    let page = "<a href='/a/tags-20260928.json'>a</a><a href='/b/tags-20261005.json'>b</a>";
    let vendor = vendor([
        ("/page", Answer::html(page)),
        ("/a/tags-20260928.json", Answer::json("[\"203.0.113.66\"]")),
        ("/b/tags-20261005.json", Answer::json(LIST)),
    ]);
    let several = discovering(&vendor.url("/page"));
    assert!(fetch(several.clone()).is_err());
    check_list(fetch(Http {
        newest: true,
        ..several
    }));
}
