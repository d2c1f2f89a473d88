//! Repeated SIGHUP while the file changes: the last content becomes active.

use std::thread;

use super::*;

#[test]
fn a_storm_of_reloads_ends_with_the_last_file() -> anyhow::Result<()> {
    require_root!();
    let (site, config) = prepared()?;
    let mut filter = start(&site, &config)?;
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
    let streamed = Streamed::during(&site, &sources, || {
        for number in 0..300 {
            if number % 10 == 0 {
                // In place, as careless editors do: half a file may be read, and is refused or wrong whole.
                let temporary = site.scratch.write("next.toml", &files[number / 10 % 3])?;
                std::fs::rename(temporary, &config)?;
            }
            filter.signal(Signal::SIGHUP)?;
            thread::sleep(Duration::from_millis(3));
        }
        std::fs::write(&config, with("198.19.0.3"))?;
        filter.signal(Signal::SIGHUP)?;
        eventually(|| reaches(&site, "198.19.0.3"))
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    let said = filter.stderr();
    assert!(said.contains("allowlist.toml:1:"), "{said}");
    assert!(!gets_through(&site, "198.19.0.1")? && !gets_through(&site, "198.19.0.2")?);
    let status = site.json("status")?;
    assert_eq!(status["daemon"]["pid"], filter.id());
    Ok(())
}
