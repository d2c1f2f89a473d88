//! The HTML elements by how a browser shows them: which are hidden, which begin lines, which end words.
//!
//! Knows the names and the attributes of elements, and no styles but those that an element states itself.

use scraper::node::Element;

/// The names of the HTML elements whose content is no text, or is not shown.
const LEFT_OUT: [&str; 19] = [
    "audio", "canvas", "datalist", "head", "iframe", "math", "meter", "noembed", "noframes",
    "noscript", "object", "progress", "rp", "script", "style", "svg", "template", "title", "video",
];
/// The names of the HTML elements that begin and end lines.
const BLOCKS: [&str; 56] = [
    "address",
    "article",
    "aside",
    "blockquote",
    "body",
    "br",
    "button",
    "caption",
    "center",
    "dd",
    "details",
    "dialog",
    "dir",
    "div",
    "dl",
    "dt",
    "fieldset",
    "figcaption",
    "figure",
    "footer",
    "form",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "header",
    "hgroup",
    "hr",
    "html",
    "legend",
    "li",
    "listing",
    "main",
    "menu",
    "nav",
    "ol",
    "optgroup",
    "option",
    "p",
    "plaintext",
    "pre",
    "section",
    "select",
    "summary",
    "table",
    "tbody",
    "td",
    "textarea",
    "tfoot",
    "th",
    "thead",
    "tr",
    "ul",
    "xmp",
];
/// The names of the HTML elements whose text is above or below the line, and is a word of its own.
const RAISED: [&str; 5] = ["sup", "sub", "rt", "rtc", "rb"];
/// The names of the HTML elements whose text is crossed out.
const STRUCK_OUT: [&str; 3] = ["del", "s", "strike"];
/// The names of the HTML elements in whose text line breaks are kept.
const PREFORMATTED: [&str; 4] = ["pre", "listing", "plaintext", "xmp"];

/// Returns whether no browser shows the HTML element with this name as text.
pub(super) fn is_left_out(name: &str) -> bool {
    LEFT_OUT.contains(&name)
}

/// Returns whether the HTML element with this name begins and ends lines.
pub(super) fn is_block(name: &str) -> bool {
    BLOCKS.contains(&name)
}

/// Returns whether the text of the HTML element with this name is raised or lowered, as footnote marks are.
pub(super) fn is_raised(name: &str) -> bool {
    RAISED.contains(&name)
}

/// Returns whether line breaks in the text of the HTML element with this name end lines.
pub(super) fn is_preformatted(name: &str) -> bool {
    PREFORMATTED.contains(&name)
}

/// Returns whether the text of the HTML element with this name is shown in another order than it is written.
pub(super) fn is_reordered(name: &str) -> bool {
    name == "bdo"
}

/// Returns whether the element's text is crossed out, by its name or its `style`.
pub(super) fn is_struck_out(element: &Element) -> bool {
    STRUCK_OUT.contains(&element.name())
        || has_style(element, |key, value| {
            key.starts_with("text-decoration") && value.contains("line-through")
        })
}

/// Returns whether a reader of the page does not see the element and cannot open it.
///
/// The panel of a tab is hidden until a reader chooses the tab, so this function returns false for a panel.
pub(super) fn is_hidden(element: &Element) -> bool {
    let role = element.attr("role").map_or("", str::trim);
    if role.eq_ignore_ascii_case("tabpanel") {
        return false;
    }
    if element.name() == "dialog" && element.attr("open").is_none() {
        return true;
    }
    let is_hidden = element
        .attr("hidden")
        .is_some_and(|value| !value.trim().eq_ignore_ascii_case("until-found"));
    is_hidden
        || has_style(element, |key, value| match key {
            "display" => value == "none",
            "visibility" => matches!(value, "hidden" | "collapse"),
            "opacity" | "font-size" => {
                let number = value.trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == '%');
                number.parse() == Ok(0.0_f32)
            }
            _ => false,
        })
}

/// Returns whether `is_meant` is true for the property and the value, in lower case, of one of the declarations in the
/// element's `style`.
fn has_style(element: &Element, is_meant: impl Fn(&str, &str) -> bool) -> bool {
    let Some(style) = element.attr("style") else {
        return false;
    };
    style.to_ascii_lowercase().split(';').any(|declaration| {
        declaration.split_once(':').is_some_and(|(key, value)| {
            let value = value.trim().trim_end_matches("!important").trim_end();
            is_meant(key.trim(), value)
        })
    })
}
