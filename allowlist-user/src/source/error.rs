//! Why a source could not be had, in words that say what to do about it.
//!
//! Invariant: no variant holds a header's value, a token, or a URL with its query, so that neither
//! `Display` nor `Debug` can show one.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;
use rustls::CertificateError;
use thiserror::Error;

use super::archive::ArchiveError;
use super::gzip::GzipError;
use super::http::{AddressError, MAX_REDIRECTS};
use super::names::NameError;
use crate::error_code::ErrorCode;
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
    /// The list in a file that not every user may read was refused, so the reason, which quotes it, stays secret.
    #[error(
        "is refused{}; the reason quotes the file, which not every user may read: `allowlist fetch` with a copy that all may read shows it",
        .0.map_or_else(String::new, |line| format!(" at line {line}"))
    )]
    PrivateFile(Option<usize>),
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
    #[error("the server cannot be trusted: {problem}; {remedy}")]
    Certificate {
        /// The TLS library's reason.
        problem: String,
        /// The advice for the operator.
        remedy: Remedy,
    },
    /// An address that no request may go to.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// The environment names a proxy that cannot be used.
    #[error(
        "the environment variable {variable} names no proxy that can be used: {problem}; write one such as \
         http://proxy.example.com:3128, or remove it"
    )]
    Proxy {
        /// The variable's name. Its value may hold a password.
        variable: &'static str,
        /// The reason why its value is unusable.
        problem: &'static str,
    },
    /// A redirect that is not followed.
    #[error("{0}")]
    Redirect(RedirectError),
    /// The page links to what may not be fetched.
    #[error(
        "links to {0}, which cannot be fetched; check `discover`, or configure the https address of the list"
    )]
    Link(String),
    /// Anything but 200.
    #[error("the server answered {status}; {}", remedy(*status, *obstacle))]
    Status {
        /// What it answered.
        status: StatusCode,
        /// The reason, if the headers state one.
        obstacle: Option<Obstacle>,
    },
    /// Compressed in a way that nobody asked for.
    #[error(
        "is compressed as {0:?}, which was not asked for; remove Accept-Encoding from `headers`, or ask the vendor"
    )]
    Encoding(String),
    /// Compressed data that is damaged, or more than that.
    #[error(
        "cannot be decompressed: {0}; the whole answer is discarded: try again, or report it to the vendor"
    )]
    Compressed(String),
    /// The end of the connection is the only end of the answer.
    #[error(
        "the answer has neither a length nor an end of its own, so it may be truncated and is \
         discarded: the server has to send Content-Length or chunks"
    )]
    NoLength,
    /// An answer that is not shown.
    #[error(
        "is not a list as configured; its content is not shown, because a redirect or a link leads to a \
         private address: open it on this host, or configure the address of the list"
    )]
    Withheld,
    /// The connection ended before the answer did.
    #[error(
        "the answer broke off after {received} bytes: {problem}; nothing of it is used: try again"
    )]
    Broken {
        /// How many bytes there were, as they were sent.
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
    /// A file that gzip made, and that cannot be expanded.
    #[error("is a gzip file, and {0}; compress it again, or report it to the vendor")]
    Gzip(GzipError),
    /// All of it was received, and it is not a list.
    #[error("{0}")]
    Feed(#[from] FeedError),
}

impl FetchErrorCause {
    /// Returns the code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::File(_) | Self::NotAFile(_) | Self::FileTimeout(_) | Self::Unsteady => {
                ErrorCode::FileUnreadable
            }
            Self::PrivateFile(_) | Self::Withheld => ErrorCode::ListMalformed,
            Self::CaFile { .. } | Self::BearerFile { .. } | Self::Header { .. } => {
                ErrorCode::InvalidCredentials
            }
            Self::NoCertificateAuthorities | Self::Certificate { .. } => ErrorCode::UntrustedServer,
            Self::Client(_) | Self::Proxy { .. } | Self::Unreachable(_) => ErrorCode::Unreachable,
            Self::Unprotected | Self::Address(_) => ErrorCode::AddressRefused,
            Self::Timeout(_) | Self::NoConnection(_) => ErrorCode::Timeout,
            Self::Redirect(_) | Self::Link(_) => ErrorCode::RedirectRefused,
            Self::Status { .. } => ErrorCode::HttpStatus,
            Self::NoLength | Self::Broken { .. } => ErrorCode::Incomplete,
            Self::TooLarge { .. } | Self::FileTooLarge { .. } => ErrorCode::TooLarge,
            Self::Encoding(_) | Self::Compressed(_) | Self::Gzip(_) | Self::Archive(_) => {
                ErrorCode::InvalidArchive
            }
            Self::Name(_) => ErrorCode::NameFailed,
            Self::Feed(error) => error.code(),
        }
    }
}

impl From<GzipError> for FetchErrorCause {
    fn from(error: GzipError) -> Self {
        match error {
            GzipError::TooLarge { limit } => Self::TooLarge { limit },
            error => Self::Gzip(error),
        }
    }
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

/// The reason for a refusal, as the headers of an answer state it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// This host has used up its requests.
    Limit,
    /// A test for browsers.
    Challenge,
}

/// The advice for a certificate that is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The authority is unknown, and none is configured.
    SetCaFile,
    /// The authority is unknown, and others are configured.
    CheckCaFile,
    /// The same, and only these are trusted.
    CheckOnlyCaFile,
    /// The server shows a certificate authority's certificate.
    AuthorityAsServer,
    /// The certificate is for other names.
    Name,
    /// The certificate's time is over, or has not begun.
    Time,
    /// Something else.
    Other,
}

impl Remedy {
    /// The advice for `error` with this configuration.
    pub(super) fn of(error: &CertificateError, has_ca_file: bool, ca_only: bool) -> Self {
        use CertificateError::{BadSignature, UnknownIssuer};
        match error {
            // Another authority with the name of a trusted one has another signature.
            UnknownIssuer | BadSignature if ca_only => Self::CheckOnlyCaFile,
            UnknownIssuer | BadSignature if has_ca_file => Self::CheckCaFile,
            UnknownIssuer | BadSignature => Self::SetCaFile,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Self::Name
            }
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::Time,
            other if other.to_string().contains("CaUsedAsEndEntity") => Self::AuthorityAsServer,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::SetCaFile => {
                "if it has a private certificate authority, set ca_file; if not, the server may not send its \
                 intermediate certificate"
            }
            Self::CheckCaFile => {
                "neither the system nor ca_file has the authority that signed its certificate: check ca_file, and \
                 whether the server sends its intermediate certificate"
            }
            Self::CheckOnlyCaFile => {
                "ca_file does not have the authority that signed its certificate, and ca_only = true trusts no \
                 other: check ca_file, and whether the server sends its intermediate certificate"
            }
            Self::AuthorityAsServer => {
                "it shows the certificate of a certificate authority as its own: issue one for the server, without \
                 CA:TRUE, which that authority signs"
            }
            Self::Name => "use a host name in the URL that its certificate has",
            Self::Time => "check this host's clock, and renew the server's certificate",
            Self::Other => "report it to the server's operator",
        })
    }
}

fn remedy(status: StatusCode, obstacle: Option<Obstacle>) -> &'static str {
    match (status.as_u16(), obstacle) {
        (403 | 429, Some(Obstacle::Limit)) => {
            "this host's address has asked too often: raise `every`, or send a token"
        }
        (_, Some(Obstacle::Challenge)) => {
            "it wants to see a browser: set another `User-Agent` in `headers`, or use an address of the list that the \
             vendor has for programs"
        }
        (401, _) => {
            "it wants credentials: set `bearer_file`, or a header in `headers`, or correct them"
        }
        (403, _) => {
            "check the URL, the credentials (`bearer_file`, `headers`), and whether the vendor blocks this host's \
             address or its `User-Agent`"
        }
        (407, _) => "the proxy wants credentials: add them to the proxy's URL in the environment",
        (404 | 410, _) => {
            "the list has moved: look for its new address in the vendor's documentation"
        }
        (429, _) => "it is asked too often: raise `every`",
        (304, _) => {
            "nobody asked whether the list is new: check `headers`, and any cache on the way"
        }
        (300..=399, _) => "configure the final address of the list",
        (500..=599, _) => "the vendor has a problem: try again later",
        _ => "check the URL",
    }
}
