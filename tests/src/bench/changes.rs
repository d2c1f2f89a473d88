//! `cargo xtask bench --changes`: how long a change by command takes, from the request to the answer, which
//! comes when it is on disk and in force.
//!
//! A daemon runs as a process in a namespace of its own; the requests go over its socket. Times are of this
//! machine and this disk.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use allowlist_tests::lab::{Program, Site};
use allowlist_user::compile::{Names, compile};
use allowlist_user::config::Config;
use allowlist_user::control::{Care, Client, Entry, Wanted};
use allowlist_user::policy::{Feed, Snapshot};
use anyhow::{Context as _, Result, ensure};
use comfy_table::{CellAlignment, Table, presets};
use ipnet::IpNet;
use jiff::Timestamp;

/// Prefixes of a list that are in force besides.
const LISTED: [u32; 3] = [0, 10_000, 100_000];
/// Prefixes of a batch.
const BATCH: u32 = 10_000;

pub(super) fn run(rounds: usize) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["prefixes before", "change", "median", "slowest"]);
    for column in table.column_iter_mut().skip(2) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    for listed in LISTED {
        let (site, _filter) = filter(listed)?;
        let socket = site.scratch.file("socket");
        let client = Client::new(&socket);
        let singles = (0..rounds as u32 * 20).map(|number| vec![address(200, number)]);
        let batches = (0..rounds).map(|_| (0..BATCH).map(|number| address(201, number)).collect());
        let mut compiles: Vec<Duration> = Vec::new();
        for _ in 0..rounds * 20 {
            compiles.push(compile_time(listed)?);
        }
        table.add_row(row(listed, "compile alone", compiles)?);
        for (name, changes) in [
            ("add one", singles.collect::<Vec<_>>()),
            ("add 10,000 at once", batches.collect()),
        ] {
            let mut times = Vec::new();
            for prefixes in &changes {
                let start = Instant::now();
                runtime.block_on(change(&client, Wanted::Add, prefixes))?;
                times.push(start.elapsed());
                if prefixes.len() > 1 {
                    runtime.block_on(change(&client, Wanted::Remove, prefixes))?;
                }
            }
            table.add_row(row(listed, name, times)?);
        }
    }
    println!("{table}");
    Ok(())
}

fn row(listed: u32, name: &str, mut times: Vec<Duration>) -> Result<[String; 4]> {
    times.sort();
    let slowest = times.last().context("there is a round")?;
    Ok([
        listed.to_string(),
        name.to_owned(),
        milliseconds(times[times.len() / 2]),
        milliseconds(*slowest),
    ])
}

/// How long it takes to compile so many prefixes, of which all but one are another source's.
fn compile_time(listed: u32) -> Result<Duration> {
    let text = "[services.web]\nports = ['tcp/443']\nallow = ['a', 'b']\n\
                [sources.a]\nprefixes = ['198.18.0.1']\n[sources.b]\nprefixes = ['198.18.0.2']\n";
    let config = Config::parse(text, Path::new("bench"))?;
    let prefixes = (0..listed).map(|number| {
        let [_, a, b, c] = number.to_be_bytes();
        IpNet::from(IpAddr::from([100, 64 + a, b, c]))
    });
    let one = vec![IpNet::from(IpAddr::from([198, 18, 0, 2]))];
    let now = Timestamp::UNIX_EPOCH;
    let snapshot = Snapshot::from([
        ("a".to_owned(), Feed::new(prefixes.collect(), now)),
        ("b".to_owned(), Feed::new(one, now)),
    ]);
    let start = Instant::now();
    let tables = compile(&config.policy, &snapshot, u32::MAX, &Names::default())?;
    let took = start.elapsed();
    ensure!(
        tables.v4.len() as u32 == listed + 1,
        "it compiled something else"
    );
    Ok(took)
}

/// A daemon with a list of so many prefixes.
fn filter(listed: u32) -> Result<(Site, Program)> {
    let site = Site::new()?;
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
    wanted: fn(Vec<Entry>) -> Wanted,
    prefixes: &[String],
) -> Result<()> {
    let entry = |prefix: &String| Entry {
        prefix: prefix.clone(),
        service: Some("web".to_owned()),
        ..Entry::default()
    };
    let entries = prefixes.iter().map(entry).collect();
    let done = client.ask(wanted(entries), &Care::default()).await?;
    ensure!(done.generation > 0, "{done:?}");
    Ok(())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}
