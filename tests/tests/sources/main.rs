//! `source` against servers on loopback that answer well, badly and not at all.
//!
//! Each way in which a vendor fails is a row: what the server does, and the words that the operator reads.
//! Whether a list that was received is believed is `gate`'s to say, and not asked here.

mod answers;
mod archives;
mod asking_again;
mod discovery;
mod files;
mod names;
mod proxies;
mod redirects;
mod secrets;
mod transfers;
mod trust;

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::policy::{Format, Http, Origin, Secret, Source, Validator};
use allowlist_user::source::{self, FetchError, Fetched};

const LIST: &str = r#"["198.51.100.7", "192.0.2.0/24", "2001:db8::/32", "192.0.2.0/24"]"#;
const PREFIXES: [&str; 3] = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"];

fn http(url: &str) -> Http {
    urls(&[url.to_owned()])
}

fn urls(urls: &[String]) -> Http {
    let urls = urls.iter().map(|url| url.parse().expect("a URL"));
    Http {
        timeout: Duration::from_secs(20),
        max_bytes: 64 << 10,
        ..Http::new(urls.collect(), Format::json_array())
    }
}

fn secret(name: &str, value: &str) -> (String, Secret) {
    (name.to_owned(), Secret(value.to_owned()))
}

fn ask(origin: Origin, known: &[Validator]) -> Result<source::Answer, FetchError> {
    run(async { source::fetch(&Source::new("vendor", origin), known).await })
}

fn fetch(http: Http) -> Result<Fetched, FetchError> {
    fetch_origin(Origin::Http(http))
}

fn fetch_origin(origin: Origin) -> Result<Fetched, FetchError> {
    match ask(origin, &[])? {
        source::Answer::List(fetched) => Ok(fetched),
        source::Answer::Unchanged(_) => panic!("nobody asked whether it is new"),
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(future)
}

fn vendor(answers: impl IntoIterator<Item = (&'static str, Answer)>) -> Vendor {
    Vendor::start(answers).expect("a vendor")
}

fn written(fetched: &Fetched) -> Vec<String> {
    fetched.prefixes.iter().map(ToString::to_string).collect()
}

#[track_caller]
fn check_list(fetched: Result<Fetched, FetchError>) {
    let fetched = fetched.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(written(&fetched), PREFIXES);
}

/// `expected` follows the source and the URL; `{url}` stands for the vendor's.
#[track_caller]
fn check_refused(vendor: &Vendor, path: &str, expected: &str) {
    check_error(&fetch(http(&vendor.url(path))), vendor, path, expected);
}

#[track_caller]
fn check_error<T>(fetched: &Result<T, FetchError>, vendor: &Vendor, path: &str, expected: &str) {
    let expected = format!("{{url}}{path}: {expected}");
    check_words(fetched, &expected.replace("{url}", &vendor.url("")));
}

/// `expected` follows the source; `{*}` stands for whatever is there.
#[track_caller]
fn check_words<T>(fetched: &Result<T, FetchError>, expected: &str) {
    let error = match fetched {
        Ok(_) => panic!("must be refused: {expected}"),
        Err(error) => error.to_string(),
    };
    let expected = format!("source vendor: {expected}");
    let mut rest = error.as_str();
    let mut parts = expected.split("{*}").peekable();
    let first = parts.next().unwrap_or_default();
    let mut is_same = rest.starts_with(first);
    rest = rest.strip_prefix(first).unwrap_or(rest);
    while let Some(part) = parts.next() {
        let at = match parts.peek() {
            Some(_) => rest.find(part),
            None => rest.ends_with(part).then(|| rest.len() - part.len()),
        };
        is_same &= at.is_some();
        rest = &rest[at.map_or(0, |at| at + part.len())..];
    }
    assert!(
        is_same && rest.is_empty(),
        "\n   is {error}\nnot {expected}"
    );
    assert!(
        !error.contains('\n') && !error.ends_with('.'),
        "one line, without a full stop: {error}"
    );
}

fn ca_file(vendor: &Vendor, folder: &Path) -> PathBuf {
    let path = folder.join("ca.pem");
    std::fs::write(&path, vendor.ca_pem().expect("a TLS vendor has one")).expect("a file");
    path
}
