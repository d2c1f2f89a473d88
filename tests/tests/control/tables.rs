//! Resizing the lookup tables, and changing their kind, under traffic.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;

use allowlist_dataplane::View;
use allowlist_tests::lab::stream::Streamed;

use super::*;

/// Returns a list of single addresses that are neither friends, strangers nor adjacent, and of overlapping prefixes.
fn list(prefixes: u32) -> String {
    let mut text = String::from("198.18.0.0/15\n2001:db8:1:2::/64\n2001:db8:1:2::7\n");
    for number in 0..prefixes {
        let [_, a, b, c] = (2 * number).to_be_bytes();
        writeln!(text, "10.{a}.{b}.{c}").expect("to a string");
    }
    text
}

/// Starts a daemon with a short list.
fn with_list(testbed: Testbed, config: &str) -> anyhow::Result<Host> {
    testbed.scratch.write("lab.txt", list(10))?;
    let path = testbed.scratch.write("allowlist.toml", config)?;
    let mut host = Host {
        config: path.display().to_string(),
        testbed,
        daemon: None,
    };
    host.start(&[])?;
    Ok(host)
}

const WITH_LIST: &str = "[sources.lab]\nfile = 'lab.txt'\n";

fn config(head: &str) -> String {
    format!(
        "{head}\n{}{WITH_LIST}",
        CONFIG.replace("allow = [\"friends\"]", "allow = [\"friends\", \"lab\"]")
    )
}

/// A list outgrows the tables on a host with two filtered interfaces: each packet is decided by the old or the new
/// one, which both have the friends and no strangers.
#[test]
fn a_list_outgrows_the_tables_without_a_gap() -> anyhow::Result<()> {
    require_root!();
    for head in ["", "default = 'drop'", "lookup = 'lpm-trie'"] {
        let testbed = Testbed::new()?;
        testbed.second_link()?;
        let text = config(head).replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]");
        let mut host = with_list(testbed, &text)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&host.testbed, &sources, || {
            for prefixes in [30_000, 10, 90_000] {
                host.testbed.scratch.write("lab.txt", list(prefixes))?;
                host.done(&["refresh", "lab"]);
                // Reports have the whole list, in the vendor's prefixes.
                let listed = View::open(host.testbed.scratch.pin_dir())?.entries()?.len();
                // And two prefixes of the friends, and one of the peer.
                ensure!(
                    listed == prefixes as usize + 3 + 3,
                    "{listed} of {prefixes}"
                );
            }
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        streamed.check_counted(&host.testbed)?;
        let grows = head != "lookup = 'lpm-trie'";
        let within = if grows { SOON } else { NOT_LONG };
        let has_grown = host.daemon().wait_for_line("[tables-resized]: ", within);
        assert_eq!(has_grown.is_ok(), grows, "{head}");
        // The next daemon uses the resized tables.
        host.kill()?;
        assert!(
            host.passes("10.0.0.8") && !host.passes("10.0.0.9"),
            "{head}"
        );
        host.start(&[])?;
        assert!(
            host.passes("10.1.1.8") && !host.passes("10.9.9.8"),
            "{head}"
        );
        assert_eq!(host.testbed.run(&["detach"])?.code, Some(0));
        assert!(
            !host.testbed.scratch.pin_dir().exists(),
            "all pins are gone"
        );
    }
    Ok(())
}

/// The daemon is killed after the larger tables are pinned, and before the programs use them. The programs keep using
/// the earlier tables, until the next daemon replaces them.
#[test]
fn a_daemon_is_killed_during_a_resize() -> anyhow::Result<()> {
    require_root!();
    // The daemon may be killed too late: then repeat on another host.
    for _ in 0..10 {
        if ends_while_its_tables_grow()? {
            return Ok(());
        }
    }
    anyhow::bail!("each time the resize was complete before the daemon ended");
}

/// Returns whether the daemon was killed at the right moment.
fn ends_while_its_tables_grow() -> anyhow::Result<bool> {
    let testbed = Testbed::new()?;
    let mut host = with_list(testbed, &config("default = 'drop'"))?;
    host.testbed.scratch.write("lab.txt", list(30_000))?;
    let aside = pinned(&host.testbed, "GENERATIONS_aside");
    let mut daemon = host.daemon.take().context("no daemon")?;
    give_way(&daemon)?;
    thread::scope(|scope| -> anyhow::Result<()> {
        // The request has no answer, unless the resize was complete before the test noticed it.
        let refresh = scope.spawn(|| host.testbed.run(&["refresh", "lab"]));
        while !aside.exists() && !refresh.is_finished() {
            thread::sleep(Duration::from_micros(100));
        }
        // Loading a new program takes the kernel much longer.
        daemon.stop(Signal::SIGKILL, SOON)?;
        if !aside.exists() {
            let ended = refresh.join().expect("the thread ends")?;
            ensure!(ended.code == Some(0), "{ended:?}");
        }
        Ok(())
    })?;
    if !aside.exists() {
        return Ok(false);
    }
    assert!(host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]));

    host.start(&[])?;
    assert!(!aside.exists(), "no program uses the former tables");
    assert!(host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]));
    assert!(host.passes("10.0.100.8") && !host.passes("10.0.100.9"));
    host.done(&["add", "10.0.100.9", "--service", "web"]);
    assert!(host.passes("10.0.100.9"));
    assert_eq!(host.testbed.run(&["detach"])?.code, Some(0));
    Ok(true)
}

/// Lowers the priority of a program, so that the test can kill it at the right moment.
fn give_way(program: &Program) -> anyhow::Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{}/task", program.id()))? {
        let thread = thread?.file_name();
        let mut renice = std::process::Command::new("renice");
        renice.args(["-n", "19", "-p"]).arg(thread);
        // The thread may have ended.
        renice
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
    }
    Ok(())
}

/// Returns the path of a pin of this version.
fn pinned(testbed: &Testbed, name: &str) -> PathBuf {
    let version = format!("v{}", allowlist_common::abi::VERSION);
    testbed.scratch.pin_dir().join(version).join(name)
}

/// Changes the kind of table back and forth, by reloads and a restart.
#[test]
fn the_kind_of_table_changes_without_a_gap() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let mut host = Host::by_testbed(testbed, &config(""))?;
    let sources = [FRIENDS, STRANGERS].concat();
    let mut daemon = host.daemon.take();
    let streamed = Streamed::during(&host.testbed, &sources, || {
        for head in [
            "lookup = 'lpm-trie'",
            "lookup = 'range-table'",
            "lookup = 'lpm-trie'",
        ] {
            host.write(&config(head))?;
            host.done(&["reload"]);
            let explained = host.done(&["explain", "203.0.113.7", "--port", "udp/443", "--json"]);
            let explained: Value = serde_json::from_str(&explained)?;
            ensure!(
                explained["prefixes"][0]["prefix"] == "203.0.113.0/24",
                "{explained}"
            );
        }
        if let Some(mut daemon) = daemon.take() {
            daemon.stop(Signal::SIGKILL, SOON)?;
        }
        host.write(&config(""))?;
        daemon = Some(host.testbed.filter(&["--config", &host.config])?);
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&host.testbed)?;
    host.daemon = daemon;
    assert!(host.passes(FRIENDS[0]));
    Ok(())
}

const NOT_LONG: Duration = Duration::from_millis(200);
