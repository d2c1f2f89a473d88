//! The errors of a fetch, each with its remedy.
//!
//! Invariant: no variant holds a header's value, a token, or a URL with its query, so that neither
//! `Display` nor `Debug` can show one.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use allowlist_policy::error_code::ErrorCode;
use reqwest::StatusCode;
use rustls::CertificateError;
use thiserror::Error;

use super::archive::ArchiveError;
use super::gzip::GzipError;
use super::http::{AddressError, MAX_REDIRECTS};
use super::names::NameError;
use crate::feed::FeedError;

/// The error of a fetch, with the source, the origin and the cause.
#[derive(Debug, Error)]
#[error("source {name}: {origin}: {cause}")]
pub struct FetchError {
    /// The name of the source.
    pub name: String,
    /// The origin that was fetched, for display: a URL without secrets, a path, or DNS names.
    pub origin: String,
    /// The cause, boxed because it is larger than a successful result of `fetch`.
    pub cause: Box<FetchErrorCause>,
    /// The time until the server permits the next request; `None` if it states none.
    pub retry_after: Option<Duration>,
}

/// The cause of a failed fetch; its text states the remedy. No part of the answer is used.
#[derive(Debug, Error)]
pub enum FetchErrorCause {
    /// The file does not exist or cannot be read.
    #[error("the file cannot be read: {0}; check the path and its permissions")]
    File(io::Error),
    /// The configured path leads to a folder, a pipe or a device. The text is the reason.
    #[error("the list cannot be read: {0}; configure the path of a regular file")]
    NotAFile(String),
    /// Reading the file took longer than this time: the disk or the file server does not respond.
    #[error(
        "reading the file took longer than {}; check its file system",
        humantime::format_duration(*.0)
    )]
    FileTimeout(Duration),
    /// The file changed while it was read.
    #[error(
        "the file changed while it was read; write to a new file in the same folder, and rename it"
    )]
    Unsteady,
    /// The list in a file that not every user may read is invalid. Only the line number is given, if known, because the
    /// details quote the file.
    #[error(
        "the file is not a valid list{}; the details are hidden, since not every user may read the file: run `allowlist fetch` with a world-readable copy to see them",
        .0.map_or_else(String::new, |line| format!(" at line {line}"))
    )]
    PrivateFile(Option<usize>),
    /// `ca_file` does not exist or contains no certificates.
    #[error("ca_file {} cannot be used: {problem}; it must contain PEM certificates", file.display())]
    CaFile {
        /// The configured path of `ca_file`.
        file: PathBuf,
        /// The reason why the file cannot be used.
        problem: String,
    },
    /// `bearer_file` does not exist or contains no token.
    #[error("bearer_file {} cannot be used: {problem}; it must contain the token on one line", file.display())]
    BearerFile {
        /// The configured path of `bearer_file`.
        file: PathBuf,
        /// The reason why the file cannot be used.
        problem: String,
    },
    /// A configured header has an invalid name or value.
    #[error("the header {name:?} cannot be sent: {problem}; correct it under `headers`")]
    Header {
        /// The name of the configured header.
        name: String,
        /// The reason why the header cannot be sent, without its value.
        problem: &'static str,
    },
    /// The system has no certificate authorities, and `ca_file` is not set.
    #[error(
        "the system has no certificate authorities; install the package ca-certificates, or set ca_file"
    )]
    NoCertificateAuthorities,
    /// The HTTP client cannot be created, for this reason of the client library.
    #[error("the HTTP client cannot be set up: {0}; check the proxy variables of the environment")]
    Client(String),
    /// The URL is neither https nor to loopback, and `allow_plain_http` is not set.
    #[error("the list would be fetched without TLS; use https, or set `allow_plain_http = true`")]
    Unprotected,
    /// The request, with its redirects, took longer than `timeout`, which is this time.
    #[error("the server sent no complete answer within {}; check that it is reachable, or raise `timeout`", humantime::format_duration(*.0))]
    Timeout(Duration),
    /// The connection to the server was not made within this time.
    #[error("the connection to the server was not established within {}; check that the server is reachable, and this host's route and proxy", humantime::format_duration(*.0))]
    NoConnection(Duration),
    /// The connection to the server failed: name resolution, route, refused or TLS. The text is the reason.
    #[error(
        "the server cannot be reached: {0}; check the URL, and this host's name resolution, route and proxy"
    )]
    Unreachable(String),
    /// The certificate of the server is not trusted.
    #[error("the server's certificate is not trusted: {problem}; {remedy}")]
    Certificate {
        /// The reason that the TLS library states.
        problem: String,
        /// The advice for the operator.
        remedy: Remedy,
    },
    /// The server has an address to which this program sends no request.
    #[error("{0}")]
    Address(#[from] AddressError),
    /// An environment variable such as `https_proxy` sets a proxy that cannot be used.
    #[error(
        "the environment variable {variable} names no usable proxy: {problem}; set it to a URL such as \
         http://proxy.example.com:3128, or unset it"
    )]
    Proxy {
        /// The name of the variable, without its value, which may hold a password.
        variable: &'static str,
        /// The reason why the variable's value is unusable.
        problem: &'static str,
    },
    /// The server answered with a redirect that is not followed.
    #[error("{0}")]
    Redirect(RedirectError),
    /// The page of `discover` links to this address, which must not be fetched.
    #[error(
        "the page links to {0}, which is not an https URL; correct `discover`, or configure the https URL of the list"
    )]
    Link(String),
    /// The server answered with a status other than 200.
    #[error("the server answered {status}; {}", remedy(*status, *obstacle))]
    Status {
        /// The HTTP status of the response.
        status: StatusCode,
        /// The reason for the status, if the response headers state one.
        obstacle: Option<Obstacle>,
    },
    /// The response has this Content-Encoding, which was not requested.
    #[error(
        "the answer has Content-Encoding {0:?}, which was not requested; remove Accept-Encoding from `headers`, or report it to the vendor"
    )]
    Encoding(String),
    /// The compressed response is damaged, or other bytes follow its data. The text is the reason.
    #[error(
        "the answer cannot be decompressed, and was discarded: {0}; try again, or report it to the vendor"
    )]
    Compressed(String),
    /// The end of the connection ends the response, so a truncated response cannot be detected.
    #[error(
        "the answer has neither Content-Length nor chunks, so it may be truncated, and was discarded; report it to the vendor"
    )]
    NoLength,
    /// The response is not a valid list, and messages must not quote it, since it may come from a private server.
    #[error(
        "the answer is not a valid list; its content is hidden, since a redirect or a link leads to a private address: open it on this host, or configure the URL of the list"
    )]
    Withheld,
    /// The connection ended before the response was complete.
    #[error(
        "the answer was cut off after {received} bytes, and was discarded: {problem}; try again"
    )]
    Broken {
        /// The number of bytes received, before decompression.
        received: u64,
        /// The reason that the HTTP client states.
        problem: String,
    },
    /// The list is larger than `max_size`, before or after decompression.
    #[error("the list is larger than {limit} bytes; raise `max_size` if such a list is expected")]
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The file is larger than the limit for local files.
    #[error("the list is larger than {limit} bytes, the limit for lists in files; check the path")]
    FileTooLarge {
        /// The limit in bytes.
        limit: u64,
    },
    /// The ZIP archive contains no valid list.
    #[error("{0}")]
    Archive(#[from] ArchiveError),
    /// A DNS name has no usable addresses.
    #[error("{0}")]
    Name(#[from] NameError),
    /// The gzip data of the list is invalid and cannot be decompressed.
    #[error("the gzip file is invalid: {0}; compress it again, or report it to the vendor")]
    Gzip(GzipError),
    /// The response or file is complete, but is not a valid list.
    #[error("{0}")]
    Feed(#[from] FeedError),
}

impl FetchErrorCause {
    /// Returns the stable identifier of the error.
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

/// The reason why a redirect is not followed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RedirectError {
    /// The redirect leads to this URL, which is not https.
    #[error(
        "the server redirects to {0}, which is not an https URL; configure the https URL of the list"
    )]
    NotHttps(String),
    /// The server redirected more often than the limit, most likely in a loop; this URL was the last.
    #[error(
        "the server redirects more than {MAX_REDIRECTS} times, last to {0}; configure the final URL of the list"
    )]
    TooMany(String),
}

/// A failed fetch, before the name of its source is added to it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: Box<FetchErrorCause>,
    /// The URL that failed, with the page that links to it if there is one; `None` to show the source's whole origin
    /// instead.
    pub(super) place: Option<String>,
    pub(super) retry_after: Option<Duration>,
}

impl Failure {
    /// Returns the failure with `place` as the URL or page that failed.
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

/// The reason why a server refused a request, as the response headers state it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// This host has reached the server's rate limit.
    Limit,
    /// The server sends a challenge that only browsers pass.
    Challenge,
}

/// The advice for the operator about a server certificate that is not trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// The certificate authority is unknown, and `ca_file` is not set.
    SetCaFile,
    /// The certificate authority is unknown to the system and to `ca_file`.
    CheckCaFile,
    /// The certificate authority is not in `ca_file`, and `ca_only` trusts no other.
    CheckOnlyCaFile,
    /// The server sends the certificate of a certificate authority as its own.
    AuthorityAsServer,
    /// The certificate does not cover the host name in the URL.
    Name,
    /// The certificate has expired, or is not valid yet.
    Time,
    /// The certificate has another problem.
    Other,
}

impl Remedy {
    /// Returns the advice for the certificate error `error`, by whether `ca_file` and `ca_only` are set.
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
                "set ca_file if its certificate authority is private; otherwise the server may not send its \
                 intermediate certificate"
            }
            Self::CheckCaFile => {
                "its certificate authority is neither one of the system's nor in ca_file: check ca_file, and whether the \
                 server sends its intermediate certificate"
            }
            Self::CheckOnlyCaFile => {
                "its certificate authority is not in ca_file, and ca_only = true trusts no other: check ca_file, and \
                 whether the server sends its intermediate certificate"
            }
            Self::AuthorityAsServer => {
                "its own certificate is that of an authority (CA:TRUE): issue a server certificate that the authority \
                 signs"
            }
            Self::Name => "use a host name in the URL that the certificate covers",
            Self::Time => "check this host's clock, and renew the server's certificate",
            Self::Other => "report it to the server's operator",
        })
    }
}

fn remedy(status: StatusCode, obstacle: Option<Obstacle>) -> &'static str {
    match (status.as_u16(), obstacle) {
        (403 | 429, Some(Obstacle::Limit)) => {
            "this host's address has reached the rate limit: raise `every`, or send a token"
        }
        (_, Some(Obstacle::Challenge)) => {
            "it requires a browser: set another `User-Agent` in `headers`, or use the vendor's URL for programs"
        }
        (401, _) => {
            "it requires credentials: set or correct `bearer_file` or a header in `headers`"
        }
        (403, _) => {
            "check the URL, the credentials (`bearer_file`, `headers`), and whether the vendor blocks this host's \
             address or its `User-Agent`"
        }
        (407, _) => {
            "the proxy requires credentials: add them to the proxy's URL in the environment"
        }
        (404 | 410, _) => "the list has moved: look up its new URL in the vendor's documentation",
        (429, _) => "raise `every`",
        (304, _) => "the request was not conditional: check `headers`, and any cache in between",
        (300..=399, _) => "configure the final URL of the list",
        (500..=599, _) => "the vendor's server failed: try again later",
        _ => "check the URL",
    }
}
