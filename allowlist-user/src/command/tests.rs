//! The filter of the log.

use log::{Level, Log, Metadata};

use super::log_builder;

/// A page can make html5ever warn once for each of its tags.
#[test]
fn libraries_log_nothing_and_this_program_does() {
    let log = log_builder("ALLOWLIST_NO_SUCH_VARIABLE").build();
    let is_logged =
        |target: &str, level| log.enabled(&Metadata::builder().target(target).level(level).build());
    assert!(is_logged("allowlist_user::daemon", Level::Info));
    assert!(is_logged("allowlist", Level::Warn));
    assert!(!is_logged("allowlist_user::daemon", Level::Debug));
    for library in ["html5ever::tree_builder", "reqwest", "hickory_resolver"] {
        assert!(!is_logged(library, Level::Warn), "{library}");
    }
}
