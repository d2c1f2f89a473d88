//! The catalogue against `tests/fixtures/feeds`: a small list for every provider that is fetched, and
//! what must come out of it.
//!
//! Lists of JSON, text and CSV are read here in the plainest way, so that the entries' paths are right
//! whatever the program's own readers do. Pages are not: that needs more than a few lines.

use std::fs;
use std::path::PathBuf;

use super::*;

/// What `expected.toml` says of one list.
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
    files: Vec<String>,
    prefixes: Vec<IpNet>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/feeds")
}

fn read(file: &str) -> String {
    fs::read_to_string(folder().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn expected() -> Vec<Expected> {
    let mut lists: BTreeMap<String, Vec<Expected>> =
        toml::from_str(&read("expected.toml")).unwrap_or_else(|error| panic!("{error}"));
    lists.remove("list").expect("there are lists")
}

fn table(list: &Expected) -> Table {
    let provider = provider(&list.provider);
    let codes: Vec<_> = list.regions.iter().map(String::as_str).collect();
    let table = provider.table(&chosen(provider, &codes), &list.parameters);
    table.unwrap_or_else(|error| panic!("{error}"))
}

/// The prefixes of these files, or none of a format that is not read here.
fn prefixes(list: &Expected, table: &Table) -> Option<BTreeSet<IpNet>> {
    if table.contains_key("unzip") {
        return None;
    }
    let tokens_of = |text: &str| -> Option<Vec<String>> {
        let first_field = |line: &str| line.split(',').next().unwrap_or_default().to_owned();
        let lines = text.trim_start_matches('\u{feff}').lines();
        let mut lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        match table["format"].as_str()? {
            "text" => Some(lines.map(str::to_owned).collect()),
            "csv" => {
                assert_eq!(table["column"].as_integer(), Some(0));
                Some(lines.by_ref().map(first_field).collect())
            }
            "json" => Some(select(text, &list_of(table.get("select")))),
            _ => None,
        }
    };
    let mut prefixes = BTreeSet::new();
    for file in &list.files {
        let tokens = tokens_of(&read(file))?;
        prefixes.extend(tokens.iter().map(|token| {
            let prefix = crate::feed::parse_prefix(token.trim());
            prefix.unwrap_or_else(|error| panic!("{file}: {error}"))
        }));
    }
    Some(prefixes)
}

fn select(text: &str, paths: &[&str]) -> Vec<String> {
    let json: serde_json::Value = serde_json::from_str(text).expect("is JSON");
    let found = |path: &&str| {
        let path = JsonPath::parse(path).expect("is a path");
        let nodes = path.query(&json).all().into_iter();
        let strings = nodes.map(|node| node.as_str().expect("is a string").to_owned());
        strings.collect::<Vec<_>>()
    };
    paths.iter().flat_map(found).collect()
}

#[test]
fn every_provider_that_is_fetched_has_a_fixture() {
    let lists = expected();
    let with: BTreeSet<_> = lists.iter().map(|list| list.provider.as_str()).collect();
    let fetched = all().iter().filter(|provider| match &provider.list {
        List::Fetched(source) => source.contains_key("url"),
        List::BuiltIn => false,
    });
    assert_eq!(
        with,
        fetched.map(|provider| provider.name.as_str()).collect()
    );
    let landing = lists.iter().filter_map(|list| list.landing.as_ref());
    let used = lists.iter().flat_map(|list| &list.files).chain(landing);
    let mut used: BTreeSet<_> = used.cloned().collect();
    used.insert("expected.toml".to_owned());
    let there_are = fs::read_dir(folder()).expect("is a folder");
    let there_are = there_are.map(|file| file.expect("is a file").file_name());
    let there_are = there_are.map(|name| name.into_string().expect("is plain"));
    assert_eq!(used, there_are.collect());
}

#[test]
fn the_entries_select_what_is_meant() {
    for list in expected() {
        let name = &list.provider;
        let table = table(&list);
        let urls = list_of(table.get("url")).len();
        assert_eq!(list.files.len(), urls, "{name}: a file for each URL");
        assert!(
            list.prefixes.is_sorted_by(|a, b| a < b),
            "{name}: sorted and distinct"
        );
        if let Some(found) = prefixes(&list, &table) {
            let expected: BTreeSet<_> = list.prefixes.into_iter().collect();
            assert_eq!(
                found, expected,
                "{name} {:?} {:?}",
                list.regions, list.parameters
            );
        }
    }
}

#[test]
fn the_links_that_have_to_be_found_are_the_only_ones() {
    for list in expected() {
        let table = table(&list);
        let discover = table.get("discover").and_then(Value::as_str);
        assert_eq!(
            discover.is_some(),
            list.landing.is_some(),
            "{}",
            list.provider
        );
        let (Some(discover), Some(landing)) = (discover, &list.landing) else {
            continue;
        };
        let discover = Regex::new(discover).expect("is a regular expression");
        let page = read(landing);
        let links = page.split("href=\"").skip(1);
        let links = links.filter_map(|rest| Some(rest.split_once('"')?.0));
        let links: BTreeSet<_> = links.filter(|link| discover.is_match(link)).collect();
        assert_eq!(
            links.into_iter().collect::<Vec<_>>(),
            [list.link.expect("is known")]
        );
    }
}
