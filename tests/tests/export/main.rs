//! What `export` writes, taken by the programs that it is for. Each of them runs in a namespace of its
//! own, and is asked what it holds or whom it lets in.

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

/// What sets, chains and variables are called.
const NAME: &str = "ven-dor";
/// What is loaded first: both families, overlapping and adjacent.
const BEFORE: &[&str] = &[
    "192.0.2.0/25",
    "192.0.2.128/25",
    "192.0.2.7/32",
    "198.51.100.9/32",
    "2001:db8::/48",
    "2001:db8:ffff::1/128",
];
/// What takes its place: less, and of one family.
const AFTER: &[&str] = &["192.0.2.64/26", "203.0.113.0/24"];
/// The widest there is.
const EVERYBODY: &[&str] = &["0.0.0.0/0", "::/0"];

/// Where the lists are said to come from: it should stay in its comment, whoever reads it.
const ORIGIN: &str = "/srv/it's \"a\"\n`x` $(x) ${x} %{x} */ } ; \\! touch mine \u{e4} \\";

/// Leaves the test where a program is missing.
macro_rules! require_programs {
    ($($program:literal from $package:literal),+) => {
        allowlist_tests::require_root!();
        $(if !crate::is_installed($program) {
            allowlist_tests::skip!(
                "there is no `{}`: run `apt-get install {}`", $program, $package
            );
        })+
    };
}
pub(crate) use require_programs;

/// Whether there is such a program to start.
fn is_installed(program: &str) -> bool {
    match Command::new(program).arg("--version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        // Whatever else is wrong with it should be seen.
        _ => true,
    }
}

fn prefixes(texts: &[&str]) -> Vec<IpNet> {
    let prefix = |text: &&str| text.parse().expect("a prefix");
    texts.iter().map(prefix).collect()
}

/// As a target holds them: merged.
fn merged(texts: &[&str]) -> BTreeSet<IpNet> {
    IpNet::aggregate(&prefixes(texts)).into_iter().collect()
}

/// As the command writes it.
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
        visitors::settle(&machine.namespace)?;
        Ok(machine)
    }

    /// Where programs run.
    fn folder(&self) -> PathBuf {
        self.scratch.file("folder")
    }

    /// A command that runs there. `FILE` among the words is the last export that was written.
    fn command(&self, words: &str) -> anyhow::Result<Command> {
        let words = self.with_paths(words);
        let mut words = words.split(' ');
        let mut command = self.namespace.command(words.next().expect("a program"))?;
        command.args(words).current_dir(self.folder());
        Ok(command)
    }

    /// The text with paths for `FILE` and `FOLDER`.
    fn with_paths(&self, text: &str) -> String {
        let path = |path: PathBuf| path.display().to_string();
        text.replace("FILE", &path(self.scratch.file("FILE")))
            .replace("FOLDER", &path(self.folder()))
    }

    /// Runs a command to its good end, and returns what it printed.
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

    /// The examples in the comments of `FILE` that are commands of `program`.
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

    /// Runs a line as somebody types it.
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
