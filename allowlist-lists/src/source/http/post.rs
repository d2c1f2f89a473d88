//! Posts a JSON document with the HTTP client that fetches lists: the same certificates, the same forbidden addresses,
//! and no proxy to loopback. Follows no redirect. Does not know the document's content.

use allowlist_policy::Http;

use super::client::Clients;
use super::request::classify;
use crate::source::FetchErrorCause;

/// Sends `body`, a JSON document, by an HTTP POST request to the first URL of `http`, and returns the status of the
/// answer.
///
/// # Errors
/// The request failed, so there was no answer. An answer is no error, whatever its status is.
pub async fn post(http: &Http, body: Vec<u8>) -> Result<u16, FetchErrorCause> {
    let url = &http.urls[0];
    let mut clients = Clients::new(http).await?;
    let (client, _) = clients.for_url(http, url, true).await?;
    let sent = client
        .post(url.clone())
        .timeout(http.timeout)
        .header("content-type", "application/json")
        .body(body)
        .send();
    let answer = sent.await.map_err(|error| classify(&error, http))?;
    Ok(answer.status().as_u16())
}
