//! Snapshots of the program's output, in a form that is the same in each run.
//!
//! A snapshot has the whole output, so that a changed message is reviewed in one place: `UPDATE_EXPECT=1` rewrites all
//! snapshots (expect-test). Depends on the form of paths, ports, times and process ids, and on nothing else in the output.

use std::fmt::Write as _;
use std::sync::LazyLock;

use expect_test::ExpectFile;
use regex::Regex;

use super::{Ended, Scratch};

/// Patterns of text that differs between runs, with their placeholders, in order of precedence.
const PATTERNS: [(&str, &str); 10] = [
    (
        r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?",
        "<time>",
    ),
    (r"/tmp/\.tmp[A-Za-z0-9]+", "<dir>"),
    (r"(127\.0\.0\.1|\[::1\]|localhost):\d{4,5}", "$1:<port>"),
    (r"\b(process|pid) \d+", "$1 <pid>"),
    (r"\b(program|id|net:\[)(,? ?(?:id )?)\d+", "$1$2<id>"),
    (
        r#""(pid|uptime_seconds|age_seconds|started)": [^,\n]+"#,
        "\"$1\": <$1>",
    ),
    (
        r"\b(\d+h ?)?(\d+m ?)?\d+(ms|µs| ms| s|s) ago\b",
        "<age> ago",
    ),
    (r"\(os error \d+\)", "(os error)"),
    (r"\bin \d+ s\b", "in <n> s"),
    // The tests may run under sudo.
    (r" \(by sudo, [^)]+\)", ""),
];

static REGEXES: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compile = |(pattern, with)| (Regex::new(pattern).expect("a regular expression"), with);
    PATTERNS.into_iter().map(compile).collect()
});

/// Returns `text` with placeholders for paths of `scratch` and for all other text that differs between runs.
pub fn normalized(text: &str, scratch: Option<&Scratch>) -> String {
    let mut text = text.to_owned();
    if let Some(scratch) = scratch {
        for (path, placeholder) in [
            (scratch.pin_dir().to_owned(), "<pins>"),
            (scratch.file(""), "<files>/"),
        ] {
            text = text.replace(&path.display().to_string(), placeholder);
        }
    }
    for (regex, with) in REGEXES.iter() {
        text = regex.replace_all(&text, *with).into_owned();
    }
    text
}

/// The outputs of several runs of the program, each under a title, as one snapshot.
#[derive(Debug, Default)]
pub struct Snapshot(String);

impl Snapshot {
    /// Returns a snapshot without entries.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a text under a title; the text is [normalized].
    pub fn text(&mut self, title: &str, text: &str, scratch: Option<&Scratch>) {
        let text = normalized(text, scratch);
        let end = if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        };
        write!(self.0, "=== {title}\n{text}{end}\n").expect("a string takes any text");
    }

    /// Adds the exit code and both outputs of a run under a title.
    pub fn ended(&mut self, title: &str, ended: &Ended, scratch: Option<&Scratch>) {
        let code = ended
            .code
            .map_or_else(|| "signal".to_owned(), |code| code.to_string());
        let mut text = format!("exit code: {code}\n");
        for (name, output) in [("stdout", &ended.stdout), ("stderr", &ended.stderr)] {
            if !output.is_empty() {
                write!(text, "--- {name}\n{output}").expect("a string takes any text");
            }
        }
        self.text(title, &text, scratch);
    }

    /// Compares the snapshot with the file, or rewrites the file if `UPDATE_EXPECT` is set.
    ///
    /// # Panics
    /// If they differ.
    pub fn check(&self, file: &ExpectFile) {
        file.assert_eq(&self.0);
    }
}
