//! Changes between enforce and observe mode under traffic: only the control word changes.

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::interface::look_up;
use allowlist_dataplane::{Dataplane, View};
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::{Feed, Mode, Origin, Snapshot};
use allowlist_user::config::Config;
use anyhow::ensure;
use jiff::Timestamp;

use super::lifecycle::xdp_program;
use super::*;

/// Attaches a filter without a daemon.
fn filter(testbed: &Testbed) -> anyhow::Result<Dataplane> {
    let config = testbed.scratch.write(
        "allowlist.toml",
        "[services.web]\nports = ['udp/443']\nallow = ['friends']\n\
         [sources.friends]\nprefixes = ['203.0.113.0/24', '2001:db8:7::/48']\n",
    )?;
    let config = Config::load(&config)?;
    let mut snapshot = Snapshot::new();
    for source in &config.policy.sources {
        if let Origin::Prefixes(prefixes) = &source.origin {
            let feed = Feed::new(prefixes.clone(), Timestamp::now());
            snapshot.insert(source.name.clone(), feed.into());
        }
    }
    let tables = compile(&config.policy, &snapshot, 10, &IdTable::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    testbed.host.run(|| {
        let mut dataplane = Dataplane::open(testbed.scratch.pin_dir(), None)?;
        dataplane.publish(&tables, Mode::Enforce, &config.rules, &[], &[])?;
        let facts = runtime.block_on(look_up("eth0"))?;
        dataplane.attach(&facts, AttachModeRequest::Native, false)?;
        Ok(dataplane)
    })
}

#[test]
fn the_mode_changes_without_a_reload() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut dataplane = filter(&testbed)?;
    let program = xdp_program(&testbed, "eth0")?;
    let generation = dataplane.generation();
    ensure!(program.is_some() && generation == 1, "{program:?}");
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for mode in [Mode::Observe, Mode::Enforce].repeat(10) {
            dataplane.set_mode(mode);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &[]);
    // Observe mode counts drops too.
    streamed.check_counted(&testbed)?;
    for stranger in STRANGERS {
        let passed = streamed.from(stranger).len() as u64;
        ensure!(0 < passed && passed < streamed.rounds, "{passed}");
    }
    for (mode, passes) in [(Mode::Observe, true), (Mode::Enforce, false)] {
        dataplane.set_mode(mode);
        assert_eq!(gets_through(&testbed, STRANGERS[0])?, passes);
        let control = View::open(testbed.scratch.pin_dir())?.control()?;
        assert_eq!(control.observe, mode == Mode::Observe);
    }
    assert_eq!(xdp_program(&testbed, "eth0")?, program);
    assert_eq!(dataplane.generation(), generation);
    Ok(())
}

/// Changes the mode of a daemon by command, while it also publishes: the mode survives publishes and starts, until the file
/// is changed.
#[test]
fn a_mode_by_command_lasts_until_the_file_changes() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let list = FRIENDS.join("\n");
    testbed.scratch.write("list.txt", &list)?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['list']\n\
         [sources.list]\nfile = 'list.txt'\nevery = '1s'\n",
    )?;
    let config = config.display().to_string();
    let mut filter = testbed.filter(&["--config", &config])?;
    let program = xdp_program(&testbed, "eth0")?;
    let change_to = |mode: &str| -> anyhow::Result<()> {
        let changed = testbed.run(&["mode", mode])?;
        ensure!(changed.code == Some(0), "{changed:?}");
        let status = testbed.json("status")?;
        assert_eq!(
            (&status["mode"], &status["generation"]),
            (&json!(mode), &json!(1))
        );
        Ok(())
    };
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for mode in ["observe", "enforce"].repeat(3) {
            change_to(mode)?;
        }
        change_to("observe")
    })?;
    streamed.check(&FRIENDS, &[]);
    streamed.check_counted(&testbed)?;
    assert_eq!(xdp_program(&testbed, "eth0")?, program);

    testbed
        .scratch
        .write("list.txt", format!("{list}\n198.18.0.1\n"))?;
    eventually(|| Ok(testbed.json("status")?["generation"] == 2))?;
    assert!(gets_through(&testbed, STRANGERS[0])?);

    filter.stop(Signal::SIGTERM, SOON)?;
    let refused = testbed.run(&["mode", "enforce"])?;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("error[no-daemon]: "), "{refused:?}");
    assert!(gets_through(&testbed, STRANGERS[0])?);
    // The mode by command survives a restart, with a warning that the file differs.
    let filter = testbed.filter(&["--config", &config])?;
    assert!(gets_through(&testbed, STRANGERS[0])?);
    filter.wait_for_line("warning[mode-by-command]: ", SOON)?;
    let text = std::fs::read_to_string(&config)?;
    for (mode, passes) in [("observe", true), ("enforce", false)] {
        std::fs::write(&config, format!("mode = '{mode}'\n{text}"))?;
        let reloaded = testbed.run(&["reload"])?;
        ensure!(reloaded.code == Some(0), "{reloaded:?}");
        assert_eq!(gets_through(&testbed, STRANGERS[0])?, passes, "{mode}");
    }
    Ok(())
}
