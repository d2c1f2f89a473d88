//! Fetches what a source holds. The only user of the HTTP client.
//!
//! Invariants: no request goes out unprotected, except to loopback; no body is read beyond its
//! limit; nothing secret in a URL reaches a message; and a feed is returned only if all of it was
//! received and all of it was understood. Keeps nothing: what to do about a failure, and with which
//! older feed, is the caller's to decide.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use reqwest::redirect::{self, Attempt};
use reqwest::{Certificate, Client, ClientBuilder, StatusCode};
use thiserror::Error;
use tokio::io::AsyncReadExt;

use crate::feed::{self, FeedError};
use crate::policy::{Format, Http, Origin, Source, Validator, is_loopback, public_url};

const MAX_REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A file is held in memory while it is read.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// What came of asking a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has nothing newer than what the validators are of.
    Unchanged(Timestamp),
    /// What it holds.
    List(Fetched),
}

/// A list as it was received. Nobody has judged it yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// Sorted, distinct.
    pub prefixes: Vec<IpNet>,
    /// What the operator should know of it.
    pub notes: Vec<String>,
    /// When it was got; of a compiled-in list, when it was checked.
    pub fetched: Timestamp,
    /// What to ask with next time, one for each URL.
    pub validators: Vec<Validator>,
    /// When the source says to ask again, such as by its records' time to live.
    pub again: Option<Duration>,
}

impl Fetched {
    fn new(prefixes: Vec<IpNet>, fetched: Timestamp) -> Self {
        Self {
            prefixes,
            notes: Vec::new(),
            fetched,
            validators: Vec::new(),
            again: None,
        }
    }
}

/// Asks a source for its prefixes. With `known`, what an earlier answer said of itself, the answer may be
/// that nothing is new.
pub async fn fetch(source: &Source, known: &[Validator]) -> Result<Answer, FetchError> {
    // Chooses the process's TLS implementation; an error only says that that was done already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let _ = known;
    let now = Timestamp::now();
    let fetched = match &source.origin {
        Origin::Prefixes(prefixes) => Ok(Fetched::new(prefixes.clone(), now)),
        Origin::BuiltIn { prefixes, checked } => {
            Ok(Fetched::new(prefixes.clone(), midnight(*checked)))
        }
        Origin::File { path, .. } => read_file(path)
            .await
            .map(|prefixes| Fetched::new(prefixes, now)),
        Origin::Http(http) => request(http)
            .await
            .map(|prefixes| Fetched::new(prefixes, now)),
        Origin::Names(_) => Ok(Fetched::new(Vec::new(), now)),
    };
    fetched.map(Answer::List).map_err(|cause| FetchError {
        name: source.name.clone(),
        origin: source.origin.to_string(),
        cause: Box::new(cause),
        retry_after: None,
    })
}

/// Which source could not be had, and why.
#[derive(Debug, Error)]
#[error("source {name}: {origin}: {cause}")]
pub struct FetchError {
    /// The source.
    pub name: String,
    /// Where it was looked for: a URL without secrets, or a path.
    pub origin: String,
    /// What went wrong. Boxed, as it is larger than what `fetch` returns when all is well.
    pub cause: Box<FetchErrorCause>,
    /// How long the server asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// What went wrong, and what to do about it. Nothing of the answer was taken.
#[derive(Debug, Error)]
pub enum FetchErrorCause {
    /// No such file, or it may not be read.
    #[error("cannot be read: {0}; check the path and its permissions")]
    File(io::Error),
    /// A folder, a pipe, a device.
    #[error("is not a file; name a file that holds a prefix a line")]
    NotAFile,
    /// `ca_file` is not there, or holds no certificates.
    #[error("ca_file {} cannot be used: {problem}; it must hold PEM certificates", file.display())]
    CaFile {
        /// As configured.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No certificate authority is known, so that no server can be trusted.
    #[error(
        "the system has no certificate authorities; install the package ca-certificates, or set ca_file"
    )]
    NoCertificateAuthorities,
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be set up: {0}; check the proxy variables of the environment")]
    Client(String),
    /// It took too long.
    #[error("no complete answer within {}; check that the host is reachable, or raise `timeout`", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// No connection: name, route, refused, TLS.
    #[error(
        "cannot be reached: {0}; check the URL, this host's name resolution, its route and its proxy"
    )]
    Unreachable(String),
    /// The server's certificate is not trusted.
    #[error(
        "the server cannot be trusted: {0}; if it has a private certificate authority, set ca_file"
    )]
    Certificate(String),
    /// A redirect that is not followed.
    #[error("{0}")]
    Redirect(RedirectError),
    /// Anything but 200.
    #[error("the server answered {status}; {}", remedy(*status))]
    Status {
        /// What it answered.
        status: StatusCode,
    },
    /// The connection ended before the answer did.
    #[error(
        "the answer broke off after {received} bytes: {problem}; nothing of it is used: try again"
    )]
    Broken {
        /// How much there was, after decompression.
        received: u64,
        /// What the client said.
        problem: String,
    },
    /// More than `max_size`.
    #[error("is larger than {limit} bytes; if the list is meant to be that long, raise `max_size`")]
    TooLarge {
        /// The limit.
        limit: u64,
    },
    /// All of it was received, and it is not a list.
    #[error("{0}")]
    Feed(#[from] FeedError),
}

/// Why a redirect is not followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedirectError {
    /// The list would be fetched unprotected.
    #[error("redirects to {0}, which is not https; configure the https address of the list")]
    NotHttps(String),
    /// A loop, most likely.
    #[error(
        "redirects more than {MAX_REDIRECTS} times, last to {0}; configure the final address of the list"
    )]
    TooMany(String),
}

async fn read_file(path: &Path) -> Result<Vec<IpNet>, FetchErrorCause> {
    // Before it is opened: opening a pipe waits for its writer.
    let metadata = tokio::fs::metadata(path)
        .await
        .map_err(FetchErrorCause::File)?;
    if !metadata.is_file() {
        return Err(FetchErrorCause::NotAFile);
    }
    let file = tokio::fs::File::open(path)
        .await
        .map_err(FetchErrorCause::File)?;
    let mut bytes = Vec::new();
    let mut file = file.take(MAX_FILE_BYTES + 1);
    file.read_to_end(&mut bytes)
        .await
        .map_err(FetchErrorCause::File)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FetchErrorCause::TooLarge {
            limit: MAX_FILE_BYTES,
        });
    }
    Ok(feed::parse(&Format::Text, &bytes, today())?.prefixes)
}

async fn request(http: &Http) -> Result<Vec<IpNet>, FetchErrorCause> {
    // A client a request: an hour lies between two, and certificates may change in it.
    let client = client(http).await?;
    let failed = |error: reqwest::Error| classify(&error, http.timeout);
    let mut response = client
        .get(http.urls[0].clone())
        .send()
        .await
        .map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(FetchErrorCause::Status {
            status: response.status(),
        });
    }
    let mut bytes = Vec::new();
    loop {
        let received = bytes.len() as u64;
        match response.chunk().await {
            Ok(Some(chunk)) if received + chunk.len() as u64 > http.max_bytes => {
                return Err(FetchErrorCause::TooLarge {
                    limit: http.max_bytes,
                });
            }
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) if error.is_timeout() => return Err(failed(error)),
            Err(error) => {
                return Err(FetchErrorCause::Broken {
                    received,
                    problem: innermost(&error),
                });
            }
        }
    }
    Ok(feed::parse(&http.format, &bytes, today())?.prefixes)
}

fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}

async fn client(http: &Http) -> Result<Client, FetchErrorCause> {
    let certificates = match &http.ca_file {
        Some(file) => read_certificates(file).await?,
        None => Vec::new(),
    };
    let builder = || -> ClientBuilder {
        let builder = Client::builder()
            .user_agent(concat!("allowlist/", env!("CARGO_PKG_VERSION")))
            .timeout(http.timeout)
            .connect_timeout(CONNECT_TIMEOUT.min(http.timeout))
            .redirect(redirect::Policy::custom(follow));
        if is_loopback(&http.urls[0]) {
            builder.no_proxy()
        } else {
            builder
        }
    };
    // The system's certificates and these: enough if either is there.
    let error = match builder().tls_certs_merge(certificates).build() {
        Ok(client) => return Ok(client),
        Err(error) => error,
    };
    if http.urls[0].scheme() == "http" {
        // Loopback without TLS needs no certificates, and a redirect to https then fails.
        if let Ok(client) = builder().tls_certs_only([]).build() {
            return Ok(client);
        }
    }
    let problem = innermost(&error);
    match &http.ca_file {
        Some(file) => Err(FetchErrorCause::CaFile {
            file: file.clone(),
            problem,
        }),
        None if problem.contains("No CA certificates") => {
            Err(FetchErrorCause::NoCertificateAuthorities)
        }
        None => Err(FetchErrorCause::Client(problem)),
    }
}

async fn read_certificates(file: &Path) -> Result<Vec<Certificate>, FetchErrorCause> {
    let unusable = |problem: String| FetchErrorCause::CaFile {
        file: file.to_owned(),
        problem,
    };
    let pem = tokio::fs::read(file)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|error| unusable(innermost(&error)))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn follow(attempt: Attempt) -> redirect::Action {
    let next = attempt.url();
    let is_plain = |url: &reqwest::Url| url.scheme() == "http" && is_loopback(url);
    let was_plain = attempt.previous().last().is_some_and(is_plain);
    if next.scheme() != "https" && !(was_plain && is_plain(next)) {
        let error = RedirectError::NotHttps(public_url(next));
        return attempt.error(error);
    }
    // `previous` starts with the URL that was asked for.
    if attempt.previous().len() > MAX_REDIRECTS {
        let error = RedirectError::TooMany(public_url(next));
        return attempt.error(error);
    }
    attempt.follow()
}

fn classify(error: &reqwest::Error, timeout: Duration) -> FetchErrorCause {
    if error.is_timeout() {
        return FetchErrorCause::Timeout(timeout);
    }
    if let Some(redirect) = chain(error).find_map(|error| error.downcast_ref::<RedirectError>()) {
        return FetchErrorCause::Redirect(redirect.clone());
    }
    let problem = reasons(error);
    if let Some(rustls::Error::InvalidCertificate(_)) = chain(error).find_map(tls_error) {
        return FetchErrorCause::Certificate(problem);
    }
    FetchErrorCause::Unreachable(problem)
}

fn chain<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// An `io::Error` does not name what it wraps as its source.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(wrapper) => tls_error(wrapper.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// The chain in one line, from the outside in, without what a reason repeats of the one inside it,
/// and without the client's own words, which are its types' names, and the URL with its secrets.
fn reasons(error: &reqwest::Error) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for error in chain(error).skip(1) {
        let reason = error.to_string();
        if reason.starts_with("client error (") {
            continue;
        }
        if let Some(outer) = reasons.last_mut()
            && let Some(shorter) = outer.strip_suffix(&format!(": {reason}"))
        {
            *outer = shorter.to_owned();
        }
        if reasons.last() != Some(&reason) {
            reasons.push(reason);
        }
    }
    if reasons.is_empty() {
        "the request failed".to_owned()
    } else {
        reasons.join(": ")
    }
}

fn innermost(error: &reqwest::Error) -> String {
    chain(error)
        .skip(1)
        .last()
        .map_or_else(|| "the client failed".to_owned(), ToString::to_string)
}

fn remedy(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 | 403 => "check the URL and whether the vendor blocks this host's address",
        404 | 410 => "the list has moved: look for its new address in the vendor's documentation",
        429 => "it is asked too often: raise `every`",
        300..=399 => "configure the final address of the list",
        500..=599 => "the vendor has a problem: try again later",
        _ => "check the URL",
    }
}

fn midnight(day: Date) -> Timestamp {
    day.to_zoned(TimeZone::UTC)
        .expect("a day of this century is in range")
        .timestamp()
}
