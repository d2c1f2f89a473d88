//! The repository's own rules that no lint checks: module headers and file length.
//!
//! Works on text only. Skips this file, which contains all forbidden patterns.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The maximum number of lines in a Rust file.
const MAX_LINES: usize = 600;

/// Markers of unfinished work.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "dbg!(", "todo!(", "unimplemented!("];

/// Returns every violation below `root`, as `file:line: message`.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut findings = Vec::new();
    visit(root, &mut |path| {
        let name = path
            .strip_prefix(root)
            .expect("below the root")
            .display()
            .to_string();
        if name != "xtask/src/tidy.rs" && is_ours(path) {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {name}"))?;
            findings.extend(check_file(&name, &text));
        }
        Ok(())
    })?;
    findings.sort();
    Ok(findings)
}

pub(crate) fn visit(folder: &Path, file: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let path = entry.path();
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot read the file type of {}", path.display()))?;
        if !kind.is_dir() {
            file(&path)?;
        } else if path.file_name() != Some(OsStr::new("target"))
            && path.file_name() != Some(OsStr::new(".git"))
        {
            visit(&path, file)?;
        }
    }
    Ok(())
}

/// Reports whether the repository's rules apply to a file: to source and documents, but not to captured data.
pub(crate) fn is_ours(path: &Path) -> bool {
    path.extension().is_some_and(|extension| {
        ["md", "rs", "sh", "toml"]
            .iter()
            .any(|ours| extension == *ours)
    })
}

fn check_file(name: &str, text: &str) -> Vec<String> {
    let is_rust = Path::new(name).extension() == Some(OsStr::new("rs"));
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut find = |what: String| findings.push(format!("{name}:{}: {what}", index + 1));
        if line != line.trim_end() {
            find("trailing whitespace".into());
        }
        if !is_rust {
            continue;
        }
        if index == 0 && !line.starts_with("//!") {
            find("missing module header: the first line must start with `//!`".into());
        }
        if index == MAX_LINES {
            find(format!("more than {MAX_LINES} lines: split the file"));
        }
        for word in UNFINISHED {
            if line.contains(word) {
                find(format!(
                    "`{word}` marks unfinished work: finish it, or file an issue"
                ));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_reported_with_file_and_line() {
        let long = format!("//! Long.\n{}", "\n".repeat(MAX_LINES));
        let table: &[(&str, &str, &[&str])] = &[
            ("a.rs", "//! Fine.\n", &[]),
            ("a.rs", "use std::fs;\n", &["a.rs:1: missing module header"]),
            ("a.rs", &long, &["a.rs:601: more than 600 lines"]),
            ("a.rs", "//! A.\n// TODO later\n", &["a.rs:2: `TODO`"]),
            ("a.rs", "//! A.\n\ndbg!(1);\n", &["a.rs:3: `dbg!(`"]),
            ("a.rs", "//! A. \n", &["a.rs:1: trailing whitespace"]),
            (
                "README.md",
                "no rule for TODO\nbut here \n",
                &["README.md:2: trailing whitespace"],
            ),
        ];
        for (name, text, expected) in table {
            let findings = check_file(name, text);
            assert_eq!(findings.len(), expected.len(), "{name}: {findings:?}");
            for (finding, expected) in findings.iter().zip(*expected) {
                assert!(finding.starts_with(expected), "{finding}");
            }
        }
    }
}
