//! What the kernel looks sources up in moves, to larger tables or to the other kind, while packets come.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;

use allowlist_tests::lab::stream::Streamed;
use allowlist_user::dataplane::View;

use super::*;

/// A list of so many addresses, none of which is a friend's or a stranger's or next to another, and of prefixes that
/// overlap.
fn list(prefixes: u32) -> String {
    let mut text = String::from("198.18.0.0/15\n2001:db8:1:2::/64\n2001:db8:1:2::7\n");
    for number in 0..prefixes {
        let [_, a, b, c] = (2 * number).to_be_bytes();
        writeln!(text, "10.{a}.{b}.{c}").expect("to a string");
    }
    text
}

/// A running daemon with a short list.
fn with_list(site: Testbed, config: &str) -> anyhow::Result<Host> {
    site.scratch.write("lab.txt", list(10))?;
    let path = site.scratch.write("allowlist.toml", config)?;
    let mut host = Host {
        config: path.display().to_string(),
        site,
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

/// A list that outgrows the tables, on a host that is filtered on two interfaces: every packet is judged by the list
/// before or by the list behind, both of which know the friends and no strangers.
#[test]
fn a_list_outgrows_the_tables_without_a_gap() -> anyhow::Result<()> {
    require_root!();
    for head in ["", "default = 'drop'", "lookup = 'lpm-trie'"] {
        let site = Testbed::new()?;
        site.second_link()?;
        let text = config(head).replace("[\"eth0\"]", "[\"eth0\", \"eth1\"]");
        let mut host = with_list(site, &text)?;
        let sources = [FRIENDS, STRANGERS].concat();
        let streamed = Streamed::during(&host.site, &sources, || {
            for prefixes in [30_000, 10, 90_000] {
                host.site.scratch.write("lab.txt", list(prefixes))?;
                host.done(&["refresh", "lab"]);
                // Whoever asks gets the whole list, in the words of the vendor's file.
                let listed = View::open(host.site.scratch.pin_dir())?.entries()?.len();
                // The friends' two and the peer's one besides.
                ensure!(
                    listed == prefixes as usize + 3 + 3,
                    "{listed} of {prefixes}"
                );
            }
            Ok(())
        })?;
        streamed.check(&FRIENDS, &STRANGERS);
        streamed.check_counted(&host.site)?;
        let grows = head != "lookup = 'lpm-trie'";
        let within = if grows { SOON } else { NOT_LONG };
        let has_grown = host.daemon().wait_for_line("[tables-resized]: ", within);
        assert_eq!(has_grown.is_ok(), grows, "{head}");
        // What is behind stays behind: the next daemon finds the tables where they are.
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
        assert_eq!(host.site.run(&["detach"])?.code, Some(0));
        assert!(!host.site.scratch.pin_dir().exists(), "all pins are gone");
    }
    Ok(())
}

/// A daemon that ends between the two halves of it: the larger tables are pinned, and the programs look into those of before. They
/// go on to, and the next daemon gives the programs the larger ones.
#[test]
fn a_daemon_ends_while_its_tables_grow() -> anyhow::Result<()> {
    require_root!();
    // A busy machine may end the daemon too late: then it is tried again, on another host.
    for _ in 0..10 {
        if ends_while_its_tables_grow()? {
            return Ok(());
        }
    }
    anyhow::bail!("each time the tables had moved before the daemon ended");
}

/// Returns whether the daemon ended between the two halves.
fn ends_while_its_tables_grow() -> anyhow::Result<bool> {
    let site = Testbed::new()?;
    let mut host = with_list(site, &config("default = 'drop'"))?;
    host.site.scratch.write("lab.txt", list(30_000))?;
    let aside = pinned(&host.site, "GENERATIONS_aside");
    let mut daemon = host.daemon.take().context("it was started")?;
    give_way(&daemon)?;
    thread::scope(|scope| -> anyhow::Result<()> {
        // Without an answer, unless the tables moved between two looks on a busy machine.
        let refresh = scope.spawn(|| host.site.run(&["refresh", "lab"]));
        while !aside.exists() && !refresh.is_finished() {
            thread::sleep(Duration::from_micros(100));
        }
        // A new program takes the kernel far longer to load than this takes.
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
    assert!(!aside.exists(), "no program looks into it any more");
    assert!(host.passes(FRIENDS[0]) && !host.passes(STRANGERS[0]));
    assert!(host.passes("10.0.100.8") && !host.passes("10.0.100.9"));
    host.done(&["add", "10.0.100.9", "--service", "web"]);
    assert!(host.passes("10.0.100.9"));
    assert_eq!(host.site.run(&["detach"])?.code, Some(0));
    Ok(true)
}

/// Lets the kernel prefer this test's threads to those of a program, which is then ended where the test means to.
fn give_way(program: &Program) -> anyhow::Result<()> {
    for thread in std::fs::read_dir(format!("/proc/{}/task", program.id()))? {
        let thread = thread?.file_name();
        let mut renice = std::process::Command::new("renice");
        renice.args(["-n", "19", "-p"]).arg(thread);
        // A thread may have ended by now.
        renice
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()?;
    }
    Ok(())
}

/// A pin of this version's.
fn pinned(site: &Testbed, name: &str) -> PathBuf {
    let version = format!("v{}", allowlist_common::abi::VERSION);
    site.scratch.pin_dir().join(version).join(name)
}

/// From one kind to the other and back, by a reload and by a restart.
#[test]
fn the_other_lookup_is_taken_without_a_gap() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let mut host = Host::by_site(site, &config(""))?;
    let sources = [FRIENDS, STRANGERS].concat();
    let mut daemon = host.daemon.take();
    let streamed = Streamed::during(&host.site, &sources, || {
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
        daemon = Some(host.site.filter(&["--config", &host.config])?);
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&host.site)?;
    host.daemon = daemon;
    assert!(host.passes(FRIENDS[0]));
    Ok(())
}

const NOT_LONG: Duration = Duration::from_millis(200);
