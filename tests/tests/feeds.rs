//! Tests of `feed` with pages in the formats of vendors, and with recorded answers of vendors.

use std::path::{Path, PathBuf};
use std::{env, fs};

use allowlist_lists::feed::{self, FeedError, List};
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::{Column, Format, Page, Pattern, Select};
use allowlist_tests::lab::Snapshot;
use expect_test::expect_file;
use jiff::civil::{Date, date};

/// The environment variable with the directory of recorded answers, whose `expected.tsv` has the numbers of prefixes.
const FEEDS: &str = "ALLOWLIST_FEEDS";
const TODAY: Date = date(2026, 11, 24);

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Returns the directory of recorded answers, which are the vendors' property and not in this repository.
fn feeds() -> PathBuf {
    env::var_os(FEEDS).map_or_else(|| root().join("../shared/feeds"), PathBuf::from)
}

#[test]
fn recorded_answers_have_the_expected_number_of_prefixes() {
    let folder = feeds();
    let Ok(table) = fs::read_to_string(folder.join("expected.tsv")) else {
        eprintln!(
            "not checked: {}/expected.tsv does not exist; set {FEEDS} to use another directory",
            folder.display()
        );
        return;
    };
    for row in table.lines().skip(1) {
        let [file, format, selector, count] = row.split('\t').collect::<Vec<_>>()[..] else {
            panic!("{row:?} has other columns");
        };
        let bytes = fs::read(folder.join(file)).expect("a recorded answer");
        let list = feed::parse(&format_of(format, selector), &bytes, TODAY);
        let found = list.map_or_else(
            |error| error.to_string(),
            |list| list.prefixes.len().to_string(),
        );
        assert_eq!(found, count, "{row}");
    }
}

/// Parses the format of a row in the table.
fn format_of(format: &str, selector: &str) -> Format {
    match format {
        "text" => Format::Text,
        "json" => Format::Json(vec![Select::new(selector).expect("a JSONPath")].into()),
        "csv" => {
            let number = selector.strip_prefix("column ").expect("a number");
            Format::Csv(Column::Number(number.parse().expect("a number")).into())
        }
        "html" => {
            let header = selector.split('"').nth(1).expect("a header in quotes");
            Format::Html(Page {
                column: Some(pattern(&format!("^{header}$"))),
                ..Page::default()
            })
        }
        _ => panic!("unknown format {format:?}"),
    }
}

fn pattern(text: &str) -> Pattern {
    Pattern::new(text).expect("a regular expression")
}

fn page(section: &str, region: &str, column: &str) -> Page {
    let given = |text: &str| (!text.is_empty()).then(|| pattern(text));
    Page {
        section: given(section),
        region: given(region),
        column: given(column),
        ..Page::default()
    }
}

/// Parses a fixture; the extension of its name determines the format.
fn read(file: &str, page: &Page, today: Date) -> Result<List, FeedError> {
    let path = root().join("tests/fixtures/pages").join(file);
    let bytes = fs::read(path).expect("a fixture");
    let format = match file.rsplit_once('.') {
        Some((_, "md")) => Format::Markdown(page.clone()),
        _ => Format::Html(page.clone()),
    };
    feed::parse(&format, &bytes, today)
}

#[track_caller]
fn check(file: &str, page: &Page, expected: &str) {
    let list = read(file, page, TODAY).unwrap_or_else(|error| panic!("{file}{page}: {error}"));
    assert_eq!(words(&list), expected, "of {file}{page}");
}

/// Adds the error of a page, which must have the code, to a snapshot.
#[track_caller]
fn check_error(errors: &mut Snapshot, file: &str, page: &Page, code: ErrorCode) {
    let error = read(file, page, TODAY).expect_err("must fail");
    assert_eq!(error.code(), code, "of {file}{page}: {error}");
    errors.text(&format!("{file}{page}"), &format!("[{code}] {error}"), None);
}

#[track_caller]
fn check_count(file: &str, page: &Page, expected: usize) {
    let list = read(file, page, TODAY).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(
        list.prefixes.len(),
        expected,
        "of {file}{page}: {}",
        words(&list)
    );
}

/// Formats a list; single addresses have no prefix length.
fn words(list: &List) -> String {
    let words: Vec<String> = list
        .prefixes
        .iter()
        .map(|prefix| prefix.to_string().trim_end_matches("/32").to_owned())
        .collect();
    words.join(" ")
}

#[test]
fn workato_marks_deprecated_rows_in_two_ways() {
    let mut errors = Snapshot::new();
    let from = "34.226.132.221 52.5.142.59 52.54.43.157";
    let gateways =
        "34.204.129.29 34.228.172.35 34.237.50.149 50.16.101.13 54.83.143.113 54.84.241.116";
    for file in ["workato-2017.md", "workato-2019.md"] {
        check(file, &page("^Traffic from Workato$", "", ""), from);
        check(file, &page("^Traffic to Workato$", "", ""), gateways);
        check_count(file, &Page::default(), 9);
        // Until the announced day, the row is valid.
        let before = read(
            file,
            &page("^Traffic to Workato$", "", ""),
            date(2020, 4, 5),
        )
        .expect("a list");
        assert_eq!(before.prefixes.len(), 9);
        assert_eq!(before.good_until, Some(date(2020, 4, 5)));
        let notes = before.notes.join("\n");
        errors.text(&format!("notes of {file} before"), &notes, None);
        let after = read(
            file,
            &page("^Traffic to Workato$", "", ""),
            date(2020, 4, 6),
        )
        .expect("a list");
        assert_eq!(after.prefixes.len(), 6);
        assert_eq!(after.good_until, None);
        assert_eq!(after.notes.len(), 2, "{:?}", after.notes);
        errors.text(
            &format!("notes of {file} after"),
            &after.notes.join("\n"),
            None,
        );
    }
    // The addresses in the code block are on the page too, and they are also in the list.
    let without_code = Page {
        exclude_code: true,
        ..page("^How a database", "", "")
    };
    check("workato-2017.md", &page("^How a database", "", ""), from);
    check_error(
        &mut errors,
        "workato-2017.md",
        &without_code,
        ErrorCode::ListEmpty,
    );
    errors.check(&expect_file!["snapshots/feeds_workato_deprecated.txt"]);
}

#[test]
fn workato_labels_data_centers() {
    let mut errors = Snapshot::new();
    let from = |region| page("^Traffic from Workato$", region, "");
    check(
        "workato-centers.html",
        &from("^US"),
        "34.226.132.221 52.5.142.59 52.54.43.157",
    );
    check(
        "workato-centers.html",
        &from("^(EU|JP) "),
        "3.65.225.246 3.66.45.94 13.113.30.44 18.176.45.101 18.198.249.58 52.193.168.95",
    );
    check(
        "workato-centers.html",
        &from("^IL data center$"),
        "51.16.210.3 51.17.208.207 51.84.133.176",
    );
    check_count("workato-centers.html", &from(""), 12);
    check_error(
        &mut errors,
        "workato-centers.html",
        &from("^KR"),
        ErrorCode::NothingSelected,
    );
    check_error(
        &mut errors,
        "workato-centers.html",
        &page("^Inbound", "", ""),
        ErrorCode::NothingSelected,
    );
    errors.check(&expect_file!["snapshots/feeds_workato_centers.txt"]);
}

#[test]
fn freshchat_keeps_its_regions_in_each_layout() {
    let files = [
        "freshchat.md",
        "freshchat.html",
        "freshchat-in-one-block.html",
        "freshchat-table.html",
    ];
    for file in files {
        for (region, count) in [
            ("^US$", 14),
            ("^EU$", 10),
            ("^IN$", 9),
            ("^AU$", 10),
            ("^(EU|IN)$", 19),
        ] {
            check_count(file, &page("", region, ""), count);
        }
        check_count(file, &Page::default(), 43);
    }
    check_count("freshchat-table.html", &page("", "^EU$", "^NAT"), 10);
}

#[test]
fn pagerduty_separates_examples_from_the_list() {
    check_count("pagerduty-export.md", &page("^Webhooks$", "", ""), 17);
    check_count("pagerduty-export.md", &page("^Query$", "", ""), 17);
    check_count(
        "pagerduty-export.md",
        &page("^(First|Second) query$", "", ""),
        6,
    );
    check_count("pagerduty-export.md", &Page::default(), 23);
    check(
        "pagerduty.md",
        &page("^US Service Region$", "", ""),
        "44.242.69.192 52.89.71.166 54.213.187.133",
    );
    check(
        "pagerduty.md",
        &page("^EU Service", "", ""),
        "18.159.171.10 18.192.91.93",
    );
}

#[test]
fn tables_have_columns() {
    let mut errors = Snapshot::new();
    check(
        "branch.html",
        &page("", "", "^New IP"),
        "198.51.100.1 198.51.100.2 198.51.100.3",
    );
    check(
        "branch.html",
        &page("", "", "^Old IP"),
        "192.0.2.1 192.0.2.2",
    );
    check_error(
        &mut errors,
        "branch.html",
        &page("", "", "^Next"),
        ErrorCode::NothingSelected,
    );
    check(
        "customer-io.html",
        &page("", "^EU$", ""),
        "198.51.100.1 198.51.100.3 198.51.100.4 198.51.100.9",
    );
    check(
        "customer-io.html",
        &page("", "^Webhooks$", "^US$"),
        "192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4",
    );
    check(
        "customer-io.html",
        &page("", "^Backup$", "^US$"),
        "192.0.2.3 192.0.2.4",
    );
    check(
        "customer-io.html",
        &page("", "^Databases$", ""),
        "192.0.2.9 198.51.100.9",
    );
    check(
        "ibm.md",
        &page("^North America$", "", ""),
        "192.0.2.0/28 192.0.2.16/28",
    );
    check("ibm.md", &page("", "^eu-", ""), "198.51.100.0/28");
    check(
        "freshdesk.html",
        &page("", "^US$", ""),
        "203.0.113.1 203.0.113.2/31 203.0.113.4 203.0.113.232/29",
    );
    check("freshdesk.html", &page("", "EU", ""), "198.51.100.8/30");
    errors.check(&expect_file!["snapshots/feeds_columns.txt"]);
}

#[test]
fn invisible_and_unrelated_text_is_ignored() {
    let mut errors = Snapshot::new();
    check(
        "backblaze.html",
        &page("^Which addresses", "", ""),
        "45.11.36.0/22 104.153.232.0/21 2a0e:1c80:5::/48",
    );
    check(
        "webex.html",
        &page("^IP subnets", "", ""),
        "4.152.214.0/24 66.114.160.0/20 192.0.2.0/24 198.51.100.0/25",
    );
    check_count("webex.html", &page("Revision", "", ""), 2);
    check_error(
        &mut errors,
        "challenge.html",
        &Page::default(),
        ErrorCode::ListEmpty,
    );
    check_error(
        &mut errors,
        "challenge.html",
        &page("Webhooks", "", ""),
        ErrorCode::NothingSelected,
    );
    errors.check(&expect_file!["snapshots/feeds_not_shown.txt"]);
}
