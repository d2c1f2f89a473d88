//! `cargo xtask language`: counts constructions that make technical prose hard to read.
//!
//! These are pronoun clauses where the field has a noun, verbs of speech for a data flow, and archaic words: each costs
//! the reader a second reading. The check reads comments, string literals and Markdown of the whole repository, and
//! `cargo xtask lint` fails above [`LIMIT`]. It does not parse grammar, so some hits are correct English.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use regex::Regex;

use crate::{cargo, tidy};

/// The maximum number of hits per 1,000 words of the repository. Well-kept projects of this field have 0.4 to 1.2.
pub(crate) const LIMIT: f64 = 1.5;

/// The maximum number of files that the summary names: those with the most hits.
const SHOWN_FILES: usize = 10;

/// The constructions to find, each as a regular expression with its replacement.
const RULES: [(&str, &str); 8] = [
    (
        r"(?i)\bwhat (is|was|are|were|has|have|had|does|did|do|it|they|the|a|an|each|every|this|that|becomes?|became|can|could|would|should|must|may|comes?|came|goes|follows|stands?|passes|others?|some|any|one|nobody|somebody)\b",
        "use the noun: \"the fallback\", not \"what it falls back to\"",
    ),
    (
        r"(?i)\b((who|what|which)ever|nobody|somebody|anybody|everybody)\b",
        "name the subject: the client, the operator, no source",
    ),
    (
        r"(?i)\b(tells?|told|says?|said|asks?|asked)\b",
        "programs report, state, log, query, request or fetch",
    ),
    (
        r"(?i)\bof (it|them|those|these|others|theirs)\b",
        "repeat the noun",
    ),
    (r"(?i)\bin force\b", "active, effective"),
    (
        r"(?i)\b(lets? (in|go|it|them|him|everybody|nobody)|taken? back|goes back|gone back)\b",
        "allow, expire, remove; roll back, revert",
    ),
    (
        r"(?i)\b(till|anew|hereby|lately|mostly|meanwhile|mends?|mended|likewise)\b",
        "until, again, usually, while, repair",
    ),
    (
        r"(?i)\b(all the same|by itself)\b",
        "still, nevertheless; leave it out",
    ),
];

/// Count constructions that make comments, messages and documents hard to read
///
/// Without a path: a line per folder and the worst files. With paths: every hit with its line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Files whose hits are printed
    path: Vec<std::path::PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let root = cargo::root();
    let checker = Checker::new();
    for path in &args.path {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        for hit in checker.check(path, &text).hits {
            println!(
                "{}:{}: \"{}\": {}",
                path.display(),
                hit.line,
                hit.text,
                hit.instead
            );
        }
    }
    if args.path.is_empty() {
        print!("{}", Summary::of(root)?.text());
    }
    Ok(ExitCode::SUCCESS)
}

/// A place in a file where a construction was found.
#[derive(Debug, PartialEq, Eq)]
struct Hit {
    /// The number of the line, from 1.
    line: usize,
    text: String,
    /// The replacement that the rule proposes.
    instead: &'static str,
}

/// The words and hits in the prose of a file.
#[derive(Debug, Default)]
struct Found {
    hits: Vec<Hit>,
    words: usize,
}

struct Checker(Vec<(Regex, &'static str)>);

impl Checker {
    fn new() -> Self {
        let compile =
            |(pattern, instead)| (Regex::new(pattern).expect("a regular expression"), instead);
        Self(RULES.into_iter().map(compile).collect())
    }

    fn check(&self, path: &Path, text: &str) -> Found {
        let mut found = Found::default();
        for (line, prose) in prose(path, text) {
            found.words += prose.split_whitespace().count();
            for (regex, instead) in &self.0 {
                found.hits.extend(regex.find_iter(&prose).map(|hit| Hit {
                    line,
                    text: hit.as_str().to_owned(),
                    instead,
                }));
            }
        }
        found
    }
}

/// The numbers of hits and words of each file.
pub(crate) struct Summary(BTreeMap<String, (usize, usize)>);

impl Summary {
    /// Counts the hits and words of all files below `root` to which the repository's rules apply (`tidy::is_ours`).
    pub(crate) fn of(root: &Path) -> Result<Self> {
        let checker = Checker::new();
        let mut files = BTreeMap::new();
        tidy::visit(root, &mut |path| {
            // This file spells out the constructions.
            if tidy::is_ours(path) && !path.ends_with("xtask/src/language.rs") {
                let text = fs::read_to_string(path)
                    .with_context(|| format!("cannot read {}", path.display()))?;
                let found = checker.check(path, &text);
                let name = path.strip_prefix(root).expect("below the root");
                files.insert(name.display().to_string(), (found.hits.len(), found.words));
            }
            Ok(())
        })?;
        Ok(Self(files))
    }

    /// Returns the hits per 1,000 words of the whole repository.
    pub(crate) fn rate(&self) -> f64 {
        rate(self.0.values().copied().fold((0, 0), add))
    }

    /// Returns a line for each top-level folder, the files with the most hits, and the total.
    pub(crate) fn text(&self) -> String {
        let mut folders = BTreeMap::<&str, (usize, usize)>::new();
        for (name, counts) in &self.0 {
            let folder = name.split_once('/').map_or(".", |(folder, _)| folder);
            let sum = folders.entry(folder).or_default();
            *sum = add(*sum, *counts);
        }
        let mut text = String::new();
        for (folder, (hits, words)) in folders {
            let rate = rate((hits, words));
            text += &format!("{folder:24} {hits:6} hits {words:8} words {rate:6.1} per 1,000\n");
        }
        let mut worst: Vec<_> = self.0.iter().filter(|(_, counts)| counts.0 > 0).collect();
        worst.sort_by_key(|(_, counts)| std::cmp::Reverse(counts.0));
        for (name, (hits, _)) in worst.into_iter().take(SHOWN_FILES) {
            text += &format!("{hits:6} {name}\n");
        }
        text += &format!("all: {:.1} hits per 1,000 words\n", self.rate());
        text
    }
}

fn add(a: (usize, usize), b: (usize, usize)) -> (usize, usize) {
    (a.0 + b.0, a.1 + b.1)
}

fn rate((hits, words): (usize, usize)) -> f64 {
    // Neither count comes near 2^53.
    #[expect(clippy::cast_precision_loss, reason = "counts of words")]
    let rate = 1000.0 * hits as f64 / words.max(1) as f64;
    rate
}

/// Returns the prose of a file by line: all text of Markdown, otherwise comments and string literals.
fn prose(path: &Path, text: &str) -> Vec<(usize, String)> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("md") => (1..).zip(text.lines().map(str::to_owned)).collect(),
        Some("rs") => rust_prose(text),
        _ => {
            let comment = |line: &str| line.split_once('#').map(|(_, comment)| comment.to_owned());
            let lines = (1..).zip(text.lines().map(comment));
            lines
                .filter_map(|(line, prose)| Some((line, prose?)))
                .collect()
        }
    }
}

/// The state of a scan of Rust source: the kind of text at the current position.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    Comment,
    /// A string literal, with the number of `#` behind its end if it is a raw one; `None` for an ordinary literal.
    String(Option<usize>),
}

/// Returns the comments and string literals of Rust source, by line. Block comments are not recognised: this project
/// has none.
fn rust_prose(text: &str) -> Vec<(usize, String)> {
    let mut lines = Vec::new();
    let mut state = State::Code;
    for (number, line) in (1..).zip(text.lines()) {
        let mut prose = String::new();
        if state == State::Comment {
            state = State::Code;
        }
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let mut length = first.len_utf8();
            match state {
                State::Code if rest.starts_with("//") => {
                    state = State::Comment;
                    length = rest.len() - rest.trim_start_matches(['/', '!']).len();
                }
                // A quote as a character.
                State::Code if rest.starts_with("'\"'") => length = 3,
                State::Code if rest.starts_with("'\\\"'") => length = 4,
                State::Code if first == '"' => state = State::String(None),
                State::Code if first == 'r' => {
                    let hashes = rest[1..].bytes().take_while(|byte| *byte == b'#').count();
                    if rest[1 + hashes..].starts_with('"') {
                        state = State::String(Some(hashes));
                        length = hashes + 2;
                    } else {
                        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
                        length = rest.chars().take_while(is_word).map(char::len_utf8).sum();
                    }
                }
                State::Code if first.is_alphabetic() || first == '_' => {
                    let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
                    length = rest.chars().take_while(is_word).map(char::len_utf8).sum();
                }
                State::Code => {}
                State::String(None) if first == '\\' => {
                    length += rest[1..].chars().next().map_or(0, char::len_utf8);
                    prose.push(' ');
                }
                State::String(None) if first == '"' => {
                    state = State::Code;
                    prose.push(' ');
                }
                State::String(Some(hashes))
                    if first == '"'
                        && rest[1..].bytes().take_while(|byte| *byte == b'#').count() >= hashes =>
                {
                    state = State::Code;
                    length += hashes;
                    prose.push(' ');
                }
                State::Comment | State::String(_) => prose.push(first),
            }
            rest = &rest[length..];
        }
        if !prose.trim().is_empty() {
            lines.push((number, prose));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, text: &str, expected: &[(usize, &str)]) {
        let found = Checker::new().check(Path::new(name), text);
        let hits: Vec<_> = found
            .hits
            .iter()
            .map(|hit| (hit.line, &*hit.text))
            .collect();
        assert_eq!(hits, expected, "{text}");
    }

    #[test]
    fn prose_is_comments_strings_and_markdown() {
        check("a.md", "It is in force.\n", &[(1, "in force")]);
        check(
            "a.rs",
            "let nobody = in_force; // nobody\n",
            &[(1, "nobody")],
        );
        check("a.rs", "/// What is sent.\n", &[(1, "What is")]);
        check(
            "a.rs",
            "fail(\"it was \\\n    told\");\nlet told = 1;\n",
            &[(2, "told")],
        );
        check(
            "a.rs",
            "let a = r#\"a \"till\" b\"#; let till = 'x';\n",
            &[(1, "till")],
        );
        check(
            "a.rs",
            "let a = '\"'; let till = '\\\"'; // all the same\n",
            &[(1, "all the same")],
        );
        check(
            "a.rs",
            "let url = \"http://till\"; let anew = 1;\n",
            &[(1, "till")],
        );
        check("a.toml", "key = \"x\" # taken back\n", &[(1, "taken back")]);
    }

    #[test]
    fn the_summary_has_folders_files_and_the_rate() {
        let files = [
            ("a/b.rs", (2, 500)),
            ("a/c.rs", (0, 400)),
            ("d.md", (1, 100)),
        ];
        let summary = Summary(files.map(|(name, counts)| (name.to_owned(), counts)).into());
        assert!((summary.rate() - 3.0).abs() < 1e-9);
        let text = summary.text();
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.ends_with("all: 3.0 hits per 1,000 words\n"), "{text}");
    }
}
