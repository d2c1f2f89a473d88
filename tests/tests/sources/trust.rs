//! Whom a fetch believes to be the vendor.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use allowlist_tests::vendor::{Answer, Certificates, Vendor};
use allowlist_user::policy::{Format, Http};

use super::{LIST, ca_file, check_list, check_words, fetch, http, vendor};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

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
    check_words(
        &trusting(ca_file(&stranger, folder.path())),
        &format!(
            "{url}: the server cannot be trusted: invalid peer certificate: {{*}}; if it has a \
             private certificate authority, set ca_file"
        ),
    );
    // The system's authorities do not know the vendor, or there are none.
    check_words(
        &fetch(http(&url)),
        &format!("{url}: {{*}}, {{*}}set ca_file"),
    );

    let unusable = |file: &str, problem: &str| {
        let file = folder.path().join(file);
        let expected = format!(
            "{url}: ca_file {} cannot be used: {problem}; it must hold PEM certificates",
            file.display()
        );
        check_words(&trusting(file), &expected);
    };
    fs::write(folder.path().join("empty.pem"), "nothing\n").expect("a file");
    unusable("empty.pem", "it holds no certificate");
    unusable("none.pem", "No such file or directory (os error 2)");
    unusable("", "it is a folder and not a regular file");
}

#[test]
fn refuses_certificates_that_prove_nothing() {
    let untrusted = |problem: &str| {
        format!(
            "the server cannot be trusted: invalid peer certificate: {problem}; if it has a private \
             certificate authority, set ca_file"
        )
    };
    let cases = [
        (
            Certificates::expired(LOOPBACK),
            untrusted("certificate expired: {*}"),
        ),
        (
            Certificates::of("lists.example.com"),
            untrusted("certificate not valid for name \"127.0.0.1\"; {*}"),
        ),
        (
            Certificates::self_signed(LOOPBACK),
            untrusted("UnknownIssuer"),
        ),
    ];
    for (certificates, expected) in cases {
        let certificates = certificates.expect("certificates");
        let answers = [("/list", Answer::json(LIST))];
        let vendor = Vendor::start_tls_with(certificates, LOOPBACK, answers).expect("a vendor");
        let folder = tempfile::tempdir().expect("a folder");
        let fetched = fetch(Http {
            ca_file: Some(ca_file(&vendor, folder.path())),
            headers: vec![super::secret("X-Api-Key", "hush")],
            ..http(&vendor.url("/list"))
        });
        check_words(&fetched, &format!("{}: {expected}", vendor.url("/list")));
        assert!(vendor.requests().is_empty(), "it heard nothing");
    }
}

#[test]
fn a_server_without_tls_is_not_reached_by_https() {
    let vendor = vendor([("/list", Answer::json(LIST))]);
    let trusted = Vendor::start_tls([]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let url = vendor.url("/list").replace("http://", "https://");
    let https = Http {
        ca_file: Some(ca_file(&trusted, folder.path())),
        timeout: Duration::from_secs(1),
        ..http(&url)
    };
    // The server waits for more of what it takes for a request.
    check_words(
        &fetch(https),
        &format!("{url}: no {{*}} within 1s; check that the host is reachable, {{*}}"),
    );
}

/// Whoever can cut a connection could shorten a list otherwise.
#[test]
fn a_list_that_is_cut_off_within_tls_is_refused() {
    let text = Answer::Unended(b"192.0.2.0/24\n198.51.100.7\n".to_vec());
    let vendor = Vendor::start_tls([("/list", text)]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let fetched = fetch(Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        format: Format::Text,
        ..http(&vendor.url("/list"))
    });
    check_words(
        &fetched,
        &format!(
            "{}: the answer broke off after 26 bytes: {{*}}; nothing of it is used: try again",
            vendor.url("/list")
        ),
    );
}
