//! Measure 5: the latency of a change by command, from the request to the response, which the daemon sends when the
//! change is stored on disk and active.
//!
//! The daemon runs as a process in its own namespace, and receives the requests at its socket. The results depend on the
//! disk of the machine.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use allowlist_tests::lab::{Program, Testbed};
use allowlist_user::control::{ApplyOptions, Client, PrefixRequest, Request};
use allowlist_user::operation::Operation;
use anyhow::{Result, ensure};

use crate::Effort;
use crate::record::{Record, Sample};

/// The numbers of prefixes in the active list for which changes are measured.
const LISTED: [u32; 3] = [0, 10_000, 100_000];
/// The number of single-prefix changes per round.
const SINGLES: usize = 20;
/// The number of prefixes that a batch change adds.
const BATCH: u32 = 10_000;

pub(crate) const MEASURE: &str = "changes";
pub(crate) const UNIT: &str = "ms";

pub(crate) fn run(record: &mut Record, effort: &Effort) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let lists = if effort.is_quick {
        &LISTED[..2]
    } else {
        &LISTED[..]
    };
    for &listed in lists {
        effort.announce(&format!("changes: {listed} active prefixes"));
        let (testbed, _filter) = filter(listed)?;
        let socket = testbed.scratch.file("socket");
        let client = Client::new(&socket);
        let rounds = effort.rounds;
        let mut add = |subject: &str, round: usize, elapsed: Duration| {
            record.add(Sample {
                measure: MEASURE,
                subject: subject.to_owned(),
                case: "active list".to_owned(),
                prefixes: listed as usize,
                round,
                value: elapsed.as_secs_f64() * 1e3,
                unit: UNIT,
            });
        };
        let singles = (0..rounds * SINGLES).map(|number| vec![address(200, number as u32)]);
        let batches = (0..rounds).map(|_| (0..BATCH).map(|number| address(201, number)).collect());
        for (name, changes) in [
            ("add one", singles.collect::<Vec<_>>()),
            ("add 10,000 at once", batches.collect()),
        ] {
            for (round, prefixes) in changes.iter().enumerate() {
                let start = Instant::now();
                runtime.block_on(change(&client, Operation::Add, prefixes))?;
                add(name, round, start.elapsed());
                if prefixes.len() > 1 {
                    runtime.block_on(change(&client, Operation::Remove, prefixes))?;
                }
            }
        }
    }
    Ok(())
}

/// Starts a daemon with a list of `listed` prefixes.
fn filter(listed: u32) -> Result<(Testbed, Program)> {
    let testbed = Testbed::new()?;
    let mut list = String::from("198.18.0.1\n");
    for number in 0..listed {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(list, "100.{}.{b}.{c}", 64 + a)?;
    }
    testbed.scratch.write("list.txt", list)?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['list']\n\
         [sources.list]\nfile = 'list.txt'\n",
    )?;
    let filter = testbed.filter(&["--config", &config.display().to_string()])?;
    Ok((testbed, filter))
}

fn address(first: u8, number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("{first}.{a}.{b}.{c}")
}

async fn change(
    client: &Client<'_>,
    operation: fn(Vec<PrefixRequest>) -> Request,
    prefixes: &[String],
) -> Result<()> {
    let entry = |prefix: &String| PrefixRequest {
        prefix: prefix.clone(),
        service: Some("web".to_owned()),
        ..PrefixRequest::default()
    };
    let entries = prefixes.iter().map(entry).collect();
    let outcome = client
        .ask(operation(entries), &ApplyOptions::default())
        .await?;
    ensure!(
        outcome.generation > 0,
        "the daemon answered a change without a generation: {outcome:?}"
    );
    Ok(())
}
