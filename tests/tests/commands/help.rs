//! The help page of each command and the manual.
//!
//! The commands are those that the pages list, so a new command appears in the snapshot.

use std::collections::BTreeSet;

use super::*;

/// Runs the program with 80 columns.
fn run(arguments: &[&str]) -> anyhow::Result<Ended> {
    let mut command = Command::new(allowlist()?);
    command.args(arguments).env("COLUMNS", "80");
    Ended::of(command)
}

/// Returns the commands that a help page lists.
fn listed(page: &str) -> anyhow::Result<Vec<String>> {
    // A row starts with the name: rows of options start with a dash, those of arguments with a bracket.
    let row = Regex::new(r"(?m)^  ([a-z][a-z-]*)  +\S")?;
    let names = row.captures_iter(page).map(|found| found[1].to_owned());
    Ok(names.filter(|name| name != "help").collect())
}

/// Adds the help page of a command and of its subcommands to the snapshot, and their names to `names`.
fn add_pages(
    snapshot: &mut Snapshot,
    names: &mut BTreeSet<String>,
    path: &[&str],
) -> anyhow::Result<()> {
    let ended = run(&[path, &["--help"]].concat())?;
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(0), ""),
        "{path:?}"
    );
    let name = [&["allowlist"], path].concat();
    snapshot.text(&format!("{} --help", name.join(" ")), &ended.stdout, None);
    names.insert(name.join("-"));
    for command in listed(&ended.stdout)? {
        add_pages(snapshot, names, &[path, &[&command]].concat())?;
    }
    Ok(())
}

#[test]
fn each_command_has_a_help_page_and_a_manual_page() -> anyhow::Result<()> {
    let mut snapshot = Snapshot::new();
    let mut names = BTreeSet::new();
    add_pages(&mut snapshot, &mut names, &[])?;
    snapshot.check(&expect_file!["snapshots/help.txt"]);
    assert_eq!(run(&["-h"])?.stdout, run(&["--help"])?.stdout);

    let home = Home::new()?;
    let ended = home.run(&["man", "."])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let pages = fs::read_dir(home.folder.path())?.map(|entry| {
        let name = entry?.file_name().into_string();
        let name = name.map_err(|name| anyhow::anyhow!("{}", name.display()))?;
        Ok(name.strip_suffix(".8").context("a page")?.to_owned())
    });
    assert_eq!(pages.collect::<anyhow::Result<BTreeSet<_>>>()?, names);
    let mut snapshot = Snapshot::new();
    snapshot.ended("man .", &ended, None);
    for name in ["allowlist", "allowlist-flows-cut"] {
        let page = fs::read_to_string(home.folder.path().join(format!("{name}.8")))?;
        let page = page.replace(env!("CARGO_PKG_VERSION"), "<version>");
        snapshot.text(&format!("{name}.8"), &page, None);
    }
    snapshot.check(&expect_file!["snapshots/manual.txt"]);
    Ok(())
}

#[test]
fn version_prints_the_version() -> anyhow::Result<()> {
    let version = run(&["version"])?;
    assert_eq!(
        (version.code, version.stdout),
        (Some(0), run(&["--version"])?.stdout)
    );
    Ok(())
}
