//! Tests of `source` with servers on loopback that answer correctly, incorrectly or not at all.
//!
//! Each kind of failure is a row with the behaviour of the server and the error code; the texts are in snapshots. Does not
//! test the gate, which decides later whether a list is accepted.

mod answers;
mod archives;
mod conditional_requests;
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

use allowlist_lists::source::{self, FetchError, FetchErrorCause, Fetched};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Format, Http, Origin, Secret, Source, Validator};
use allowlist_tests::lab::Snapshot;
use allowlist_tests::vendor::{Answer, Vendor};
use expect_test::ExpectFile;

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
        source::Answer::Unchanged(_) => panic!("unchanged, although the request was unconditional"),
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

/// The errors of several fetches, as one snapshot.
#[derive(Default)]
struct Errors {
    snapshot: Snapshot,
    /// URLs and addresses that differ between runs, and their placeholders.
    names: Vec<(String, &'static str)>,
}

impl Errors {
    /// Returns a snapshot in which the vendor's URL is `<vendor>`.
    fn of(vendor: &Vendor) -> Self {
        let mut errors = Self::default();
        errors.name(&vendor.url(""), "<vendor>");
        errors
    }

    /// Writes `placeholder` instead of `text` in all errors that follow.
    fn name(&mut self, text: &str, placeholder: &'static str) {
        self.names.push((text.to_owned(), placeholder));
    }

    /// Adds the error of a fetch, which must have the code.
    #[track_caller]
    fn add<T>(&mut self, title: &str, fetched: &Result<T, FetchError>, code: ErrorCode) {
        let Err(error) = fetched else {
            panic!("{title}: must fail with {code}");
        };
        assert_eq!(error.cause.code(), code, "{title}: {error}");
        let mut text = format!("[{code}] {error}");
        assert!(
            !text.contains('\n') && !text.ends_with('.'),
            "one line, without a full stop: {text}"
        );
        // The number of received bytes and the kind of the error depend on the kernel.
        if let FetchErrorCause::Broken { received, problem } = &*error.cause {
            text = text
                .replace(&format!(" {received} "), " <received> ")
                .replace(problem, "<problem>");
        }
        self.text(title, text);
    }

    /// Adds another text.
    fn text(&mut self, title: &str, mut text: String) {
        for (found, placeholder) in &self.names {
            text = text.replace(found, placeholder);
        }
        self.snapshot.text(title, &text, None);
    }

    #[track_caller]
    fn check(&self, file: &ExpectFile) {
        self.snapshot.check(file);
    }
}

fn ca_file(vendor: &Vendor, folder: &Path) -> PathBuf {
    let path = folder.join("ca.pem");
    std::fs::write(
        &path,
        vendor.ca_pem().expect("the certificate of the authority"),
    )
    .expect("a file");
    path
}
