//! The lockout check: no change cuts the connection over which it was requested.

use super::*;

/// The environment of a login from the site's peer.
const LOGIN: &str = "198.51.100.2 40000 198.51.100.1 22";

impl Host {
    /// Runs a command with the environment of a login.
    fn as_login(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = self.site.command(arguments)?;
        command.env("SSH_CONNECTION", LOGIN);
        Ended::of(command)
    }

    /// Requires that the lockout check refuses a command, naming these objects.
    #[track_caller]
    fn cut(&self, arguments: &[&str], names: &[&str]) -> Ended {
        let ended = self.as_login(arguments).expect("it runs");
        require_error(&ended, "lockout", &["198.51.100.2", "--force"]);
        require_error(&ended, "lockout", names);
        ended
    }

    #[track_caller]
    fn uncut(&self, arguments: &[&str]) {
        let ended = self.as_login(arguments).expect("it runs");
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

    // reload
    let before = host.in_force()?;
    host.write(&stranger)?;
    let mut snapshot = Snapshot::new();
    let ended = host.cut(&["reload"], &["ssh", "tcp/22"]);
    snapshot.ended("reload without the peer", &ended, None);
    host.write(&closed)?;
    let ended = host.cut(&["reload"], &["tcp/22"]);
    snapshot.ended("reload without the service", &ended, None);
    assert_eq!(host.in_force()?, before);
    host.write(&CONFIG.replace("203.0.113.0/24", "203.0.112.0/24"))?;
    host.uncut(&["reload"]);

    // mode: in observe mode no change cuts, but enforcing would
    host.uncut(&["mode", "observe"]);
    host.write(&format!("mode = 'observe'\n{stranger}"))?;
    host.uncut(&["reload"]);
    let ended = host.cut(&["mode", "enforce"], &["add 198.51.100.2/32 --service ssh"]);
    snapshot.ended("mode enforce", &ended, None);
    assert_eq!(host.site.json("status")?["mode"], "observe");

    // the remedy of the message works
    host.uncut(&["add", "198.51.100.2/32", "--service", "ssh"]);
    host.uncut(&["mode", "enforce"]);
    let ended = host.cut(&["remove", "198.51.100.2"], &["ssh", "tcp/22"]);
    snapshot.ended("remove 198.51.100.2", &ended, None);
    snapshot.check(&expect_file!["snapshots/lockout.txt"]);
    host.uncut(&["remove", "198.51.100.2", "--force"]);
    // The connection is cut already, so an unrelated change is allowed.
    host.uncut(&["add", "192.0.2.3", "--service", "web"]);
    Ok(())
}

#[test]
fn no_start_cuts_its_connection() -> anyhow::Result<()> {
    require_root!();
    let host = Host::down(&CONFIG.replace("198.51.100.2", "192.0.2.1"))?;
    let run = ["run", "--config", &host.config];
    let ended = host.cut(&run, &["ssh", "tcp/22"]);
    let mut snapshot = Snapshot::new();
    snapshot.ended("run", &ended, Some(&host.site.scratch));
    snapshot.check(&expect_file!["snapshots/lockout_start.txt"]);
    assert!(host.passes(STRANGERS[0]));
    let mut command = host.site.command(&[&run[..], &["--force"]].concat())?;
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
    let inner = host.site.command(&["reload"])?;
    let mut shell = host.site.host.command("sh")?;
    shell.env("SSH_CONNECTION", LOGIN);
    // A following command keeps the shell from replacing itself.
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
    host.site.scratch.write("peer.txt", listed)?;
    let mut host = host;
    host.start(&[])?;
    host.site
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
    host.cut(&["accept", "peer", &id], &["ssh", "tcp/22"]);
    host.uncut(&["accept", "peer", &id, "--force"]);
    Ok(())
}
