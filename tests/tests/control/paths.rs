//! Paths that users other than root can change: those that determine commands and secrets are refused, and no file of
//! another user is changed.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::path::{Path, PathBuf};

use super::*;

/// One way to make a path untrusted.
type Change = fn(&Stage) -> anyhow::Result<()>;

/// The id of an untrusted user and group.
const OTHER: u32 = 12_345;

fn set_mode(path: &Path, mode: u32) -> anyhow::Result<()> {
    Ok(fs::set_permissions(path, Permissions::from_mode(mode))?)
}

/// A host without a daemon, with a directory for its configuration.
struct Stage {
    host: Host,
    folder: PathBuf,
}

impl Stage {
    fn new(config: &str) -> anyhow::Result<Self> {
        let host = Host::down(CONFIG)?;
        let folder = host.testbed.scratch.file("etc");
        fs::create_dir(&folder)?;
        set_mode(&folder, 0o755)?;
        let hook = folder.join("hook");
        fs::write(&hook, "#!/bin/sh\n")?;
        set_mode(&hook, 0o755)?;
        fs::write(folder.join("token"), "hush")?;
        set_mode(&folder.join("token"), 0o600)?;
        fs::write(folder.join("allowlist.toml"), config)?;
        set_mode(&folder.join("allowlist.toml"), 0o644)?;
        Ok(Self { host, folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs `check --json` and `run` with this configuration, and returns the warnings of `check` about
    /// the directory. A start that is not refused fails, because the interface does not exist.
    fn run(&self, environment: &[(&str, &str)]) -> anyhow::Result<(Vec<String>, Ended)> {
        let config = self.path("allowlist.toml").display().to_string();
        let of = |arguments: &[&str]| {
            let mut command = self.host.testbed.command(arguments)?;
            command.envs(environment.iter().copied());
            Ended::of(command)
        };
        let checked = of(&["check", "--config", &config, "--json"])?;
        let checked: Value =
            serde_json::from_str(&checked.stdout).with_context(|| format!("{checked:?}"))?;
        let folder = self.folder.display().to_string();
        let warnings = checked["warnings"].as_array().context("an array")?.iter();
        let warnings = warnings.filter_map(Value::as_str).map(str::to_owned);
        let warnings = warnings
            .filter(|warning| warning.contains(&folder))
            .collect();
        Ok((
            warnings,
            of(&["run", "--config", &config, "--iface", "none0"])?,
        ))
    }

    /// Requires that `check` warns about a path with this name, and that `run` refuses it.
    #[track_caller]
    fn is_refused(&self, what: &str, name: &str, environment: &[(&str, &str)]) -> Ended {
        let (warnings, ran) = self.run(environment).expect("both commands run");
        require_error(&ran, "untrusted-path", &[name]);
        assert!(
            warnings.iter().any(|warning| warning.contains(name)),
            "{what}: {warnings:?}"
        );
        ran
    }

    #[track_caller]
    fn is_accepted(&self, what: &str, warns: bool, environment: &[(&str, &str)]) {
        let (warnings, ran) = self.run(environment).expect("both commands run");
        // Only the interface is refused.
        require_error(&ran, "unknown-interface", &["none0"]);
        assert_eq!(!warnings.is_empty(), warns, "{what}: {warnings:?}");
        let folder = self.folder.display().to_string();
        assert_eq!(ran.stderr.contains(&folder), warns, "{what}: {ran:?}");
    }
}

/// Returns a configuration without commands and secrets.
fn plain() -> anyhow::Result<Stage> {
    Stage::new(CONFIG)
}

/// Returns a configuration with a command.
fn sensitive() -> anyhow::Result<Stage> {
    let stage = Stage::new("")?;
    let hook = stage.path("hook");
    fs::write(
        stage.path("allowlist.toml"),
        format!(
            "{CONFIG}\n[on_change]\ncommand = [\"{}\"]\n",
            hook.display()
        ),
    )?;
    Ok(stage)
}

#[test]
fn untrusted_paths_are_refused() -> anyhow::Result<()> {
    require_root!();
    plain()?.is_accepted("a plain configuration", false, &[]);
    sensitive()?.is_accepted("a configuration with a command", false, &[]);
    let changes: [(&str, &str, Change); 6] = [
        (
            "a world-writable configuration",
            "allowlist.toml",
            |stage| set_mode(&stage.path("allowlist.toml"), 0o666),
        ),
        ("another user's configuration", "allowlist.toml", |stage| {
            Ok(chown(stage.path("allowlist.toml"), Some(OTHER), None)?)
        }),
        ("a group-writable directory", "etc", |stage| {
            chown(&stage.folder, None, Some(OTHER))?;
            set_mode(&stage.folder, 0o775)
        }),
        (
            "a link through another user's directory",
            "theirs",
            |stage| {
                let theirs = stage.path("theirs");
                fs::create_dir(&theirs)?;
                fs::rename(stage.path("allowlist.toml"), stage.path("real.toml"))?;
                symlink("../real.toml", theirs.join("link"))?;
                symlink("theirs/link", stage.path("allowlist.toml"))?;
                Ok(chown(&theirs, Some(OTHER), None)?)
            },
        ),
        ("another user's program", "hook", |stage| {
            Ok(chown(stage.path("hook"), Some(OTHER), None)?)
        }),
        ("a world-writable program", "hook", |stage| {
            set_mode(&stage.path("hook"), 0o757)
        }),
    ];
    let mut snapshot = Snapshot::new();
    for (what, name, change) in changes {
        let stage = sensitive()?;
        change(&stage)?;
        let ended = stage.is_refused(what, name, &[]);
        snapshot.ended(what, &ended, Some(&stage.host.testbed.scratch));
    }
    snapshot.check(&expect_file!["snapshots/untrusted_paths.txt"]);
    Ok(())
}

#[test]
fn a_file_of_the_sudo_user_may_not_name_a_command() -> anyhow::Result<()> {
    require_root!();
    let user = OTHER.to_string();
    let sudo = [("SUDO_UID", &*user)];
    let give = |stage: &Stage| -> anyhow::Result<()> {
        chown(stage.path("allowlist.toml"), Some(OTHER), Some(OTHER))?;
        Ok(chown(&stage.folder, Some(OTHER), Some(OTHER))?)
    };
    let stage = plain()?;
    give(&stage)?;
    stage.is_accepted("of the user behind sudo", true, &sudo);
    stage.is_refused("of some user", "etc", &[]);
    let stage = sensitive()?;
    give(&stage)?;
    stage.is_refused("a command of the user behind sudo", "etc", &sudo);
    Ok(())
}

#[test]
fn a_token_of_another_user_is_refused() -> anyhow::Result<()> {
    require_root!();
    let stage = plain()?;
    let token = stage.path("token");
    let source = format!(
        "[sources.paid]\nurl = \"http://127.0.0.1:9/\"\nformat = \"text\"\nbearer_file = \"{}\"\n",
        token.display()
    );
    let config = format!("at_start = \"drop\"\n{CONFIG}\n{source}");
    let config = config.replace("[\"friends\"]", "[\"friends\", \"paid\"]");
    fs::write(stage.path("allowlist.toml"), config)?;
    chown(&token, Some(OTHER), None)?;
    let (_, ran) = stage.run(&[])?;
    require_error(&ran, "untrusted-path", &["token"]);
    Ok(())
}

#[test]
fn a_reload_is_as_strict_as_a_start() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let before = host.active_state()?;
    host.write(&format!("default = 'drop'\n{CONFIG}"))?;
    set_mode(Path::new(&host.config), 0o666)?;
    host.refused(&["reload"], "untrusted-path", &["allowlist.toml"]);
    assert_eq!(host.active_state()?, before);
    Ok(())
}

/// Returns the attributes of a file or directory that a program could change.
fn state(path: &Path) -> anyhow::Result<(u32, u32, u32, Vec<String>)> {
    let found = fs::symlink_metadata(path)?;
    let mut names = Vec::new();
    if found.is_dir() {
        for entry in fs::read_dir(path)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
    }
    Ok((found.mode(), found.uid(), found.gid(), names))
}

#[test]
fn directories_of_other_users_are_not_changed() -> anyhow::Result<()> {
    require_root!();
    let host = Host::down(&format!("control_group = 'daemon'\n{CONFIG}"))?;
    let theirs = host.testbed.scratch.file("theirs");
    fs::create_dir(&theirs)?;
    chown(&theirs, Some(OTHER), Some(OTHER))?;
    let victim = host.testbed.scratch.write("victim", "")?;
    set_mode(&victim, 0o600)?;
    // Prepared by the owner of the directory.
    symlink(&victim, theirs.join("socket"))?;
    let before = (state(&theirs)?, state(&victim)?);
    let path = |name: &str| theirs.join(name).display().to_string();
    for (option, place) in [
        ("--socket", path("socket")),
        ("--socket", path("new/socket")),
        ("--state-dir", path("state")),
    ] {
        let ended = host.run(&["run", "--config", &host.config, option, &place])?;
        require_error(&ended, "untrusted-path", &["theirs"]);
        assert_eq!(
            (state(&theirs)?, state(&victim)?),
            before,
            "{option} {place}"
        );
    }
    // A directory of root with other files is not opened to the group.
    let shared = host.testbed.scratch.file("shared");
    fs::create_dir(&shared)?;
    set_mode(&shared, 0o700)?;
    fs::write(shared.join("other"), "")?;
    let before = state(&shared)?;
    let socket = shared.join("socket").display().to_string();
    let ended = host.run(&["run", "--config", &host.config, "--socket", &socket])?;
    require_error(&ended, "invalid-socket", &["shared/socket"]);
    let mut snapshot = Snapshot::new();
    snapshot.ended("run", &ended, Some(&host.testbed.scratch));
    snapshot.check(&expect_file!["snapshots/shared_folder.txt"]);
    assert_eq!(state(&shared)?, before);
    Ok(())
}

#[test]
fn private_files_are_not_quoted() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down("")?;
    let (list, private) = (
        host.testbed.scratch.file("list.txt"),
        host.testbed.scratch.file("private"),
    );
    fs::write(&private, "# a comment\nroot:hush-hash:19000:0:99999:7:::\n")?;
    set_mode(&private, 0o600)?;
    symlink(&private, &list)?;
    host.write(
        &format!(
            "at_start = \"drop\"\n{CONFIG}\n[sources.local]\nfile = \"{}\"\n",
            list.display()
        )
        .replace("[\"friends\"]", "[\"friends\", \"local\"]"),
    )?;
    host.start(&[])?;
    host.run(&["refresh", "local"])?;
    let mut shown = host.daemon().output();
    for command in [
        &["status"][..],
        &["sources", "--json"],
        &["history"],
        &["log"],
    ] {
        let ended = host.run(command)?;
        shown += &ended.stdout;
        shown += &ended.stderr;
    }
    assert!(!shown.contains("hush"), "{shown}");
    assert!(shown.contains("line 2"), "{shown}");
    Ok(())
}
