//! Parses the machine's serial output: the tests' output, interleaved with marked lines of its init process
//! (`tests/src/vm_init.rs`).
//!
//! Output of the firmware and the kernel before the first marked line is shown only if the run fails.

use std::collections::VecDeque;

use crate::test::Tally;

/// The prefix of the init process's lines; `tests/src/vm_init.rs` has the same constant.
const MARK: &str = "allowlist-vm: ";
/// The number of last lines that are kept for error messages.
const MAX_LAST_LINES: usize = 40;

/// The parser of the machine's serial output, with the results that it has read.
#[derive(Debug, Default)]
pub(crate) struct Console {
    line: Vec<u8>,
    last: VecDeque<String>,
    /// The kernel's release; `None` until the init process has reported it.
    pub(crate) kernel: Option<String>,
    /// The numbers of passed and failed tests of the test program.
    pub(crate) tally: Tally,
    /// One `TEST: REASON` line per skipped test.
    pub(crate) skips: String,
    /// The result that the init process reported at its end; `None` while it runs.
    pub(crate) end: Option<End>,
}

/// The result that the init process reported at its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The exit status of the test program, such as `exit status: 0`.
    Tests(String),
    /// The error that prevented the test program from running.
    Error(String),
}

impl Console {
    /// Parses the next bytes, and passes each complete line of the tests' output to `show`.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut show: impl FnMut(&str)) {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = without_controls(&self.line);
            self.line.clear();
            if self.parse(&line) {
                show(&line);
            }
            self.remember(line);
        }
    }

    /// Returns the last lines, including an incomplete one, indented for an error message.
    pub(crate) fn last(&self) -> String {
        let incomplete = without_controls(&self.line);
        let lines = self.last.iter().chain([&incomplete]);
        lines
            .filter(|line| !line.is_empty())
            .fold(String::new(), |last, line| last + "\n  | " + line)
    }

    /// Parses one line, and returns whether it is output of the tests.
    fn parse(&mut self, line: &str) -> bool {
        let Some(message) = line.strip_prefix(MARK) else {
            self.tally.read(line);
            return self.kernel.is_some() && self.end.is_none();
        };
        let (keyword, value) = message.split_once(' ').unwrap_or((message, ""));
        match keyword {
            "kernel" => self.kernel = Some(value.to_owned()),
            "skip" => self.skips.push_str(&format!("{value}\n")),
            "tests" => self.end = Some(End::Tests(value.to_owned())),
            "error" => self.end = Some(End::Error(value.to_owned())),
            _ => {}
        }
        false
    }

    fn remember(&mut self, line: String) {
        if self.last.len() == MAX_LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }
}

/// Returns a line without control characters: the firmware's would move the terminal's cursor or clear the screen.
fn without_controls(line: &[u8]) -> String {
    let line = String::from_utf8_lossy(line);
    line.trim_end()
        .replace(|c: char| c.is_control() && c != '\t', "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marked_lines_are_parsed_and_test_output_is_shown() {
        let output = "\x1bcSeaBIOS\r\n[    0.1] Linux version 6.1.0\r\n\r\n\
            allowlist-vm: kernel 6.1.0-9-cloud-amd64\r\n\
            running 3 tests\r\n\
            test a::allowlist-vm: ... ok\r\n\
            test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out\r\n\r\n\
            allowlist-vm: skip b: needs c: d\r\n\r\n\
            allowlist-vm: tests exit status: 0\r\n\
            [    9.1] reboot: Power down\r\n";
        let mut console = Console::default();
        let mut shown = Vec::new();
        // Chunk boundaries are arbitrary.
        for chunk in output.as_bytes().chunks(7) {
            console.feed(chunk, |line| shown.push(line.to_owned()));
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
    fn outcomes_are_distinguished() {
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
        for (output, expected) in table {
            let mut console = Console::default();
            console.feed(output.as_bytes(), |line| panic!("`{line}` is shown"));
            assert_eq!(console.end, expected, "{output}");
        }
    }

    #[test]
    fn last_lines_have_no_control_characters() {
        let mut console = Console::default();
        for number in 0..2 * MAX_LAST_LINES {
            console.feed(format!("\x1b[2Jline {number}\r\n").as_bytes(), |_| {});
        }
        console.feed(b"test x ... ", |_| {});
        let last = console.last();
        let lines: Vec<_> = last.lines().collect();
        assert_eq!(lines[..2], ["", &format!("  | [2Jline {MAX_LAST_LINES}")]);
        assert_eq!(lines.last(), Some(&"  | test x ..."));
        assert_eq!(lines.len(), 1 + MAX_LAST_LINES + 1);
    }
}
