//! Compares sources: their keys, and the prefixes of their lists.

use std::collections::BTreeMap;
use std::sync::Arc;

use allowlist_policy::difference::Difference;
use allowlist_policy::hints::counted;
use allowlist_policy::{Feed, Gate, Http, Lookup, Origin, Pattern, Policy, Source, public_url};
use ipnet::IpNet;

use super::{EffectiveState, Lines, or_none, path, size, time};

/// Adds lines for the differences between the sources of two effective states.
pub(super) fn compare(old: &EffectiveState, new: &EffectiveState, lines: &mut Lines) {
    let by_name = |policy: &'_ Policy| -> BTreeMap<String, Source> {
        let named = |source: &Source| (source.name.clone(), source.clone());
        policy.sources.iter().map(named).collect()
    };
    let before = by_name(&old.config.policy);
    let after = by_name(&new.config.policy);
    for (name, source) in &after {
        match before.get(name) {
            None => {
                let count = prefixes(new, source).map_or_else(String::new, |list| {
                    format!(", {}", counted(list.len(), "prefix"))
                });
                lines.push(format!("sources.{name}: added, {}{count}", source.origin));
            }
            Some(before) => {
                keys(before, source, lines);
                lists(old, before, new, source, lines);
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        lines.push(format!("sources.{name}: removed"));
    }
}

/// Returns the active prefixes of a source in this state, sorted if it has a list; `None` if the source has no list
/// yet.
fn prefixes(state: &EffectiveState, source: &Source) -> Option<Vec<IpNet>> {
    match (&source.origin, state.sources.feed(&source.name)) {
        (_, Some(feed)) => Some(feed.sorted_active()),
        (Origin::Prefixes(prefixes) | Origin::BuiltIn { prefixes, .. }, None) => {
            Some(prefixes.clone())
        }
        _ => None,
    }
}

/// Returns whether both lists are the same object, so that their prefixes need no comparison.
fn is_shared(old: Option<&Arc<Feed>>, new: Option<&Arc<Feed>>) -> bool {
    matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new))
}

fn lists(
    old: &EffectiveState,
    before: &Source,
    new: &EffectiveState,
    after: &Source,
    lines: &mut Lines,
) {
    let name = &after.name;
    let [list_before, list_after] = [old, new].map(|state| state.sources.feeds().get(name));
    if before.origin == after.origin && is_shared(list_before, list_after) {
        return;
    }
    let [old, new] = [prefixes(old, before), prefixes(new, after)].map(Option::unwrap_or_default);
    let Difference { added, removed } = Difference::between(&old, &new);
    lines.prefixes(&added, |prefix| format!("sources.{name}: added {prefix}"));
    lines.prefixes(&removed, |prefix| {
        format!("sources.{name}: removed {prefix}")
    });
}

fn keys(old: &Source, new: &Source, lines: &mut Lines) {
    let Source {
        name,
        origin,
        provider,
        regions,
        direction,
        every,
        gate,
        grace,
        max_age,
        warning: _, // follows from the catalogue's entry
    } = old;
    let first_line = lines.0.len();
    let key = |key: &str| format!("sources.{name}.{key}");
    let text = |text: &Option<String>| or_none(text.clone().unwrap_or_default());
    lines.value(&key("provider"), provider, &new.provider, text);
    lines.set(&key("regions"), regions, &new.regions);
    lines.word(&key("direction"), direction, &new.direction);
    lines.value(&key("every"), every, &new.every, time);
    lines.value(&key("grace"), grace, &new.grace, time);
    lines.value(&key("max_age"), max_age, &new.max_age, time);
    gate_keys(gate, &new.gate, &key, lines);
    match (origin, &new.origin) {
        (Origin::Http(old), Origin::Http(new)) => http(old, new, &key, lines),
        (Origin::Names(old), Origin::Names(new)) => lookup(old, new, &key, lines),
        (
            Origin::File {
                path: old,
                format: of_old,
            },
            Origin::File {
                path: new,
                format: of_new,
            },
        ) => {
            lines.value(&key("file"), old, new, |path| path.display().to_string());
            lines.plain(&key("format"), of_old, of_new);
        }
        // `lists` compares their prefixes.
        (Origin::Prefixes(_), Origin::Prefixes(_)) | (Origin::Added, Origin::Added) => {}
        (old, new) => lines.plain(&format!("sources.{name}"), &Shown(old), &Shown(new)),
    }
    // Reports changes that have no line above. `lists` compares static prefixes.
    let mut same_list = new.clone();
    if let (Origin::Prefixes(_), Origin::Prefixes(_)) = (origin, &new.origin) {
        same_list.origin = origin.clone();
    }
    if lines.0.len() == first_line && same_list != *old {
        lines.push(format!("sources.{name}: changed"));
    }
}

/// An origin of a source that is compared with all its details, but displayed without them.
#[derive(PartialEq)]
struct Shown<'a>(&'a Origin);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(out)
    }
}

fn gate_keys(old: &Gate, new: &Gate, key: &impl Fn(&str) -> String, lines: &mut Lines) {
    let Gate {
        min,
        max,
        must_cover,
        min_prefix_len_v4,
        min_prefix_len_v6,
        allow_special_use,
        max_shrink,
        max_growth,
        growth_window,
        max_addresses,
        notable_addresses: _, // follows from the other keys
    } = old;
    lines.plain(&key("min"), min, &new.min);
    lines.value(&key("max"), max, &new.max, |max| {
        max.map_or_else(|| "none".to_owned(), |max| max.to_string())
    });
    lines.set(&key("must_cover"), must_cover, &new.must_cover);
    lines.plain(
        &key("min_prefix_len (IPv4)"),
        min_prefix_len_v4,
        &new.min_prefix_len_v4,
    );
    lines.plain(
        &key("min_prefix_len (IPv6)"),
        min_prefix_len_v6,
        &new.min_prefix_len_v6,
    );
    lines.plain(
        &key("allow_special_use"),
        allow_special_use,
        &new.allow_special_use,
    );
    lines.value(&key("max_shrink"), max_shrink, &new.max_shrink, |part| {
        (f64::from(*part) / 1000.0).to_string()
    });
    lines.value(&key("max_growth"), max_growth, &new.max_growth, |part| {
        (f64::from(*part) / 1000.0).to_string()
    });
    lines.value(
        &key("growth_window"),
        growth_window,
        &new.growth_window,
        time,
    );
    let (old, new) = (max_addresses, new.max_addresses);
    lines.plain(&key("max_addresses (IPv4)"), &old.v4, &new.v4);
    lines.plain(&key("max_addresses (IPv6)"), &old.v6, &new.v6);
}

fn http(old: &Http, new: &Http, key: &impl Fn(&str) -> String, lines: &mut Lines) {
    let Http {
        urls,
        format,
        discover,
        unzip,
        headers,
        bearer_file,
        allow_plain_http,
        ca_file,
        timeout,
        max_bytes,
        ca_only,
        allow_private,
        newest,
    } = old;
    lines.value(&key("url"), urls, &new.urls, |urls| {
        let urls: Vec<_> = urls.iter().map(public_url).collect();
        urls.join(" ")
    });
    lines.plain(&key("format"), format, &new.format);
    let discover: Vec<_> = discover.iter().cloned().collect();
    let new_discover = new.discover.iter().cloned().collect();
    for (name, old, new) in [
        ("discover", &discover, &new_discover),
        ("unzip", unzip, &new.unzip),
    ] {
        lines.value(&key(name), old, new, |patterns: &Vec<Pattern>| {
            let patterns = patterns
                .iter()
                .map(|pattern| format!("{:?}", pattern.as_str()));
            or_none(patterns.collect::<Vec<_>>().join(" "))
        });
    }
    // Values of headers may be secret.
    lines.value(&key("headers"), headers, &new.headers, |headers| {
        let names: Vec<_> = headers.iter().map(|(name, _)| &**name).collect();
        or_none(names.join(" "))
    });
    lines.value(&key("bearer_file"), bearer_file, &new.bearer_file, path);
    lines.plain(
        &key("allow_plain_http"),
        allow_plain_http,
        &new.allow_plain_http,
    );
    lines.value(&key("ca_file"), ca_file, &new.ca_file, path);
    lines.value(&key("timeout"), timeout, &new.timeout, time);
    lines.value(&key("max_size"), max_bytes, &new.max_bytes, size);
    lines.plain(&key("ca_only"), ca_only, &new.ca_only);
    lines.plain(&key("allow_private"), allow_private, &new.allow_private);
    lines.plain(&key("newest"), newest, &new.newest);
}

fn lookup(old: &Lookup, new: &Lookup, key: &impl Fn(&str) -> String, lines: &mut Lines) {
    let Lookup {
        names: _,
        wildcards: _,
        believes_answers,
        families,
        resolvers,
        ttl_floor,
        timeout,
    } = old;
    lines.set(&key("names"), &old.patterns(), &new.patterns());
    lines.value(
        &key("answers"),
        believes_answers,
        &new.believes_answers,
        |believes| if *believes { "believe" } else { "poll" }.to_owned(),
    );
    lines.value(&key("families"), families, &new.families, |families| {
        let families: Vec<_> = families.iter().map(|one| format!("{one:?}")).collect();
        families.join(" ").to_ascii_lowercase()
    });
    lines.set(&key("resolvers"), resolvers, &new.resolvers);
    lines.value(&key("ttl_floor"), ttl_floor, &new.ttl_floor, time);
    lines.value(&key("timeout"), timeout, &new.timeout, time);
}
