//! Repeated SIGHUP while the file changes: the last content becomes active.

use std::thread;

use super::*;

#[test]
fn a_storm_of_reloads_ends_with_the_last_file() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let mut filter = start(&testbed, &config)?;
    let with = |address: &str| {
        CONFIG.replace("allow = ['list']", "allow = ['list', 'more']")
            + &format!("[sources.more]\nprefixes = ['{address}']\n")
    };
    let files = [
        with("198.19.0.1"),
        "interfaces = 'eth0".to_owned(),
        with("198.19.0.2"),
    ];
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for number in 0..300 {
            if number % 10 == 0 {
                // By rename, so that no partly written file is read.
                let temporary = testbed
                    .scratch
                    .write("next.toml", &files[number / 10 % 3])?;
                std::fs::rename(temporary, &config)?;
            }
            filter.signal(Signal::SIGHUP)?;
            thread::sleep(Duration::from_millis(3));
        }
        std::fs::write(&config, with("198.19.0.3"))?;
        filter.signal(Signal::SIGHUP)?;
        eventually(|| reaches(&testbed, "198.19.0.3"))
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    let log = filter.stderr();
    assert!(log.contains("allowlist.toml:1:"), "{log}");
    assert!(!gets_through(&testbed, "198.19.0.1")? && !gets_through(&testbed, "198.19.0.2")?);
    let status = testbed.json("status")?;
    assert_eq!(status["daemon"]["pid"], filter.id());
    Ok(())
}
