//! How long a change by command takes, from the request to the answer, which
//! comes when it is on disk and in force.
//!
//! A daemon runs as a process in a namespace of its own; the requests go over its socket. Times are of this
//! machine and this disk.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use allowlist_tests::lab::{Program, Testbed};
use allowlist_user::control::{ApplyOptions, Client, Operation, PrefixRequest};
use anyhow::{Result, ensure};

use crate::Effort;
use crate::record::{Record, Sample};

/// Prefixes of a list that are in force besides.
const LISTED: [u32; 3] = [0, 10_000, 100_000];
/// Changes of one prefix in a round.
const SINGLES: usize = 20;
/// Prefixes of a batch.
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
        effort.say(&format!("changes: {listed} prefixes before"));
        let (site, _filter) = filter(listed)?;
        let socket = site.scratch.file("socket");
        let client = Client::new(&socket);
        let rounds = effort.rounds;
        let mut add = |subject: &str, round: usize, took: Duration| {
            record.add(Sample {
                measure: MEASURE,
                subject: subject.to_owned(),
                case: "in force before".to_owned(),
                prefixes: listed as usize,
                round,
                value: took.as_secs_f64() * 1e3,
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

/// A daemon with a list of so many prefixes.
fn filter(listed: u32) -> Result<(Testbed, Program)> {
    let site = Testbed::new()?;
    let mut list = String::from("198.18.0.1\n");
    for number in 0..listed {
        let [_, a, b, c] = number.to_be_bytes();
        writeln!(list, "100.{}.{b}.{c}", 64 + a)?;
    }
    site.scratch.write("list.txt", list)?;
    let config = site.scratch.write(
        "allowlist.toml",
        "interfaces = ['eth0']\n[services.web]\nports = ['tcp/443']\nallow = ['list']\n\
         [sources.list]\nfile = 'list.txt'\n",
    )?;
    let filter = site.filter(&["--config", &config.display().to_string()])?;
    Ok((site, filter))
}

fn address(first: u8, number: u32) -> String {
    let [_, a, b, c] = number.to_be_bytes();
    format!("{first}.{a}.{b}.{c}")
}

async fn change(
    client: &Client<'_>,
    wanted: fn(Vec<PrefixRequest>) -> Operation,
    prefixes: &[String],
) -> Result<()> {
    let entry = |prefix: &String| PrefixRequest {
        prefix: prefix.clone(),
        service: Some("web".to_owned()),
        ..PrefixRequest::default()
    };
    let entries = prefixes.iter().map(entry).collect();
    let done = client
        .ask(wanted(entries), &ApplyOptions::default())
        .await?;
    ensure!(done.generation > 0, "{done:?}");
    Ok(())
}
