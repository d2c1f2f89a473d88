//! Kills at random moments during changes of lists, added prefixes and configurations; restarts; upgrades over pins of
//! older versions.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use allowlist_common::abi::VERSION;

use super::*;

/// The acknowledged prefixes, and the change without an answer.
#[derive(Default)]
struct Model {
    added: BTreeSet<String>,
    in_flight: Option<(String, bool)>,
}

impl Model {
    /// Changes one prefix after the other until the daemon has ended.
    fn change(
        &mut self,
        testbed: &Testbed,
        random: &mut fastrand::Rng,
        stop: &AtomicBool,
    ) -> anyhow::Result<()> {
        while !stop.load(Ordering::Relaxed) {
            let prefix = format!("198.18.0.{}/32", random.u8(0..16));
            let adds = !self.added.contains(&prefix);
            self.in_flight = Some((prefix.clone(), adds));
            let ended = if adds {
                testbed.run(&["add", &prefix, "--service", "web"])?
            } else {
                testbed.run(&["remove", &prefix])?
            };
            if ended.code != Some(0) {
                return Ok(()); // the daemon was killed, or is not ready yet
            }
            self.apply();
        }
        Ok(())
    }

    /// Applies the change in flight to the model.
    fn apply(&mut self) {
        match self.in_flight.take() {
            Some((prefix, true)) => self.added.insert(prefix),
            Some((prefix, false)) => self.added.remove(&prefix),
            None => false,
        };
    }

    /// Requires that these are the acknowledged prefixes. The change in flight may have been applied or not.
    fn check(&mut self, found: &BTreeSet<String>) -> anyhow::Result<()> {
        if *found != self.added {
            self.apply();
        }
        self.in_flight = None;
        ensure!(*found == self.added, "{found:?}, not {:?}", self.added);
        Ok(())
    }
}

/// Returns the number of kills.
fn kills() -> u32 {
    let is_long = std::env::var_os("ALLOWLIST_LONG").is_some();
    if is_long { 200 } else { 20 }
}

#[test]
fn kills_at_random_moments_lose_nothing() -> anyhow::Result<()> {
    require_root!();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let (testbed, config) = prepared()?;
    let mut model = Model::default();
    let mut filter = start(&testbed, &config)?;
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for round in 0..kills() {
            let moment = Duration::from_millis(random.u64(1..400));
            let stop = AtomicBool::new(false);
            let mut changes = random.fork();
            thread::scope(|scope| {
                let changing = scope.spawn(|| model.change(&testbed, &mut changes, &stop));
                // Lists and configurations change too.
                testbed.scratch.write(
                    "list.txt",
                    friends_and(&format!("198.19.0.{}", round % 250)),
                )?;
                if round % 3 == 0 {
                    let other = format!(
                        "# {round}\n{CONFIG}\n[services.extra]\nports = ['udp/{}']\nallow = ['list']\n",
                        1000 + round
                    );
                    std::fs::write(&config, other)?;
                    filter.signal(Signal::SIGHUP)?;
                }
                thread::sleep(moment);
                filter.stop(Signal::SIGKILL, SOON)?;
                stop.store(true, Ordering::Relaxed);
                changing.join().expect("changing does not panic")
            })?;
            filter = start(&testbed, &config)?;
            let found = added(&testbed)?;
            model
                .check(&found)
                .with_context(|| format!("seed {seed}, round {round}, after {moment:?}"))?;
            let in_kernel = added_in_kernel(&testbed)?;
            ensure!(
                in_kernel == found,
                "seed {seed}, round {round}: {in_kernel:?} in the kernel, {found:?} on disk"
            );
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    streamed.check_counted(&testbed)?;
    let passed = &testbed.json("status")?["sources"]["list"]["passed_packets"];
    assert_eq!(*passed, streamed.rounds * 2, "a packet was not counted");
    Ok(())
}

#[test]
fn restarts_and_upgrades_lose_nothing() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let mut filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    done(&testbed, &["mode", "observe"]);
    done(&testbed, &["mode", "enforce"]);
    let pins = testbed.scratch.pin_dir();
    let current = pins.join(format!("v{VERSION}"));
    let sources = [FRIENDS, STRANGERS].concat();
    let streamed = Streamed::during(&testbed, &sources, || {
        for before in [None, Some("v2"), None, Some("v1"), Some("v2")] {
            filter.stop(Signal::SIGTERM, SOON)?;
            if let Some(before) = before {
                std::fs::rename(&current, pins.join(before))?;
            }
            filter = start(&testbed, &config)?;
            ensure!(
                added_in_kernel(&testbed)?.contains("198.18.0.1/32"),
                "{before:?}"
            );
            if let Some(before) = before {
                ensure!(!pins.join(before).exists(), "{before} still exists");
            }
        }
        Ok(())
    })?;
    streamed.check(&FRIENDS, &STRANGERS);
    assert!(gets_through(&testbed, "198.18.0.1")?);
    Ok(())
}

#[test]
fn a_second_daemon_names_the_first() -> anyhow::Result<()> {
    require_root!();
    let (testbed, config) = prepared()?;
    let filter = start(&testbed, &config)?;
    done(&testbed, &["add", "198.18.0.1", "--service", "web"]);
    let second = testbed.run(&["run", "--config", &config])?;
    assert_eq!(second.code, Some(1), "{second:?}");
    let holder = format!("process {} (allowlist)", filter.id());
    assert!(
        second.stderr.contains("error[already-running]: ") && second.stderr.contains(&holder),
        "{second:?}"
    );
    assert!(gets_through(&testbed, "198.18.0.1")?);
    assert_eq!(testbed.json("status")?["daemon"]["pid"], filter.id());
    Ok(())
}
