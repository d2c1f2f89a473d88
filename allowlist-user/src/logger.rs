//! Formats log records and writes them to standard error: one record a line, escaped in one place.
//!
//! Invariants: foreign text in a record can neither begin another record nor reach a terminal as a control character;
//! by default no record of a library is written, since a vendor's page could cause any number of them. Under journald
//! each line carries its priority as `<N>` (sd-daemon(3)); elsewhere a daemon's lines carry their time, since nothing
//! else records it.

use std::env;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::fd::AsFd;

use allowlist_policy::text::indented;
use jiff::Timestamp;
use log::Level;
use nix::sys::stat::fstat;

/// The text at the start of each log record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefix {
    /// The level of warnings and errors, for a command whose output is read at once.
    Level,
    /// The time and the level, for a daemon whose standard error is stored without times.
    Time,
    /// The priority for journald, which adds the time itself.
    Priority,
}

impl Prefix {
    /// Returns the prefix for this process: the priority if journald reads standard error; otherwise the time for a
    /// daemon, and the level for other commands.
    pub fn detect(is_daemon: bool) -> Self {
        match env::var("JOURNAL_STREAM") {
            Ok(stream) if is_stream(&stream, io::stderr()) => Self::Priority,
            _ if is_daemon => Self::Time,
            _ => Self::Level,
        }
    }
}

/// The filter if `RUST_LOG` is not set: only this program's own records. Libraries are off, since a list could make
/// them log often: html5ever warns of each tag that is out of place.
const DEFAULT_FILTER: &str = "off,allowlist=info";

/// The start of the target of records with a code. The rest of the target is the code, which the record has in
/// brackets: `warning[list-rejected]: ...`. Programs and tests wait for codes, so that the text of a record can change.
/// The part before `::` keeps such records within the default filter.
const CODE_TARGET: &str = "allowlist::";

/// Starts to write log records to standard error, each with this prefix. `RUST_LOG` replaces the default filter, which
/// selects this program's own records from `info` up.
pub fn start(prefix: Prefix) {
    builder("RUST_LOG", prefix).init();
}

/// Returns a builder of the logger. `variable` is the name of the environment variable with the filter.
fn builder(variable: &str, prefix: Prefix) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    // Also where `RUST_LOG` is a level; its own name overrides this.
    builder.filter_module("html5ever", log::LevelFilter::Off);
    builder
        .parse_env(env_logger::Env::new().filter_or(variable, DEFAULT_FILTER))
        .format(move |out, record| {
            let text = record.args().to_string();
            let code = record.target().strip_prefix(CODE_TARGET);
            let line = line(prefix, record.level(), code, Timestamp::now(), &text);
            out.write_all(line.as_bytes())
        });
    builder
}

/// Returns one record as text that ends with a line break. `code` is the code of the record, if it has one.
fn line(prefix: Prefix, level: Level, code: Option<&str>, time: Timestamp, text: &str) -> String {
    let (priority, level) = match level {
        Level::Error => (3, "error"),
        Level::Warn => (4, "warning"),
        Level::Info => (6, ""),
        Level::Debug | Level::Trace => (7, ""),
    };
    let label = match code {
        Some(code) => format!("{level}[{code}]: "),
        None if level.is_empty() => String::new(),
        None => format!("{level}: "),
    };
    let text = indented(text);
    let mut line = String::with_capacity(text.len() + 32);
    match prefix {
        Prefix::Level => line.push_str(&label),
        Prefix::Time => {
            write!(line, "{} {label}", time.strftime("%Y-%m-%dT%H:%M:%SZ"))
                .expect("a string takes any text");
        }
        Prefix::Priority => {
            // Each line is an entry of its own to journald, which gives those without a priority another one.
            let text = text.replace('\n', &format!("\n<{priority}>"));
            let code = code.map_or_else(String::new, |code| format!("[{code}] "));
            return format!("<{priority}>{code}{text}\n");
        }
    }
    line.push_str(&text);
    line.push('\n');
    line
}

/// Returns whether `stream`, the value of `JOURNAL_STREAM` (`device:inode` in decimal), names this file
/// (systemd.exec(5)).
fn is_stream(stream: &str, file: impl AsFd) -> bool {
    let Ok(found) = fstat(file) else {
        return false;
    };
    stream == format!("{}:{}", found.st_dev, found.st_ino)
}

#[cfg(test)]
mod tests {
    use log::{Log as _, Metadata};

    use super::*;

    #[test]
    fn a_record_is_one_entry_in_each_form() {
        let text = "vendor: bad\n2026-11-29 root: mode observe\u{202e}\x1b[2J";
        let rest = "\n    2026-11-29 root: mode observe\\u{202e}\\u{1b}[2J\n";
        let of = |prefix, level| line(prefix, level, None, Timestamp::UNIX_EPOCH, text);
        for (prefix, level, expected) in [
            (
                Prefix::Level,
                Level::Warn,
                format!("warning: vendor: bad{rest}"),
            ),
            (Prefix::Level, Level::Info, format!("vendor: bad{rest}")),
            (
                Prefix::Time,
                Level::Error,
                format!("1970-01-01T00:00:00Z error: vendor: bad{rest}"),
            ),
            (
                Prefix::Time,
                Level::Info,
                format!("1970-01-01T00:00:00Z vendor: bad{rest}"),
            ),
            (
                Prefix::Priority,
                Level::Warn,
                format!("<4>vendor: bad{}", rest.replacen('\n', "\n<4>", 1)),
            ),
            (
                Prefix::Priority,
                Level::Info,
                format!("<6>vendor: bad{}", rest.replacen('\n', "\n<6>", 1)),
            ),
        ] {
            assert_eq!(of(prefix, level), expected, "{prefix:?} {level}");
        }
    }

    #[test]
    fn a_code_is_part_of_the_label() {
        let of = |prefix, level| line(prefix, level, Some("stale"), Timestamp::UNIX_EPOCH, "text");
        assert_eq!(of(Prefix::Level, Level::Warn), "warning[stale]: text\n");
        assert_eq!(of(Prefix::Priority, Level::Warn), "<4>[stale] text\n");
        assert_eq!(
            of(Prefix::Time, Level::Info),
            "1970-01-01T00:00:00Z [stale]: text\n"
        );
    }

    #[test]
    fn journald_is_recognised_by_its_stream() {
        let file = tempfile::tempfile().expect("a file");
        let found = fstat(&file).expect("an open file has a status");
        let stream = format!("{}:{}", found.st_dev, found.st_ino);
        assert!(is_stream(&stream, &file));
        assert!(!is_stream("1:2", &file));
        assert!(!is_stream("", &file));
    }

    /// By default libraries log nothing: a page can make html5ever warn once for each of its tags.
    #[test]
    fn libraries_log_nothing_and_this_program_does() {
        let log = builder("ALLOWLIST_NO_SUCH_VARIABLE", Prefix::Level).build();
        let is_logged = |target: &str, level| {
            log.enabled(&Metadata::builder().target(target).level(level).build())
        };
        assert!(is_logged("allowlist_user::daemon", Level::Info));
        assert!(is_logged("allowlist", Level::Warn));
        assert!(!is_logged("allowlist_user::daemon", Level::Debug));
        for library in ["html5ever::tree_builder", "reqwest", "hickory_resolver"] {
            assert!(!is_logged(library, Level::Warn), "{library}");
        }
    }
}
