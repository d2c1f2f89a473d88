//! All lists of the catalogue: fetched over HTTP and parsed with the options of their providers.
//!
//! The lists in `fixtures/feeds` are this project's own, in the vendors' formats, with the difficulties of each, and usually
//! with documentation addresses. `expected.toml` there has the expected prefixes, which must pass the provider's gate.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use allowlist_lists::catalogue::{self, List, Region};
use allowlist_lists::feed;
use allowlist_lists::gate::judge;
use allowlist_lists::source;
use allowlist_policy::{Origin, Source};
use allowlist_tests::vendor::{Answer, Vendor};
use allowlist_user::config::provided;
use anyhow::{Context, anyhow, bail, ensure};
use ipnet::IpNet;
use serde::Deserialize;

/// An entry of `expected.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    provider: String,
    #[serde(default)]
    regions: Vec<String>,
    #[serde(default)]
    parameters: BTreeMap<String, String>,
    landing: Option<String>,
    link: Option<String>,
    /// The files of the URLs.
    files: Vec<String>,
    prefixes: Vec<IpNet>,
}

#[derive(Deserialize)]
struct File {
    list: Vec<Expected>,
}

fn fixture(name: &str) -> anyhow::Result<Vec<u8>> {
    fs::read(folder().join(name)).with_context(|| name.to_owned())
}

fn expected() -> anyhow::Result<Vec<Expected>> {
    let text = String::from_utf8(fixture("expected.toml")?)?;
    Ok(toml::from_str::<File>(&text)?.list)
}

fn source_of(list: &Expected) -> anyhow::Result<Source> {
    let provider =
        catalogue::find(&list.provider).context("the provider is not in the catalogue")?;
    let region = |code: &String| provider.region(code).with_context(|| code.clone());
    let regions = list
        .regions
        .iter()
        .map(region)
        .collect::<anyhow::Result<Vec<&Region>>>()?;
    provided("vendor", provider, &regions, &list.parameters).map_err(|error| anyhow!(error))
}

/// Serves the files of a list from `vendor`, and points the source to it.
fn serve(source: &mut Source, list: &Expected, vendor: &Vendor) -> anyhow::Result<()> {
    let Origin::Http(http) = &mut source.origin else {
        bail!("the source is not fetched");
    };
    ensure!(
        http.urls.len() == list.files.len(),
        "{} URLs",
        http.urls.len()
    );
    // The link leads to the vendor's own host, so only its discovery is tested.
    if let Some(pattern) = http.discover.take() {
        let landing = list
            .landing
            .as_ref()
            .context("the fixture has no landing page")?;
        let link = feed::find_link(&fixture(landing)?, &pattern)?;
        ensure!(Some(&link) == list.link.as_ref(), "found {link}");
    }
    // The test has no token.
    http.bearer_file = None;
    http.urls.clear();
    for file in &list.files {
        let body = fixture(file)?;
        let path: &'static str = format!("/{file}").leak();
        vendor.answer(path, Answer::Body("application/octet-stream", body));
        http.urls.push(vendor.url(path).parse()?);
    }
    Ok(())
}

/// Checks a list as the first list of its source. Fixtures have fewer prefixes than the vendors' lists.
fn pass_gate(source: &Source, list: &[IpNet]) -> anyhow::Result<()> {
    let mut source = source.clone();
    let mut public: Vec<IpNet> = list.iter().map(|prefix| as_public(*prefix)).collect();
    public.sort_unstable();
    source.gate.min = source.gate.min.min(list.len());
    Ok(judge(&source, None, &public, false)?)
}

/// Maps a documentation prefix to a public prefix of the same length; returns other prefixes unchanged.
fn as_public(prefix: IpNet) -> IpNet {
    match prefix {
        IpNet::V4(v4) => {
            let [a, b, c, d] = v4.network().octets();
            let (a, b) = match (a, b, c) {
                (192, 0, 2) => (52, 0),
                (198, 51, 100) => (52, 51),
                (203, 0, 113) => (52, 203),
                (a, b, _) => (a, b),
            };
            ipnet::Ipv4Net::new_assert([a, b, c, d].into(), v4.prefix_len()).into()
        }
        IpNet::V6(v6) => {
            let mut parts = v6.network().segments();
            if parts[..2] == [0x2001, 0xdb8] {
                (parts[0], parts[1]) = (0x2600, 0x1f00);
            }
            ipnet::Ipv6Net::new_assert(parts.into(), v6.prefix_len()).into()
        }
    }
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/feeds")
}

#[test]
fn expected_lists_are_complete() -> anyhow::Result<()> {
    let lists = expected()?;
    let landing = lists.iter().filter_map(|list| list.landing.as_ref());
    let used = lists.iter().flat_map(|list| &list.files).chain(landing);
    let mut used: BTreeSet<_> = used.cloned().collect();
    used.insert("expected.toml".to_owned());
    let there_are = fs::read_dir(folder())?.map(|file| Ok(file?.file_name().into_string()));
    let there_are: anyhow::Result<Result<BTreeSet<_>, _>> = there_are.collect();
    assert_eq!(there_are?, Ok(used));
    for list in lists {
        let is_sorted = list.prefixes.is_sorted_by(|a, b| a < b);
        assert!(is_sorted && !list.prefixes.is_empty(), "{}", list.provider);
    }
    Ok(())
}

#[test]
fn lists_are_fetched_and_parsed() -> anyhow::Result<()> {
    let vendor = Vendor::start([])?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut wrong = Vec::new();
    let mut tried = BTreeSet::new();
    for list in expected()? {
        let what = format!("{} {:?} {:?}", list.provider, list.regions, list.parameters);
        tried.insert(list.provider.clone());
        let mut judged = Ok(());
        let fetched = source_of(&list).and_then(|mut source| {
            serve(&mut source, &list, &vendor)?;
            judged = pass_gate(&source, &list.prefixes);
            match runtime.block_on(source::fetch(&source, &[]))? {
                source::Answer::List(fetched) => Ok(fetched),
                source::Answer::Unchanged(_) => bail!("the answer is unchanged"),
            }
        });
        match fetched {
            Ok(fetched) if fetched.prefixes == list.prefixes => {}
            Ok(fetched) => wrong.push(format!(
                "{what}:\n  found    {:?}\n  expected {:?}\n  notes {:?}",
                fetched.prefixes, list.prefixes, fetched.notes
            )),
            Err(error) => wrong.push(format!("{what}: {error:#}")),
        }
        wrong.extend(judged.err().map(|refusal| format!("{what}: {refusal:#}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for provider in catalogue::all() {
        let names_only = |table: &toml::Table| table.contains_key("names");
        let is_fetched = matches!(&provider.list, List::Fetched(table) if !names_only(table));
        assert!(
            !is_fetched || tried.contains(&provider.name),
            "{} has no fixture",
            provider.name
        );
    }
    Ok(())
}
