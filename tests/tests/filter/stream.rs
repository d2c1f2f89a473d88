//! Restarts and kills under a stream of datagrams: no datagram of a friend is lost, and none of a stranger passes.

use anyhow::ensure;

use super::*;

/// A complete policy decides each packet, also during restarts.
#[test]
fn restarts_neither_drop_nor_admit_packets() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let others = ["198.18.0.0/16", "198.19.0.0/16", "2001:db8:9::/48"];
    let start =
        |other| testbed.filter(&[&INLINE_OPTIONS[..], &["--keep", "--allow", other]].concat());
    let mut filter = start("198.17.0.0/16")?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
            for other in others {
                filter.stop(signal, SOON)?;
                filter = start(other)?;
                let list = testbed.json("list")?;
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
    check_counted_on(&testbed, &streamed, 10)?;
    Ok(())
}

/// Checks that each packet was counted once through all generations up to this one, and those of friends for their source.
pub(super) fn check_counted_on(
    testbed: &Testbed,
    streamed: &Streamed,
    generation: u32,
) -> anyhow::Result<()> {
    streamed.check_counted(testbed)?;
    let status = testbed.json("status")?;
    assert_eq!(
        status["sources"]["cli"]["passed_packets"],
        streamed.rounds * 2
    );
    assert_eq!(status["generation"], generation);
    Ok(())
}

/// Kills at various moments of a start: an incomplete generation is never used.
#[test]
fn kills_during_a_publish_are_harmless() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['udp/443']\nallow = ['many']\n\
         [sources.many]\nfile = 'many.txt'\n",
    )?;
    // Enough prefixes that writing the tables takes some time.
    let many = (0..20_000).map(|n| format!("198.18.{}.{}\n", n >> 8, n & 0xff));
    let many: String = many
        .chain(FRIENDS.map(|friend| format!("{friend}\n")))
        .collect();
    testbed.scratch.write("many.txt", many)?;
    let arguments = ["run", "--config", &config.display().to_string()].map(str::to_owned);
    drop(testbed.filter(&arguments[1..])?);
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for moment in 1..=20 {
            let mut filter = Program::start(testbed.command(&arguments)?)?;
            thread::sleep(Duration::from_millis(20 * moment));
            filter.stop(Signal::SIGKILL, SOON)?;
        }
        drop(testbed.filter(&arguments[1..])?);
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&testbed)?;
    Ok(())
}
