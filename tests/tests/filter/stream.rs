//! Restarts, kills and adoptions, with datagrams running all the while: none of a friend's is lost,
//! none of a stranger's gets through.

use anyhow::ensure;

use super::*;

/// A complete policy decides about every packet, also during restarts.
#[test]
fn restarts_neither_drop_nor_admit_packets() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let others = ["198.18.0.0/16", "198.19.0.0/16", "2001:db8:9::/48"];
    let start = |other| site.filter(&[&SMALL[..], &["--keep", "--allow", other]].concat());
    let mut filter = start("198.17.0.0/16")?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&site, &sources, || {
        for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
            for other in others {
                filter.stop(signal, SOON)?;
                filter = start(other)?;
                let list = site.json("list")?;
                let prefixes = list["prefixes"]
                    .as_array()
                    .context("prefixes is an array")?;
                ensure!(
                    prefixes.iter().any(|entry| entry["prefix"] == other),
                    "{list}"
                );
            }
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    check_counted_on(&site, &streamed, 10)?;
    Ok(())
}

/// Through all generations up to this one, every packet is counted once, and those of friends by their source.
pub(super) fn check_counted_on(
    site: &Testbed,
    streamed: &Streamed,
    generation: u32,
) -> anyhow::Result<()> {
    streamed.check_counted(site)?;
    let status = site.json("status")?;
    assert_eq!(
        status["sources"]["cli"]["passed_packets"],
        streamed.rounds * 2
    );
    assert_eq!(status["generation"], generation);
    Ok(())
}

/// Killed while it starts, at one moment after the other: a half-made generation is nobody's.
#[test]
fn kills_during_a_publish_are_harmless() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let config = site.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['many']\n\
         [sources.many]\nfile = 'many.txt'\n",
    )?;
    // So many that filling the tables takes a while.
    let many = (0..20_000).map(|n| format!("198.18.{}.{}\n", n >> 8, n & 0xff));
    let many: String = many
        .chain(FRIENDS.map(|friend| format!("{friend}\n")))
        .collect();
    site.scratch.write("many.txt", many)?;
    let arguments = ["run", "--config", &config.display().to_string()].map(str::to_owned);
    drop(site.filter(&arguments[1..])?);
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&site, &sources, || {
        for moment in 1..=20 {
            let mut filter = Program::start(site.command(&arguments)?)?;
            thread::sleep(Duration::from_millis(20 * moment));
            filter.stop(Signal::SIGKILL, SOON)?;
        }
        drop(site.filter(&arguments[1..])?);
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&site)?;
    Ok(())
}
