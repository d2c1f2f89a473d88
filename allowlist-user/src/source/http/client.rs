//! The HTTP client, and what it trusts.
//!
//! Invariant: what goes to loopback takes no proxy. Knows no source but its `Http`, and sends nothing.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};

use crate::policy::{Http, is_loopback};
use crate::source::error::FetchErrorCause;
use crate::source::file;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// More than every authority there is.
const MAX_CERTIFICATES_BYTES: u64 = 4 << 20;

/// The clients of one fetch, each made when it is first needed. They live no longer than the fetch, as
/// certificates may change before the next.
pub(super) struct Clients {
    certificates: Vec<Certificate>,
    made: Vec<(Route, Client)>,
}

/// What tells one client from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Route {
    /// Whether it stays on this host.
    is_loopback: bool,
    /// Whether it needs no certificates.
    is_plain: bool,
}

impl Clients {
    pub(super) async fn new(http: &Http) -> Result<Self, FetchErrorCause> {
        // Chooses the process's TLS implementation; an error only says that that was done already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let certificates = match &http.ca_file {
            Some(file) => read_certificates(file).await?,
            None => Vec::new(),
        };
        Ok(Self {
            certificates,
            made: Vec::new(),
        })
    }

    /// The one to send a request to that URL with.
    pub(super) fn for_url(&mut self, http: &Http, url: &Url) -> Result<Client, FetchErrorCause> {
        let is_loopback = is_loopback(url);
        let route = Route {
            is_loopback,
            // Elsewhere a proxy may lie between, which may want TLS.
            is_plain: is_loopback && url.scheme() == "http",
        };
        if let Some((_, client)) = self.made.iter().find(|(made, _)| *made == route) {
            return Ok(client.clone());
        }
        let client = self.make(http, route)?;
        self.made.push((route, client.clone()));
        Ok(client)
    }

    fn make(&self, http: &Http, route: Route) -> Result<Client, FetchErrorCause> {
        let mut builder = builder(http);
        if route.is_loopback {
            builder = builder.no_proxy();
        }
        builder = if route.is_plain {
            builder.tls_certs_only([])
        } else {
            // The system's certificates and these: enough if either is there.
            builder.tls_certs_merge(self.certificates.clone())
        };
        builder.build().map_err(|error| {
            let problem = innermost(&error);
            match &http.ca_file {
                Some(file) => FetchErrorCause::CaFile {
                    file: file.clone(),
                    problem,
                },
                None if problem.contains("No CA certificates") => {
                    FetchErrorCause::NoCertificateAuthorities
                }
                None => FetchErrorCause::Client(problem),
            }
        })
    }
}

/// How long connecting may take. Shorter than the whole, so that a second address has its turn.
pub(super) fn connect_timeout(http: &Http) -> Duration {
    CONNECT_TIMEOUT.min(http.timeout)
}

fn builder(http: &Http) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("allowlist/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(connect_timeout(http))
        // `request` follows them itself: it alone knows which headers are secret.
        .redirect(redirect::Policy::none())
        .referer(false)
}

async fn read_certificates(file: &Path) -> Result<Vec<Certificate>, FetchErrorCause> {
    let unusable = |problem: String| FetchErrorCause::CaFile {
        file: file.to_owned(),
        problem,
    };
    let pem = file::read(file, MAX_CERTIFICATES_BYTES)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let certificates =
        Certificate::from_pem_bundle(&pem).map_err(|error| unusable(innermost(&error)))?;
    if certificates.is_empty() {
        return Err(unusable("it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

/// An error, and what caused it, from the outside in.
pub(super) fn chain<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The last reason, which is not the client's own.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    chain(error)
        .skip(1)
        .last()
        .map_or_else(|| "the client failed".to_owned(), ToString::to_string)
}
