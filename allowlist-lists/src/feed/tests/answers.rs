//! The errors of a table of inputs, as one snapshot: a test compares kinds, and the snapshot holds the texts.

use std::fmt::{Debug, Write as _};

use expect_test::ExpectFile;

use super::FeedError;

/// The texts of errors, each below the input that caused it.
#[derive(Default)]
pub(crate) struct Answers(String);

impl Answers {
    /// Adds the text of an error, if there is one.
    pub(crate) fn add(&mut self, input: &str, text: Option<String>) {
        let Some(text) = text else { return };
        assert!(
            !text.contains('\n') && !text.ends_with('.'),
            "one line, without a full stop: {text}"
        );
        let shown: String = input.chars().take(200).collect();
        let end = if shown.len() < input.len() { "…" } else { "" };
        writeln!(self.0, "{shown:?}{end}\n    {text}\n").expect("a string takes any text");
    }

    /// Compares the texts with the file.
    #[track_caller]
    pub(crate) fn check(&self, file: &ExpectFile) {
        file.assert_eq(&self.0);
    }
}

/// Returns the name of an error's variant; of an error that holds another one, the inner name.
pub(crate) fn kind(error: &FeedError) -> String {
    match error {
        FeedError::Prefix { error, .. } => variant(error),
        FeedError::Line { error, .. } => kind(error),
        FeedError::Unclear { problem, .. } => variant(problem),
        error => variant(error),
    }
}

/// Returns the name of an enum's variant.
pub(crate) fn variant(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    text.split([' ', '(', '{'])
        .next()
        .unwrap_or_default()
        .to_owned()
}
