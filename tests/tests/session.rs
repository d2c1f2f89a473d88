//! The session that a process belongs to, as it really is below `sudo` and the like: the variable is in the
//! environment of a process further up, and in that of none between.

use std::env;
use std::process::Command;

use allowlist_policy::lockout::{Evidence, Session};
use allowlist_tests::lab::Ended;
use allowlist_user::session;
use anyhow::Context as _;

const CONNECTION: &str = "203.0.113.9 40000 198.51.100.1 22";

/// What the program that is started prints: this one, by the test below.
const PRINTS: &str = "prints_its_session";

/// Nothing by itself.
#[test]
#[ignore = "it is what the other tests start"]
fn prints_its_session() {
    let found = session::find();
    let text = serde_json::to_string(&found).expect("it has no maps");
    println!("session {text}");
}

/// What is found by a process that a shell script starts as `"$0" "$@"`.
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
fn a_process_below_finds_the_session_of_one_above() -> anyhow::Result<()> {
    // Each shell has something left to do, so that none of them becomes the next.
    let session = found(&format!(
        "SSH_CONNECTION='{CONNECTION}' sh -c 'env -i sh -c '\\''env -i \"$0\" \"$@\"; exit $?'\\'' \"$0\" \"$@\"; exit $?' \"$0\" \"$@\"; exit $?"
    ))?;
    let session = session.context("there is one")?;
    assert_eq!(session.peer, "203.0.113.9:40000".parse()?);
    assert_eq!(session.local, "198.51.100.1:22".parse()?);
    assert!(
        matches!(session.evidence, Evidence::Ancestor(_)),
        "{session:?}"
    );
    Ok(())
}

#[test]
fn the_own_environment_counts_more() -> anyhow::Result<()> {
    let session = found(&format!(
        "SSH_CONNECTION='{CONNECTION}' sh -c 'SSH_CONNECTION=\"192.0.2.7 1 192.0.2.1 22\" \"$0\" \"$@\"; exit $?' \"$0\" \"$@\"; exit $?"
    ))?;
    let session = session.context("there is one")?;
    assert_eq!(
        (session.peer, session.evidence),
        ("192.0.2.7:1".parse()?, Evidence::Environment)
    );
    Ok(())
}
