//! What the documents show is what the program takes.

use std::path::Path;

use allowlist_user::config::Config;

fn parse(text: &str, from: &str) -> Config {
    Config::parse(text, Path::new(from)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn the_readmes_configuration_is_right() {
    let readme = include_str!("../../README.md");
    let blocks: Vec<_> = readme
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(!blocks.is_empty(), "the README shows a configuration");
    for block in blocks {
        let config = parse(block, "README.md");
        assert_eq!(config.warnings(), [""; 0]);
        assert_eq!(config.ssh_warning(), None);
    }
}

/// Lines that are commented out and set a key hold that key's default, as the example says of itself.
#[test]
fn the_examples_defaults_are_the_programs() {
    let example = include_str!("../../dist/allowlist.toml");
    let config = parse(example, "dist/allowlist.toml");
    assert_eq!(config.warnings(), [""; 0]);
    assert_eq!((config.ssh_warning(), config.ssh_note()), (None, None));
    let not_defaults = [
        "interfaces",
        "url",
        "ca_file",
        "file",
        "format",
        "must_cover",
        "names",
        "select",
        "command",
        "webhook",
    ];
    let mut shown = 0;
    let lines: Vec<&str> = example
        .lines()
        .map(|line| {
            let default = line.strip_prefix("# ").filter(|rest| {
                let (key, _) = rest.split_once(" = ").unwrap_or(("", ""));
                let is_key =
                    !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
                is_key && !not_defaults.contains(&key)
            });
            shown += usize::from(default.is_some());
            default.unwrap_or(line)
        })
        .collect();
    assert_eq!(
        shown, 20,
        "default, return_traffic, max_flows, attach_mode, max_prefixes, history_size, eight of a source, and six to keep"
    );
    let with_defaults = lines.join("\n");
    assert_eq!(parse(&with_defaults, "dist/allowlist.toml"), config);
}
