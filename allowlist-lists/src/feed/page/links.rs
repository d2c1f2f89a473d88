//! Pages that link to the list: finds the one link whose URL matches a pattern, or the newest of several.
//!
//! Does not parse URLs: a link is returned as it is written, and so is the base URL that the page states.

use allowlist_policy::Pattern;
use scraper::{Html, Node};

use super::super::text::decode;
use super::super::{FeedError, some_of};
use super::tree;

/// The maximum number of links of a page that an error shows.
const SHOWN_LINKS: usize = 5;

/// The link from a page to an address list, as the page writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The URL of the list as the page writes it, which may be relative.
    pub address: String,
    /// The base URL that the page states for relative URLs (`<base href>`); `None` if the page states none.
    pub base: Option<String>,
}

/// Returns the URL, as the page writes it, of the only link on the page that matches `pattern`.
///
/// # Errors
/// No link on the page matches, or several do.
pub fn find_link(bytes: &[u8], pattern: &Pattern) -> Result<String, FeedError> {
    find(bytes, pattern, false).map(|link| link.address)
}

/// Returns the link on a page whose URL matches `pattern`. With `newest`, several may match, and the link with the
/// greatest numbers in the match of the pattern's first group (or of the whole pattern if it has no group) is returned.
/// A date in the URL must therefore begin with its year.
///
/// # Errors
/// No link on the page matches, or several do and no single link is the newest.
pub fn find(bytes: &[u8], pattern: &Pattern, newest: bool) -> Result<Link, FeedError> {
    let html = tree::parse(decode(bytes)?)?;
    let mut links = hrefs(&html, "a");
    links.sort_unstable();
    links.dedup();
    let mut matching: Vec<&str> = links
        .iter()
        .copied()
        .filter(|link| pattern.is_match(link))
        .collect();
    if newest {
        let greatest = matching.iter().map(|link| numbers(pattern, link)).max();
        matching.retain(|link| Some(numbers(pattern, link)) == greatest);
    }
    match matching[..] {
        [link] => Ok(Link {
            address: link.to_owned(),
            base: hrefs(&html, "base").first().map(|&base| base.to_owned()),
        }),
        [] => Err(FeedError::NoLink {
            pattern: pattern.as_str().to_owned(),
            found: match links.len() {
                0 => "it has no links".to_owned(),
                _ => format!("it links to {}", some_of(links, SHOWN_LINKS)),
            },
        }),
        _ => Err(FeedError::ManyLinks {
            pattern: pattern.as_str().to_owned(),
            count: matching.len(),
            found: some_of(matching, SHOWN_LINKS),
        }),
    }
}

/// Returns the `href` of each element with the name `element`, in the order of the page.
fn hrefs<'h>(html: &'h Html, element: &str) -> Vec<&'h str> {
    let nodes = html.tree.nodes().filter_map(|node| match node.value() {
        Node::Element(found) if found.name() == element => found.attr("href"),
        _ => None,
    });
    nodes.map(str::trim).collect()
}

/// Returns the numbers in the part of `link` that `pattern` matches, so that links sort by number: 9 before 10.
fn numbers(pattern: &Pattern, link: &str) -> Vec<u64> {
    let found = pattern.first_group(link).unwrap_or_default();
    found
        .split(|c: char| !c.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.parse().unwrap_or(u64::MAX))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn newest(html: &str, pattern: &str) -> Option<String> {
        let pattern = Pattern::new(pattern).expect("a pattern");
        find(html.as_bytes(), &pattern, true)
            .ok()
            .map(|link| link.address)
    }

    #[test]
    fn the_newest_of_several_has_the_greatest_date() {
        let page = "<a href='/1/tags-20260928.json'>a</a><a href='/9/tags-20251231.json'>b</a>";
        let expected = Some("/1/tags-20260928.json".to_owned());
        assert_eq!(newest(page, r"tags-(\d+)\.json"), expected);
        assert_eq!(newest(page, r"tags-\d+\.json"), expected);
        let page = "<a href='2026-9-30'>a</a><a href='2026-10-1'>b</a><a href='2026-01-31'>c</a>";
        assert_eq!(
            newest(page, r"^(\d+-\d+-\d+)$"),
            Some("2026-10-1".to_owned())
        );
        // Two of one day.
        let page = "<a href='a-20260928.json'>a</a><a href='b-20260928.json'>b</a>";
        assert_eq!(newest(page, r"(\d+)\.json"), None);
        assert_eq!(newest("<a href='x'>a</a>", r"(\d+)\.json"), None);
    }

    #[test]
    fn the_first_base_of_a_page_counts() {
        let page = "<base target='_top'><base href=' /lists/ '><base href='/other/'><a href='a.json'>a</a>";
        let pattern = Pattern::new("json").expect("a pattern");
        let link = find(page.as_bytes(), &pattern, false).expect("a link");
        assert_eq!(link.base.as_deref(), Some("/lists/"));
    }
}
