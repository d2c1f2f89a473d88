//! Groups the commands in `--help`, which `clap` itself cannot do.
//!
//! Invariant: every command that is not hidden is shown once; one that no group names is among the others.

use std::io::stdout;

use clap::CommandFactory as _;

use super::Cli;
use crate::report::terminal_width;

/// The groups of commands in the help: the title of each group and its commands, in display order.
const GROUPS: [(&str, &[&str]); 5] = [
    (
        "State and packets",
        &[
            "status", "watch", "learn", "explain", "list", "flows", "sources",
        ],
    ),
    (
        "The filter and its policy",
        &[
            "run", "mode", "add", "remove", "reload", "confirm", "rollback", "log", "detach",
        ],
    ),
    (
        "Sources and providers",
        &[
            "providers",
            "fetch",
            "refresh",
            "diff",
            "history",
            "accept",
            "export",
        ],
    ),
    (
        "Before the first start",
        &["check", "verify", "completions", "man"],
    ),
    ("Other commands", &["help"]),
];
/// The column at which the descriptions of commands begin in the list of commands of `--help`.
const INDENT: usize = 15;
/// The maximum length of a line of help, in columns.
const WIDEST: usize = 100;

/// Returns the definition of the command line, with the commands in groups.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let room = terminal_width(&stdout()).map_or(WIDEST, |width| width.min(WIDEST));
    let groups = groups(&command, room);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{groups}\nOptions:\n{{options}}{{after-help}}"
    ))
}

fn groups(command: &clap::Command, room: usize) -> String {
    let is_named = |name: &str| GROUPS.iter().any(|(_, names)| names.contains(&name));
    let mut text = String::new();
    for (title, names) in GROUPS {
        let named = names
            .iter()
            .filter_map(|name| command.find_subcommand(name));
        let others = command
            .get_subcommands()
            .filter(|one| title == "Other commands" && !is_named(one.get_name()));
        let shown: Vec<_> = named
            .chain(others)
            .filter(|one| !one.is_hide_set())
            .collect();
        if shown.is_empty() {
            continue;
        }
        text += &format!("{title}:\n");
        for one in shown {
            let about = one.get_about().map(ToString::to_string).unwrap_or_default();
            text += &entry(one.get_name(), &about, room);
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

/// Returns the help lines of a command: its name, and its description wrapped to `room` columns.
fn entry(name: &str, about: &str, room: usize) -> String {
    let mut text = format!("  {name:<0$}", INDENT - 2);
    let mut column = INDENT;
    for word in about.split_whitespace() {
        let length = word.chars().count();
        if column > INDENT && column + 1 + length > room {
            text += &format!("\n{}", " ".repeat(INDENT));
            column = INDENT;
        } else if column > INDENT {
            text.push(' ');
            column += 1;
        }
        text += word;
        column += length;
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_in_one_group() {
        let text = groups(&Cli::command(), 80);
        for command in Cli::command().get_subcommands() {
            let begin = format!("  {:<1$}", command.get_name(), INDENT - 2);
            let lines = text.lines().filter(|line| line.starts_with(&begin));
            let expected = usize::from(!command.is_hide_set());
            assert_eq!(lines.count(), expected, "{}", command.get_name());
        }
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        assert!(
            !text.contains("Other commands"),
            "name the group of each:\n{text}"
        );
    }
}
