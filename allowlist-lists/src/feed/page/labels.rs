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

/// A group of labels that stand beside each other on a page, such as those of all items of one list. If the configured
/// pattern selects a label of a group, labels outside it do not count for the addresses in the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Group {
    /// The number of the list, table or page part to which the labels belong.
    pub id: usize,
    /// The kind of the labels, which distinguishes several groups of the same list, table or page part.
    pub kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    /// The label is a line before the lines with addresses.
    Above,
    /// The label is the beginning of a line with addresses.
    Beginning,
    /// The label is the summary of a collapsible part, or the caption of a table.
    Folded,
    /// The label is that of a table row or a table column.
    Table,
}

/// The labels of one part of a page that apply to a line, with those of the outer parts.
#[derive(Debug)]
pub(super) struct Labels {
    pub group: Group,
    /// The innermost label, and after it the text with a colon that introduces the addresses; empty if there is
    /// neither.
    pub texts: Vec<Rc<str>>,
    /// The table cell, for lines directly in one; labels of its row and column apply too. `None` for other lines.
    pub cell: Option<CellId>,
    pub outer: Option<Rc<Labels>>,
}

/// A part of a page, such as a list item or a table cell, outside of which the labels in it do not apply.
#[derive(Debug)]
pub(super) struct Scope {
    pub labels: Rc<Labels>,
    label: Option<Rc<str>>,
    lead: Option<Rc<str>>,
    /// Whether a line with addresses followed the current label; if so, the next sentence ends the effect of the label.
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

    /// Records that a line with addresses follows the current label.
    pub(super) fn used(&mut self) {
        self.is_used = true;
    }

    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// Records a heading, which removes the current label and begins a new group of labels with the number `id`.
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

    /// Records a line without addresses, which may become the current label. `is_label` states whether its element is
    /// always a label.
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

/// Returns an iterator over a set of labels and the sets of the parts around it, from the innermost outward.
pub(super) fn chain(labels: &Rc<Labels>) -> impl Iterator<Item = &Labels> {
    std::iter::successors(Some(&**labels), |labels| labels.outer.as_deref())
}

/// A cache of one result for each set of labels, since many lines share a set.
#[derive(Debug, Default)]
pub(super) struct OfLabels<T>(HashMap<*const Labels, T>);

impl<T: Clone + Default> OfLabels<T> {
    /// Returns the cached result for a set of labels, or computes it with `judge` from the set and the result of the
    /// outer labels.
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

/// A cache of one result for each text, since many lines share a text.
#[derive(Debug, Default)]
pub(super) struct OfTexts<T>(HashMap<*const str, T>);

impl<T: Copy> OfTexts<T> {
    pub(super) fn get(&mut self, text: &Rc<str>, judge: impl FnOnce(&str) -> T) -> T {
        let key = Rc::as_ptr(text);
        *self.0.entry(key).or_insert_with(|| judge(text))
    }
}

/// Returns whether a text is short enough for a label and is not a sentence.
fn is_short(text: &str) -> bool {
    let is_sentence = text.ends_with(['.', '!', '?']) && text.split(' ').count() > 2;
    text.chars().count() <= LONGEST_LABEL && !is_sentence
}
