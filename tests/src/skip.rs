//! Tests that cannot run here say so and why, where nobody can overlook it.
//!
//! Invariant: every skip is a line on the real standard error, past the test harness, and a line in
//! the file that `ALLOWLIST_SKIPS` names, which is how `cargo xtask test` counts them. Does not know
//! which skips are expected.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// Leaves the test with a reason: `skip!("kernel {release} has no tcx (6.6 brought it)")`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::skip::record(std::any::type_name_of_val(&|| ()), format_args!($($reason)+));
        return $crate::skip::Outcome::skipped();
    }};
}

/// Leaves the test unless it runs as root.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::skip::is_root() {
            $crate::skip!("needs root, for network namespaces and BPF");
        }
    };
}

/// What a test returns when it is skipped.
pub trait Outcome {
    /// As if it had passed.
    fn skipped() -> Self;
}

impl Outcome for () {
    fn skipped() -> Self {}
}

impl<E> Outcome for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Notes a skip. `closure` is the type name of a closure in the test, which starts with the test's.
pub fn record(closure: &str, reason: fmt::Arguments<'_>) {
    let test = closure.trim_end_matches("::{{closure}}");
    // Standard error by its own handle: the test harness swallows what the print macros write.
    let _ = io::stderr().write_all(format!("SKIP {test}: {reason}\n").as_bytes());
    if let Some(path) = std::env::var_os("ALLOWLIST_SKIPS") {
        // One write to the end of the file, so that tests that run at once do not mix their lines.
        let line = format!("{test}: {reason}\n");
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written.unwrap_or_else(|error| panic!("cannot note a skip in {}: {error}", path.display()));
    }
}
