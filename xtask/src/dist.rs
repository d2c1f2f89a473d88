//! `cargo xtask dist`: builds the archive to install, which is unpacked over `/`.
//!
//! Invariants: all files are below `usr/local` and none in `etc`, so an upgrade changes no configuration; the archive
//! has entries for files only, so existing folders keep their owner and mode; builds of the same commit are identical.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};

use crate::{cargo, setup};

/// The files of this repository that the archive contains, each with its path there.
const FILES: [(&str, &str); 21] = [
    (
        "dist/allowlist.service",
        "usr/local/lib/systemd/system/allowlist.service",
    ),
    (
        "dist/allowlist.toml",
        "usr/local/share/doc/allowlist/allowlist.toml",
    ),
    ("README.md", "usr/local/share/doc/allowlist/README.md"),
    (
        "ARCHITECTURE.md",
        "usr/local/share/doc/allowlist/ARCHITECTURE.md",
    ),
    ("CHANGELOG.md", "usr/local/share/doc/allowlist/CHANGELOG.md"),
    ("SECURITY.md", "usr/local/share/doc/allowlist/SECURITY.md"),
    ("docs/api.md", "usr/local/share/doc/allowlist/docs/api.md"),
    (
        "docs/egress.md",
        "usr/local/share/doc/allowlist/docs/egress.md",
    ),
    (
        "docs/errors.md",
        "usr/local/share/doc/allowlist/docs/errors.md",
    ),
    (
        "docs/export.md",
        "usr/local/share/doc/allowlist/docs/export.md",
    ),
    (
        "docs/interface.svg",
        "usr/local/share/doc/allowlist/docs/interface.svg",
    ),
    (
        "docs/internals.md",
        "usr/local/share/doc/allowlist/docs/internals.md",
    ),
    (
        "docs/lookup-ipv4.svg",
        "usr/local/share/doc/allowlist/docs/lookup-ipv4.svg",
    ),
    (
        "docs/lookup-ipv6.svg",
        "usr/local/share/doc/allowlist/docs/lookup-ipv6.svg",
    ),
    (
        "docs/operations.md",
        "usr/local/share/doc/allowlist/docs/operations.md",
    ),
    (
        "docs/packets.md",
        "usr/local/share/doc/allowlist/docs/packets.md",
    ),
    (
        "docs/performance.md",
        "usr/local/share/doc/allowlist/docs/performance.md",
    ),
    (
        "docs/sources.md",
        "usr/local/share/doc/allowlist/docs/sources.md",
    ),
    (
        "LICENSE-APACHE",
        "usr/local/share/doc/allowlist/LICENSE-APACHE",
    ),
    ("LICENSE-MIT", "usr/local/share/doc/allowlist/LICENSE-MIT"),
    (
        "allowlist-ebpf/LICENSE-GPL-2.0",
        "usr/local/share/doc/allowlist/LICENSE-GPL-2.0",
    ),
];

/// The shells for which the archive has completion scripts, each with the path of its script.
const COMPLETIONS: [(&str, &str); 3] = [
    (
        "bash",
        "usr/local/share/bash-completion/completions/allowlist",
    ),
    ("zsh", "usr/local/share/zsh/site-functions/_allowlist"),
    (
        "fish",
        "usr/local/share/fish/vendor_completions.d/allowlist.fish",
    ),
];

const BINARY: &str = "usr/local/sbin/allowlist";
const PAGES: &str = "usr/local/share/man/man8";

/// Build the archive to install: program, systemd unit, manual, completions and documentation
///
/// Writes an archive to `target/dist`, and its contents to a folder next to it.
#[derive(clap::Args)]
#[command(after_help = "Example:
  cargo xtask dist")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    setup::run()?;
    let built = cargo::build(&[
        "--package",
        "allowlist-user",
        "--bin",
        "allowlist",
        "--release",
    ])?;
    let allowlist = built.executable("allowlist")?;
    let version = cargo::stdout(Command::new(allowlist).arg("--version"))?;
    let version = version.trim().replace(' ', "-");
    let name = format!("{version}-{}", env::consts::ARCH);

    let dist = cargo::target_dir()?.join("dist");
    let folder = dist.join(&name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| {
            format!(
                "cannot remove {}, which an earlier run has written",
                folder.display()
            )
        })?;
    }
    lay_out(allowlist, &folder)?;
    let archive = dist.join(format!("{name}.tar.gz"));
    let files = pack(&folder, &archive)?;

    for file in &files {
        println!("  {file}");
    }
    let archive = archive.display();
    println!("{archive}");
    println!("To install or upgrade:");
    println!("  sudo tar -xzf {archive} -C /");
    println!("Next steps: docs/operations.md");
    Ok(ExitCode::SUCCESS)
}

/// Writes every file of the archive below `folder`.
fn lay_out(allowlist: &str, folder: &Path) -> Result<()> {
    let binary = place(folder, BINARY)?;
    run_to_end(Command::new("strip").arg("-o").arg(&binary).arg(allowlist))?;
    allow(&binary, 0o755)?;
    for (from, to) in FILES {
        let to = place(folder, to)?;
        let text = fs::read_to_string(cargo::root().join(from))
            .with_context(|| format!("cannot read {from}"))?;
        fs::write(&to, as_installed(&text))
            .with_context(|| format!("cannot write {}", to.display()))?;
        allow(&to, 0o644)?;
    }
    for (shell, to) in COMPLETIONS {
        let script = cargo::stdout(Command::new(allowlist).args(["completions", shell]))?;
        let to = place(folder, to)?;
        fs::write(&to, script).with_context(|| format!("cannot write {}", to.display()))?;
        allow(&to, 0o644)?;
    }
    let pages = folder.join(PAGES);
    cargo::stdout(Command::new(allowlist).arg("man").arg(&pages))?;
    let cannot_list = || format!("cannot list {}", pages.display());
    for page in fs::read_dir(&pages).with_context(cannot_list)? {
        allow(&page.with_context(cannot_list)?.path(), 0o644)?;
    }
    Ok(())
}

/// Rewrites a document's links to `dist/allowlist.toml`, because the archive has that file in the folder of the
/// top-level documents.
fn as_installed(document: &str) -> String {
    document.replace("dist/allowlist.toml)", "allowlist.toml)")
}

/// Returns the path of `file` below `folder`, after creating its parent folders.
fn place(folder: &Path, file: &str) -> Result<PathBuf> {
    let path = folder.join(file);
    let parent = path.parent().expect("it is below the folder");
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    Ok(path)
}

/// Sets a file's mode, independent of the umask.
fn allow(file: &Path, mode: u32) -> Result<()> {
    let permissions = fs::Permissions::from_mode(mode);
    fs::set_permissions(file, permissions)
        .with_context(|| format!("cannot set the mode of {}", file.display()))
}

/// Packs all files in a folder into `archive`, and returns their names.
fn pack(folder: &Path, archive: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    list(folder, folder, &mut files)?;
    files.sort();
    run_to_end(
        Command::new("tar")
            .args(["--create", "--gzip", "--format=gnu", "--numeric-owner"])
            .args(["--owner=0", "--group=0"])
            .arg(format!("--mtime=@{}", modification_time()?))
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(folder)
            .args(&files),
    )?;
    Ok(files)
}

/// Returns the modification time of all files in the archive, in seconds since the epoch: the time of the commit, so
/// that builds are reproducible, or the variable `SOURCE_DATE_EPOCH` if it is set.
fn modification_time() -> Result<String> {
    if let Ok(seconds) = env::var("SOURCE_DATE_EPOCH") {
        return Ok(seconds);
    }
    // A source tree without git has no commit time.
    if !cargo::root().join(".git").exists() {
        return Ok("0".to_owned());
    }
    let mut git = cargo::command("git");
    let seconds = cargo::stdout(git.args(["log", "-1", "--format=%ct"]))?;
    Ok(seconds.trim().to_owned())
}

fn list(root: &Path, folder: &Path, files: &mut Vec<String>) -> Result<()> {
    let cannot_list = || format!("cannot list {}", folder.display());
    for entry in fs::read_dir(folder).with_context(cannot_list)? {
        let entry = entry.with_context(cannot_list)?;
        if entry.file_type()?.is_dir() {
            list(root, &entry.path(), files)?;
        } else {
            let path = entry.path();
            let name = path.strip_prefix(root).expect("it is below the root");
            files.push(name.display().to_string());
        }
    }
    Ok(())
}

fn run_to_end(command: &mut Command) -> Result<()> {
    if !cargo::status(command)?.success() {
        bail!("{command:?} failed; see its output above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_documents_are_packed() {
        let root = cargo::root();
        for (from, to) in FILES {
            assert!(root.join(from).is_file(), "{from}");
            assert!(to.starts_with("usr/local/"), "{to}");
        }
        let mut documents = Vec::new();
        for folder in ["docs", "dist"] {
            list(root, &root.join(folder), &mut documents).unwrap();
        }
        for document in documents {
            assert!(
                FILES.iter().any(|(from, _)| *from == document),
                "{document}"
            );
        }
    }

    #[test]
    fn links_point_to_the_installed_example() {
        let document = "[dist/allowlist.toml](dist/allowlist.toml) [it](../dist/allowlist.toml)";
        assert_eq!(
            as_installed(document),
            "[dist/allowlist.toml](allowlist.toml) [it](../allowlist.toml)"
        );
    }

    #[test]
    fn archives_are_reproducible_and_have_no_folder_entries() {
        let folder = env::temp_dir().join(format!("allowlist-dist-{}", std::process::id()));
        for name in ["b/c", "a"] {
            fs::write(place(&folder.join("in"), name).unwrap(), name).unwrap();
        }
        let archive = folder.join("a.tar.gz");
        assert_eq!(pack(&folder.join("in"), &archive).unwrap(), ["a", "b/c"]);
        let first = fs::read(&archive).unwrap();
        let listed = cargo::stdout(Command::new("tar").arg("-tzf").arg(&archive)).unwrap();
        assert_eq!(listed, "a\nb/c\n");
        fs::write(folder.join("in/a"), "a").unwrap(); // same contents, newer modification time
        pack(&folder.join("in"), &archive).unwrap();
        assert!(fs::read(&archive).unwrap() == first);
        fs::remove_dir_all(&folder).unwrap();
    }
}
