//! Shell completions and man pages, from the definitions that `--help` comes from.
//!
//! Invariant: this module has no text about a single command, so that nothing can differ from `--help`. Does not
//! know in which folders a shell or `man` searches.

use std::path::PathBuf;

use allowlist_lists::catalogue;
use clap::builder::PossibleValuesParser;
use clap::{Args, CommandFactory as _, ValueHint};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use super::Cli;

/// The section of the manual to which the man pages belong: 8, system administration.
const SECTION: &str = "8";

/// The options of `allowlist completions`, which prints a completion script for a shell.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell for which to print the script
    #[arg(value_enum)]
    pub shell: Shell,
}

/// The options of `allowlist man`, which writes a man page for each command.
#[derive(Debug, Args)]
pub struct Pages {
    /// The folder to write the pages to; created if it is missing
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

/// Returns the completion script for this shell.
pub fn completions(shell: Shell) -> String {
    let mut script = Vec::new();
    let mut command = hinted(Cli::command());
    clap_complete::generate(shell, &mut command, "allowlist", &mut script);
    String::from_utf8(script).expect("the generated text is UTF-8")
}

/// Adds a completion hint to each value of a command and its subcommands: paths for files and folders, the names of
/// providers for providers, and none for values that a shell cannot know, such as a service.
fn hinted(command: clap::Command) -> clap::Command {
    let is_of_providers = command.get_name() == "show" || command.get_name() == "fetch";
    command
        .mut_args(|arg| {
            let id = arg.get_id().as_str();
            let names_provider = id == "provider" || id == "name" && is_of_providers;
            let value = arg.get_value_names().and_then(|names| names.first());
            let hint = match value.map(clap::builder::Str::as_str) {
                Some("FILE") => ValueHint::FilePath,
                Some("FOLDER") => ValueHint::DirPath,
                _ => ValueHint::Other,
            };
            if names_provider {
                let names = catalogue::all().iter().map(|provider| &*provider.name);
                arg.value_parser(PossibleValuesParser::new(names))
            } else if arg.get_action().takes_values() {
                arg.value_hint(hint)
            } else {
                arg
            }
        })
        .mut_subcommands(hinted)
}

/// Returns the man pages of the program and of each command that is not hidden, as pairs of file name and text.
pub fn pages() -> Vec<(String, String)> {
    // `allowlist help run` needs no page of its own.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    add(&command, &mut pages);
    pages
}

fn add(command: &clap::Command, pages: &mut Vec<(String, String)>) {
    let name = command.get_display_name().unwrap_or(command.get_name());
    pages.push((format!("{name}.{SECTION}"), page(name, command)));
    for command in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        add(command, pages);
    }
}

fn page(name: &str, command: &clap::Command) -> String {
    let man = Man::new(command.clone())
        .section(SECTION)
        .source(concat!("allowlist ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let mut text = Vec::new();
    let mut render = || {
        man.render_title(&mut text)?;
        man.render_name_section(&mut text)?;
        man.render_synopsis_section(&mut text)?;
        man.render_description_section(&mut text)?;
        man.render_options_section(&mut text)?;
        if command.has_subcommands() {
            man.render_subcommands_section(&mut text)?;
        }
        let help = command.get_after_help().map(ToString::to_string);
        let mut roff = after_help(&help.unwrap_or_default());
        if name != "allowlist" {
            roff.control("SH", ["SEE ALSO"]);
            roff.text([bold("allowlist"), roman(format!("({SECTION})"))]);
        }
        roff.to_writer(&mut text)
    };
    render().expect("a vector takes all");
    String::from_utf8(text).expect("the generated text is UTF-8")
}

/// Converts clap's after-help text `help` into the sections that follow the options in a man page. A paragraph whose
/// first line is a heading with a colon keeps its lines and columns.
fn after_help(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut in_notes = false;
    for paragraph in help.split("\n\n").filter(|p| !p.trim().is_empty()) {
        let (first, rest) = paragraph.split_once('\n').unwrap_or((paragraph, ""));
        match first.strip_suffix(':') {
            Some(heading) if !rest.is_empty() => {
                roff.control("SH", [heading.to_uppercase().as_str()]);
                roff.control("nf", []);
                for line in rest.lines() {
                    roff.text([roman(line.strip_prefix("  ").unwrap_or(line))]);
                }
                roff.control("fi", []);
                in_notes = false;
            }
            _ => {
                let begin = if in_notes { "PP" } else { "SH" };
                roff.control(
                    begin,
                    if in_notes { &[][..] } else { &["NOTES"] }.iter().copied(),
                );
                roff.text([roman(paragraph)]);
                in_notes = true;
            }
        }
    }
    roff
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use clap::ValueEnum as _;

    use super::*;

    /// Returns all commands, each with the words that are typed after `allowlist`.
    fn commands() -> Vec<(String, clap::Command)> {
        fn walk(before: &str, command: &clap::Command, found: &mut Vec<(String, clap::Command)>) {
            for command in command.get_subcommands().filter(|one| !one.is_hide_set()) {
                let words = format!("{before} {}", command.get_name());
                walk(&words, command, found);
                found.push((words.trim().to_owned(), command.clone()));
            }
        }
        let mut root = Cli::command().disable_help_subcommand(true);
        root.build();
        let mut found = Vec::new();
        walk("", &root, &mut found);
        assert!(found.len() > 10);
        found
    }

    /// Runs `program` with `text` on its standard input. Returns whether it succeeded, and its standard error; `None`
    /// if it is not installed.
    fn said(program: &str, arguments: &[&str], text: &str) -> Option<(bool, String)> {
        let child = Command::new(program)
            .args(arguments)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = child.ok()?;
        let mut input = child.stdin.take().expect("it is piped");
        input.write_all(text.as_bytes()).expect("it reads");
        drop(input);
        let ended = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        Some((ended.status.success(), said))
    }

    #[test]
    fn every_shell_completes_every_command_and_option() {
        for shell in Shell::value_variants() {
            let script = completions(*shell);
            for (words, command) in commands() {
                let name = words.rsplit(' ').next().expect("there is a word");
                assert!(script.contains(name), "{shell}: no {name}");
                for option in command.get_arguments().filter_map(clap::Arg::get_long) {
                    assert!(script.contains(option), "{shell}: {name}: no --{option}");
                }
            }
        }
    }

    #[test]
    fn a_shell_can_read_its_completions() {
        let readers = [
            (Shell::Bash, "bash", "-n"),
            (Shell::Zsh, "zsh", "-n"),
            (Shell::Fish, "fish", "--no-execute"),
        ];
        for (shell, program, only_parse) in readers {
            let said = said(program, &[only_parse], &completions(shell));
            assert!(said.is_some() || shell != Shell::Bash, "bash is not here");
            if let Some(said) = said {
                assert_eq!(said, (true, String::new()), "{program}");
            }
        }
    }

    #[test]
    fn every_command_has_a_page() {
        let pages = pages();
        let names: BTreeSet<&str> = pages.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names.len(), pages.len(), "two pages have one name");
        let mut expected = BTreeSet::from(["allowlist.8".to_owned()]);
        expected.extend(
            commands()
                .iter()
                .map(|(words, _)| format!("allowlist-{}.8", words.replace(' ', "-"))),
        );
        assert_eq!(names, expected.iter().map(String::as_str).collect());
        for (name, text) in &pages {
            let heading = name.strip_suffix(".8").expect("section 8");
            assert!(
                text.contains(&format!(".TH {heading} 8 ")),
                "{name}: {text}"
            );
        }
    }

    #[test]
    fn examples_keep_their_columns() {
        let help = "It waits.\nFor long.\n\nTwice.\n\nExamples:\n  a      one\n  bb -c  two\n";
        let expected = ".SH NOTES\nIt waits.\nFor long.\n.PP\nTwice.\n.SH EXAMPLES\n.nf\na      one\nbb \\-c  two\n.fi\n";
        let text = after_help(help).to_roff();
        assert_eq!(text, expected);
    }

    /// Each command with options other than `--json` and the paths has an example in its help, or in that of its
    /// parent.
    #[test]
    fn the_help_of_a_command_has_examples() {
        let commands = commands();
        let help = |words: &str| {
            let (_, command) = commands.iter().find(|(found, _)| found == words)?;
            command.get_after_help().map(ToString::to_string)
        };
        for (words, command) in &commands {
            let is_own = |arg: &clap::Arg| {
                !arg.is_global_set() && !["json", "help"].contains(&arg.get_id().as_str())
            };
            if !command.get_arguments().any(is_own) {
                continue;
            }
            let top = words.split(' ').next().expect("there is a word");
            let help = help(top).unwrap_or_default();
            let (_, examples) = help.split_once("Examples:\n").unwrap_or_default();
            let typed = format!("allowlist {words}");
            assert!(examples.contains(&typed), "{words}: no example shows it");
        }
    }

    /// Each example in the help can be parsed as a command line.
    #[test]
    fn examples_are_taken() {
        use clap::Parser as _;
        let mut root = Cli::command();
        root.build();
        let mut shown = 0;
        let all = std::iter::once(root).chain(commands().into_iter().map(|(_, command)| command));
        for command in all {
            let help = command.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            let examples = help.split_once("Examples:\n").map_or("", |(_, rest)| rest);
            for line in examples.lines().take_while(|line| line.starts_with("  ")) {
                // A remark stands two spaces behind, and a pipe or a file is the shell's.
                let typed = line.trim_start().split("  ").next().unwrap_or_default();
                let typed = typed.split(" | ").find(|part| part.contains("allowlist "));
                let typed = typed.unwrap_or_else(|| panic!("{line:?} does not run allowlist"));
                let words = typed.split(" > ").next().unwrap_or_default();
                let words = words.trim_start_matches("sudo ").split_whitespace();
                let words = words.map(|word| word.trim_matches('\''));
                if let Err(error) = Cli::try_parse_from(words) {
                    panic!("{line:?}: {error}");
                }
                shown += 1;
            }
        }
        assert!(shown > 20, "{shown} examples");
    }
}
