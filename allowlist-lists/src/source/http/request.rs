//! One request: redirects, credentials, validators, the body.
//!
//! Invariants: credentials go only to the configured origin, and not even there after a redirect through another
//! origin; https never redirects to http, and a public server never to a private address, unless the operator
//! allows it.
//!
//! Does not know how a body is received (`body`) nor its format.

use std::error::Error;
use std::io;

use allowlist_policy::{Http, Validator, is_loopback, public_url};
use jiff::Timestamp;
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE,
    IF_NONE_MATCH, LAST_MODIFIED, LINK, LOCATION,
};
use reqwest::{Response, StatusCode, Url};

use super::body;
use super::client::{Clients, chain, connect_timeout};
use super::reach::{AddressError, Reach};
use crate::feed::Link;
use crate::source::error::{Failure, FetchErrorCause, Obstacle, RedirectError, Remedy};
use crate::source::{file, retry};

/// The most redirects of a request that are followed; more are an error, since they are most likely a loop.
pub(in crate::source) const MAX_REDIRECTS: usize = 5;
/// The maximum length of an `ETag` or `Last-Modified` value in bytes; a longer one is not kept.
const MAX_VALIDATOR_BYTES: usize = 1024;
/// The maximum size of `bearer_file` in bytes; a larger file is an error.
const MAX_TOKEN_BYTES: u64 = 16 << 10;

/// The HTTP clients and the credentials of one fetch.
pub(super) struct Session<'s> {
    pub(super) http: &'s Http,
    /// Whether the list may have no prefixes.
    pub(super) may_be_empty: bool,
    clients: Clients,
    /// The configured headers and the token of `bearer_file`, which are sent to the configured origin only.
    credentials: HeaderMap,
}

/// The URL of a request, and how redirects and links led to it.
#[derive(Clone, Debug)]
pub(super) struct RequestTarget {
    pub(super) url: Url,
    /// Whether every redirect and link so far stayed at the origin (scheme, host and port) of the configured URL, so
    /// that the request carries the credentials.
    is_home: bool,
    /// Whether the URL is the configured URL itself, not one to which a redirect or a link led.
    is_start: bool,
    /// The class of the address of the server whose redirect or link led to this URL; public if it is unknown, or if
    /// the URL is the configured one.
    from: Reach,
    /// The class of the address of this URL's server; public before the request, and if it is unknown because of a
    /// proxy.
    at: Reach,
    /// The host of the configured URL, from which the redirects and links started; `None` if that URL has no host.
    first_host: Option<String>,
}

/// The result of a successful HTTP request for a list or a page.
pub(super) enum FetchResult {
    /// The server answered a conditional request with 304: the list is unchanged.
    NotModified,
    /// The server sent a complete response.
    Body(Box<Body>),
}

/// A complete response to a request, with its validators and the URL of a next page.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) validator: Validator,
    /// The URL that the response came from, after redirects.
    pub(super) target: RequestTarget,
    /// The URL of the next page of the list; `None` if the server states none.
    pub(super) next: Option<Url>,
}

impl RequestTarget {
    pub(super) fn start(url: &Url) -> Self {
        Self {
            url: url.clone(),
            is_home: true,
            is_start: true,
            from: Reach::Public,
            at: Reach::Public,
            first_host: url.host_str().map(str::to_owned),
        }
    }

    /// Returns whether a message may quote the response body from this target.
    ///
    /// The body of a private server is quoted only if the configuration names that server, since vendors choose the
    /// targets of redirects and links.
    pub(super) fn may_be_shown(&self) -> bool {
        self.at == Reach::Public || self.url.host_str() == self.first_host.as_deref()
    }

    /// Returns whether this server may have a private address: the configured server may, and a server to which a
    /// private server redirects or links.
    fn may_be_private(&self) -> bool {
        self.is_start || self.from == Reach::Private
    }

    /// Returns the target of `link` on the page at this target, or an error if it must not be followed.
    ///
    /// `allow_plain` permits links without TLS.
    pub(super) fn link(&self, link: &Link, allow_plain: bool) -> Result<Self, FetchErrorCause> {
        let base = link
            .base
            .as_deref()
            .and_then(|base| self.url.join(base).ok());
        match base.as_ref().unwrap_or(&self.url).join(&link.address) {
            Ok(next) if self.may_lead_to(&next, allow_plain) => Ok(self.next(next)),
            Ok(next) => Err(FetchErrorCause::Link(public_url(&next))),
            Err(_) => Err(FetchErrorCause::Link("an invalid URL".to_owned())),
        }
    }

    fn next(&self, mut url: Url) -> Self {
        let is_home = self.is_home && url.origin() == self.url.origin();
        if is_home && url.username().is_empty() && url.password().is_none() {
            // These fail for URLs that cannot hold credentials.
            let _ = url.set_username(self.url.username());
            let _ = url.set_password(self.url.password());
        }
        Self {
            url,
            is_home,
            is_start: false,
            from: self.at,
            at: Reach::Public,
            first_host: self.first_host.clone(),
        }
    }

    fn may_lead_to(&self, next: &Url, allow_plain: bool) -> bool {
        let is_plain_loopback = |url: &Url| url.scheme() == "http" && is_loopback(url);
        match next.scheme() {
            "https" => true,
            "http" => allow_plain || (is_plain_loopback(&self.url) && is_plain_loopback(next)),
            _ => false,
        }
    }
}

impl<'s> Session<'s> {
    pub(super) async fn new(http: &'s Http, may_be_empty: bool) -> Result<Self, FetchErrorCause> {
        Ok(Self {
            http,
            may_be_empty,
            clients: Clients::new(http).await?,
            credentials: credentials(http).await?,
        })
    }

    /// Requests `target`, conditionally if `known` has validators, and follows redirects.
    ///
    /// One timeout covers the request and its redirects. `has_own_end` states that the list's format marks its own end,
    /// so that a body that only the end of the connection ends is accepted too.
    pub(super) async fn get(
        &mut self,
        target: RequestTarget,
        known: &Validator,
        has_own_end: bool,
    ) -> Result<FetchResult, Failure> {
        let limit = self.http.timeout;
        tokio::time::timeout(limit, self.follow(target, known, has_own_end))
            .await
            .unwrap_or_else(|_| Err(FetchErrorCause::Timeout(limit).into()))
    }

    async fn follow(
        &mut self,
        mut target: RequestTarget,
        known: &Validator,
        has_own_end: bool,
    ) -> Result<FetchResult, Failure> {
        let allow_plain = self.http.allow_plain_http;
        if target.url.scheme() != "https" && !is_loopback(&target.url) && !allow_plain {
            return Err(FetchErrorCause::Unprotected.into());
        }
        for redirects in 0.. {
            let validators = validators(&target, known);
            let asked = !validators.is_empty();
            let response = self.send(&mut target, validators).await?;
            match response.status() {
                StatusCode::OK => {
                    let body = self.receive(target, response, has_own_end).await?;
                    return Ok(FetchResult::Body(Box::new(body)));
                }
                StatusCode::NOT_MODIFIED if asked => return Ok(FetchResult::NotModified),
                _ => {}
            }
            let Some(next) = redirect_target(&target.url, &response) else {
                return Err(refused(&response));
            };
            if !target.may_lead_to(&next, allow_plain) {
                let error = RedirectError::NotHttps(public_url(&next));
                return Err(FetchErrorCause::Redirect(error).into());
            }
            if redirects == MAX_REDIRECTS {
                let error = RedirectError::TooMany(public_url(&next));
                return Err(FetchErrorCause::Redirect(error).into());
            }
            target = target.next(next);
        }
        unreachable!("the loop ends at the last redirect that is followed")
    }

    async fn send(
        &mut self,
        target: &mut RequestTarget,
        validators: HeaderMap,
    ) -> Result<Response, FetchErrorCause> {
        let may_be_private = target.may_be_private() || self.http.allow_private;
        let clients = &mut self.clients;
        let (client, guard) = clients
            .for_url(self.http, &target.url, may_be_private)
            .await?;
        let mut request = client
            .get(target.url.clone())
            .headers(validators)
            .header(ACCEPT_ENCODING, "gzip");
        if target.is_home {
            request = request.headers(self.credentials.clone());
        }
        let response = request.send().await;
        target.at = guard.found_at();
        response.map_err(|error| classify(&error, self.http))
    }

    async fn receive(
        &self,
        target: RequestTarget,
        response: Response,
        has_own_end: bool,
    ) -> Result<Body, FetchErrorCause> {
        let headers = response.headers();
        let (validator, next) = (validator(&target, headers), next_page(&target.url, headers));
        let bytes = body::receive(response, self.http.max_bytes, has_own_end).await?;
        Ok(Body {
            bytes,
            validator,
            target,
            next,
        })
    }
}

/// Returns the conditional headers for a request to `target`, from the validators `known` of the last response.
fn validators(target: &RequestTarget, known: &Validator) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let mut add = |name: HeaderName, value: &Option<String>| {
        // A value that is no valid header comes from a damaged state.
        if let Some(Ok(value)) = value.as_deref().map(HeaderValue::from_str) {
            headers.insert(name, value);
        }
    };
    add(IF_NONE_MATCH, &known.etag);
    if target.is_start {
        add(IF_MODIFIED_SINCE, &known.last_modified);
    }
    headers
}

/// Returns the validators in `headers`, the response headers of `target`, which make the next request conditional.
fn validator(target: &RequestTarget, headers: &HeaderMap) -> Validator {
    let text = |name: HeaderName| {
        let text = headers.get(name)?.to_str().ok()?;
        (!text.is_empty() && text.len() <= MAX_VALIDATOR_BYTES).then(|| text.to_owned())
    };
    Validator {
        etag: text(ETAG),
        last_modified: target.is_start.then(|| text(LAST_MODIFIED)).flatten(),
    }
}

/// Returns the URL of the next page of a list in pages, as the `Link` header (RFC 8288) states it, or `None` if it
/// states none or an invalid URL.
///
/// `from` is the URL of the present page.
fn next_page(from: &Url, headers: &HeaderMap) -> Option<Url> {
    let texts = headers
        .get_all(LINK)
        .iter()
        .filter_map(|line| line.to_str().ok());
    let mut links = texts.flat_map(|text| text.split('<').skip(1));
    let target = links.find_map(|link| {
        let (target, parameters) = link.split_once('>')?;
        let is_next = parameters.split([';', ',']).any(|parameter| {
            let Some((name, value)) = parameter.split_once('=') else {
                return false;
            };
            let mut relations = value.trim().trim_matches('"').split_whitespace();
            name.trim().eq_ignore_ascii_case("rel")
                && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
        });
        is_next.then_some(target)
    })?;
    from.join(target).ok()
}

/// Returns the URL to which `response` redirects, or `None` if it is no redirect or has no valid Location header.
fn redirect_target(from: &Url, response: &Response) -> Option<Url> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return None;
    }
    let location = response.headers().get(LOCATION)?;
    from.join(str::from_utf8(location.as_bytes()).ok()?).ok()
}

fn refused(response: &Response) -> Failure {
    let headers = response.headers();
    let cause = FetchErrorCause::Status {
        status: response.status(),
        obstacle: if retry::is_limited(headers) {
            Some(Obstacle::Limit)
        } else if is_challenge(headers) {
            Some(Obstacle::Challenge)
        } else {
            None
        },
    };
    Failure {
        retry_after: retry::retry_after(headers, Timestamp::now()),
        ..cause.into()
    }
}

/// Returns whether the response is a challenge for browsers, by the headers of the services that send such challenges.
fn is_challenge(headers: &HeaderMap) -> bool {
    const HEADERS: [&str; 4] = [
        "cf-mitigated",
        "cf-chl-out",
        "x-amzn-waf-action",
        "x-datadome",
    ];
    HEADERS.iter().any(|name| headers.contains_key(*name))
}

/// Returns the configured headers and the token of `bearer_file`, all marked as sensitive, so that `Debug` does not
/// show them.
async fn credentials(http: &Http) -> Result<HeaderMap, FetchErrorCause> {
    let mut headers = HeaderMap::new();
    for (name, secret) in &http.headers {
        let unusable = |problem| FetchErrorCause::Header {
            name: name.clone(),
            problem,
        };
        let key: HeaderName = name
            .parse()
            .map_err(|_| unusable("it is not a header name"))?;
        let mut value = HeaderValue::from_str(&secret.0)
            .map_err(|_| unusable("its value has characters that a header must not have"))?;
        value.set_sensitive(true);
        headers.append(key, value);
    }
    if let Some(path) = &http.bearer_file {
        let unusable = |problem: String| FetchErrorCause::BearerFile {
            file: path.clone(),
            problem,
        };
        let bytes = file::read(path, MAX_TOKEN_BYTES)
            .await
            .map_err(|error| unusable(error.to_string()))?;
        let token = bytes.trim_ascii();
        if token.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(unusable(
                "it has characters that a token must not have".to_owned(),
            ));
        }
        let mut value = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
            .expect("visible ASCII is a header's value");
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    Ok(headers)
}

/// Returns the failed request's `error` as a cause with a remedy that fits the options `http`.
pub(super) fn classify(error: &reqwest::Error, http: &Http) -> FetchErrorCause {
    if let Some(refused) = chain(error).find_map(|error| error.downcast_ref::<AddressError>()) {
        return refused.clone().into();
    }
    if error.is_timeout() {
        return if error.is_connect() {
            FetchErrorCause::NoConnection(connect_timeout(http))
        } else {
            FetchErrorCause::Timeout(http.timeout)
        };
    }
    let problem = reasons(error);
    match chain(error).find_map(tls_error) {
        Some(rustls::Error::InvalidCertificate(error)) => FetchErrorCause::Certificate {
            problem,
            remedy: Remedy::of(error, http.ca_file.is_some(), http.ca_only),
        },
        _ => FetchErrorCause::Unreachable(problem),
    }
}

/// Returns `error` as a TLS error, or `None` if it is another error. Unwraps an `io::Error`, whose `source` skips the
/// error inside it.
fn tls_error<'e>(error: &'e (dyn Error + 'static)) -> Option<&'e rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(wrapper) => tls_error(wrapper.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// Returns the chain of causes of `error` on one line, outermost first.
///
/// Repetitions, the client's type names and the URL with its secrets are omitted.
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

#[cfg(test)]
mod tests {
    use super::*;
    use allowlist_policy::{Format, Secret};

    #[test]
    fn credentials_are_not_shown() {
        let url = "https://lists.example.com/".parse().expect("a URL");
        let folder = tempfile::tempdir().expect("a folder");
        let token = folder.path().join("token");
        std::fs::write(&token, "hush\n").expect("a file");
        let http = Http {
            headers: vec![("X-Api-Key".to_owned(), Secret("hush".to_owned()))],
            bearer_file: Some(token),
            ..Http::new(vec![url], Format::Text)
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        let headers = runtime.expect("a runtime").block_on(credentials(&http));
        let headers = headers.expect("valid headers");
        assert_eq!(headers["x-api-key"], "hush");
        assert_eq!(headers["authorization"], "Bearer hush");
        assert!(!format!("{headers:?}").contains("hush"), "{headers:?}");
    }
}
