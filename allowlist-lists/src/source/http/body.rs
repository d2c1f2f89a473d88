//! The body of an answer: complete and decompressed, or an error.
//!
//! Invariants: a body is complete only if its framing (a length, chunks, or HTTP/2's `END_STREAM`) confirms it, or if
//! its format marks its own end; bytes are counted as received, before decompression; and neither the received
//! nor the decompressed body is larger than the limit.
//!
//! Does not know the format of a body.

use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use reqwest::{Response, Version};

use super::client::innermost;
use crate::source::error::FetchErrorCause;
use crate::source::gzip::{GzipError, gunzip};

/// The names of compressions in Content-Encoding, without the prefix `x-`; each but `gzip` is an error, since it was
/// not requested.
const COMPRESSIONS: [&str; 5] = ["br", "compress", "deflate", "gzip", "zstd"];

/// Receives the body of `response` and decompresses it. `has_own_end` states that the list's format marks its own end,
/// so that a body that only the end of the connection ends is accepted too.
///
/// # Errors
/// The body is incomplete, is larger than `limit` bytes before or after decompression, or has a compression that was
/// not requested.
pub(super) async fn receive(
    response: Response,
    limit: u64,
    has_own_end: bool,
) -> Result<Vec<u8>, FetchErrorCause> {
    let is_gzip = is_gzip(response.headers())?;
    if ends_by_close(&response) && !has_own_end {
        return Err(FetchErrorCause::NoLength);
    }
    let expected = length(&response);
    let version = response.version();
    let mut body = reqwest::Body::from(response);
    let mut bytes = Vec::new();
    let broken = |received: usize, problem: String| FetchErrorCause::Broken {
        received: received as u64,
        problem,
    };
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(bytes.len(), innermost(&error)))?;
        let Ok(data) = frame.into_data() else {
            continue; // trailers
        };
        if (bytes.len() + data.len()) as u64 > limit {
            return Err(FetchErrorCause::TooLarge { limit });
        }
        bytes.extend_from_slice(&data);
    }
    // The client takes RST_STREAM(NO_ERROR) for an end, which RFC 9113 (8.1) allows after a complete answer only.
    if version == Version::HTTP_2 && !body.is_end_stream() {
        let problem = "the server reset the stream before its end";
        return Err(broken(bytes.len(), problem.to_owned()));
    }
    if let Some(expected) = expected
        && expected != bytes.len() as u64
    {
        let problem = format!("the server announced {expected} bytes");
        return Err(broken(bytes.len(), problem));
    }
    if !is_gzip {
        return Ok(bytes);
    }
    gunzip(&bytes, limit).map_err(|error| match error {
        GzipError::Truncated => broken(bytes.len(), error.to_string()),
        GzipError::Damaged(problem) => FetchErrorCause::Compressed(problem),
        GzipError::TooLarge { limit } => FetchErrorCause::TooLarge { limit },
    })
}

/// Returns whether only the end of the connection ends the body of `response` (RFC 9112, 6.3), as in HTTP/1.0.
///
/// A truncated body then looks complete.
fn ends_by_close(response: &Response) -> bool {
    if response.version() >= Version::HTTP_2 {
        return false;
    }
    match last_word(response.headers(), &TRANSFER_ENCODING) {
        Some(coding) => !coding.eq_ignore_ascii_case("chunked"),
        None => !response.headers().contains_key(CONTENT_LENGTH),
    }
}

/// Returns the body length in bytes that the server announced, or `None` if it announced no valid length, or if a
/// Transfer-Encoding such as `chunked` replaces it.
fn length(response: &Response) -> Option<u64> {
    let headers = response.headers();
    if headers.contains_key(TRANSFER_ENCODING) {
        return None;
    }
    last_word(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// Returns the last word in the comma-separated header `name`, which may have several lines; `None` if it is absent or
/// has other characters than visible ASCII.
fn last_word<'h>(headers: &'h HeaderMap, name: &reqwest::header::HeaderName) -> Option<&'h str> {
    let line = headers.get_all(name).iter().next_back()?;
    Some(line.to_str().ok()?.rsplit(',').next()?.trim())
}

/// Returns whether the response body is gzip data, by Content-Encoding. Fails for any other compression, since requests
/// permit only gzip.
///
/// Other words in Content-Encoding, such as `utf-8`, have no meaning there and are ignored.
fn is_gzip(headers: &HeaderMap) -> Result<bool, FetchErrorCause> {
    let lines: Vec<_> = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .filter_map(|line| line.to_str().ok())
        .collect();
    let encoding = lines.join(", ");
    let compressions: Vec<String> = encoding
        .split(',')
        .map(|word| word.trim().to_ascii_lowercase())
        .map(|word| word.strip_prefix("x-").unwrap_or(&word).to_owned())
        .filter(|word| COMPRESSIONS.contains(&word.as_str()))
        .collect();
    match compressions.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(false),
        ["gzip"] => Ok(true),
        _ => Err(FetchErrorCause::Encoding(encoding)),
    }
}
