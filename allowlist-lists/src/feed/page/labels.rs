//! The labels of addresses, such as regions: the words before them, on their line, in their list item or cell, or above
//! their list or table.
//!
//! A label applies until the next label, the next heading, or the first sentence after its addresses. A text that ends
//! with a colon is an introduction: the label before it still applies. A label does not apply outside its list item or
//! cell.

use std::collections::HashMap;
use std::rc::Rc;

use super::table::CellId;
use super::words::LONGEST_LABEL;

/// Labels that stand beside each other on a page, such as those of all items of one list. Where one of
/// them is meant, none further out is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group {
    /// The list, the table, or the page itself.
    pub id: usize,
    /// The kind of the labels among those of the list, table or page.
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Lines before addresses.
    Above,
    /// Beginnings of the lines with addresses.
    Beginning,
    /// Summaries of collapsible parts, and captions.
    Folded,
    /// The row's, and the column's.
    Table,
}

/// The labels that apply to a line, innermost first.
#[derive(Debug)]
pub(super) struct Labels {
    pub group: Group,
    /// The label, and its introduction.
    pub texts: Vec<Rc<str>>,
    /// The cell, for lines directly in it: the table has labels of its own.
    pub cell: Option<CellId>,
    pub outer: Option<Rc<Labels>>,
}

/// A part of a page that labels do not leave.
#[derive(Debug)]
pub(super) struct Scope {
    pub labels: Rc<Labels>,
    label: Option<Rc<str>>,
    lead: Option<Rc<str>>,
    /// Whether addresses stood below the label.
    is_used: bool,
}

impl Scope {
    pub(super) fn new(group: Group, cell: Option<CellId>, outer: Option<Rc<Labels>>) -> Self {
        Self {
            labels: Rc::new(Labels {
                group,
                texts: Vec::new(),
                cell,
                outer,
            }),
            label: None,
            lead: None,
            is_used: false,
        }
    }

    /// Records a line with addresses.
    pub(super) fn used(&mut self) {
        self.is_used = true;
    }

    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// Records a heading, which begins a new group of labels.
    pub(super) fn clear(&mut self, id: usize) {
        (self.label, self.lead) = (None, None);
        self.change();
        self.labels = Rc::new(Labels {
            group: Group {
                id,
                ..self.labels.group
            },
            texts: Vec::new(),
            cell: self.labels.cell,
            outer: self.labels.outer.clone(),
        });
    }

    /// Records a line without addresses. `is_label` states whether its element is a label.
    pub(super) fn line(&mut self, text: &str, is_label: bool) {
        if text.starts_with('{') && text.ends_with('}') {
            // An attribute line of a Markdown dialect, which describes the block before it.
            return;
        }
        if is_label || is_short(text) {
            let text = Some(text.into());
            if text
                .as_ref()
                .is_some_and(|text: &Rc<str>| text.ends_with(':'))
                && !is_label
            {
                self.lead = text;
            } else {
                (self.label, self.lead) = (text, None);
            }
        } else if self.is_used {
            (self.label, self.lead) = (None, None);
        }
        self.change();
    }

    fn change(&mut self) {
        self.is_used = false;
        self.labels = Rc::new(Labels {
            group: self.labels.group,
            texts: [&self.label, &self.lead]
                .into_iter()
                .flatten()
                .cloned()
                .collect(),
            cell: self.labels.cell,
            outer: self.labels.outer.clone(),
        });
    }
}

/// Returns a set of labels, and then the sets further out.
pub(super) fn chain(labels: &Rc<Labels>) -> impl Iterator<Item = &Labels> {
    std::iter::successors(Some(&**labels), |labels| labels.outer.as_deref())
}

/// A cache of results by set of labels, since many lines share a set.
#[derive(Debug, Default)]
pub(super) struct OfLabels<T>(HashMap<*const Labels, T>);

impl<T: Clone + Default> OfLabels<T> {
    /// Returns the result for a set of labels. `judge` gets the result of the outer labels.
    pub(super) fn get<'d>(
        &mut self,
        labels: &'d Rc<Labels>,
        mut judge: impl FnMut(&'d Labels, T) -> T,
    ) -> T {
        let mut new = Vec::new();
        let mut value = T::default();
        for labels in chain(labels) {
            if let Some(known) = self.0.get(&std::ptr::from_ref(labels)) {
                value = known.clone();
                break;
            }
            new.push(labels);
        }
        for labels in new.into_iter().rev() {
            value = judge(labels, value);
            self.0.insert(labels, value.clone());
        }
        value
    }
}

/// A cache of results by text, since many lines share a text.
#[derive(Debug, Default)]
pub(super) struct OfTexts<T>(HashMap<*const str, T>);

impl<T: Copy> OfTexts<T> {
    pub(super) fn get(&mut self, text: &Rc<str>, judge: impl FnOnce(&str) -> T) -> T {
        let key = Rc::as_ptr(text);
        *self.0.entry(key).or_insert_with(|| judge(text))
    }
}

/// Returns whether a text is short and not a sentence.
fn is_short(text: &str) -> bool {
    let is_sentence = text.ends_with(['.', '!', '?']) && text.split(' ').count() > 2;
    text.chars().count() <= LONGEST_LABEL && !is_sentence
}
