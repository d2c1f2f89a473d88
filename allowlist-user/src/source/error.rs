//! Why a source could not be had, in words that say what to do about it.
//!
//! Invariant: no variant holds a header's value, a token, or a URL with its query, so that neither
//! `Display` nor `Debug` can show one.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use thiserror::Error;

use super::archive::ArchiveError;
use super::http::MAX_REDIRECTS;
use super::names::NameError;
use crate::feed::FeedError;

/// Which source could not be had, and why.
#[derive(Debug, Error)]
#[error("source {name}: {origin}: {cause}")]
pub struct FetchError {
    /// The source.
    pub name: String,
    /// Where it was looked for: a URL without secrets, a path, names.
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
    #[error("cannot be read as a file: {0}; name a file that holds the list")]
    NotAFile(String),
    /// The disk, or the server of its file system, does not answer.
    #[error(
        "was not read within {}; check the file system that it is on",
        humantime::format_duration(*.0)
    )]
    FileTimeout(Duration),
    /// Somebody writes it, slowly.
    #[error("changes while it is read; write a new file beside it, and rename that into its place")]
    Unsteady,
    /// `ca_file` is not there, or holds no certificates.
    #[error("ca_file {} cannot be used: {problem}; it must hold PEM certificates", file.display())]
    CaFile {
        /// As configured.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// `bearer_file` is not there, or holds no token.
    #[error("bearer_file {} cannot be used: {problem}; it must hold the token, in one line", file.display())]
    BearerFile {
        /// As configured.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No HTTP header looks like that.
    #[error("the header {name:?} cannot be sent: {problem}; correct it under `headers`")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it, without its value.
        problem: &'static str,
    },
    /// No certificate authority is known, so that no server can be trusted.
    #[error(
        "the system has no certificate authorities; install the package ca-certificates, or set ca_file"
    )]
    NoCertificateAuthorities,
    /// The HTTP client could not be made.
    #[error("the HTTP client cannot be set up: {0}; check the proxy variables of the environment")]
    Client(String),
    /// Neither https nor loopback.
    #[error("would be fetched unprotected; use https, or set `allow_plain_http = true`")]
    Unprotected,
    /// It took too long.
    #[error("no complete answer within {}; check that the host is reachable, or raise `timeout`", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// It took too long to get a connection.
    #[error("no connection within {}; check that the host is reachable, and this host's route and proxy", humantime::format_duration(*.0))]
    NoConnection(Duration),
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
    /// The page links to what may not be fetched.
    #[error(
        "links to {0}, which cannot be fetched; check `discover`, or configure the https address of the list"
    )]
    Link(String),
    /// Anything but 200.
    #[error("the server answered {status}; {}", remedy(*status, *limited))]
    Status {
        /// What it answered.
        status: StatusCode,
        /// Whether it says that this host asked too often.
        limited: bool,
    },
    /// Compressed in a way that nobody asked for.
    #[error(
        "is compressed as {0:?}, which was not asked for; remove Accept-Encoding from `headers`, or ask the vendor"
    )]
    Encoding(String),
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
    /// More than a file may have.
    #[error(
        "is larger than {limit} bytes, the most that a file may have; check that it is the list"
    )]
    FileTooLarge {
        /// The limit.
        limit: u64,
    },
    /// The archive has no list to give.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// A name has no addresses to give.
    #[error("{0}")]
    Name(#[from] NameError),
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

/// A cause, and what is known of it where it happens.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Box<FetchErrorCause>,
    /// Where, if the source has several places or leads to another.
    pub(super) place: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    /// The same, and where it happened.
    pub(super) fn at(mut self, place: &str) -> Self {
        self.place = Some(place.to_owned());
        self
    }
}

impl<E: Into<FetchErrorCause>> From<E> for Failure {
    fn from(cause: E) -> Self {
        Self {
            cause: Box::new(cause.into()),
            place: None,
            retry_after: None,
        }
    }
}

fn remedy(status: StatusCode, limited: bool) -> &'static str {
    match status.as_u16() {
        403 | 429 if limited => {
            "this host's address has asked too often: raise `every`, or send a token"
        }
        401 | 403 => "check the URL and whether the vendor blocks this host's address",
        404 | 410 => "the list has moved: look for its new address in the vendor's documentation",
        429 => "it is asked too often: raise `every`",
        304 => "nobody asked whether the list is new: check `headers`, and any cache on the way",
        300..=399 => "configure the final address of the list",
        500..=599 => "the vendor has a problem: try again later",
        _ => "check the URL",
    }
}
