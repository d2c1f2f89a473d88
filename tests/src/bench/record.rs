//! What was measured: every value as it came, and what is said of them.
//!
//! A sample is a row of a file of its measure, `target/bench/<measure>.csv`; a summary is the median of the
//! rounds of one subject in one case, with its quartiles. `target/bench/bench.json` holds all of both. Knows
//! nothing of what is measured, nor of how it is drawn (`plot`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// Raised where the meaning of what [`Record::json`] writes changes.
const SCHEMA: u32 = 1;

/// One value of one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// Which of the benchmark's measures.
    pub(crate) measure: &'static str,
    /// What is compared.
    pub(crate) subject: String,
    /// Under which circumstances: subjects are compared within a case.
    pub(crate) case: String,
    /// How many prefixes are in force.
    pub(crate) prefixes: usize,
    pub(crate) round: usize,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// What the rounds of one subject in one case have in common.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    pub(crate) measure: &'static str,
    pub(crate) subject: String,
    pub(crate) case: String,
    pub(crate) prefixes: usize,
    pub(crate) unit: &'static str,
    pub(crate) rounds: usize,
    pub(crate) median: f64,
    pub(crate) lower_quartile: f64,
    pub(crate) upper_quartile: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

/// Where it was measured.
#[derive(Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
    /// How many processes wanted to run in the last minute, at the end of all measures.
    load: f64,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    machine: Machine,
    /// What was left out, and why.
    notes: &'a [String],
    summaries: Vec<Summary>,
    samples: &'a [Sample],
}

/// See the module.
#[derive(Default)]
pub(crate) struct Record {
    samples: Vec<Sample>,
    notes: Vec<String>,
}

/// A table's place in the record.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a> {
    pub(crate) measure: &'static str,
    pub(crate) unit: &'static str,
    /// What the first column is called.
    pub(crate) cases: &'a str,
    /// The subject to which each other's ratio is given.
    pub(crate) against: Option<&'a str>,
}

impl Record {
    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Says what is missing, and why.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// In the order in which they were first measured.
    pub(crate) fn summaries(&self) -> Vec<Summary> {
        let mut places = HashMap::new();
        let mut groups: Vec<(&Sample, Vec<f64>)> = Vec::new();
        for sample in &self.samples {
            let key = (
                sample.measure,
                &sample.case,
                sample.prefixes,
                &sample.subject,
                sample.unit,
            );
            let place = *places.entry(key).or_insert_with(|| {
                groups.push((sample, Vec::new()));
                groups.len() - 1
            });
            groups[place].1.push(sample.value);
        }
        groups
            .into_iter()
            .map(|(sample, values)| Summary::of(sample, values))
            .collect()
    }

    /// A row for each case and number of prefixes, a column for each subject.
    pub(crate) fn table(&self, shown: Shown<'_>) -> Table {
        let mut summaries = self.summaries();
        summaries.retain(|one| one.measure == shown.measure && one.unit == shown.unit);
        let has_prefixes = summaries.iter().any(|one| one.prefixes != 0);
        let subjects = in_order(summaries.iter().map(|one| one.subject.clone()));
        let rows = in_order(summaries.iter().map(|one| (one.case.clone(), one.prefixes)));

        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut header = vec![shown.cases.to_owned()];
        header.extend(has_prefixes.then(|| "prefixes".to_owned()));
        header.extend(subjects.iter().cloned());
        table.set_header(header);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (case, prefixes) in rows {
            let find = |subject: &str| {
                summaries.iter().find(|one| {
                    one.case == case && one.prefixes == prefixes && one.subject == subject
                })
            };
            let against = shown.against.and_then(find).map(|one| one.median);
            let mut row = vec![case.clone()];
            row.extend(has_prefixes.then(|| thousands(prefixes)));
            row.extend(subjects.iter().map(|subject| {
                let ratio = against.filter(|_| shown.against != Some(subject));
                find(subject).map_or_else(String::new, |one| one.cell(ratio))
            }));
            table.add_row(row);
        }
        table
    }

    /// A row for each subject, with so many prefixes: the first unit's median and quartiles, the other's median,
    /// and how many times as much of the first the subject `ours` does.
    pub(crate) fn standing(
        &self,
        measure: &str,
        prefixes: usize,
        [first, second]: [&str; 2],
        ours: &str,
    ) -> Table {
        let mut summaries = self.summaries();
        summaries.retain(|one| one.measure == measure && one.prefixes == prefixes);
        let find = |subject: &str, unit: &str| {
            summaries
                .iter()
                .find(|one| one.subject == subject && one.unit == unit)
        };
        let our_median = find(ours, first).map(|one| one.median);
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let ratio = format!("{ours} is");
        table.set_header(["subject", first, "quartiles", second, &ratio]);
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for one in summaries.iter().filter(|one| one.unit == first) {
            let other = find(&one.subject, second);
            let [low, high] = [one.lower_quartile, one.upper_quartile].map(number);
            table.add_row([
                one.subject.clone(),
                number(one.median),
                format!("{low}..{high}"),
                other.map_or_else(String::new, |other| number(other.median)),
                our_median.map_or_else(String::new, |ours| format!("x{:.2}", ours / one.median)),
            ]);
        }
        table
    }

    /// Writes what was measured under `folder`.
    ///
    /// # Returns
    /// The files.
    pub(crate) fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let mut written = Vec::new();
        for measure in in_order(self.samples.iter().map(|sample| sample.measure)) {
            let path = folder.join(format!("{measure}.csv"));
            let mut file = csv::Writer::from_path(&path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            for sample in self.samples.iter().filter(|one| one.measure == measure) {
                file.serialize(sample)?;
            }
            file.flush()?;
            written.push(path);
        }
        let path = folder.join("bench.json");
        fs::write(&path, self.json()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
        Ok(written)
    }

    /// All of it, with the machine that it was measured on.
    pub(crate) fn json(&self) -> Result<String> {
        let document = Document {
            schema: SCHEMA,
            machine: Machine::this(),
            notes: &self.notes,
            summaries: self.summaries(),
            samples: &self.samples,
        };
        Ok(serde_json::to_string_pretty(&document)? + "\n")
    }
}

impl Summary {
    fn of(sample: &Sample, mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        // The nearest value that was measured.
        let at = |quarters: usize| values[(quarters * (values.len() - 1) + 2) / 4];
        Self {
            measure: sample.measure,
            subject: sample.subject.clone(),
            case: sample.case.clone(),
            prefixes: sample.prefixes,
            unit: sample.unit,
            rounds: values.len(),
            median: at(2),
            lower_quartile: at(1),
            upper_quartile: at(3),
            min: at(0),
            max: at(4),
        }
    }

    /// The median, the quartiles where they differ, and the ratio to another median.
    fn cell(&self, against: Option<f64>) -> String {
        let mut cell = number(self.median);
        let [low, high] = [self.lower_quartile, self.upper_quartile].map(number);
        if low != high {
            cell += &format!(" [{low}..{high}]");
        }
        if let Some(against) = against.filter(|against| *against > 0.0) {
            cell += &format!(" x{:.2}", self.median / against);
        }
        cell
    }
}

impl Machine {
    fn this() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let processors = read("/proc/cpuinfo");
        let model = processors
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processor: model.map_or_else(String::new, |(_, name)| name.to_owned()),
            cpus: cpus(),
            load: load(),
        }
    }
}

pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// How many processes wanted to run in the last minute, on average.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = text.split(' ').next();
    minute.and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// With as many digits as mean something.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2}M", value / 1e6),
        size if size >= 1e5 => format!("{:.0}k", value / 1e3),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// As exact as what is counted here needs it.
#[expect(clippy::cast_precision_loss, reason = "nothing here counts that far")]
pub(crate) const fn float(number: u64) -> f64 {
    number as f64
}

/// `100,000`.
pub(crate) fn thousands(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Each once, where it came first.
pub(crate) fn in_order<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for one in all {
        if !seen.contains(&one) {
            seen.push(one);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_of_one_subject_in_one_case() {
        let mut record = Record::default();
        for round in 0..5 {
            for (subject, factor) in [("slow", 20.0), ("fast", 10.0)] {
                record.add(Sample {
                    measure: "test",
                    subject: subject.to_owned(),
                    case: "a case".to_owned(),
                    prefixes: 1000,
                    round: 0,
                    value: float(round + 1) * factor,
                    unit: "ns",
                });
            }
        }
        let summaries = record.summaries();
        let [slow, fast] = &summaries[..] else {
            panic!("{summaries:?}")
        };
        assert_eq!(
            (slow.subject.as_str(), number(slow.median)),
            ("slow", "60".to_owned())
        );
        let quartiles = [fast.lower_quartile, fast.median, fast.upper_quartile];
        assert_eq!(quartiles.map(number), ["20", "30", "40"]);
        assert_eq!([fast.min, fast.max].map(number), ["10", "50"]);
        let table = record.table(Shown {
            measure: "test",
            unit: "ns",
            cases: "traffic",
            against: Some("fast"),
        });
        let text = table.to_string();
        assert!(text.contains("60 [40..80] x2.00"), "{text}");
        assert!(text.contains("1,000"), "{text}");
    }
}
