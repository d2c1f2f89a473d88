//! `check`: the policy that a start with this configuration would publish, with its failures and warnings.
//!
//! Invariant: the whole report is printed also when a source fails; the failure is in the row of the source.

mod dependencies;
mod interfaces;

use std::process::ExitCode;
use std::sync::Arc;

use allowlist_lists::states::SourceStates;
use allowlist_policy::compile::{IdTable, Tables, compile, require_room};
use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::{AtStart, Feed, Origin, Policy, Snapshot, Source};
use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};

use self::interfaces::Interfaces;
use super::lists::{first_feed, last_good};
use super::{config, error_text, path_warnings, print, print_json, progress, warnings};
use crate::cli::{Check, Paths};
use crate::config::Config;
use crate::effective::KnownIds;
use crate::error_code::coded;
use crate::generation_meta::GenerationMeta;
use crate::report::{self, Plan};

/// The lists that a start would use, with the problems of fetching or reading them.
struct Found {
    lists: SourceStates,
    /// The names of the sources that have no list.
    missing: Vec<String>,
    /// The reasons why last-good lists cannot be read.
    warnings: Vec<String>,
}

pub(super) async fn check(paths: &Paths, check: Check) -> Result<ExitCode> {
    // A configuration from options leaves out SSH on purpose.
    let is_from_file = !check.inline.is_policy();
    let config = config(paths, check.inline)?;
    let mut warnings = warnings(&config);
    if is_from_file {
        warnings.extend(path_warnings(paths, &config));
    }
    let ssh_note = config.ssh_note().filter(|_| is_from_file);
    let mut notes: Vec<String> = ssh_note.into_iter().chain(config.fragment_note()).collect();
    let mut failures = Vec::new();
    let interfaces = Interfaces::read(&config).await;
    warnings.extend(interfaces.warnings);
    notes.extend(interfaces.notes);
    failures.extend(interfaces.failures);
    let found = find(paths, &config, check.offline).await;
    for (name, feed) in found.lists.feeds() {
        let notes = feed.notes.iter();
        warnings.extend(notes.map(|note| format!("sources.{name}: {note}")));
    }
    warnings.extend(config.everyone_warnings(found.lists.feeds()));
    warnings.extend(dependencies::warnings(&config, found.lists.feeds()));
    warnings.extend(found.warnings);
    let problems = found.missing.iter().map(|name| match config.at_start {
        AtStart::Wait => Ok(format!(
            "sources.{name} has no list: a start would not activate the configuration until the list is fetched (at_start = \"wait\")"
        )),
        AtStart::Pass => Err(format!(
            "sources.{name} has no list: until it is fetched, the services that allow this source are open to every address (at_start = \"pass\")"
        )),
        AtStart::Drop => Err(format!(
            "sources.{name} has no list: until it is fetched, this source allows no address (at_start = \"drop\")"
        )),
    });
    for problem in problems {
        match problem {
            Ok(failure) => failures.push(CodedError::new(ErrorCode::MissingLists, failure)),
            Err(warning) => warnings.push(warning),
        }
    }
    let tables = match compiled(&config, &found.lists, &found.missing) {
        Ok(tables) => tables,
        Err(error) => {
            failures.push(coded(&error));
            // The report then has no prefixes.
            compile(&Policy::default(), &Snapshot::new(), 0, &IdTable::default())?
        }
    };
    let ids = KnownIds {
        packets: tables.ids.clone(),
        egress: IdTable::default(),
    };
    let meta = GenerationMeta::new(&ids, &config.policy, &found.lists, None);
    let plan = Plan {
        config: &config,
        meta: &meta,
        tables: &tables,
        warnings: &warnings,
        notes: &notes,
        attach: &interfaces.attach,
        failures: &failures,
        now: Timestamp::now(),
    };
    if check.output.json {
        for warning in &warnings {
            warn!("{warning}");
        }
        for note in &notes {
            info!("note: {note}");
        }
        print_json(&plan.json())?;
    } else {
        print(&report::wrapped(&plan.text()))?;
    }
    match joined(failures) {
        Some(failures) => Err(failures.into()),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Returns one error for all failures: the first one, and a line with its own code for each other one. `None` without
/// failures.
fn joined(failures: Vec<CodedError>) -> Option<CodedError> {
    failures.into_iter().reduce(|mut all, failure| {
        all.error += &format!("\n{}", error_text(&failure.into()));
        all
    })
}

/// Returns the list of every source that a service allows: the fetched list, or the last-good list if the fetch fails.
///
/// With `offline`, sources of the network (HTTP and DNS) are not fetched, and their last-good lists are used.
async fn find(paths: &Paths, config: &Config, offline: bool) -> Found {
    let is_near = |source: &&Source| !matches!(source.origin, Origin::Http(_) | Origin::Names(_));
    let (near, far): (Vec<&Source>, Vec<&Source>) = config.policy.used_sources().partition(is_near);
    let asked = near
        .into_iter()
        .chain(far.iter().copied().filter(|_| !offline));
    let asked: Vec<_> = asked.map(|source| (source.clone(), Vec::new())).collect();
    let mut found = Found {
        lists: SourceStates::default(),
        missing: Vec::new(),
        warnings: Vec::new(),
    };
    let mut without: Vec<(&Source, Option<CodedError>)> = Vec::new();
    if offline {
        without.extend(far.iter().map(|source| (*source, None)));
    }
    for gathered in progress::gather(asked).await {
        let source = gathered.source;
        let feed = gathered
            .answer
            .and_then(|answer| first_feed(&source, answer));
        match feed {
            Ok(feed) => found.lists.set_feed(&source.name, Some(feed)),
            Err(error) => without.extend(
                config
                    .policy
                    .source(&source.name)
                    .map(|source| (source, Some(coded(&error)))),
            ),
        }
    }
    let sources: Vec<&Source> = without.iter().map(|(source, _)| *source).collect();
    let mut last = if sources.is_empty() {
        Snapshot::new()
    } else {
        last_good(paths, &sources).unwrap_or_else(|error| {
            found.warnings.push(format!(
                "the last-good lists cannot be read, so it is unknown which lists a start would use: {error:#}"
            ));
            Snapshot::new()
        })
    };
    without.sort_by(|a, b| a.0.name.cmp(&b.0.name));
    for (source, failure) in without {
        let feed = last.remove(&source.name).map(Arc::unwrap_or_clone);
        if feed.is_none() {
            found.missing.push(source.name.clone());
        }
        found.lists.set_feed(&source.name, feed);
        let failure = failure.or_else(|| {
            let is_missing = found.lists.feed(&source.name).is_none();
            is_missing
                .then(|| CodedError::new(ErrorCode::MissingLists, "no last-good list is on disk; run `allowlist check` without --offline to fetch the list"))
        });
        if let Some(CodedError { error, code }) = failure {
            found
                .lists
                .record_failure(&source.name, code, error, Timestamp::now());
        }
    }
    found
}

/// Compiles the generation that a start would publish; `at_start` defines the prefixes of a source without a list.
fn compiled(config: &Config, lists: &SourceStates, missing: &[String]) -> Result<Tables> {
    let mut feeds = lists.feeds().clone();
    for name in missing {
        let stand_in = Feed::new(config.at_start.stand_in(), Timestamp::now());
        feeds.insert(name.clone(), stand_in.into());
    }
    require_room(&config.policy, &feeds, config.max_prefixes)?;
    Ok(compile(
        &config.policy,
        &feeds,
        u32::MAX,
        &IdTable::default(),
    )?)
}
