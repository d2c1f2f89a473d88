//! Converts Markdown to HTML.
//!
//! Tables are enabled, and front matter between `---` lines is skipped. Knows no lists.

use pulldown_cmark::{Options, Parser, html};

use super::readme;
use crate::feed::FeedError;

pub(super) fn to_html(text: &str) -> Result<String, FeedError> {
    let text = readme::unfold(text)?;
    let options = Options::ENABLE_TABLES
        | Options::ENABLE_STRIKETHROUGH
        | Options::ENABLE_FOOTNOTES
        | Options::ENABLE_HEADING_ATTRIBUTES
        | Options::ENABLE_YAML_STYLE_METADATA_BLOCKS;
    let mut page = String::new();
    html::push_html(&mut page, Parser::new_ext(&text, options));
    Ok(page)
}
