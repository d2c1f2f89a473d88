//! The commands that read lists: `fetch`, `diff`, `history` and `export`. None needs an attached filter or a daemon.

use std::collections::BTreeMap;
use std::path::Path;

use std::sync::Arc;

use allowlist_lists::catalogue::{self, Provider};
use allowlist_lists::list_update::evaluate_update;
use allowlist_lists::rejected::RejectedLists;
use allowlist_lists::state::{StateDir, StateError};
use allowlist_policy::compile::{CompileError, require_room};
use allowlist_policy::error_code::{CodedError, ErrorCode, bail_with};
use allowlist_policy::hints::{self, counted};
use allowlist_policy::{Answer, Feed, Origin, Snapshot, Source};
use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use log::{info, warn};

use super::{CONFIG, config, print, print_json, progress};
use crate::additions::{Additions, SOURCE_PREFIX, source_name};
use crate::cli::{Diff, Export, Fetch, History, Paths};
use crate::config::{Config, provided};
use crate::control::Client;
use crate::error_code::{code_of, coded};
use crate::event_log;
use crate::export::{Listed, export as exported};
use crate::journal::PolicyHistory;
use crate::report::{self, Outcome};

/// Fetches the lists of these sources, and returns them by name.
///
/// # Errors
/// Fails if any fetch fails, or the gate rejects a list. Each failure is logged.
async fn fetch_all<'s>(sources: impl Iterator<Item = &'s Source>) -> Result<Snapshot> {
    let mut feeds = Snapshot::new();
    let mut failed = 0;
    let wanted = sources.map(|source| (source.clone(), Vec::new())).collect();
    for gathered in progress::gather(wanted).await {
        let source = gathered.source;
        match gathered
            .answer
            .and_then(|answer| first_feed(&source, answer))
        {
            Ok(feed) => {
                feeds.insert(source.name, feed.into());
            }
            Err(error) => {
                failed += 1;
                log::error!(target: &target(&error), "{error:#}");
            }
        }
    }
    if failed > 0 {
        bail_with!(
            MissingLists,
            "nothing was exported, because there is no usable list of {}; the errors above state the reasons",
            counted(failed, "source")
        );
    }
    Ok(feeds)
}

/// Returns the target of a log record about `error`: `allowlist::CODE`, from which the logger prints the error's code.
fn target(error: &anyhow::Error) -> String {
    match code_of(error) {
        ErrorCode::Failed => "allowlist".to_owned(),
        code => format!("allowlist::{code}"),
    }
}

/// Returns the list in `answer` after the gate has accepted it as the first list of `source`, without an earlier one.
///
/// # Errors
/// Fails if the gate rejects the list.
pub(super) fn first_feed(source: &Source, answer: Answer) -> Result<Feed> {
    match evaluate_update(source, None, answer, false, Timestamp::now()) {
        Ok(renewal) => Ok(renewal.feed),
        Err(refused) => {
            let (name, origin) = (&source.name, &source.origin);
            let error = format!("source {name}: {origin}: {}", refused.rejection);
            Err(CodedError::new(refused.rejection.code(), error).into())
        }
    }
}

pub(super) async fn fetch(paths: &Paths, options: &Fetch) -> Result<()> {
    let source = source(paths, options)?;
    if let Some(warning) = &source.warning {
        warn!("{}: {warning}", source.name);
    }
    let fetching = allowlist_lists::source::fetch(&source, &[]);
    let Answer::List(fetched) = progress::shown(&source.name, fetching).await? else {
        bail!(
            "source {}: the server answered \"not modified\" to an unconditional request; report it to the vendor",
            source.name
        );
    };
    for note in &fetched.notes {
        warn!("{}: {note}", source.name);
    }
    let feed = Feed::new(fetched.prefixes.clone(), fetched.fetched);
    // A rejected list is printed too: the operator wants to look at it.
    if let Err(refused) = evaluate_update(
        &source,
        None,
        Answer::List(fetched),
        false,
        Timestamp::now(),
    ) {
        warn!(
            "{}: the gate would reject this list: {}",
            source.name, refused.rejection
        );
    }
    if options.output.json {
        print_json(&report::feed_json(&source, &feed))
    } else {
        print(&report::feed_text(&feed))
    }
}

/// Returns the source that `options` names: a source of the configuration, or a provider of the catalogue.
fn source(paths: &Paths, options: &Fetch) -> Result<Source> {
    let name = &*options.name;
    let provider = catalogue::find(name);
    let configured = match (&paths.config, Path::new(CONFIG).exists(), &provider) {
        (Some(file), ..) => Some(Config::load(file)?),
        (None, true, None) => Some(Config::load(Path::new(CONFIG))?),
        _ => None,
    };
    let configured = configured.map(|config| config.policy.sources);
    let is_narrowed = !(options.region.is_empty() && options.parameter.is_empty());
    let own = configured
        .iter()
        .flatten()
        .find(|source| source.name == name);
    match (own, provider) {
        (Some(_), None) if is_narrowed => bail!(
            "--region and --parameter apply to providers, but {name:?} is a source of the configuration; omit them"
        ),
        (Some(source), _) if !is_narrowed => Ok(source.clone()),
        (_, Some(provider)) => provided_source(provider, options),
        _ => {
            let known = configured.iter().flatten();
            let known: Vec<_> = known.map(|source| &*source.name).collect();
            bail_with!(
                UnknownSource,
                "no source or provider is named {name:?}{}; the configuration has {}, and `allowlist providers` lists the catalogue",
                hints::did_you_mean(name, &[&known[..], &provider_names()].concat()),
                if known.is_empty() {
                    "no source".to_owned()
                } else {
                    known.join(", ")
                }
            )
        }
    }
}

fn provided_source(provider: &'static Provider, options: &Fetch) -> Result<Source> {
    let region = |code: &String| {
        provider.region(code).with_context(|| {
            let codes: Vec<_> = provider
                .regions()
                .iter()
                .map(|region| &*region.code)
                .collect();
            let name = &provider.name;
            if codes.is_empty() {
                format!("the provider {name} has no regions; omit --region {code}")
            } else {
                format!(
                    "the provider {name} has no region {code:?}; use one of its regions: {}",
                    codes.join(", ")
                )
            }
        })
    };
    let regions = options
        .region
        .iter()
        .map(region)
        .collect::<Result<Vec<_>>>()?;
    let parameters: BTreeMap<_, _> = options.parameter.iter().cloned().collect();
    provided(&provider.name, provider, &regions, &parameters).map_err(|message| {
        anyhow::anyhow!(
            "cannot fetch the list of {}: {message}; set regions with --region CODE, parameters with --parameter NAME=VALUE",
            provider.name
        )
    })
}

/// Returns the names of all providers of the catalogue.
pub(super) fn provider_names() -> Vec<&'static str> {
    let names = catalogue::all().iter().map(|provider| &*provider.name);
    names.collect()
}

/// Returns the source with this name, or if `name` is `None`, all sources that a service allows.
fn chosen<'c>(config: &'c Config, name: Option<&str>) -> Result<Vec<&'c Source>> {
    let Some(name) = name else {
        return Ok(config.policy.used_sources().collect());
    };
    let source = config.policy.source(name).ok_or_else(|| {
        let names: Vec<_> = config.policy.sources.iter().map(|one| &*one.name).collect();
        let error = format!(
            "there is no source {name:?}{}; the configuration has {}",
            hints::did_you_mean(name, &names),
            names.join(", ")
        );
        CodedError::new(ErrorCode::UnknownSource, error)
    })?;
    Ok(vec![source])
}

/// Reads the last-good lists of these sources from disk, by source name.
///
/// A source is missing from the result if no list of it is stored, or if its list is damaged, which is logged.
///
/// # Errors
/// Fails if a list that exists cannot be read.
pub(super) fn last_good(paths: &Paths, sources: &[&Source]) -> Result<Snapshot> {
    let mut feeds = Snapshot::new();
    let Some(state) = StateDir::find(&paths.state_dir)? else {
        return Ok(feeds);
    };
    for source in sources {
        match state.load_readonly(source) {
            Ok(Some(feed)) => {
                feeds.insert(source.name.clone(), feed.into());
            }
            Ok(None) => {}
            // An unreadable file is an error: the list may be another one than a fetch would return.
            Err(error @ StateError::Io { .. }) => return Err(error.into()),
            Err(error) => warn!("{error}"),
        }
    }
    Ok(feeds)
}

pub(super) async fn diff(paths: &Paths, options: &Diff) -> Result<()> {
    let config = config(paths, crate::cli::InlineConfig::default())?;
    let mut sources = chosen(&config, options.source.as_deref())?;
    // Lists in the configuration or compiled in do not change by a refresh.
    if options.source.is_none() {
        sources.retain(|source| source.can_change());
    }
    let last = last_good(paths, &sources)?;
    let known = |source: &Source| {
        let feed = last.get(&source.name);
        feed.map_or_else(Vec::new, |feed| feed.validators.clone())
    };
    let wanted = sources
        .iter()
        .map(|&source| (source.clone(), known(source)));
    let now = Timestamp::now();
    let mut outcomes = BTreeMap::new();
    for gathered in progress::gather(wanted.collect()).await {
        let source = gathered.source;
        let before = last.get(&source.name);
        let outcome = match gathered.answer {
            Err(error) => Outcome::Failed(coded(&error)),
            Ok(answer) => {
                match evaluate_update(&source, before.map(Arc::as_ref), answer, false, now) {
                    Ok(renewal) => Outcome::Changed(renewal, source.grace),
                    Err(refused) => Outcome::Refused(refused),
                }
            }
        };
        outcomes.insert(source.name, outcome);
    }
    warn_of_room(paths, &config, &outcomes)?;
    let mut rejected = rejected(paths).await;
    rejected
        .sources
        .retain(|name, _| sources.iter().any(|source| source.name == *name));
    if options.output.json {
        print_json(&report::diff_json(&outcomes, &rejected))?;
    } else {
        print(&report::wrapped(&report::diff_text(&outcomes, &rejected)))?;
    }
    let failures = outcomes.values().filter_map(|outcome| match outcome {
        Outcome::Failed(error) => Some(error.code),
        _ => None,
    });
    let codes: Vec<ErrorCode> = failures.collect();
    let Some(&first) = codes.first() else {
        return Ok(());
    };
    let text = format!(
        "the lists of {} of {} cannot be fetched, for the reasons above; the active lists are unchanged",
        codes.len(),
        counted(outcomes.len(), "source")
    );
    Err(CodedError::new(first, text).into())
}

/// Returns the rejected lists of a running daemon; none if no daemon runs, or this user may not query it.
async fn rejected(paths: &Paths) -> RejectedLists {
    let client = Client::new(&paths.socket);
    let report = client.report("rejected", true).await.ok();
    report
        .and_then(|report| serde_json::from_str(&report).ok())
        .unwrap_or_default()
}

/// Logs a warning if a refresh with these outcomes would exceed `max_prefixes`, the limit for all lists together.
///
/// A source without a new list counts with its last-good list.
fn warn_of_room(
    paths: &Paths,
    config: &Config,
    outcomes: &BTreeMap<String, Outcome>,
) -> Result<()> {
    let used: Vec<&Source> = config.policy.used_sources().collect();
    let mut feeds = last_good(paths, &used)?;
    let now = Timestamp::now();
    for source in used {
        let feed = match (&source.origin, outcomes.get(&source.name)) {
            (Origin::Prefixes(own) | Origin::BuiltIn { prefixes: own, .. }, _) => {
                Feed::new(own.clone(), now)
            }
            (_, Some(Outcome::Changed(renewal, _))) => renewal.feed.clone(),
            _ => continue,
        };
        feeds.insert(source.name.clone(), feed.into());
    }
    if let Err(CompileError::TooManyPrefixes {
        prefixes, limit, ..
    }) = require_room(&config.policy, &feeds, config.max_prefixes)
    {
        warn!(
            "after a refresh, all lists together would have {prefixes} prefixes, more than max_prefixes = {limit}: the daemon would reject a list that exceeds the limit; raise max_prefixes"
        );
    }
    Ok(())
}

pub(super) fn history(paths: &Paths, options: &History) -> Result<()> {
    let event_log::Records {
        list_events: mut events,
        damaged,
        ..
    } = event_log::read(&paths.state_dir)?;
    if damaged > 0 {
        warn!(
            "the event log in {} has {damaged} damaged lines, which are skipped, so the history may lack changes",
            paths.state_dir.display()
        );
    }
    if let Some(name) = &options.source {
        events.retain(|event| event.source == *name);
    }
    let events = &events[events.len().saturating_sub(options.count)..];
    if options.output.json {
        return print_json(&serde_json::json!({ "events": events }));
    }
    if events.is_empty() {
        let of = options
            .source
            .as_ref()
            .map_or_else(String::new, |name| format!(" of {name}"));
        info!(
            "the history in {} has no changes{of} yet",
            paths.state_dir.display()
        );
    }
    print(&report::wrapped(&report::history_text(events)))
}

pub(super) async fn export(paths: &Paths, options: &Export) -> Result<()> {
    let mut config = config(paths, crate::cli::InlineConfig::default())?;
    // The export of one configured source needs no file that only root may read.
    let is_added = |name: &str| name.starts_with(SOURCE_PREFIX);
    let additions = if options.source.as_deref().is_none_or(is_added) {
        PolicyHistory::load_additions(&paths.state_dir)?.0
    } else {
        Additions::default()
    };
    config.policy = additions.with(&config.policy);
    let sources = chosen(&config, options.source.as_deref())?;
    let mut feeds = if options.fetch {
        Snapshot::new()
    } else {
        last_good(paths, &sources)?
    };
    for service in additions.services() {
        feeds.extend(
            additions
                .feed(service)
                .map(|feed| (source_name(service), feed.into())),
        );
    }
    let missing = sources
        .iter()
        .filter(|source| !feeds.contains_key(&source.name));
    let missing: Vec<&Source> = missing.copied().collect();
    for source in missing
        .iter()
        .filter(|source| source.can_change() && !options.fetch)
    {
        info!(
            "{}: no last-good list is on disk; fetching the list",
            source.name
        );
    }
    feeds.append(&mut fetch_all(missing.into_iter()).await?);
    let lists: Vec<_> = sources
        .iter()
        .filter_map(|source| {
            let feed = feeds.get(&source.name)?;
            Some((
                source,
                source.origin.to_string(),
                feed.active().collect::<Vec<_>>(),
            ))
        })
        .collect();
    let lists: Vec<_> = lists
        .iter()
        .map(|(source, origin, prefixes)| Listed {
            source: &source.name,
            origin,
            prefixes,
        })
        .collect();
    print(&exported(
        options.format,
        &options.settings(Timestamp::now()),
        &lists,
    )?)
}
