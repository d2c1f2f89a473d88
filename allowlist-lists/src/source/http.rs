//! Lists behind URLs: several URLs of one source, conditional requests, and pages that link to the list.
//!
//! Invariants: the list is the union of all URLs, or an error; a source is unchanged only if every URL is; and
//! validators are kept only with the answer whose prefixes are kept, and never for a list that changes with the date.
//!
//! Does not know how a request is made (`request`), nor with which client (`client`).

mod body;
mod client;
mod post;
mod proxy;
mod reach;
mod request;

use allowlist_policy::{Http, Validator, public_url};
use jiff::Timestamp;
use jiff::civil::Date;

use super::error::{Failure, FetchErrorCause};
use super::{Answer, archive, gzip, parse_blocking, run_blocking, union};
use crate::feed::{self, FeedError, List};
pub use post::post;
pub use reach::AddressError;
use request::{FetchResult, RequestTarget, Session};

pub(super) use request::MAX_REDIRECTS;

/// Fetches the lists of all URLs of `http` and merges them. `known` has the validators of the previous answers, one for
/// each URL; if their number differs from that of the URLs, no request is conditional. The answer is unchanged only if
/// every URL is.
pub(super) async fn fetch(
    http: &Http,
    known: &[Validator],
    may_be_empty: bool,
    now: Timestamp,
    today: Date,
) -> Result<Answer, Failure> {
    let mut session = Session::new(http, may_be_empty).await?;
    let none = Validator::default();
    // If the number of URLs has changed, the validators cannot be assigned.
    let known = if known.len() == http.urls.len() {
        known.iter().collect()
    } else {
        vec![&none; http.urls.len()]
    };
    let mut parts = Vec::new();
    for (index, known) in known.into_iter().enumerate() {
        parts.push(ask(&mut session, index, known, today).await?);
    }
    if parts.iter().all(Option::is_none) {
        return Ok(Answer::Unchanged(now));
    }
    let mut lists = Vec::new();
    let mut validators = Vec::new();
    for (index, part) in parts.into_iter().enumerate() {
        // Another URL has changed, and prefixes are not kept by URL, so this one is fetched as well.
        let part = match part {
            Some(part) => Some(part),
            None => ask(&mut session, index, &none, today).await?,
        };
        // `get` fails on 304 without a validator.
        let (list, validator) = part.expect("the request was not conditional");
        lists.push(list);
        validators.push(validator);
    }
    // After `good_until` the same bytes have fewer prefixes, while the server would still answer 304.
    let is_lasting = lists.iter().all(|list| list.good_until.is_none());
    let mut fetched = union(lists, now);
    if is_lasting {
        fetched.validators = validators;
    }
    Ok(Answer::List(fetched))
}

/// Fetches the list of the URL with the index `index`, by the link on its page if `discover` is set. Returns `None` if
/// the server confirms, by the validators `known`, that the list is unchanged.
async fn ask(
    session: &mut Session<'_>,
    index: usize,
    known: &Validator,
    today: Date,
) -> Result<Option<(List, Validator)>, Failure> {
    let http = session.http;
    let mut target = RequestTarget::start(&http.urls[index]);
    // An error names the URL, since there may be several.
    let mut url_label = public_url(&target.url);
    if let Some(pattern) = &http.discover {
        let none = Validator::default();
        let page = match session.get(target, &none, false).await {
            Ok(FetchResult::Body(page)) => page,
            Ok(FetchResult::NotModified) => unreachable!("the request was not conditional"),
            Err(failure) => return Err(failure.at(&url_label)),
        };
        let (bytes, pattern, newest) = (page.bytes, pattern.clone(), http.newest);
        let link = run_blocking(move || feed::find_list(&bytes, &pattern, newest)).await;
        let link = link
            .map_err(|error| shown(&page.target, error.into()))
            .map_err(|cause| Failure::from(cause).at(&url_label))?;
        target = page
            .target
            .link(&link, http.allow_plain_http)
            .map_err(|cause| Failure::from(cause).at(&url_label))?;
        url_label = format!("{url_label}, which links to {}", public_url(&target.url));
    }
    let failed = |failure: Failure| failure.at(&url_label);
    let got = session.get(target, known, http.has_own_end());
    match got.await.map_err(failed)? {
        FetchResult::NotModified => Ok(None),
        FetchResult::Body(body) => {
            let (of_list, bytes) = (http.clone(), body.bytes);
            let may_be_empty = session.may_be_empty;
            let length = bytes.len();
            let mut list =
                parse_blocking(length, move || parse(&of_list, bytes, today, may_be_empty))
                    .await
                    .map_err(|cause| failed(shown(&body.target, cause).into()))?;
            if let Some(next) = body.next.filter(|next| !http.urls.contains(next)) {
                list.notes.push(format!(
                    "the answer is one page of several; the next page, {}, is not read: add it to `url`, or use the URL of the whole list",
                    public_url(&next)
                ));
            }
            Ok(Some((list, body.validator)))
        }
    }
}

/// Returns `cause`, or [`FetchErrorCause::Withheld`] if messages must not quote the response of `target`.
fn shown(target: &RequestTarget, cause: FetchErrorCause) -> FetchErrorCause {
    if target.may_be_shown() {
        cause
    } else {
        FetchErrorCause::Withheld
    }
}

fn parse(
    http: &Http,
    bytes: Vec<u8>,
    today: Date,
    may_be_empty: bool,
) -> Result<List, FetchErrorCause> {
    if http.unzip.is_empty() {
        let bytes = gzip::expand_file(bytes, http.max_bytes)?;
        return Ok(feed::parse_part(&http.format, &bytes, today, may_be_empty)?);
    }
    let mut all = List::default();
    for (file, bytes) in archive::unzip(&bytes, &http.unzip, http.max_bytes)? {
        let list = feed::parse_part(&http.format, &bytes, today, may_be_empty);
        let list = list.and_then(|list| {
            if all.prefixes.len() + list.prefixes.len() > feed::MOST_PREFIXES {
                return Err(FeedError::TooManyPrefixes);
            }
            Ok(list)
        });
        let list = list.map_err(|error| archive::ArchiveError::Feed { file, error })?;
        all.prefixes.extend(list.prefixes);
        all.notes.extend(list.notes);
        all.good_until = [all.good_until, list.good_until]
            .into_iter()
            .flatten()
            .min();
    }
    Ok(all)
}
