//! Proxies from environment variables.
//!
//! The environment belongs to a process, so each fetch runs in a child process: this test program with one test. The
//! vendor's address is 0.0.0.0, which reaches loopback but is not a loopback address.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use allowlist_policy::Http;
use allowlist_tests::vendor::{Answer, Certificates, Vendor};

use super::{LIST, ca_file, fetch, http, vendor, written};

const URL: &str = "ALLOWLIST_TEST_URL";
const CA_FILE: &str = "ALLOWLIST_TEST_CA_FILE";
const ANYWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

/// The child process of the other tests; passes without a fetch if it is not one.
#[test]
fn one_fetch_in_a_process() {
    let Ok(url) = std::env::var(URL) else {
        return;
    };
    match fetch(Http {
        allow_plain_http: true,
        ca_file: std::env::var_os(CA_FILE).map(Into::into),
        ..http(&url)
    }) {
        Ok(fetched) => println!("fetched {}", written(&fetched).join(" ")),
        Err(error) => println!("failed [{}] {error} {error:?}", error.cause.code()),
    }
}

/// Fetches a URL in a process with this environment, and returns the line that the process prints.
fn fetch_with(url: &str, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "proxies::one_fetch_in_a_process", "--nocapture"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command.env(URL, url).envs(environment.iter().copied());
    let output = command.output().expect("a process");
    let text = String::from_utf8(output.stdout).expect("text");
    let line = text
        .lines()
        .find(|line| line.starts_with("fetched ") || line.starts_with("failed "));
    line.unwrap_or_else(|| panic!("no result: {text}"))
        .to_owned()
}

const FETCHED: &str = "fetched 192.0.2.0/24 198.51.100.7/32 2001:db8::/32";

#[test]
fn https_goes_through_the_proxy() {
    let folder = tempfile::tempdir().expect("a folder");
    let certificates = Certificates::good(ANYWHERE).expect("certificates");
    let answers = [("/list", Answer::json(LIST))];
    let list = Vendor::start_tls_with(certificates, ANYWHERE, answers).expect("a vendor");
    let ca_file = ca_file(&list, folder.path());
    let ca_file = ca_file.to_str().expect("a path in UTF-8");
    let (host, port) = ("0.0.0.0", list.address().port());
    let url = format!("https://{host}:{port}/list");
    let proxy = vendor([]);
    proxy.answer(
        &format!("{host}:{port}"),
        Answer::Tunnel((Ipv4Addr::LOCALHOST, port).into()),
    );
    let address = proxy.url("/").replace("http://", "http://me:hush@");
    let environment = [("HTTPS_PROXY", address.as_str()), (CA_FILE, ca_file)];
    assert_eq!(fetch_with(&url, &environment), FETCHED);
    let requests = proxy.requests();
    assert!(
        requests[0].starts_with(&format!("CONNECT {host}:{port} ")),
        "{requests:?}"
    );
    assert_eq!(requests.len(), 1);

    // A proxy that is closed, and one that refuses the request.
    let closed = vendor([]).url("/").replace("http://", "http://me:hush@");
    let refusing = vendor([]);
    refusing.answer(&format!("{host}:{port}"), Answer::Status(407));
    for proxy in [
        closed,
        refusing.url("/").replace("http://", "http://me:hush@"),
    ] {
        let line = fetch_with(&url, &[("HTTPS_PROXY", proxy.as_str()), (CA_FILE, ca_file)]);
        assert!(
            line.starts_with("failed [unreachable] ") && line.contains(&url),
            "{line}"
        );
        assert!(!line.contains("hush"), "{line}");
    }
    assert_eq!(list.requests().len(), 1);

    // A proxy that `NO_PROXY` excludes.
    let closed = vendor([]).url("/");
    let without = [
        ("HTTPS_PROXY", closed.as_str()),
        ("NO_PROXY", host),
        (CA_FILE, ca_file),
    ];
    assert_eq!(fetch_with(&url, &without), FETCHED);
}

#[test]
fn plain_http_goes_through_the_proxy_but_not_to_loopback() {
    let list = vendor([("/list", Answer::json(LIST))]);
    let url = list.url("/list");
    let elsewhere = url.replace("127.0.0.1", "0.0.0.0");
    let proxy = vendor([]);
    proxy.answer(&elsewhere, Answer::json(LIST));
    let address = proxy.url("/");
    let environment = [("HTTP_PROXY", address.as_str()), ("http_proxy", &address)];
    assert_eq!(fetch_with(&elsewhere, &environment), FETCHED);
    assert_eq!((proxy.requests().len(), list.requests().len()), (1, 0));
    assert_eq!(fetch_with(&url, &environment), FETCHED);
    assert_eq!((proxy.requests().len(), list.requests().len()), (1, 1));
}

/// If an invalid proxy were ignored, requests would bypass the intended one.
#[test]
fn a_proxy_that_cannot_be_used_is_an_error() {
    let list = vendor([("/list", Answer::json(LIST))]);
    let url = list.url("/list");
    let elsewhere = url.replace("127.0.0.1", "0.0.0.0");
    for (variable, value) in [
        ("HTTP_PROXY", "http://me:hush@proxy example.com:3128"),
        ("HTTP_PROXY", "htp://me:hush@127.0.0.1:3128"),
        ("http_proxy", "socks5://127.0.0.1:1080"),
        ("ALL_PROXY", "http://me:hush@:port"),
    ] {
        let line = fetch_with(&elsewhere, &[(variable, value)]);
        assert!(
            line.starts_with("failed [unreachable] ") && line.contains(variable),
            "{line}"
        );
        assert!(!line.contains("hush"), "{line}");
        // Requests to loopback and excluded hosts do not use the proxy.
        assert_eq!(fetch_with(&url, &[(variable, value)]), FETCHED);
        let not_meant = [(variable, value), ("NO_PROXY", "0.0.0.0")];
        assert_eq!(fetch_with(&elsewhere, &not_meant), FETCHED);
    }
    let other = [("HTTPS_PROXY", "nonsense://")];
    assert_eq!(fetch_with(&elsewhere, &other), FETCHED);
}
