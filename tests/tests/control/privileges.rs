//! Access: ordinary users have none; members of the control group can use the socket.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::unistd::Group;

use super::*;

/// The user id of `nobody`.
const NOBODY: u32 = 65_534;

impl Host {
    /// Runs a command as an ordinary user of this group.
    fn unprivileged(&self, group: u32, arguments: &[&str]) -> anyhow::Result<Ended> {
        // A copy of the program, because the build directory may be private.
        let folder = tempfile::tempdir()?;
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755))?;
        let program = folder.path().join("allowlist");
        let copied = std::process::Command::new("cp")
            .arg(allowlist_tests::lab::allowlist()?)
            .arg(&program)
            .status()?;
        ensure!(copied.success(), "cannot copy the program");
        let whole = self.testbed.command(arguments)?;
        let mut command = self.testbed.host.command("setpriv")?;
        command.args([
            "--reuid",
            &NOBODY.to_string(),
            "--regid",
            &group.to_string(),
        ]);
        command.args(["--clear-groups", "--"]).arg(program);
        command.args(whole.get_args()).current_dir("/");
        Ended::of(command)
    }
}

/// Makes the directories accessible, as on a real host.
fn make_accessible(host: &Host) -> anyhow::Result<()> {
    for folder in host
        .testbed
        .scratch
        .file("socket")
        .ancestors()
        .skip(1)
        .take(2)
    {
        fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    }
    fs::set_permissions(
        host.testbed.scratch.pin_dir(),
        Permissions::from_mode(0o755),
    )?;
    fs::set_permissions("/sys/fs/bpf", Permissions::from_mode(0o755))?;
    Ok(())
}

const COMMANDS: [&[&str]; 16] = [
    &["status"],
    &["sources"],
    &["list"],
    &["list", "--added"],
    &["log"],
    &["rollback", "--list"],
    &["explain", "192.0.2.1"],
    &["explain", "--to", "192.0.2.1"],
    &["add", "192.0.2.66", "--service", "web"],
    &["remove", "192.0.2.77"],
    &["mode", "observe"],
    &["reload"],
    &["rollback"],
    &["refresh"],
    &["detach"],
    &["watch", "--count", "1"],
];

#[test]
fn ordinary_users_have_no_access() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&["add", "192.0.2.77", "--service", "web"]);
    make_accessible(&host)?;
    let before = host.active_state()?;
    let mut snapshot = Snapshot::new();
    for command in COMMANDS {
        let ended = host.unprivileged(NOBODY, command)?;
        assert_eq!(ended.stdout, "", "{command:?}");
        let code = if matches!(command[0], "detach" | "watch") {
            "not-privileged"
        } else {
            "forbidden"
        };
        require_error(&ended, code, &[]);
        snapshot.ended(&command.join(" "), &ended, Some(&host.testbed.scratch));
        assert!(
            !ended.stderr.contains("192.0.2.77"),
            "{command:?}: {ended:?}"
        );
    }
    snapshot.check(&expect_file!["snapshots/unprivileged.txt"]);
    assert_eq!(host.active_state()?, before);
    assert!(host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]));
    Ok(())
}

#[test]
fn members_of_the_group_can_use_the_socket() -> anyhow::Result<()> {
    require_root!();
    let daemon = Group::from_name("daemon")?
        .context("no such group")?
        .gid
        .as_raw();
    let config = format!("control_group = 'daemon'\n{CONFIG}");
    let host = Host::by(&config)?;
    make_accessible(&host)?;
    let member = |arguments: &[&str]| host.unprivileged(daemon, arguments);
    for (command, expected) in [
        (&["status"][..], "filtering eth0"),
        (&["list"], "203.0.113.0/24"),
        (&["sources"], "friends"),
        (
            &[
                "add",
                STRANGERS[0],
                "--service",
                "web",
                "--note",
                "by a member",
            ],
            "added 192.0.2.66/32 to web",
        ),
        (&["list", "--added"], "by a member"),
        (&["explain", STRANGERS[0], "--port", "udp/443"], "passes"),
        (&["rollback", "--list"], "start by "),
        (&["log"], "by a member"),
        (&["status", "--json"], "\"filtering\": true"),
    ] {
        let ended = member(command)?;
        assert_eq!(ended.code, Some(0), "{command:?}: {ended:?}");
        assert!(ended.stdout.contains(expected), "{command:?}: {ended:?}");
    }
    assert_eq!(
        member(&["explain", "192.0.2.1", "--port", "udp/443"])?.code,
        Some(3)
    );
    // The log has the user's kernel credentials.
    let document: Value = serde_json::from_str(&host.done(&["log", "--count", "1", "--json"]))?;
    assert_eq!(
        document["entries"][0]["who"]["peer"]["uid"], NOBODY,
        "{document}"
    );
    // Commands without the socket still need root.
    let detach = member(&["detach"])?;
    assert_eq!(detach.code, Some(1), "{detach:?}");
    assert_eq!(
        host.unprivileged(NOBODY, &["status"])?.code,
        Some(1),
        "no member"
    );

    // A reload can revoke the access.
    host.write(CONFIG)?;
    host.done(&["reload"]);
    assert_eq!(member(&["status"])?.code, Some(1));
    Ok(())
}

/// A member of the current `control_group` cannot restore another group that root has revoked.
#[test]
fn members_cannot_restore_a_revoked_group() -> anyhow::Result<()> {
    require_root!();
    let of = |name: &str| {
        anyhow::Ok(
            Group::from_name(name)?
                .context("no such group")?
                .gid
                .as_raw(),
        )
    };
    let (before, now) = (of("adm")?, of("daemon")?);
    let host = Host::by(&format!("control_group = 'adm'\n{CONFIG}"))?;
    make_accessible(&host)?;
    for change in [
        "control_group = 'daemon'",
        "control_group = 'daemon'\nmax_prefixes = 5000",
    ] {
        host.write(&format!("{change}\n{CONFIG}"))?;
        host.done(&["reload"]);
    }
    let back = |to: &str| host.unprivileged(now, &["rollback", to, "--json"]);
    let refused = back("1")?;
    require_error(&refused, "forbidden", &["control_group"]);
    assert_eq!(host.unprivileged(before, &["status"])?.code, Some(1));
    assert_eq!(back("2")?.code, Some(0));
    host.done(&["rollback", "1"]);
    assert_eq!(host.unprivileged(before, &["status"])?.code, Some(0));
    Ok(())
}

/// A group that cannot be given access leaves the access of the former group as it is, until a later reload succeeds.
#[test]
fn a_group_that_fails_changes_no_access() -> anyhow::Result<()> {
    require_root!();
    let groups = ["adm", "daemon"].map(|name| Group::from_name(name).ok().flatten());
    let [Some(before), Some(next)] = groups else {
        anyhow::bail!("no such group");
    };
    let with = |group: &str| format!("control_group = '{group}'\n{CONFIG}");
    let host = Host::by(&with("adm"))?;
    make_accessible(&host)?;
    let socket = host.testbed.scratch.file("socket");
    let folder = socket.parent().context("a folder")?;
    // Open to the former group alone, and not empty.
    nix::unistd::chown(folder, None, Some(before.gid))?;
    fs::set_permissions(folder, Permissions::from_mode(0o710))?;
    let member = |group: &Group| host.unprivileged(group.gid.as_raw(), &["status"]);
    assert_eq!(member(&before)?.code, Some(0));
    for _ in 0..2 {
        // Only the first reload changes the configuration.
        host.write(&with("daemon"))?;
        let done: Value = serde_json::from_str(&host.done(&["reload", "--json"]))?;
        let warnings = done["warnings"].to_string();
        assert!(warnings.contains("`allowlist reload`"), "{done}");
        assert_eq!(member(&before)?.code, Some(0));
        assert_eq!(member(&next)?.code, Some(1));
    }
    let status = host.testbed.json("status")?;
    let warnings = status["daemon"]["warnings"].to_string();
    assert!(warnings.contains("control_group"), "{status}");
    fs::set_permissions(folder, Permissions::from_mode(0o711))?;
    let done: Value = serde_json::from_str(&host.done(&["reload", "--json"]))?;
    assert_eq!(done.get("warnings"), None, "{done}");
    assert_eq!(member(&before)?.code, Some(1));
    assert_eq!(member(&next)?.code, Some(0));
    Ok(())
}

/// A daemon without `CAP_CHOWN` cannot give the socket to a group of which it is no member.
#[test]
fn a_daemon_without_cap_chown_keeps_the_former_group() -> anyhow::Result<()> {
    require_root!();
    let with = |group: &str| format!("control_group = '{group}'\n{CONFIG}");
    let host = Host::down(&with("root"))?;
    let run = host.testbed.command(&["run", "--config", &host.config])?;
    let mut command = host.testbed.host.command("setpriv")?;
    command.args(["--clear-groups", "--bounding-set", "-chown", "--"]);
    command.arg(run.get_program()).args(run.get_args());
    let daemon = Program::start(command)?;
    daemon.wait_for_line("ready", SOON)?;
    let access = || {
        let found = fs::metadata(host.testbed.scratch.file("socket"))?;
        anyhow::Ok((found.gid(), found.mode() & 0o7777))
    };
    assert_eq!(access()?, (0, 0o660));
    host.write(&with("daemon"))?;
    host.done(&["reload"]);
    assert!(daemon.stderr().contains("CAP_CHOWN"), "{}", daemon.stderr());
    assert_eq!(access()?, (0, 0o660));
    Ok(())
}
