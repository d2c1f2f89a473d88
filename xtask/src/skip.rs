//! Skipped tests: parses their report and decides whether they fail the run.
//!
//! A skipped test records its name and a reason. Only [`EXPECTED`] knows tests by name.

use std::fmt::{self, Display, Formatter};

use clap::builder::FalseyValueParser;

/// Skips that CI accepts: the test's name, and the reason why no CI machine can run it.
pub(crate) const EXPECTED: &[(&str, &str)] = &[(
    "packets::egress_root::the_root_of_the_cgroups_is_judged",
    "it would judge every program of the machine; `cargo xtask vm` runs it in a machine of its own",
)];

/// The option that decides whether skipped tests fail the run.
#[derive(clap::Args)]
pub(crate) struct Policy {
    /// Fail if a test was skipped unexpectedly (implied by CI=true)
    #[arg(long, env = "CI", hide_env = true, value_parser = FalseyValueParser::new())]
    no_skips: bool,
}

impl Policy {
    /// Reports whether these skips fail the run.
    pub(crate) fn fail(&self, skips: &[Skip<'_>]) -> bool {
        self.no_skips && unexpected(skips) > 0
    }
}

/// Returns the number of skips that are not in [`EXPECTED`].
pub(crate) fn unexpected(skips: &[Skip<'_>]) -> usize {
    skips.iter().filter(|skip| skip.expected.is_none()).count()
}

/// A test that skipped itself.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Skip<'a> {
    test: &'a str,
    reason: &'a str,
    /// The reason that [`EXPECTED`] states for this skip; `None` if it does not list the skip.
    expected: Option<&'a str>,
}

impl<'a> Skip<'a> {
    /// Parses a report with one `TEST: REASON` line per skip; sorts the skips and removes duplicates.
    pub(crate) fn parse(report: &'a str, expected: &[(&str, &'a str)]) -> Vec<Self> {
        let mut skips: Vec<_> = report
            .lines()
            .map(|line| {
                let (test, reason) = line.split_once(": ").unwrap_or((line, "no reason given"));
                let expected = expected.iter().find(|(name, _)| *name == test);
                Self {
                    test,
                    reason,
                    expected: expected.map(|(_, why)| *why),
                }
            })
            .collect();
        skips.sort();
        skips.dedup();
        skips
    }
}

impl Display for Skip<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "skipped: {}: {}", self.test, self.reason)?;
        match self.expected {
            Some(why) => write!(f, " (expected: {why})"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_parsed_sorted_and_deduplicated() {
        let expected = [("veth::vlan", "no machine has 8021q")];
        let table: [(&str, &[&str]); 5] = [
            ("", &[]),
            (
                "veth::native: needs root\n",
                &["skipped: veth::native: needs root"],
            ),
            (
                "veth::vlan: no 8021q\n",
                &["skipped: veth::vlan: no 8021q (expected: no machine has 8021q)"],
            ),
            (
                "b: x: y\na: x\nb: x: y\n",
                &["skipped: a: x", "skipped: b: x: y"],
            ),
            ("lonely\n", &["skipped: lonely: no reason given"]),
        ];
        for (report, lines) in table {
            let skips = Skip::parse(report, &expected);
            let printed: Vec<_> = skips.iter().map(ToString::to_string).collect();
            assert_eq!(printed, lines, "{report}");
        }
    }
}
