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

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use allowlist_policy::Format;

    use super::*;

    #[tokio::test]
    async fn a_silent_server_is_connected() {
        // The kernel completes the connection, and nobody answers.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = silent.local_addr().expect("an address");
        let url = format!("http://{address}/").parse().expect("a URL");
        let timeout = Duration::from_millis(100);
        let http = Http {
            timeout,
            ..Http::new(vec![url], Format::Text)
        };
        let error = post(&http, Vec::new())
            .await
            .expect_err("there is no answer");
        assert!(
            matches!(error, FetchErrorCause::Timeout(limit) if limit == timeout),
            "{error}"
        );
    }
}
