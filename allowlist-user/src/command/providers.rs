//! The catalogue of providers: all entries, one entry as configuration, and the entries that contain an address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use allowlist_lists::catalogue::{self, List, Provider};
use allowlist_lists::state::StateDir;
use allowlist_policy::error_code::{CodedError, ErrorCode, bail_with};
use allowlist_policy::hints;
use allowlist_policy::{Answer, Source};
use anyhow::Result;
use ipnet::IpNet;
use log::warn;

use super::lists::provider_names;
use super::{CONFIG, print, print_json, progress};
use crate::cli::{Output, Paths, Providers, ProvidersCommand};
use crate::config::{Config, provided};
use crate::report::{self, Holder, Holders};

pub(super) async fn providers(paths: &Paths, options: &Providers) -> Result<()> {
    if let Some(ProvidersCommand::Show { name, output }) = &options.show {
        return show_provider(name, *output);
    }
    let word = options.word.as_deref().unwrap_or_default();
    let found: Vec<_> = catalogue::all()
        .iter()
        .filter(|provider| provider.matches(word))
        .collect();
    if let Some(address) = options.address {
        return holders(paths, options, &found, address.to_canonical()).await;
    }
    if options.output.json {
        return print_json(&report::providers_json(&found));
    }
    if found.is_empty() {
        bail_with!(
            UnknownProvider,
            "no provider has {word:?} in its name, title or description; `allowlist providers` lists all"
        );
    }
    print(&report::providers_text(&found))
}

fn show_provider(name: &str, output: Output) -> Result<()> {
    let provider = catalogue::find(name).ok_or_else(|| {
        let hint = hints::did_you_mean(name, &provider_names());
        let error = format!("no provider is named {name:?}{hint}; `allowlist providers` lists all");
        CodedError::new(ErrorCode::UnknownProvider, error)
    })?;
    if output.json {
        print_json(&report::provider_json(provider))
    } else {
        print(&report::provider_text(provider))
    }
}

/// Prints the entries whose lists contain an address: lists that are compiled in, last-good lists of configured
/// sources and, with `--fetch`, the vendors' current lists.
async fn holders(
    paths: &Paths,
    options: &Providers,
    providers: &[&'static Provider],
    address: IpAddr,
) -> Result<()> {
    let mut found = Holders::new(address);
    for provider in providers {
        if matches!(provider.list, List::BuiltIn) {
            found.holders.extend(compiled_in(provider, address));
        }
    }
    let searched = last_good(paths, providers, &mut found)?;
    let fetched: Vec<&'static Provider> = providers
        .iter()
        .filter(|provider| matches!(provider.list, List::Fetched(_)))
        .copied()
        .collect();
    if options.fetch {
        fetch(&fetched, &mut found).await;
    } else {
        for provider in fetched {
            if !searched.contains(&provider.name) {
                found.skip(
                    &provider.name,
                    "fetched lists are searched only with --fetch",
                );
            }
        }
    }
    if options.output.json {
        print_json(&found.json())
    } else {
        print(&found.text())
    }
}

/// Returns the compiled-in prefixes of a provider that contain the address, each with its region.
fn compiled_in(provider: &Provider, address: IpAddr) -> Vec<Holder> {
    let holder = |region: Option<&str>, prefix: &IpNet| Holder {
        provider: provider.name.clone(),
        region: region.map(str::to_owned),
        prefix: *prefix,
        from: "compiled-in",
        source: None,
        at: provider.checked.to_string(),
    };
    let regions = provider.regions().iter();
    let of_regions = regions.flat_map(|region| {
        let prefixes = region.prefixes.iter();
        prefixes.map(|prefix| (Some(&*region.code), prefix))
    });
    let common = provider
        .common_prefixes()
        .iter()
        .map(|prefix| (None, prefix));
    common
        .chain(of_regions)
        .filter(|(_, prefix)| prefix.contains(&address))
        .map(|(region, prefix)| holder(region, prefix))
        .collect()
}

/// Searches the last-good lists of configured sources, and adds the results to `found`. Returns the names of the
/// providers whose lists were searched.
fn last_good(paths: &Paths, providers: &[&Provider], found: &mut Holders) -> Result<Vec<String>> {
    let config = match &paths.config {
        Some(file) => Config::load(file)?,
        None if Path::new(CONFIG).exists() => Config::load(Path::new(CONFIG))?,
        None => return Ok(Vec::new()),
    };
    let state = match StateDir::find(&paths.state_dir) {
        Ok(Some(state)) => state,
        Ok(None) => return Ok(Vec::new()),
        Err(error) => {
            warn!(
                "the last-good lists of configured sources are not searched, so the result may be incomplete: {error}"
            );
            return Ok(Vec::new());
        }
    };
    let mut searched = Vec::new();
    for source in &config.policy.sources {
        let Some(name) = &source.provider else {
            continue;
        };
        if !providers.iter().any(|provider| provider.name == *name) {
            continue;
        }
        match state.load_readonly(source) {
            Ok(Some(feed)) => {
                searched.push(name.clone());
                let mut prefixes: Vec<IpNet> = feed.active().collect();
                prefixes.sort_unstable();
                let at = feed.fetched.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
                found.hold(name, Some(&source.name), "last-good", &at, &prefixes);
            }
            Ok(None) => {}
            Err(error) => warn!(
                "the last-good list of source {} is not searched, so the result may be incomplete: {error}",
                source.name
            ),
        }
    }
    Ok(searched)
}

/// Fetches the lists of all providers that need no parameter, searches them, and adds the results to `found`.
async fn fetch(providers: &[&'static Provider], found: &mut Holders) {
    let mut wanted: Vec<(Source, Vec<_>)> = Vec::new();
    for provider in providers {
        let every: Vec<_> = provider.regions().iter().collect();
        match provided(&provider.name, provider, &every, &BTreeMap::new()) {
            Ok(source) => wanted.push((source, Vec::new())),
            Err(reason) => found.skip(&provider.name, &reason),
        }
    }
    for gathered in progress::gather(wanted).await {
        let name = gathered.source.name;
        match gathered.answer {
            Ok(Answer::List(list)) => {
                let at = list.fetched.strftime("%Y-%m-%d %H:%M:%SZ").to_string();
                found.hold(&name, None, "fetched", &at, &list.prefixes);
            }
            Ok(Answer::Unchanged(_)) => found.skip(&name, "the server sent no list"),
            Err(error) => found.skip(&name, &format!("{error:#}")),
        }
    }
}
