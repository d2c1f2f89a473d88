//! The repository's own rules that no lint knows: how a file opens, how long it may get, and which
//! folder may name which library.
//!
//! Looks at text alone, and not at this file, which spells out all that it forbids.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One idea a file does not take more lines than this.
const LONGEST: usize = 600;

/// Words of unfinished work.
const UNFINISHED: [&str; 5] = ["TODO", "FIXME", "dbg!(", "todo!(", "unimplemented!("];

/// A library, and the only places that may name it.
const OWNERS: [(&str, &[&str]); 3] = [
    (
        "aya::",
        &[
            "allowlist-common/",
            "allowlist-user/src/dataplane",
            "tests/src/bench/",
            "tests/src/lab/",
            "tests/tests/",
        ],
    ),
    ("reqwest::", &["allowlist-user/src/source"]),
    (
        "clap::",
        &[
            "allowlist-user/src/cli",
            "allowlist-user/src/main.rs",
            "tests/src/bench/",
            "tests/src/demo/",
            "xtask/",
        ],
    ),
];

/// Every breach below `root`, as `file:line: what`.
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
        let entry = entry?;
        let path = entry.path();
        if !entry.file_type()?.is_dir() {
            file(&path)?;
        } else if path.file_name() != Some(OsStr::new("target"))
            && path.file_name() != Some(OsStr::new(".git"))
        {
            visit(&path, file)?;
        }
    }
    Ok(())
}

/// Whether somebody here wrote it; what was captured from elsewhere stays as it came.
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
            find("white space at the end of the line".into());
        }
        if !is_rust {
            continue;
        }
        if index == 0 && !line.starts_with("//!") {
            find("does not open with what it is (`//!`)".into());
        }
        if index == LONGEST {
            find(format!("more than {LONGEST} lines: make two ideas of it"));
        }
        for word in UNFINISHED {
            if line.contains(word) {
                find(format!("`{word}` is unfinished work: do it, or file it"));
            }
        }
        for (library, owners) in OWNERS {
            if line.contains(library) && !owners.iter().any(|owner| name.starts_with(owner)) {
                find(format!(
                    "`{library}` belongs to {} alone",
                    owners.join(", ")
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
    fn each_rule_names_the_line_that_breaks_it() {
        let long = format!("//! Long.\n{}", "\n".repeat(LONGEST));
        let table: &[(&str, &str, &[&str])] = &[
            ("a.rs", "//! Fine.\n", &[]),
            ("a.rs", "use std::fs;\n", &["a.rs:1: does not open"]),
            ("a.rs", &long, &["a.rs:601: more than 600 lines"]),
            ("a.rs", "//! A.\n// TODO later\n", &["a.rs:2: `TODO`"]),
            ("a.rs", "//! A.\n\ndbg!(1);\n", &["a.rs:3: `dbg!(`"]),
            ("a.rs", "//! A. \n", &["a.rs:1: white space"]),
            (
                "README.md",
                "no rule for TODO\nbut here \n",
                &["README.md:2: white space"],
            ),
            (
                "allowlist-user/src/config.rs",
                "//! A.\nuse aya::Ebpf;\n",
                &["allowlist-user/src/config.rs:2: `aya::`"],
            ),
            (
                "allowlist-user/src/dataplane/pin.rs",
                "//! A.\nuse aya::Ebpf;\n",
                &[],
            ),
            (
                "allowlist-ebpf/src/main.rs",
                "//! A.\nuse aya_ebpf::maps;\n",
                &[],
            ),
            (
                "allowlist-user/src/source.rs",
                "//! A.\nuse reqwest::Url;\n",
                &[],
            ),
            (
                "allowlist-user/src/feed.rs",
                "//! A.\nuse reqwest::Url;\n",
                &["allowlist-user/src/feed.rs:2: `reqwest::`"],
            ),
            (
                "tests/src/lib.rs",
                "//! A.\nuse clap::Parser;\n",
                &["tests/src/lib.rs:2: `clap::`"],
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
