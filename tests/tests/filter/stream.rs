//! Restarts, kills and adoptions, with datagrams running all the while: none of a friend's is lost,
//! none of a stranger's gets through.

use anyhow::ensure;

use super::*;

/// Datagrams with running numbers from each address, all the while that a task takes.
pub(crate) struct Streamed {
    /// How many were sent from each address.
    pub(crate) rounds: u64,
    /// The numbers that the host got, by address.
    received: BTreeMap<IpAddr, Vec<u64>>,
}

impl Streamed {
    pub(crate) fn during(
        site: &Site,
        sources: &[&str],
        task: impl FnOnce() -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        /// Also when the task panics: else the sender would be waited for in vain.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }

        let inbox = inbox(site, PROTECTED)?;
        let sender = FrameSender::new(&site.peer, "eth0")?;
        let stopped = AtomicBool::new(false);
        let send = || {
            let mut rounds = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                for source in sources {
                    sender.send(&datagram(ip(source), PROTECTED, &rounds.to_be_bytes()))?;
                }
                rounds += 1;
                thread::sleep(Duration::from_micros(250));
            }
            anyhow::Ok(rounds)
        };
        let rounds = thread::scope(|scope| {
            let sending = scope.spawn(send);
            let stop = Stop(&stopped);
            task()?;
            drop(stop);
            sending.join().expect("sending does not panic")
        })?;
        let number = |payload: Vec<u8>| Some(u64::from_be_bytes(payload.try_into().ok()?));
        let received = drain(&inbox)?
            .into_iter()
            .map(|(source, payloads)| (source, payloads.into_iter().filter_map(number).collect()));
        Ok(Self {
            rounds,
            received: received.collect(),
        })
    }

    pub(crate) fn from(&self, source: &str) -> &[u64] {
        self.received.get(&ip(source)).map_or(&[], Vec::as_slice)
    }

    /// Of the two friends and two strangers each datagram was counted once, by what became of it.
    pub(crate) fn check_counted(&self, site: &Site) -> anyhow::Result<()> {
        let sent = self.rounds * 2;
        let expected = json!({"pass allowed": sent, "drop not-allowed": sent});
        check_counted(site, "eth0", &expected)
    }

    /// All of these, and nothing of those.
    #[track_caller]
    pub(crate) fn check(&self, always: &[&str], never: &[&str]) {
        assert!(self.rounds > 100, "{} rounds are no stream", self.rounds);
        for source in always {
            let received = self.from(source);
            let lost: Vec<u64> = (0..self.rounds)
                .filter(|n| received.binary_search(n).is_err())
                .collect();
            assert!(
                lost.is_empty(),
                "of {} from {source} these were lost: {lost:?}",
                self.rounds
            );
        }
        for source in never {
            assert_eq!(self.from(source), [0; 0], "{source}");
        }
    }
}

/// Whatever becomes of the program, no packet is judged by anything but a whole policy.
#[test]
fn restarts_lose_nothing_and_let_nothing_in() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
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

    streamed.check_counted(&site)?;
    let status = site.json("status")?;
    assert_eq!(
        status["sources"]["cli"]["passed_packets"],
        streamed.rounds * 2
    );
    assert_eq!(status["generation"], 10);
    Ok(())
}

/// Killed while it starts, at one moment after the other: a half-made generation is nobody's.
#[test]
fn kills_in_the_middle_of_a_publish_do_no_harm() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
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
