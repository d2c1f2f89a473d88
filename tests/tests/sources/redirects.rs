//! Where redirects may lead.

use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::policy::Http;

use super::{LIST, ca_file, check_list, check_refused, check_words, fetch, http, vendor};

#[test]
fn follows_redirects_that_stay_safe() {
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
    check_refused(&hops, "/there", &too_many("{url}/there"));
    check_refused(&hops, "/6", &too_many(&list.url("/list")));
    check_refused(
        &hops,
        "/file",
        "redirects to file:///etc/passwd, which is not https; configure the https address of the list",
    );
    check_refused(
        &hops,
        "/nonsense",
        "the server answered 302 Found; configure the final address of the list",
    );
}

#[test]
fn every_kind_of_redirect_is_one() {
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
fn https_does_not_lead_back_to_http() {
    let plain = vendor([("/list", Answer::json(LIST))]);
    let vendor = Vendor::start_tls([("/down", Answer::Redirect(plain.url("/list")))]);
    let vendor = vendor.expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let trusting = Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        ..http(&vendor.url("/down"))
    };
    check_words(
        &fetch(trusting.clone()),
        &format!(
            "{}: redirects to {}, which is not https; configure the https address of the list",
            vendor.url("/down"),
            plain.url("/list")
        ),
    );
    assert!(plain.requests().is_empty());
    // Unless the operator says that the list may come unprotected.
    check_list(fetch(Http {
        allow_plain_http: true,
        ..trusting
    }));
}

/// 0.0.0.0 is no loopback address, and leads there all the same.
#[test]
fn nothing_goes_out_unprotected_unless_it_is_allowed_to() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    let url = vendor.url("/list").replace("127.0.0.1", "0.0.0.0");
    check_words(
        &fetch(http(&url)),
        &format!(
            "{url}: would be fetched unprotected; use https, or set `allow_plain_http = true`"
        ),
    );
    assert!(vendor.requests().is_empty());
    check_list(fetch(Http {
        allow_plain_http: true,
        ..http(&url)
    }));
}
