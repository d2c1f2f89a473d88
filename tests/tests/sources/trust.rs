//! The certificates that a fetch accepts.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use allowlist_lists::source::{FetchErrorCause, Remedy};
use allowlist_policy::Http;
use allowlist_policy::error_code::ErrorCode::{
    Incomplete, InvalidCredentials, Timeout, UntrustedServer,
};
use allowlist_tests::vendor::{Answer, Certificates, Vendor};
use expect_test::expect_file;

use super::{Errors, LIST, ca_file, check_list, fetch, http, vendor};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

#[test]
fn only_the_ca_file_and_system_authorities_are_trusted() {
    let vendor = Vendor::start_tls([("/list", Answer::json(LIST))]).expect("a vendor");
    let other_vendor = Vendor::start_tls([]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let url = vendor.url("/list");
    let trusting = |ca_file| {
        fetch(Http {
            ca_file: Some(ca_file),
            ..http(&url)
        })
    };

    check_list(trusting(ca_file(&vendor, folder.path())));
    let mut errors = Errors::of(&vendor);
    let other = trusting(ca_file(&other_vendor, folder.path()));
    errors.add("another authority", &other, UntrustedServer);
    // The system's authorities have not signed the certificate, or there are none.
    let cause = fetch(http(&url)).expect_err("no ca_file").cause;
    assert!(
        matches!(
            *cause,
            FetchErrorCause::NoCertificateAuthorities
                | FetchErrorCause::Certificate {
                    remedy: Remedy::SetCaFile,
                    ..
                }
        ),
        "{cause}"
    );

    fs::write(folder.path().join("empty.pem"), "nothing\n").expect("a file");
    for file in ["empty.pem", "none.pem", ""] {
        let fetched = trusting(folder.path().join(file));
        errors.add(&format!("ca_file {file:?}"), &fetched, InvalidCredentials);
    }
    errors.check(&expect_file!["snapshots/ca_file.txt"]);
}

#[test]
fn invalid_certificates_are_refused() {
    let cases = [
        (Certificates::expired(LOOPBACK), Remedy::Time),
        (Certificates::of("lists.example.com"), Remedy::Name),
        (Certificates::self_signed(LOOPBACK), Remedy::CheckCaFile),
        (
            Certificates::without_intermediate(LOOPBACK),
            Remedy::CheckCaFile,
        ),
        (
            Certificates::authority_as_server(LOOPBACK),
            Remedy::AuthorityAsServer,
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
        let cause = fetched.expect_err("an invalid certificate").cause;
        let remedy = match *cause {
            FetchErrorCause::Certificate { remedy, .. } => Some(remedy),
            _ => None,
        };
        assert_eq!(remedy, Some(expected), "{cause}");
        assert!(
            vendor.requests().is_empty(),
            "the server received a request"
        );
    }
}

#[test]
fn only_the_authorities_of_ca_file_are_trusted_if_so_configured() {
    let vendor = Vendor::start_tls([("/list", Answer::json(LIST))]).expect("a vendor");
    let other_vendor = Vendor::start_tls([]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let pinned = |to: &Vendor| {
        fetch(Http {
            ca_file: Some(ca_file(to, folder.path())),
            ca_only: true,
            ..http(&vendor.url("/list"))
        })
    };
    check_list(pinned(&vendor));
    let cause = pinned(&other_vendor).expect_err("another authority").cause;
    let is_pinned = matches!(
        *cause,
        FetchErrorCause::Certificate {
            remedy: Remedy::CheckOnlyCaFile,
            ..
        }
    );
    assert!(is_pinned, "{cause}");
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
    // The server waits for the rest of a request.
    let error = fetch(https).expect_err("no TLS");
    assert_eq!(error.cause.code(), Timeout, "{error}");
}

/// Otherwise an attacker who can cut a connection could shorten a list.
#[test]
fn a_list_that_is_cut_off_within_tls_is_refused() {
    let text = Answer::Unended(b"[\"192.0.2.0/24\"]\n".to_vec());
    let vendor = Vendor::start_tls([("/list", text)]).expect("a vendor");
    let folder = tempfile::tempdir().expect("a folder");
    let fetched = fetch(Http {
        ca_file: Some(ca_file(&vendor, folder.path())),
        ..http(&vendor.url("/list"))
    });
    let mut errors = Errors::of(&vendor);
    errors.add("cut off within TLS", &fetched, Incomplete);
    errors.check(&expect_file!["snapshots/cut_off_within_tls.txt"]);
    let cause = fetched.expect_err("was checked").cause;
    assert!(
        matches!(*cause, FetchErrorCause::Broken { received: 17, .. }),
        "{cause}"
    );
}
