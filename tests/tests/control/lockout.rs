//! The lockout check: no change cuts the connection over which it was requested.

use super::*;

/// The environment of a login from the testbed's peer.
const LOGIN: &str = "198.51.100.2 40000 198.51.100.1 22";

impl Host {
    /// Runs a command with the environment of a login.
    fn as_login(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = self.testbed.command(arguments)?;
        command.env("SSH_CONNECTION", LOGIN);
        Ended::of(command)
    }

    /// Requires that the lockout check refuses a command, and names these objects.
    #[track_caller]
    fn refused_as_lockout(&self, arguments: &[&str], names: &[&str]) -> Ended {
        let ended = self.as_login(arguments).expect("the command runs");
        require_error(&ended, "lockout", &["198.51.100.2", "--force"]);
        require_error(&ended, "lockout", names);
        ended
    }

    #[track_caller]
    fn done_as_login(&self, arguments: &[&str]) {
        let ended = self.as_login(arguments).expect("the command runs");
        assert_eq!(ended.code, Some(0), "{arguments:?}: {ended:?}");
    }
}

#[test]
fn no_change_cuts_its_connection() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let stranger = CONFIG.replace("198.51.100.2", "192.0.2.1");
    let closed = format!(
        "default = 'drop'\n{}",
        CONFIG.replace(
            "services.ssh]\nports = [\"tcp/22\"]",
            "services.ssh]\nports = [\"tcp/2222\"]"
        )
    );

    // `reload`
    let before = host.active_state()?;
    host.write(&stranger)?;
    let mut snapshot = Snapshot::new();
    let ended = host.refused_as_lockout(&["reload"], &["ssh", "tcp/22"]);
    snapshot.ended("reload without the peer", &ended, None);
    host.write(&closed)?;
    let ended = host.refused_as_lockout(&["reload"], &["tcp/22"]);
    snapshot.ended("reload without the service", &ended, None);
    assert_eq!(host.active_state()?, before);
    host.write(&CONFIG.replace("203.0.113.0/24", "203.0.112.0/24"))?;
    host.done_as_login(&["reload"]);

    // `mode`: in observe mode no change cuts the connection, but enforce mode would
    host.done_as_login(&["mode", "observe"]);
    host.write(&format!("mode = 'observe'\n{stranger}"))?;
    host.done_as_login(&["reload"]);
    let ended =
        host.refused_as_lockout(&["mode", "enforce"], &["add 198.51.100.2/32 --service ssh"]);
    snapshot.ended("mode enforce", &ended, None);
    assert_eq!(host.testbed.json("status")?["mode"], "observe");

    // The remedy in the message works.
    host.done_as_login(&["add", "198.51.100.2/32", "--service", "ssh"]);
    host.done_as_login(&["mode", "enforce"]);
    let ended = host.refused_as_lockout(&["remove", "198.51.100.2"], &["ssh", "tcp/22"]);
    snapshot.ended("remove 198.51.100.2", &ended, None);
    snapshot.check(&expect_file!["snapshots/lockout.txt"]);
    host.done_as_login(&["remove", "198.51.100.2", "--force"]);
    // The policy already drops the connection, so an unrelated change is allowed.
    host.done_as_login(&["add", "192.0.2.3", "--service", "web"]);
    Ok(())
}

#[test]
fn no_start_cuts_its_connection() -> anyhow::Result<()> {
    require_root!();
    let host = Host::down(&CONFIG.replace("198.51.100.2", "192.0.2.1"))?;
    let run = ["run", "--config", &host.config];
    let ended = host.refused_as_lockout(&run, &["ssh", "tcp/22"]);
    let mut snapshot = Snapshot::new();
    snapshot.ended("run", &ended, Some(&host.testbed.scratch));
    snapshot.check(&expect_file!["snapshots/lockout_start.txt"]);
    assert!(host.passes(STRANGERS[0]));
    let mut command = host.testbed.command(&[&run[..], &["--force"]].concat())?;
    command.env("SSH_CONNECTION", LOGIN);
    let forced = Program::start(command)?;
    forced.wait_for_line("ready", SOON)?;
    assert!(!host.passes(STRANGERS[0]));
    Ok(())
}

/// Sudo removes the variable, which is then found in a parent process.
#[test]
fn the_login_of_a_parent_is_found() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.write(&CONFIG.replace("198.51.100.2", "192.0.2.1"))?;
    let inner = host.testbed.command(&["reload"])?;
    let mut shell = host.testbed.host.command("sh")?;
    shell.env("SSH_CONNECTION", LOGIN);
    // A further command keeps the shell from replacing itself.
    shell.args([
        "-c",
        "env -u SSH_CONNECTION \"$@\"; code=$?; exit $code",
        "sh",
    ]);
    shell.arg(inner.get_program()).args(inner.get_args());
    let ended = Ended::of(shell)?;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    Ok(())
}

/// An accepted list may lack the client's address.
#[test]
fn no_accepted_list_cuts_its_connection() -> anyhow::Result<()> {
    require_root!();
    let config = CONFIG.replace(
        "prefixes = [\"198.51.100.2\"]",
        "file = 'peer.txt'\nmin = 4",
    );
    let host = Host::down(&config)?;
    let listed = "198.51.100.2\n192.0.2.1\n192.0.2.2\n192.0.2.3\n";
    host.testbed.scratch.write("peer.txt", listed)?;
    let mut host = host;
    host.start(&[])?;
    host.testbed
        .scratch
        .write("peer.txt", "192.0.2.1\n192.0.2.2\n")?;
    host.daemon()
        .wait_for_line("warning[list-rejected]: ", SOON)?;
    let mut id = String::new();
    eventually(|| {
        let diff = host.done(&["diff", "--json", "--config", &host.config]);
        let diff: Value = serde_json::from_str(&diff)?;
        id = diff["rejected"]["peer"]["id"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        Ok(!id.is_empty())
    })?;
    host.refused_as_lockout(&["accept", "peer", &id], &["ssh", "tcp/22"]);
    host.done_as_login(&["accept", "peer", &id, "--force"]);
    Ok(())
}
