//! XML: the prefixes in the elements with a configured name: in their text, in an attribute, or in child elements.
//!
//! Invariants: the document is whole and well-formed; two texts with an element or a comment between them are never
//! joined to one word, and an unknown entity is an error; and each element that the configuration selects has to occur.
//! Names are compared without their namespace's prefix.

use std::collections::BTreeMap;

use allowlist_policy::{Column, Item, Xml};
use ipnet::IpNet;
use quick_xml::escape::resolve_predefined_entity;
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::{Reader, XmlVersion};

use super::text::{decode, trim};
use super::{FeedError, Place, item, shown, some_of};

/// The maximum nesting depth of elements; a deeper document fails with [`FeedError::TooDeep`]. No list is nested this
/// deep.
const DEEPEST: usize = 128;
/// The maximum number of an element's fields that an error shows.
const SHOWN_FIELDS: usize = 8;

pub(super) fn parse(
    rules: &Xml,
    bytes: &[u8],
    may_be_empty: bool,
) -> Result<Vec<IpNet>, FeedError> {
    let text = decode(bytes)?;
    let mut reader = Reader::from_str(text);
    let config = reader.config_mut();
    config.expand_empty_elements = true;
    config.check_comments = true;
    let mut walk = Walk {
        rules,
        filter: item::Filter::new(&rules.filter),
        has_occurred: vec![false; rules.elements.len()],
        prefixes: Vec::new(),
        selected: None,
        depth: 0,
        has_root: false,
    };
    let (mut line, mut counted) = (1, 0);
    loop {
        let at = reader.buffer_position() as usize;
        line += text[counted..at].matches('\n').count();
        counted = at;
        let event = reader.read_event();
        let event = event.map_err(|error| Problem::Xml(error.to_string()));
        match event.and_then(|event| walk.step(event, line)) {
            Ok(true) => {}
            Ok(false) => break,
            Err(Problem::Feed(error)) => return Err(error),
            Err(Problem::Xml(problem)) => {
                let start = shown(trim(text));
                return Err(FeedError::NotXml {
                    line,
                    problem,
                    start,
                });
            }
        }
    }
    if walk.depth > 0 || !walk.has_root {
        return Err(FeedError::Truncated { length: text.len() });
    }
    if let Some(missing) = walk.has_occurred.iter().position(|occurred| !occurred)
        && !may_be_empty
    {
        return Err(FeedError::Unmatched {
            key: "element",
            what: format!("<{}>", rules.elements[missing]),
        });
    }
    walk.filter.check(may_be_empty)?;
    Ok(walk.prefixes)
}

/// The reason why an XML document is refused.
enum Problem {
    /// The document is not well-formed XML; the text is the reason.
    Xml(String),
    /// The document is well-formed, but is not a valid list.
    Feed(FeedError),
}

impl From<String> for Problem {
    fn from(problem: String) -> Self {
        Self::Xml(problem)
    }
}

impl From<FeedError> for Problem {
    fn from(error: FeedError) -> Self {
        Self::Feed(error)
    }
}

/// The state of the parser between two XML events of the document.
struct Walk<'r> {
    rules: &'r Xml,
    filter: item::Filter<'r>,
    has_occurred: Vec<bool>,
    prefixes: Vec<IpNet>,
    selected: Option<Selected>,
    depth: usize,
    has_root: bool,
}

/// An element that the configuration selects, whose end tag has not been read yet.
struct Selected {
    line: usize,
    depth: usize,
    /// The texts of the element's attributes and child elements, by name. A name that occurs more than once has several
    /// texts.
    fields: BTreeMap<String, Vec<String>>,
    /// The text directly in the selected element, without that of its child elements.
    text: String,
    /// The text of the child element whose end tag has not been read yet; empty if there is none.
    inner: String,
    has_elements: bool,
}

impl Walk<'_> {
    /// Processes one XML event, which starts in the line `line`. Returns false at the end of the document.
    fn step(&mut self, event: Event<'_>, line: usize) -> Result<bool, Problem> {
        match event {
            Event::Start(start) | Event::Empty(start) => self.start(&start, line)?,
            Event::End(end) => self.end(end.local_name().as_ref())?,
            Event::Text(text) => self.text(&text.xml10_content())?,
            Event::CData(data) => self.text(&data.xml10_content())?,
            Event::GeneralRef(reference) => self.text(&character(&reference)?)?,
            // The text goes on behind it, and a reader of the page may see two texts.
            Event::Comment(_) | Event::PI(_) if self.depth > 0 => self.text(" ")?,
            Event::DocType(definition) if definition.contains("<!ENTITY") => {
                return Err("it defines entities, which are not read".to_owned().into());
            }
            Event::Comment(_) | Event::PI(_) | Event::Decl(_) | Event::DocType(_) => {}
            Event::Eof => return Ok(false),
        }
        Ok(true)
    }

    fn start(&mut self, start: &BytesStart<'_>, line: usize) -> Result<(), Problem> {
        if self.depth == 0 && std::mem::replace(&mut self.has_root, true) {
            return Err("an element follows the root element".to_owned().into());
        }
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err(FeedError::TooDeep.into());
        }
        if let Some(selected) = &mut self.selected {
            selected.has_elements = true;
            selected.inner.clear();
            return Ok(());
        }
        let name = start.local_name();
        let mut elements = self.rules.elements.iter();
        if let Some(index) = elements.position(|element| element == name.as_ref()) {
            self.has_occurred[index] = true;
            self.selected = Some(Selected {
                line,
                depth: self.depth,
                fields: attributes(start)?,
                text: String::new(),
                inner: String::new(),
                has_elements: false,
            });
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Problem> {
        if self.depth == 0 && !trim(text).is_empty() {
            return Err("text lies outside the root element".to_owned().into());
        }
        if let Some(selected) = &mut self.selected {
            if self.depth == selected.depth {
                selected.text.push_str(text);
            } else {
                selected.inner.push_str(text);
            }
        }
        Ok(())
    }

    fn end(&mut self, name: &str) -> Result<(), Problem> {
        if let Some(selected) = &mut self.selected {
            if self.depth == selected.depth + 1 {
                let text = std::mem::take(&mut selected.inner);
                let texts = selected.fields.entry(name.to_owned()).or_default();
                texts.push(text);
            } else if self.depth > selected.depth {
                // What lies deeper is no field, nor part of one.
                selected.inner.push(' ');
            }
        }
        if let Some(selected) = self
            .selected
            .take_if(|selected| selected.depth == self.depth)
        {
            self.take(&selected)?;
        }
        self.depth = self.depth.saturating_sub(1);
        Ok(())
    }

    fn take(&mut self, selected: &Selected) -> Result<(), FeedError> {
        let field = |column: &Column| {
            let texts = selected.fields.get(column.name()?)?;
            texts.first().cloned()
        };
        if !self.filter.passes(field) {
            return Ok(());
        }
        let place = || Place::Line(selected.line);
        let prefixes = &mut self.prefixes;
        match (&self.rules.item, &self.rules.attribute) {
            (Item::Range([first, second]) | Item::Prefix([first, second]), _) => {
                let (first, second) = (selected.field(first)?, selected.field(second)?);
                item::take_pair(&self.rules.item, first, second, prefixes, place)
            }
            (Item::Token { separator }, Some(attribute)) => {
                let text = selected.field(attribute)?;
                item::take_tokens(text, separator.as_deref(), prefixes, place)
            }
            (Item::Token { .. }, None) if selected.has_elements => Err(FeedError::NotAText {
                place: place(),
                found: some_of(selected.fields.keys().map(String::as_str), SHOWN_FIELDS),
            }),
            (Item::Token { separator }, None) => {
                item::take_tokens(&selected.text, separator.as_deref(), prefixes, place)
            }
            (Item::Keys, _) => Ok(()), // of JSON alone
        }
    }
}

impl Selected {
    /// Returns the text of the field (an attribute or a child element) that `column` names, which has to occur exactly
    /// once.
    fn field(&self, column: &Column) -> Result<&str, FeedError> {
        let name = column.name().unwrap_or_default();
        let place = || Place::Line(self.line);
        match self.fields.get(name).map(Vec::as_slice) {
            Some([text]) => Ok(text),
            Some(_) => Err(FeedError::ManyMembers {
                place: place(),
                name: name.to_owned(),
            }),
            None => Err(FeedError::NoMember {
                place: place(),
                name: name.into(),
                found: some_of(self.fields.keys().map(String::as_str), SHOWN_FIELDS).into(),
            }),
        }
    }
}

fn attributes(start: &BytesStart<'_>) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut fields = BTreeMap::new();
    for attribute in start.attributes() {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let value = attribute
            .normalized_value(XmlVersion::Implicit1_0)
            .map_err(|error| error.to_string())?;
        let name = attribute.key.local_name().as_ref().to_owned();
        fields.insert(name, vec![value.into_owned()]);
    }
    Ok(fields)
}

/// Returns the characters that a reference such as `&amp;` or `&#46;` stands for. The error is the reason why it stands
/// for none.
fn character(reference: &BytesRef<'_>) -> Result<String, String> {
    let resolved = reference.resolve_char_ref();
    if let Some(character) = resolved.map_err(|error| error.to_string())? {
        return Ok(character.to_string());
    }
    let name = reference.xml10_content();
    resolve_predefined_entity(&name)
        .map(str::to_owned)
        .ok_or_else(|| format!("it has an entity that is not known: {:?}", shown(&name)))
}
