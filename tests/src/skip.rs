//! Records skipped tests with their reasons.
//!
//! Invariant: each skip is a line on standard error, which the test harness does not capture, and a line in the file
//! `ALLOWLIST_SKIPS`, from which `cargo xtask test` counts them. Does not know which skips are expected.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write};

/// Returns from the test and records the reason: `skip!("kernel {release} has no tcx (added in 6.6)")`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        $crate::skip::record(std::any::type_name_of_val(&|| ()), format_args!($($reason)+));
        return $crate::skip::Outcome::skipped();
    }};
}

/// Skips the test unless it runs as root.
#[macro_export]
macro_rules! require_root {
    () => {
        if !$crate::skip::is_root() {
            $crate::skip!("needs root, for network namespaces and BPF");
        }
    };
}

/// The return type of a test that can be skipped.
pub trait Outcome {
    /// Returns the value of a test that passed.
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

/// Reports whether this process runs as root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Records a skip. `closure` is the type name of a closure in the test, which begins with the path of the test.
pub fn record(closure: &str, reason: fmt::Arguments<'_>) {
    let test = closure.trim_end_matches("::{{closure}}");
    // Written to the handle of standard error, because the test harness captures the output of the print macros.
    let _ = io::stderr().write_all(format!("SKIP {test}: {reason}\n").as_bytes());
    if let Some(path) = std::env::var_os("ALLOWLIST_SKIPS") {
        // One append per line, so that concurrent tests do not mix their lines.
        let line = format!("{test}: {reason}\n");
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        written
            .unwrap_or_else(|error| panic!("cannot record a skip in {}: {error}", path.display()));
    }
}
