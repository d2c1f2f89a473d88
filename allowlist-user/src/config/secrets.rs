//! Locates the secrets in a configuration's text, so that copies of the text can be kept without them. Pure.
//!
//! A secret is the value of a request header, a webhook's URL, an argument of the hook's program, and every
//! `http` or `https` URL with credentials, a query or a fragment, under any key. Comments may contain former
//! secrets, so copies omit them.

use std::borrow::Cow;
use std::ops::Range;

use allowlist_policy::public_url;
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use url::Url;

/// A secret string in the text of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// The byte range of the string in the text, including the quotes.
    pub span: Range<usize>,
    /// The value of the string, without quotes and escapes.
    pub value: String,
    /// The public part of a secret URL, empty for a `webhook` that is no URL; `None` if the whole string is secret.
    pub public: Option<String>,
}

/// Returns the secret strings of a configuration text in their order; none if the text is not TOML.
pub fn secrets(text: &str) -> Vec<Secret> {
    let mut found = Vec::new();
    if let Ok(document) = DeTable::parse(text) {
        visit_table(
            document.get_ref(),
            &mut Vec::new(),
            &mut |path, value, span| {
                found.extend(secret(path, value, span));
            },
        );
    }
    found.sort_by_key(|secret| secret.span.start);
    found
}

/// Returns the text of a configuration without comments and without the blanks before them. Preserves line numbers.
///
/// A text that is not TOML is returned unchanged.
pub fn without_comments(text: &str) -> Cow<'_, str> {
    let Ok(document) = DeTable::parse(text) else {
        return Cow::Borrowed(text);
    };
    // A `#` inside of a string or of a quoted key begins no comment.
    let mut quoted = Vec::new();
    visit_table(document.get_ref(), &mut Vec::new(), &mut |_, _, span| {
        quoted.push(span);
    });
    visit_keys(document.get_ref(), &mut quoted);
    quoted.sort_by_key(|span| span.start);
    let mut out = String::with_capacity(text.len());
    let mut quoted = quoted.into_iter().peekable();
    let mut at = 0;
    while at < text.len() {
        while quoted.next_if(|span| span.end <= at).is_some() {}
        let next = quoted.peek().map_or(text.len(), |span| span.start.max(at));
        let plain = &text[at..next];
        if let Some(mark) = plain.find('#') {
            out.push_str(plain[..mark].trim_end_matches([' ', '\t']));
            let rest = &text[at + mark..];
            at += mark + rest.find('\n').unwrap_or(rest.len());
        } else {
            out.push_str(plain);
            let end = quoted.peek().map_or(text.len(), |span| span.end);
            out.push_str(&text[next..end.max(next)]);
            at = end.max(next);
        }
    }
    Cow::Owned(out)
}

/// Returns the string `value` as a secret if strings at this path of keys are secret, or if `value` is a URL with a
/// secret part; otherwise `None`.
fn secret(path: &[&str], value: &str, span: Range<usize>) -> Option<Secret> {
    let url = Url::parse(value)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let public = match (path, url) {
        ([.., "headers", _] | ["on_change", "command", "1.."], _) => None,
        (["on_change", "webhook"], url) => {
            // The path of a webhook is often its password.
            Some(url.map_or_else(String::new, |mut url| {
                url.set_path("");
                public_url(&url)
            }))
        }
        (_, Some(url)) => {
            let public = public_url(&url);
            // The URL has no secret part.
            if public == url.as_str() {
                return None;
            }
            Some(public)
        }
        _ => return None,
    };
    Some(Secret {
        span,
        value: value.to_owned(),
        public,
    })
}

type Visit<'v> = dyn FnMut(&[&str], &str, Range<usize>) + 'v;

/// Calls `visit` for each string of the table, with its path of keys. The path of an array's element is that of the
/// array, followed by `1..` from the second element on.
fn visit_table<'d>(table: &'d DeTable<'_>, path: &mut Vec<&'d str>, visit: &mut Visit<'_>) {
    for (key, value) in table {
        path.push(key.get_ref());
        visit_value(value, path, visit);
        path.pop();
    }
}

fn visit_value<'d>(
    value: &'d Spanned<DeValue<'_>>,
    path: &mut Vec<&'d str>,
    visit: &mut Visit<'_>,
) {
    match value.get_ref() {
        DeValue::String(text) => visit(path, text, value.span()),
        DeValue::Table(table) => visit_table(table, path, visit),
        DeValue::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                if index == 0 {
                    visit_value(item, path, visit);
                } else {
                    path.push("1..");
                    visit_value(item, path, visit);
                    path.pop();
                }
            }
        }
        _ => {}
    }
}

/// Adds the byte ranges of all keys of the table to `spans`.
fn visit_keys(table: &DeTable<'_>, spans: &mut Vec<Range<usize>>) {
    for (key, value) in table {
        spans.push(key.span());
        visit_keys_of(value.get_ref(), spans);
    }
}

fn visit_keys_of(value: &DeValue<'_>, spans: &mut Vec<Range<usize>>) {
    match value {
        DeValue::Table(table) => visit_keys(table, spans),
        DeValue::Array(items) => items
            .iter()
            .for_each(|item| visit_keys_of(item.get_ref(), spans)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"interfaces = ["eth0"] # not "tcp/443"
# webhook = "https://hooks.example/old-secret"
[on_change]
command = ["/usr/bin/notify", "--token", 'raw#secret']
webhook = "https://hooks.example/T0/secret"
"quoted # key" = 1
[sources.a]
url = "https://user:pass@vendor.example/list?token=abc" # why
headers = { Authorization = "Bearer abc", "X-Key" = """multi
# line""" }
[sources.b]
url = ["https://vendor.example/plain#x", "https://vendor.example/list"]
[sources.c.headers]
A = "b"
"#;

    #[test]
    fn secrets_have_spans() {
        let found: Vec<_> = secrets(TEXT)
            .into_iter()
            .map(|secret| {
                let literal = &TEXT[secret.span];
                assert!(
                    literal.contains(secret.value.lines().next().expect("a line")),
                    "{literal}"
                );
                (secret.value, secret.public)
            })
            .collect();
        let of = |value: &str, public: Option<&str>| (value.to_owned(), public.map(str::to_owned));
        assert_eq!(
            found,
            [
                of("--token", None),
                of("raw#secret", None),
                of(
                    "https://hooks.example/T0/secret",
                    Some("https://hooks.example/")
                ),
                of(
                    "https://user:pass@vendor.example/list?token=abc",
                    Some("https://vendor.example/list")
                ),
                of("Bearer abc", None),
                of("multi\n# line", None),
                of(
                    "https://vendor.example/plain#x",
                    Some("https://vendor.example/plain")
                ),
                of("b", None),
            ]
        );
        assert_eq!(secrets("no = TOML = at all"), []);
    }

    #[test]
    fn comments_are_removed() {
        let bare = without_comments(TEXT);
        assert!(
            !bare.contains("old-secret") && !bare.contains("why") && !bare.contains("not \"tcp"),
            "{bare}"
        );
        assert_eq!(bare.lines().count(), TEXT.lines().count());
        let table = |text: &str| toml::from_str::<toml::Table>(text).expect("is TOML");
        assert_eq!(table(&bare), table(TEXT));
        assert_eq!(without_comments(&bare), bare);
        assert_eq!(without_comments("a = # no"), "a = # no");
        for (text, expected) in [
            ("", ""),
            ("#", ""),
            ("# a\n# b\n", "\n\n"),
            ("a = '#' # b\r\nb = 1", "a = '#'\nb = 1"),
            ("'#' = '''#\n#''' #\n", "'#' = '''#\n#'''\n"),
        ] {
            assert_eq!(without_comments(text), expected, "{text:?}");
        }
    }
}
