//! Configurations, manual pages and error codes in the documents agree with the program.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use allowlist_policy::error_code::ErrorCode;
use allowlist_tests::skip;
use allowlist_user::cli::generate;
use allowlist_user::config::{Config, ConfigError};
use strum::IntoEnumIterator as _;

fn parse(text: &str, from: &str) -> Config {
    Config::parse(text, Path::new(from)).unwrap_or_else(|error| panic!("{error}"))
}

/// Returns the configurations in a document, of which there is at least one.
fn configurations(document: &str) -> Vec<&str> {
    let blocks = document.split("```toml\n").skip(1);
    let blocks: Vec<_> = blocks.filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty(), "the document shows a configuration");
    blocks
}

#[test]
fn configurations_in_the_readme_are_valid() {
    for block in configurations(include_str!("../../README.md")) {
        let config = parse(block, "README.md");
        assert_eq!(config.warnings(), [""; 0]);
        assert_eq!(config.ssh_warning(), None);
    }
}

#[test]
fn the_egress_policy_in_its_document_is_valid() {
    for block in configurations(include_str!("../../docs/egress.md")) {
        let egress = parse(block, "docs/egress.md").policy.egress;
        assert!(egress.is_some_and(|egress| !egress.rules.is_empty()));
    }
}

/// The example configuration.
const EXAMPLE: &str = include_str!("../../dist/allowlist.toml");

/// Keys without a default; comments in the example show possible values.
const WITHOUT_DEFAULT: [&str; 35] = [
    "allow",
    "attribute",
    "bearer_file",
    "ca_file",
    "cgroups",
    "column",
    "command",
    "control_group",
    "direction",
    "discover",
    "element",
    "file",
    "format",
    "headers",
    "interfaces",
    "keyword",
    "max",
    "must_cover",
    "names",
    "page",
    "parameters",
    "ports",
    "prefix",
    "provider",
    "range",
    "resolvers",
    "select",
    "separator",
    "time_servers",
    "to",
    "units",
    "unzip",
    "url",
    "webhook",
    "where",
];

/// A line of the example, without the `# ` of commented lines.
enum Line<'a> {
    /// `[sources.lab]`.
    Header(&'a str),
    /// `key = value`; the key, and whether it is commented out.
    Key(&'a str, &'a str, bool),
    Other,
}

impl<'a> Line<'a> {
    fn of(line: &'a str) -> Self {
        let (text, is_comment) = match line.strip_prefix("# ") {
            Some(text) => (text, true),
            None => (line, false),
        };
        let is_key =
            |key: &str| !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        match text.split_once(" = ") {
            Some((key, _)) if is_key(key) => Self::Key(text, key, is_comment),
            _ if text.starts_with('[') && text.ends_with(']') => Self::Header(text),
            _ => Self::Other,
        }
    }
}

/// Returns the example with commented keys enabled, except those for which `leave_out` is true.
fn uncommented(leave_out: impl Fn(&str) -> bool) -> String {
    let lines = EXAMPLE.lines().map(Line::of).map(|line| match line {
        Line::Header(text) => text,
        Line::Key(text, key, is_comment) if !is_comment || !leave_out(key) => text,
        Line::Key(..) | Line::Other => "",
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_example_is_valid() {
    let config = parse(EXAMPLE, "dist/allowlist.toml");
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!((config.ssh_warning(), config.ssh_note()), (None, None));
    assert_eq!(config.policy.egress, None, "an operator must choose it");
}

/// Commented keys have their defaults as values, as the example states. The other commented keys are valid together,
/// except `direction`, which a provider sets.
#[test]
fn defaults_in_the_example_are_those_of_the_program() {
    let with_defaults = uncommented(|key| key == "direction");
    let without = uncommented(|key| key == "direction" || !WITHOUT_DEFAULT.contains(&key));
    assert_ne!(with_defaults, without);
    assert_eq!(
        parse(&with_defaults, "with defaults"),
        parse(&without, "without them")
    );
}

/// Returns the keys that the program accepts in a table, from the end of the error for an unknown key. `text` has
/// such a key, `0`.
fn known_keys(text: &str) -> Vec<String> {
    let error = Config::parse(text, Path::new("known keys")).expect_err("the key is unknown");
    let ConfigError::Invalid(problems) = &error else {
        panic!("{text}: {error}")
    };
    let problem = problems.iter().find(|problem| problem.key.ends_with('0'));
    let problem = problem.unwrap_or_else(|| panic!("{text}: {error}"));
    let keys = problem.message.split(", ");
    keys.filter_map(|key| key.rsplit(' ').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_example_has_every_key() {
    let tables = [
        ("", "0 = 1", 16),
        ("keep", "keep.0 = 1", 6),
        ("on_change", "on_change.0 = 1", 4),
        ("services", "services.a.0 = 1", 3),
        ("egress", "egress.0 = 1", 8),
        ("egress", "egress.rules.a.0 = 1", 3),
        ("sources", "sources.a.0 = 1", 32),
    ];
    let mut table = "";
    let mut shown: Vec<(&str, &str)> = Vec::new();
    for line in EXAMPLE.lines() {
        match Line::of(line) {
            Line::Header(header) => {
                let mut parts = header.trim_matches(['[', ']']).split('.');
                table = parts.next().expect("a part");
                shown.push(("", table));
                shown.extend(parts.next().map(|inner| (table, inner)));
            }
            Line::Key(_, key, _) => shown.push((table, key)),
            Line::Other => {}
        }
    }
    for (table, text, at_least) in tables {
        let known = known_keys(text);
        assert!(known.len() >= at_least, "{table}: {known:?}");
        for key in known {
            assert!(
                shown.contains(&(table, &*key)),
                "[{table}] {key}: the example does not show it"
            );
        }
    }
    let lists = [
        "sources.a.url = \"https://a.example/\"\nsources.a.format = \"html\"\nsources.a.page.0 = 1",
        "sources.a.file = \"a\"\nsources.a.min_prefix_len.0 = 1",
    ];
    for key in lists.into_iter().flat_map(known_keys) {
        let inside = [format!("{{ {key} = "), format!(", {key} = ")];
        assert!(
            inside.iter().any(|inside| EXAMPLE.contains(inside)),
            "{key}: the example does not show it"
        );
    }
}

/// groff reports mistakes in pages.
#[test]
fn manual_pages_render_without_warnings() {
    for (name, text) in generate::pages() {
        let groff = Command::new("groff")
            .args(["-man", "-ww", "-Tutf8", "-Kutf8"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let Ok(mut groff) = groff else {
            skip!("groff is not installed");
        };
        let mut input = groff.stdin.take().expect("standard input is piped");
        input.write_all(text.as_bytes()).expect("groff reads");
        drop(input);
        let ended = groff.wait_with_output().expect("groff ends");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        assert!(
            ended.status.success() && stderr.is_empty(),
            "{name}: {stderr}"
        );
    }
}

#[test]
fn every_error_code_is_documented() {
    let document = include_str!("../../docs/errors.md");
    let mut documented: Vec<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(code, _)| code)
        .collect();
    documented.sort_unstable();
    let mut codes: Vec<&str> = ErrorCode::iter().map(Into::into).collect();
    codes.sort_unstable();
    assert_eq!(documented, codes);
}
