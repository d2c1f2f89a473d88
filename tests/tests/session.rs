//! The login session of a process. Below `sudo` and similar programs, only an ancestor has `SSH_CONNECTION` in its
//! environment.

use std::env;
use std::process::Command;

use allowlist_policy::lockout::{Evidence, Session};
use allowlist_tests::lab::Ended;
use allowlist_user::session;
use anyhow::Context as _;

const CONNECTION: &str = "203.0.113.9 40000 198.51.100.1 22";

/// The name of the test that prints its session. The other tests run this program again with it as the only test.
const PRINTS: &str = "prints_its_session";

/// Prints the session for [`found`].
#[test]
#[ignore = "the other tests start it"]
fn prints_its_session() {
    let found = session::find();
    let text = serde_json::to_string(&found).expect("a session is JSON");
    println!("session {text}");
}

/// Returns the session that a process finds which a shell script starts as `"$0" "$@"`.
fn found(script: &str) -> anyhow::Result<Option<Session>> {
    let mut command = Command::new("sh");
    command
        .env_remove("SSH_CONNECTION")
        .args(["-c", script])
        .arg(env::current_exe()?)
        .args(["--exact", PRINTS, "--ignored", "--nocapture"]);
    let ended = Ended::of(command)?;
    let mut lines = ended.stdout.lines();
    let line = lines.find_map(|line| line.split_once("session ").map(|(_, found)| found));
    let text = line.with_context(|| format!("{ended:?}"))?;
    Ok(serde_json::from_str(text)?)
}

#[test]
fn the_session_of_an_ancestor_is_found() -> anyhow::Result<()> {
    // A shell execs its last command, so each shell has one more.
    let session = found(&format!(
        "SSH_CONNECTION='{CONNECTION}' sh -c 'env -i sh -c '\\''env -i \"$0\" \"$@\"; exit $?'\\'' \"$0\" \"$@\"; exit $?' \"$0\" \"$@\"; exit $?"
    ))?;
    let session = session.context("no session")?;
    assert_eq!(session.peer, "203.0.113.9:40000".parse()?);
    assert_eq!(session.local, "198.51.100.1:22".parse()?);
    assert!(
        matches!(session.evidence, Evidence::Ancestor(_)),
        "{session:?}"
    );
    Ok(())
}

#[test]
fn the_own_environment_takes_precedence() -> anyhow::Result<()> {
    let session = found(&format!(
        "SSH_CONNECTION='{CONNECTION}' sh -c 'SSH_CONNECTION=\"192.0.2.7 1 192.0.2.1 22\" \"$0\" \"$@\"; exit $?' \"$0\" \"$@\"; exit $?"
    ))?;
    let session = session.context("no session")?;
    assert_eq!(
        (session.peer, session.evidence),
        ("192.0.2.7:1".parse()?, Evidence::Environment)
    );
    Ok(())
}
