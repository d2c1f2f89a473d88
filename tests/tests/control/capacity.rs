//! The capacity of the kernel's tables: a source that fills them blocks neither another source nor `add`.

use allowlist_tests::lab::normalized;

use super::*;

/// Two sources in files, and a limit in which each source has a share of 12.
const FILES: &str = r#"
interfaces = ["eth0"]
max_prefixes = 100
[services.web]
ports = ["udp/443"]
allow = ["big", "small"]
[sources.big]
file = "big.txt"
[sources.small]
file = "small.txt"
"#;

/// Returns `count` addresses, one per line.
fn lines(third: u8, count: u8) -> String {
    let lines = (0..count).map(|last| format!("198.18.{third}.{last}\n"));
    lines.collect()
}

/// Waits until a source has `count` active prefixes.
fn has(host: &Host, source: &str, count: u64) -> anyhow::Result<()> {
    eventually(|| Ok(host.testbed.json("status")?["sources"][source]["prefixes"] == count))
}

/// Waits until a list of a source is rejected because it does not fit the tables.
fn is_rejected(host: &Host, source: &str) -> anyhow::Result<()> {
    eventually(|| {
        let status = host.testbed.json("status")?;
        Ok(status["sources"][source]["failure_code"] == "too-many-prefixes")
    })
}

#[test]
fn a_source_that_fills_the_tables_blocks_no_other() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::down(FILES)?;
    let scratch = &host.testbed.scratch;
    scratch.write("big.txt", lines(1, 90))?;
    scratch.write("small.txt", lines(2, 1))?;
    host.start(&[])?;
    for (count, active) in [(99, 99), (100, 100), (101, 100), (98, 98)] {
        host.testbed.scratch.write("big.txt", lines(1, count))?;
        if count > 100 {
            is_rejected(&host, "big")?;
        }
        has(&host, "big", active)?;
        host.done(&["add", &format!("198.18.3.{count}"), "--service", "web"]);
    }
    host.testbed.scratch.write("big.txt", lines(1, 100))?;
    has(&host, "big", 100)?;
    host.testbed.scratch.write("small.txt", lines(2, 12))?;
    has(&host, "small", 12)?;
    assert!(host.passes("198.18.2.11") && host.passes("198.18.3.99"));
    // While the tables are full, a source gets at most its share.
    host.testbed.scratch.write("small.txt", lines(2, 13))?;
    is_rejected(&host, "small")?;
    has(&host, "small", 12)?;
    let log = host.daemon().stderr();
    let log = log
        .lines()
        .filter(|line| line.contains("warning[list-rejected]: "));
    let log: Vec<_> = log
        .map(|line| normalized(line, Some(&host.testbed.scratch)))
        .collect();
    expect![[r#"
        <time> warning[list-rejected]: source big: the lists have 101 prefixes, more than max_prefixes = 100; nothing was changed; raise max_prefixes, or remove a source (the largest is "big" with 101); the last-good list stays active
        <time> warning[list-rejected]: source small: the lists have 113 prefixes, more than max_prefixes = 100; nothing was changed; raise max_prefixes, or remove a source (the largest is "big" with 100); the last-good list stays active"#]].assert_eq(&log.join("\n"));
    // The next start has the same lists.
    host.kill()?;
    host.testbed.scratch.write("small.txt", lines(2, 12))?;
    host.start(&[])?;
    has(&host, "big", 100)?;
    has(&host, "small", 12)
}
