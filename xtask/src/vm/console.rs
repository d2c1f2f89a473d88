//! What the machine says on its serial line: tests' output for a person, and between it lines of its
//! first process (`tests/src/vm_init.rs`) that start with a mark.
//!
//! Before the first of these lines, firmware and kernel talk: nobody needs that, unless it ends badly.

use std::collections::VecDeque;

use crate::test::Tally;

/// Starts a line of the first process, which knows the same words.
const MARK: &str = "allowlist-vm: ";
/// How many lines are kept for somebody who wonders what happened.
const KEPT: usize = 40;

/// Takes bytes as they come, and remembers what they meant.
#[derive(Debug, Default)]
pub(crate) struct Console {
    line: Vec<u8>,
    last: VecDeque<String>,
    /// The release of the kernel, once the first process runs.
    pub(crate) kernel: Option<String>,
    /// What the tests counted.
    pub(crate) tally: Tally,
    /// A line a skip, with the test's name, a colon and the reason.
    pub(crate) skips: String,
    /// How it ended.
    pub(crate) end: Option<End>,
}

/// How the first process ended, by its own account.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The test program ran, and this is how it ended, such as `exit status: 0`.
    Tests(String),
    /// It did not come to that.
    Error(String),
}

impl Console {
    /// Takes some bytes; gives each whole line that a person should see to `show`.
    pub(crate) fn take(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = plain(&self.line);
            self.line.clear();
            if self.read(&line) {
                show(&line);
            }
            self.keep(line);
        }
    }

    /// The last lines, each on one of its own; the one that has no end yet is among them.
    pub(crate) fn last(&self) -> String {
        let unended = plain(&self.line);
        let lines = self.last.iter().chain([&unended]);
        lines
            .filter(|line| !line.is_empty())
            .fold(String::new(), |last, line| last + "\n  | " + line)
    }

    /// Whether a person should see it.
    fn read(&mut self, line: &str) -> bool {
        let Some(said) = line.strip_prefix(MARK) else {
            self.tally.read(line);
            return self.kernel.is_some() && self.end.is_none();
        };
        let (word, value) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "kernel" => self.kernel = Some(value.to_owned()),
            "skip" => self.skips.push_str(&format!("{value}\n")),
            "tests" => self.end = Some(End::Tests(value.to_owned())),
            "error" => self.end = Some(End::Error(value.to_owned())),
            _ => {}
        }
        false
    }

    fn keep(&mut self, line: String) {
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// A line without what would move a terminal's cursor or clear it: firmware likes to.
fn plain(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    line.trim_end()
        .replace(|c: char| c.is_control() && c != '\t', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processs_lines_are_understood_and_the_tests_shown() {
        let said = "\x1bcSeaBIOS\r\n[    0.1] Linux version 6.1.0\r\n\r\n\
            allowlist-vm: kernel 6.1.0-9-cloud-amd64\r\n\
            running 3 tests\r\n\
            test a::allowlist-vm: ... ok\r\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out\r\n\r\n\
            allowlist-vm: skip b: needs c: d\r\n\r\n\
            allowlist-vm: tests exit status: 0\r\n\
            [    9.1] reboot: Power down\r\n";
        let mut console = Console::default();
        let mut shown = Vec::new();
        // In whatever pieces it comes.
        for piece in said.as_bytes().chunks(7) {
            console.take(piece, |line| shown.push(line.to_owned()));
        }
        assert_eq!(
            shown,
            [
                "running 3 tests",
                "test a::allowlist-vm: ... ok",
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out",
                "",
                ""
            ]
        );
        assert_eq!(console.kernel.as_deref(), Some("6.1.0-9-cloud-amd64"));
        assert_eq!((console.tally.passed, console.tally.failed), (3, 0));
        assert_eq!(console.skips, "b: needs c: d\n");
        assert_eq!(console.end, Some(End::Tests("exit status: 0".into())));
    }

    #[test]
    fn ends_are_told_apart() {
        let table = [
            ("Kernel panic - not syncing\n", None),
            ("allowlist-vm: tests exit sta", None),
            (
                "allowlist-vm: tests signal: 6 (SIGABRT)\n",
                Some(End::Tests("signal: 6 (SIGABRT)".into())),
            ),
            (
                "allowlist-vm: error cannot mount: x\n",
                Some(End::Error("cannot mount: x".into())),
            ),
        ];
        for (said, expected) in table {
            let mut console = Console::default();
            console.take(said.as_bytes(), |line| panic!("`{line}` is for nobody"));
            assert_eq!(console.end, expected, "{said}");
        }
    }

    #[test]
    fn the_last_lines_are_kept_without_control_characters() {
        let mut console = Console::default();
        for number in 0..2 * KEPT {
            console.take(format!("\x1b[2Jline {number}\r\n").as_bytes(), |_| {});
        }
        console.take(b"test x ... ", |_| {});
        let last = console.last();
        let lines: Vec<_> = last.lines().collect();
        assert_eq!(lines[..2], ["", &format!("  | [2Jline {KEPT}")]);
        assert_eq!(lines.last(), Some(&"  | test x ..."));
        assert_eq!(lines.len(), 1 + KEPT + 1);
    }
}
