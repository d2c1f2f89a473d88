//! Checks the proxy that the environment names for a request. The client would ignore an invalid one and connect
//! directly.
//!
//! Knows the variables as the client reads them, and shows no value, which may hold a password.

use std::env;

use hyper::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;

use crate::source::error::FetchErrorCause;

/// Checks that the HTTP client can use the proxy that environment variables set for `url`, if any.
///
/// # Errors
/// A variable sets a proxy for `url` that the client cannot use.
pub(super) fn check(url: &Url) -> Result<(), FetchErrorCause> {
    let own = match url.scheme() {
        "http" => ["HTTP_PROXY", "http_proxy"],
        _ => ["HTTPS_PROXY", "https_proxy"],
    };
    let named = [own, ["ALL_PROXY", "all_proxy"]];
    let Some((variable, value)) = named.into_iter().find_map(first_set) else {
        return Ok(());
    };
    match problem(value.as_deref()) {
        Some(problem) if is_proxied(url) => Err(FetchErrorCause::Proxy { variable, problem }),
        _ => Ok(()),
    }
}

/// Returns the first of the two environment variables that is set and not empty, with its value; `None` if neither is.
///
/// The value is `None` if it is not UTF-8.
fn first_set(names: [&'static str; 2]) -> Option<(&'static str, Option<String>)> {
    let set = |name| match env::var(name) {
        Ok(value) if value.is_empty() => None,
        Ok(value) => Some((name, Some(value))),
        Err(env::VarError::NotUnicode(_)) => Some((name, None)),
        Err(env::VarError::NotPresent) => None,
    };
    names.into_iter().find_map(set)
}

/// Returns the reason why `value`, the value of a proxy variable, is unusable, or `None` if it is usable.
///
/// `None` as the argument stands for a value that is not UTF-8.
fn problem(value: Option<&str>) -> Option<&'static str> {
    let Some(value) = value else {
        return Some("it is not UTF-8");
    };
    let Ok(uri) = value.parse::<Uri>() else {
        return Some("it is not a URL");
    };
    if !matches!(uri.scheme_str(), None | Some("http" | "https")) {
        return Some("its scheme is neither http nor https");
    }
    let Some(authority) = uri
        .authority()
        .filter(|authority| !authority.host().is_empty())
    else {
        return Some("it has no host");
    };
    let host_and_port = authority.as_str().rsplit('@').next().unwrap_or_default();
    // The client would use the default port instead.
    let is_port_wrong = authority.port_u16().is_none() && host_and_port != authority.host();
    is_port_wrong.then_some("its port is not a number up to 65535")
}

/// Returns whether requests to `url` would use a proxy that is set: true unless `NO_PROXY` excludes the URL's host.
fn is_proxied(url: &Url) -> bool {
    let any = Matcher::builder()
        .all("http://proxy.invalid:1")
        .no(env::var("NO_PROXY")
            .or_else(|_| env::var("no_proxy"))
            .unwrap_or_default())
        .build();
    let uri = url.as_str().parse::<Uri>();
    uri.is_ok_and(|uri| any.intercept(&uri).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_proxies_are_reported() {
        for value in [
            "http://proxy.example.com:3128",
            "https://me:hush@192.0.2.1",
            "proxy.example.com:3128",
            "http://[2001:db8::1]:3128/",
        ] {
            assert_eq!(problem(Some(value)), None, "{value}");
        }
        for value in [
            "http://",
            "htp://proxy.example.com",
            "socks5://127.0.0.1:1080",
            "http://proxy example.com",
            "/proxy",
            "http:/proxy",
            "http://proxy:port",
        ] {
            assert!(problem(Some(value)).is_some(), "{value}");
        }
        assert!(problem(None).is_some());
    }
}
