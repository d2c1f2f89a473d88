//! Exports loaded by their target programs. Each program runs in its own namespace, and is tested by its contents or by
//! the addresses that it admits.

mod clouds;
mod kernel;
mod proxies;
mod sql;
mod visitors;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use allowlist_tests::lab::{Ended, Namespace, Scratch};
use allowlist_user::export::{self, Format, Listed, Options};
use anyhow::ensure;
use ipnet::IpNet;

/// The name of sets, chains and variables.
const NAME: &str = "ven-dor";
/// The first list: overlapping and adjacent prefixes of both families.
const BEFORE: &[&str] = &[
    "192.0.2.0/25",
    "192.0.2.128/25",
    "192.0.2.7/32",
    "198.51.100.9/32",
    "2001:db8::/48",
    "2001:db8:ffff::1/128",
];
/// The second list: fewer prefixes, of one family.
const AFTER: &[&str] = &["192.0.2.64/26", "203.0.113.0/24"];
/// All addresses.
const EVERYBODY: &[&str] = &["0.0.0.0/0", "::/0"];

/// The origin of the lists, which must stay inside its comment in all formats.
const ORIGIN: &str = "/srv/it's \"a\"\n`x` $(x) ${x} %{x} */ } ; \\! touch mine \u{e4} \\";

/// Skips the test if a program is missing.
macro_rules! require_programs {
    ($($program:literal from $package:literal),+) => {
        allowlist_tests::require_root!();
        $(if !crate::is_installed($program) {
            allowlist_tests::skip!(
                "`{}` is not installed: run `apt-get install {}`", $program, $package
            );
        })+
    };
}
pub(crate) use require_programs;

/// Returns whether a program is installed.
fn is_installed(program: &str) -> bool {
    match Command::new(program).arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        // Other errors should fail the test.
        _ => true,
    }
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    let prefix = |text: &&str| text.parse().expect("a prefix");
    texts.iter().map(prefix).collect()
}

/// Returns merged prefixes, as a target holds them.
fn merged(texts: &[&str]) -> BTreeSet<IpNet> {
    IpNet::aggregate(&prefixes(texts)).into_iter().collect()
}

/// Returns an export as the command writes it.
fn exported(format: Format, name: &str, texts: &[&str]) -> anyhow::Result<String> {
    let prefixes = prefixes(texts);
    let list = Listed {
        source: "vendor\n; }",
        origin: ORIGIN,
        prefixes: &prefixes,
    };
    let options = Options {
        user: Some("reader"),
        database: Some("db_1"),
        ..Options::new(name, "2026-10-05T12:00:00Z".parse()?)
    };
    Ok(export::export(format, &options, &[list])?)
}

/// A namespace, and a folder in which its programs run.
struct Machine {
    namespace: Namespace,
    scratch: Scratch,
}

impl Machine {
    fn new() -> anyhow::Result<Self> {
        let machine = Self {
            namespace: Namespace::new()?,
            scratch: Scratch::new()?,
        };
        fs::create_dir(machine.folder())?;
        visitors::add_addresses_to(&machine.namespace)?;
        Ok(machine)
    }

    /// Returns the working directory of programs.
    fn folder(&self) -> PathBuf {
        self.scratch.file("folder")
    }

    /// Returns a command in the namespace. `FILE` stands for the last export.
    fn command(&self, words: &str) -> anyhow::Result<Command> {
        let words = self.with_paths(words);
        let mut words = words.split(' ');
        let mut command = self.namespace.command(words.next().expect("a program"))?;
        command.args(words).current_dir(self.folder());
        Ok(command)
    }

    /// Returns the text with the paths of `FILE` and `FOLDER`.
    fn with_paths(&self, text: &str) -> String {
        let path = |path: PathBuf| path.display().to_string();
        text.replace("FILE", &path(self.scratch.file("FILE")))
            .replace("FOLDER", &path(self.folder()))
    }

    /// Runs a command, which must succeed, and returns its output.
    fn run(&self, words: &str) -> anyhow::Result<String> {
        let ended = Ended::of(self.command(words)?)?;
        ensure!(ended.code == Some(0), "{words}: {ended:?}");
        Ok(ended.stdout)
    }

    /// Writes an export to `FILE`.
    fn write(&self, format: Format, texts: &[&str]) -> anyhow::Result<()> {
        let text = exported(format, NAME, texts)?;
        self.scratch.write("FILE", text)?;
        Ok(())
    }

    /// Returns the examples in the comments of `FILE` that are commands of `program`.
    fn examples(&self, program: &str) -> anyhow::Result<Vec<String>> {
        let text = fs::read_to_string(self.scratch.file("FILE"))?;
        let comments = text.lines().filter_map(|line| line.strip_prefix('#'));
        let examples: Vec<_> = comments
            .map(|line| line.trim().trim_start_matches("Use: "))
            .filter(|line| line.starts_with(&format!("{program} ")))
            .map(str::to_owned)
            .collect();
        ensure!(!examples.is_empty(), "no example of {program} in\n{text}");
        Ok(examples)
    }

    /// Runs a line in a shell.
    fn type_in(&self, line: &str) -> anyhow::Result<String> {
        let mut command = self.namespace.command("sh")?;
        command
            .args(["-c", &self.with_paths(line)])
            .current_dir(self.folder());
        let ended = Ended::of(command)?;
        ensure!(ended.code == Some(0), "{line}: {ended:?}");
        Ok(ended.stdout)
    }
}
