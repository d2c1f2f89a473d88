//! Commit confirm: the new policy is active until the deadline, and the old one after it, without any process.

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::interface::{InterfaceInfo, look_up};
use allowlist_dataplane::{Dataplane, View, detach_all};
use allowlist_policy::compile::{IdTable, Tables, compile};
use allowlist_policy::error_code::ErrorCode;
use allowlist_tests::lab::FrameSender;
use allowlist_tests::model::static_snapshot;
use allowlist_user::config::Config;
use anyhow::ensure;
use expect_test::expect;

use super::*;

/// Longer than any test, which ends the time explicitly.
const LONG: Duration = Duration::from_hours(1);

/// A policy that allows some addresses to reach the protected port.
struct Policy {
    config: Config,
    tables: Tables,
}

impl Policy {
    fn new(allowed: &[&str]) -> Self {
        Self::with(allowed, "")
    }

    fn with(allowed: &[&str], options: &str) -> Self {
        let text = format!(
            "interfaces = ['eth0', 'eth1']\n{options}\n[services.web]\nports = ['udp/443']\nallow = ['them']\n\
             [sources.them]\nprefixes = {allowed:?}\n"
        );
        let config = Config::parse(&text, "test.toml".as_ref()).expect("a configuration");
        let snapshot = static_snapshot(&config.policy);
        let tables = compile(&config.policy, &snapshot, 1000, &IdTable::default()).expect("tables");
        Self { config, tables }
    }

    /// Returns the metadata under which the policy is published.
    fn names(&self) -> Vec<u8> {
        format!("{:?}", self.config.policy.sources).into_bytes()
    }

    fn publish(&self, dataplane: &mut Dataplane) -> anyhow::Result<u32> {
        let Config {
            mode,
            rules,
            interfaces,
            ..
        } = &self.config;
        Ok(dataplane.publish(&self.tables, *mode, rules, interfaces, &self.names())?)
    }
}

fn facts(testbed: &Testbed, name: &str) -> anyhow::Result<InterfaceInfo> {
    let runtime = tokio::runtime::Runtime::new()?;
    Ok(testbed.host.run(|| runtime.block_on(look_up(name)))?)
}

fn attach(testbed: &Testbed, dataplane: &mut Dataplane, name: &str) -> anyhow::Result<()> {
    let facts = facts(testbed, name)?;
    testbed
        .host
        .run(|| dataplane.attach(&facts, AttachModeRequest::Auto, false))?;
    Ok(())
}

fn open(testbed: &Testbed) -> anyhow::Result<Dataplane> {
    open_with(testbed, None)
}

/// Retries, because a child process that another test starts holds the lock between fork and exec.
fn open_with(testbed: &Testbed, max_flows: Option<u32>) -> anyhow::Result<Dataplane> {
    let mut opened = None;
    eventually(
        || match Dataplane::open(testbed.scratch.pin_dir(), max_flows) {
            Ok(dataplane) => {
                opened = Some(dataplane);
                Ok(true)
            }
            Err(error) if error.code() == ErrorCode::AlreadyRunning => Ok(false),
            Err(error) => Err(error.into()),
        },
    )?;
    opened.context("not opened")
}

fn view(testbed: &Testbed) -> anyhow::Result<View> {
    Ok(View::open(testbed.scratch.pin_dir())?)
}

/// Publishes a policy that allows `FRIENDS`, and attaches it to `eth0`.
fn filtering(testbed: &Testbed) -> anyhow::Result<Dataplane> {
    let mut dataplane = open(testbed)?;
    Policy::new(&FRIENDS).publish(&mut dataplane)?;
    attach(testbed, &mut dataplane, "eth0")?;
    Ok(dataplane)
}

fn fell_back(testbed: &Testbed) -> anyhow::Result<bool> {
    Ok(view(testbed)?
        .pending()?
        .is_some_and(|pending| pending.fell_back))
}

/// Returns the filtered interfaces.
fn attached(testbed: &Testbed) -> anyhow::Result<Vec<String>> {
    let attachments = testbed
        .host
        .run(|| anyhow::Ok(view(testbed)?.attachments()?))?;
    Ok(attachments.into_iter().map(|one| one.name).collect())
}

/// Returns the addresses of the active prefixes.
fn active_addresses(testbed: &Testbed) -> anyhow::Result<Vec<IpAddr>> {
    let entries = view(testbed)?.entries()?;
    Ok(entries.iter().map(|entry| entry.prefix.addr()).collect())
}

/// Reports whether a stranger's datagram passes on `eth1`.
fn second_passes(testbed: &Testbed) -> anyhow::Result<bool> {
    let inbox = inbox(testbed, PROTECTED)?;
    let to = SocketAddr::new(ip("198.51.101.1"), PROTECTED);
    let frame = frame::udp(SocketAddr::new(ip(STRANGERS[0]), 40_000), to, b"hello");
    FrameSender::new(&testbed.peer, "eth1")?.send(&frame)?;
    Ok(!drain(&inbox)?.is_empty())
}

fn with_second_interface() -> anyhow::Result<Testbed> {
    let testbed = Testbed::new()?;
    testbed.second_link()?;
    Ok(testbed)
}

#[test]
fn an_unconfirmed_change_is_rolled_back() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        dataplane.arm_rollback(LONG)?;
        Policy::new(&STRANGERS).publish(&mut dataplane)?;
        drop(dataplane); // no process remains
        ensure!(view(&testbed)?.control()?.generation == 2);
        thread::sleep(Duration::from_millis(200));
        testbed.end_time_to_confirm()?;
        ensure!(fell_back(&testbed)?);
        ensure!(view(&testbed)?.control()?.generation == 1);
        thread::sleep(Duration::from_millis(200));
        Ok(())
    })?;
    // Each packet was decided by one of the two policies, and after some moment always by the old one.
    for (friend, stranger) in FRIENDS.into_iter().zip(STRANGERS) {
        let (friend, stranger) = (streamed.from(friend), streamed.from(stranger));
        let before = friend
            .iter()
            .zip(0..)
            .take_while(|(n, at)| **n == *at)
            .count() as u64;
        let last = friend.iter().rev().zip(1..);
        let after = last
            .take_while(|(n, at)| **n == streamed.rounds - at)
            .count() as u64;
        assert!(before > 0 && after > 0, "{before} before, {after} after");
        assert_eq!(
            friend.len() as u64,
            before + after,
            "the policy changed more than once"
        );
        let first = *stranger.first().context("no packet of a stranger passed")?;
        let end = *stranger.last().context("no packet of a stranger passed")? + 1;
        assert_eq!(
            stranger.len() as u64,
            end - first,
            "the policy changed more than once"
        );
        assert!(first.abs_diff(before) <= 1, "{first}, {before}");
        assert!(end.abs_diff(streamed.rounds - after) <= 1, "{end}, {after}");
    }
    assert_eq!(active_addresses(&testbed)?, FRIENDS.map(ip));
    Ok(())
}

/// The kernel's own clock ends the time.
#[test]
fn the_kernel_ends_the_time_to_confirm() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    dataplane.arm_rollback(Duration::from_millis(300))?;
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    drop(dataplane);
    eventually(|| fell_back(&testbed))?;
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// The host is as without a filter.
#[test]
fn an_unconfirmed_first_start_fails_open() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = open(&testbed)?;
    dataplane.arm_rollback(LONG)?;
    Policy::new(&FRIENDS).publish(&mut dataplane)?;
    attach(&testbed, &mut dataplane, "eth0")?;
    drop(dataplane);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    testbed.end_time_to_confirm()?;
    assert!(fell_back(&testbed)?);
    for source in [FRIENDS, STRANGERS].concat() {
        assert!(gets_through(&testbed, source)?, "{source}");
    }
    let control = view(&testbed)?.control()?;
    assert!(control.open && !control.pending, "{control:?}");
    assert!(active_addresses(&testbed)?.is_empty());
    let counters = view(&testbed)?.counters()?["eth0"];
    let passed = counters.get(
        allowlist_common::verdict::Verdict::Pass,
        allowlist_common::verdict::Reason::Default,
    );
    assert_eq!(passed, 4);
    // The counters have the names of the change.
    let names = Policy::new(&FRIENDS).names();
    assert_eq!(view(&testbed)?.metadata()?, Some(names.clone()));
    // The state remains until the next publish.
    let mut dataplane = open(&testbed)?;
    assert_eq!(dataplane.metadata()?, (Some(names), Vec::new()));
    dataplane.fall_back()?;
    assert_eq!(dataplane.pending(), None);
    assert!(gets_through(&testbed, STRANGERS[1])?);
    Policy::new(&FRIENDS).publish(&mut dataplane)?;
    assert!(!gets_through(&testbed, STRANGERS[1])?);
    Ok(())
}

#[test]
fn an_added_interface_is_unfiltered_after_the_rollback() -> anyhow::Result<()> {
    require_root!();
    let testbed = with_second_interface()?;
    let mut dataplane = filtering(&testbed)?;
    dataplane.arm_rollback(LONG)?;
    Policy::new(&FRIENDS).publish(&mut dataplane)?;
    attach(&testbed, &mut dataplane, "eth1")?;
    drop(dataplane);
    assert!(!second_passes(&testbed)?);
    testbed.end_time_to_confirm()?;
    assert!(fell_back(&testbed)?);
    assert!(second_passes(&testbed)?);
    assert_eq!(attached(&testbed)?, ["eth0"]);
    assert!(
        !gets_through(&testbed, STRANGERS[0])?,
        "eth0 was filtered before"
    );
    // The state remains, because the active generation does not filter the interface.
    let mut dataplane = open(&testbed)?;
    dataplane.fall_back()?;
    assert!(second_passes(&testbed)?);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    assert_eq!(attached(&testbed)?, ["eth0"]);
    Ok(())
}

#[test]
fn a_removed_interface_is_filtered_after_the_rollback() -> anyhow::Result<()> {
    require_root!();
    let testbed = with_second_interface()?;
    let mut dataplane = filtering(&testbed)?;
    let eth1 = facts(&testbed, "eth1")?.index;
    let leave_eth0 = |dataplane: &mut Dataplane| -> anyhow::Result<()> {
        dataplane.arm_rollback(LONG)?;
        Policy::new(&FRIENDS).publish(dataplane)?;
        attach(&testbed, dataplane, "eth1")?;
        let mut leave = || testbed.host.run(|| dataplane.detach_others(&[eth1]));
        assert_eq!(leave()?, ["eth0"]);
        assert_eq!(leave()?, [""; 0], "detached twice");
        assert!(gets_through(&testbed, STRANGERS[0])?);
        assert_eq!(attached(&testbed)?, ["eth1"]);
        Ok(())
    };
    leave_eth0(&mut dataplane)?;
    drop(dataplane);
    testbed.end_time_to_confirm()?;
    assert!(fell_back(&testbed)?);
    assert_eq!(attached(&testbed)?, ["eth0"]);
    assert!(!gets_through(&testbed, STRANGERS[0])?);
    assert!(second_passes(&testbed)?);
    let mut dataplane = open(&testbed)?;
    leave_eth0(&mut dataplane)?;
    dataplane.confirm()?;
    assert!(gets_through(&testbed, STRANGERS[0])?);
    assert!(!second_passes(&testbed)?);
    assert_eq!(lifecycle::xdp_program(&testbed, "eth0")?, None);
    Ok(())
}

#[test]
fn a_confirmed_change_stays() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    dataplane.arm_rollback(LONG)?;
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    drop(dataplane);
    // Another process can confirm.
    let mut dataplane = open(&testbed)?;
    let pending = dataplane.pending().context("no change is pending")?;
    assert!(!pending.left.is_zero() && pending.left <= LONG && !pending.fell_back);
    assert_eq!(pending.back_to.generation, 1);
    let again = dataplane
        .arm_rollback(LONG)
        .expect_err("a change is pending");
    assert_eq!(again.code(), ErrorCode::ChangePending, "{again}");
    dataplane.confirm()?;
    assert_eq!(dataplane.pending(), None);
    testbed.end_time_to_confirm()?;
    assert_eq!(active_addresses(&testbed)?, STRANGERS.map(ip));
    assert!(gets_through(&testbed, STRANGERS[0])? && !gets_through(&testbed, FRIENDS[0])?);
    // Each slot is used again.
    for (round, allowed) in (3..).zip([FRIENDS, STRANGERS, FRIENDS, STRANGERS]) {
        let generation = Policy::new(&allowed).publish(&mut dataplane)?;
        assert_eq!(
            (generation, active_addresses(&testbed)?),
            (round, allowed.map(ip).to_vec())
        );
        assert!(gets_through(&testbed, allowed[1])?);
    }
    dataplane.confirm()?; // no change is pending
    let error = dataplane.fall_back().expect_err("no change is pending");
    assert_eq!(error.code(), ErrorCode::NothingPending);
    expect!["no change is pending, so there is nothing to roll back"].assert_eq(&error.to_string());
    Ok(())
}

/// Each slot has names of its own.
#[test]
fn a_rollback_restores_the_names() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    let [before, after] = [FRIENDS, STRANGERS].map(|allowed| Policy::new(&allowed).names());
    assert_eq!(view(&testbed)?.metadata()?, Some(before.clone()));
    dataplane.arm_rollback(LONG)?;
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    assert_eq!(view(&testbed)?.metadata()?, Some(after.clone()));
    drop(dataplane);
    testbed.end_time_to_confirm()?;
    assert_eq!(view(&testbed)?.metadata()?, Some(before.clone()));
    assert_eq!(view(&testbed)?.lookup()?.metadata(), Some(&*before));
    let mut dataplane = open(&testbed)?;
    assert_eq!(dataplane.metadata()?, (Some(before.clone()), vec![after]));
    dataplane.fall_back()?;
    assert_eq!(dataplane.metadata()?, (Some(before.clone()), Vec::new()));
    assert_eq!(view(&testbed)?.metadata()?, Some(before));
    Ok(())
}

#[test]
fn a_late_confirmation_is_refused() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    dataplane.arm_rollback(Duration::ZERO)?;
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    let late = dataplane.confirm().expect_err("the deadline has passed");
    assert_eq!(late.code(), ErrorCode::NotConfirmed);
    expect!["too late: the change was rolled back, since it was not confirmed in time; make the change again"]
        .assert_eq(&late.to_string());
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    // The next change replaces the rolled back one, and has its own deadline.
    dataplane.arm_rollback(LONG)?;
    assert_eq!(view(&testbed)?.control()?.generation, 3);
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    assert!(!gets_through(&testbed, FRIENDS[0])? && gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// Also for several publishes, by another process, in place and in another slot.
#[test]
fn publishes_during_a_pending_change_keep_the_fallback() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    dataplane.arm_rollback(LONG)?;
    // One prefix more than in the fallback, whose slot must not be changed in place.
    let mut allowed = vec![FRIENDS[0], FRIENDS[1], "198.18.0.1"];
    for more in ["198.18.0.2", "198.18.0.3", "2001:db8::1"] {
        Policy::new(&allowed).publish(&mut dataplane)?;
        allowed.push(more);
        Policy::new(&allowed).publish(&mut dataplane)?;
        dataplane.set_mode(allowlist_policy::Mode::Observe);
        assert!(gets_through(&testbed, STRANGERS[0])?, "observed");
        drop(dataplane);
        dataplane = open(&testbed)?;
        Policy::new(&STRANGERS).publish(&mut dataplane)?;
        Policy::new(&STRANGERS[..1]).publish(&mut dataplane)?;
        assert!(dataplane.pending().is_some());
    }
    assert!(gets_through(&testbed, STRANGERS[0])? && !gets_through(&testbed, STRANGERS[1])?);
    // A failed reload restores the state before, which is still pending.
    let found = dataplane.applied_state()?;
    Policy::new(&["198.18.0.9"]).publish(&mut dataplane)?;
    testbed.host.run(|| dataplane.restore(&found))?;
    assert!(gets_through(&testbed, STRANGERS[0])? && dataplane.pending().is_some());
    let last = dataplane.generation();
    dataplane.fall_back()?;
    assert_eq!(active_addresses(&testbed)?, FRIENDS.map(ip));
    assert!(dataplane.generation() > last);
    assert!(gets_through(&testbed, FRIENDS[0])? && !gets_through(&testbed, STRANGERS[0])?);
    Ok(())
}

/// A reload with a deadline that fails leaves no pending change.
#[test]
fn a_failed_change_is_not_pending() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filtering(&testbed)?;
    let found = dataplane.applied_state()?;
    dataplane.arm_rollback(Duration::from_millis(1))?;
    Policy::new(&STRANGERS).publish(&mut dataplane)?;
    testbed.host.run(|| dataplane.restore(&found))?;
    assert_eq!(dataplane.pending(), None);
    Policy::new(&[FRIENDS[0], STRANGERS[0]]).publish(&mut dataplane)?;
    assert!(gets_through(&testbed, STRANGERS[0])?, "no fallback is left");
    Ok(())
}

/// Also if the pending policy tracks no flows.
#[test]
fn flows_are_tracked_while_the_fallback_needs_them() -> anyhow::Result<()> {
    require_root!();
    let closed = "default = 'drop'";
    let testbed = Testbed::new()?;
    let is_recorded = || {
        testbed
            .scratch
            .pin_dir()
            .join(format!("v{}/egress_0", allowlist_common::abi::VERSION))
            .exists()
    };
    for is_confirmed in [false, true] {
        let mut dataplane = open_with(&testbed, Some(1024))?;
        Policy::with(&FRIENDS, closed).publish(&mut dataplane)?;
        attach(&testbed, &mut dataplane, "eth0")?;
        assert!(is_recorded());
        dataplane.arm_rollback(LONG)?;
        drop(dataplane);
        let mut dataplane = open(&testbed)?;
        Policy::new(&FRIENDS).publish(&mut dataplane)?;
        attach(&testbed, &mut dataplane, "eth0")?;
        assert!(is_recorded(), "the fallback needs the tracker");
        if is_confirmed {
            dataplane.confirm()?;
        } else {
            dataplane.fall_back()?;
        }
        assert_eq!(is_recorded(), !is_confirmed);
    }
    Ok(())
}

/// Pins of another daemon at the same path do not belong to this one.
#[test]
fn a_recreated_pin_directory_belongs_to_another_process() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let first = filtering(&testbed)?;
    let seen = view(&testbed)?;
    assert!(first.has_all_pins() && seen.has_all_pins());
    detach_all(testbed.scratch.pin_dir())?;
    let second = filtering(&testbed)?;
    assert!(!first.has_all_pins() && !seen.has_all_pins());
    assert!(second.has_all_pins());
    Ok(())
}
