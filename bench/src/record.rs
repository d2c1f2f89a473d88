//! The results: all samples, and their summaries.
//!
//! A sample is a row of `target/bench/<measure>.csv`; a summary is the median of the rounds of one subject in one case,
//! with its quartiles. `target/bench/bench.json` has all samples and summaries. Depends neither on the measures nor on
//! the plots (`plot`).

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context as _, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

/// The version of the format of [`Record::json`], raised when the meaning of a field changes.
const SCHEMA: u32 = 1;

/// One measured value of one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// The name of the measure.
    pub(crate) measure: &'static str,
    /// The engine, program or setting that is compared with others.
    pub(crate) subject: String,
    /// The conditions of the measurement, such as the kind of packet; subjects are compared within a case.
    pub(crate) case: String,
    /// The number of active prefixes.
    pub(crate) prefixes: usize,
    pub(crate) round: usize,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
}

/// The statistics of all rounds of one subject in one case.
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

/// The machine that ran the benchmark.
#[derive(Serialize)]
struct Machine {
    kernel: String,
    processor: String,
    cpus: usize,
    /// The load average of the last minute, at the end of all measures.
    load: f64,
}

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    machine: Machine,
    /// Skipped subjects and disturbances, with their reasons.
    notes: &'a [String],
    summaries: Vec<Summary>,
    samples: &'a [Sample],
}

/// All samples and notes of a run.
#[derive(Default)]
pub(crate) struct Record {
    samples: Vec<Sample>,
    notes: Vec<String>,
}

/// The selection of samples that a table shows.
#[derive(Clone, Copy)]
pub(crate) struct TableSpec<'a> {
    pub(crate) measure: &'static str,
    pub(crate) unit: &'static str,
    /// The heading of the table's first column, which names the cases.
    pub(crate) cases: &'a str,
    /// The subject that is the baseline of the ratios; `None` for a table without ratios.
    pub(crate) against: Option<&'a str>,
}

impl Record {
    pub(crate) fn add(&mut self, sample: Sample) {
        self.samples.push(sample);
    }

    /// Adds a note about a skipped subject or a disturbance, unless the same note exists already.
    pub(crate) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Returns the summaries, in the order of the first samples.
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
            let index = *places.entry(key).or_insert_with(|| {
                groups.push((sample, Vec::new()));
                groups.len() - 1
            });
            groups[index].1.push(sample.value);
        }
        groups
            .into_iter()
            .map(|(sample, values)| Summary::of(sample, values))
            .collect()
    }

    /// Returns a table with a row for each case and number of prefixes, and a column for each subject.
    pub(crate) fn table(&self, spec: TableSpec<'_>) -> Table {
        let mut summaries = self.summaries();
        summaries.retain(|one| one.measure == spec.measure && one.unit == spec.unit);
        let has_prefixes = summaries.iter().any(|one| one.prefixes != 0);
        let subjects = distinct(summaries.iter().map(|one| one.subject.clone()));
        let rows = distinct(summaries.iter().map(|one| (one.case.clone(), one.prefixes)));

        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let mut header = vec![spec.cases.to_owned()];
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
            let against = spec.against.and_then(find).map(|one| one.median);
            let mut row = vec![case.clone()];
            row.extend(has_prefixes.then(|| thousands(prefixes)));
            row.extend(subjects.iter().map(|subject| {
                let ratio = against.filter(|_| spec.against != Some(subject));
                find(subject).map_or_else(String::new, |one| one.cell(ratio))
            }));
            table.add_row(row);
        }
        table
    }

    /// Returns a table with a row for each subject at this number of prefixes: the median and quartiles in the first
    /// unit, the median in the second unit, and the median of the subject `ours` divided by that of the row, in the
    /// first unit.
    pub(crate) fn comparison(
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
        let ratio = format!("{ours} / subject");
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

    /// Writes all samples and summaries to `folder`, and returns the paths of the files.
    pub(crate) fn write(&self, folder: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
        let mut written = Vec::new();
        for measure in distinct(self.samples.iter().map(|sample| sample.measure)) {
            let path = folder.join(format!("{measure}.csv"));
            let mut file = csv::Writer::from_path(&path)
                .with_context(|| format!("cannot write {}", path.display()))?;
            for sample in self.samples.iter().filter(|one| one.measure == measure) {
                file.serialize(sample)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
            file.flush()
                .with_context(|| format!("cannot write {}", path.display()))?;
            written.push(path);
        }
        let path = folder.join("bench.json");
        fs::write(&path, self.json()?)
            .with_context(|| format!("cannot write {}", path.display()))?;
        written.push(path);
        Ok(written)
    }

    /// Returns all samples, summaries and notes with a description of the machine, as JSON.
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
        // The nearest sample, without interpolation.
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

    /// Formats the median, the quartiles if they differ from it, and the ratio to the median `against`, if that is
    /// given.
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

/// Returns the load average of the last minute, or 0 if it cannot be read.
pub(crate) fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let minute = text.split(' ').next();
    minute.and_then(|load| load.parse().ok()).unwrap_or(0.0)
}

/// Formats a value with about three significant digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2}M", value / 1e6),
        size if size >= 1e5 => format!("{:.0}k", value / 1e3),
        size if size >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        size if size < 10.0 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

/// Converts a count to a float, without loss up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "no count here reaches 2^53")]
pub(crate) const fn float(number: u64) -> f64 {
    number as f64
}

/// Formats a number with thousands separators: `100,000`.
pub(crate) fn thousands(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Removes duplicates, and keeps the order of first occurrence.
pub(crate) fn distinct<T: PartialEq>(all: impl Iterator<Item = T>) -> Vec<T> {
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
    fn summaries_group_samples_by_subject() {
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
        let table = record.table(TableSpec {
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
