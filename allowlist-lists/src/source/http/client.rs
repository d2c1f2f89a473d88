//! The HTTP client, its certificates and its proxies.
//!
//! Invariants: requests to loopback take no proxy; a proxy that the environment names and that cannot be used
//! is an error; and a client connects only to addresses that `reach` permits. Knows no source but its `Http`, and sends
//! nothing.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use allowlist_policy::{Http, is_loopback};
use reqwest::{Certificate, Client, ClientBuilder, Url, redirect};

use super::proxy;
use super::reach::{Guard, literal};
use crate::source::error::FetchErrorCause;
use crate::source::{file, run_blocking};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The maximum size of `ca_file` in bytes, larger than a file of all public certificate authorities.
const MAX_CERTIFICATES_BYTES: u64 = 4 << 20;

/// The HTTP clients of one fetch, each made when it is first needed.
///
/// They live no longer than the fetch, since certificates may change before the next one.
pub(super) struct Clients {
    certificates: Vec<Certificate>,
    made: Vec<(Route, Client, Guard)>,
}

/// The properties of a request by which HTTP clients differ.
#[derive(Clone, PartialEq, Eq)]
struct Route {
    /// The host of the URL, whose resolved addresses the client's [`Guard`] checks.
    host: String,
    /// Whether the host may have a private address; if false, requests to such an address are refused.
    may_be_private: bool,
    /// Whether the host is a loopback address, so that requests use no proxy.
    is_loopback: bool,
    /// Whether requests need no certificates: plain HTTP to loopback.
    is_plain: bool,
}

impl Clients {
    pub(super) async fn new(http: &Http) -> Result<Self, FetchErrorCause> {
        // Selects the process's TLS implementation; an error means that one is selected already.
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

    /// Returns the client for a request to `url`, and the [`Guard`] that decides to which addresses of its host the
    /// client connects. `may_be_private` permits private addresses.
    ///
    /// # Errors
    /// The URL contains an address that no request may go to, the proxy is unusable, or no client can be made.
    pub(super) async fn for_url(
        &mut self,
        http: &Http,
        url: &Url,
        may_be_private: bool,
    ) -> Result<(Client, Guard), FetchErrorCause> {
        let is_loopback = is_loopback(url);
        let route = Route {
            host: url.host_str().unwrap_or_default().to_owned(),
            may_be_private,
            is_loopback,
            // Elsewhere a proxy may lie between, which may want TLS.
            is_plain: is_loopback && url.scheme() == "http",
        };
        if let Some((_, client, guard)) = self.made.iter().find(|(made, ..)| *made == route) {
            return Ok((client.clone(), guard.clone()));
        }
        let guard = Guard::new(&route.host, may_be_private);
        if let Some(address) = literal(url) {
            // The client looks up names alone.
            guard.permitted(vec![(address, 0).into()])?;
        }
        if !is_loopback {
            proxy::check(url)?;
        }
        let client = self.make(http, &route, &guard).await?;
        self.made.push((route, client.clone(), guard.clone()));
        Ok((client, guard))
    }

    async fn make(
        &self,
        http: &Http,
        route: &Route,
        guard: &Guard,
    ) -> Result<Client, FetchErrorCause> {
        let mut builder = builder(http).dns_resolver(Arc::new(guard.clone()));
        if route.is_loopback {
            builder = builder.no_proxy();
        }
        builder = if route.is_plain {
            builder.tls_certs_only([])
        } else if http.ca_only {
            builder.tls_certs_only(self.certificates.clone())
        } else {
            // The system's certificates and these: enough if either is there.
            builder.tls_certs_merge(self.certificates.clone())
        };
        // Reads the system's certificates from its disk.
        run_blocking(move || builder.build())
            .await
            .map_err(|error| {
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

/// Returns the time limit for connecting, which is short so that a second address is tried before the request times
/// out.
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
        return Err(unusable("it contains no certificate".to_owned()));
    }
    Ok(certificates)
}

/// Returns `error` and its causes, the outermost first.
pub(super) fn chain<'e>(
    error: &'e (dyn Error + 'static),
) -> impl Iterator<Item = &'e (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// Returns the text of the innermost cause of `error`, such as that of the operating system; the outer texts, of the
/// HTTP client, are generic.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    chain(error).skip(1).last().map_or_else(
        || "the HTTP client states no reason".to_owned(),
        ToString::to_string,
    )
}
