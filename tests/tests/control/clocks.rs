//! Times to live while the wall clock is set: an expired prefix does not return, and a prefix expires by the boot clock.

use allowlist_tests::lab::WallClock;

use super::*;

const HOUR: i64 = 3600;

/// Starts the daemon with a wall clock that the test controls.
fn start(host: &mut Host, clock: &WallClock) -> anyhow::Result<()> {
    let mut command = host.testbed.command(&["run", "--config", &host.config])?;
    clock.show(&mut command);
    let daemon = Program::start(command)?;
    daemon.wait_for_line("ready", SOON)?;
    host.daemon = Some(daemon);
    Ok(())
}

#[test]
fn an_expired_prefix_does_not_return() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down(CONFIG)?;
    let clock = WallClock::new(&host.testbed.scratch)?;
    start(&mut host, &clock)?;
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "1s"]);
    host.daemon().wait_for_line("[expired]: ", SOON)?;
    assert!(!host.passes(STRANGERS[0]));
    host.kill()?;
    clock.set(-HOUR)?;
    start(&mut host, &clock)?;
    assert!(!host.passes(STRANGERS[0]));
    assert_eq!(added(&host)?, [""; 0]);
    Ok(())
}

#[test]
fn a_prefix_expires_by_the_boot_clock() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down(CONFIG)?;
    let clock = WallClock::new(&host.testbed.scratch)?;
    // Ten years ahead while the prefix is added, and correct again before it expires.
    clock.set(10 * 365 * 24 * HOUR)?;
    start(&mut host, &clock)?;
    host.done(&["add", STRANGERS[0], "--service", "web", "--ttl", "2s"]);
    clock.set(0)?;
    host.daemon().wait_for_line("[expired]: ", SOON)?;
    assert!(!host.passes(STRANGERS[0]));
    // Set back after the prefix was added, and with a daemon that starts afterwards.
    host.done(&["add", STRANGERS[1], "--service", "web", "--ttl", "2s"]);
    clock.set(-24 * HOUR)?;
    host.kill()?;
    start(&mut host, &clock)?;
    eventually(|| Ok(!host.passes(STRANGERS[1])))?;
    assert_eq!(added(&host)?, [""; 0]);
    Ok(())
}
