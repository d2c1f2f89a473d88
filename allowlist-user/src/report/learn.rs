//! The destinations that programs used and that no rule allows, as rules to paste into the configuration, or as JSON.
//!
//! Invariant: the text is valid TOML for the end of a configuration, and its lines that are not rules are comments.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use allowlist_common::egress::{Call, is_closed};
use allowlist_common::packet::{ICMP, ICMPV6, SCTP, TCP, UDP};
use allowlist_dataplane::{SeenDestination, SeenDestinations, View, kernel_clock};
use allowlist_policy::{MAX_NAME_BYTES, Ports, UnitPlace};
use anyhow::Result;
use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::event::Epoch;
use super::{Report, ago};
use crate::config::{is_host_name, unit_of_cgroup};
use crate::generation_meta::GenerationMeta;

/// The width of lines of text in columns, if names are not longer.
const WIDTH: usize = 80;
/// The maximum number of cgroups that are listed for a unit.
const MAX_CGROUPS: usize = 5;

/// The choice of destinations for a proposal.
#[derive(Clone, Debug, Default)]
pub struct LearnFilter {
    /// Only destinations that were used within this time; `None` for all.
    pub since: Option<Duration>,
    /// Only the programs of this unit, or of a cgroup and those in it; `None` for all.
    pub unit: Option<String>,
    /// Whether connects of UDP sockets count as use.
    pub probes: bool,
}

/// The proposal of rules for destinations that no rule allows.
pub struct Proposal {
    uses: Vec<Use>,
    /// The number of destinations to which UDP sockets were only connected, if those do not count.
    probed: usize,
    is_full: bool,
    observes: bool,
    /// The names of the rules and sources that the active policy has.
    taken: BTreeSet<String>,
    epoch: Epoch,
    now: Duration,
}

/// The programs that a proposed rule applies to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Programs {
    /// Those of a unit, as the configuration names it.
    Unit(String),
    /// Those in no unit that the configuration could name.
    All,
    /// Those of cgroups that are gone, with all outer cgroups.
    Gone,
}

impl Programs {
    /// Returns the begin of the names of their rules.
    fn stem(&self) -> &str {
        match self {
            Self::Unit(unit) => {
                let last = unit.rsplit('/').next().unwrap_or(unit);
                let name = last.strip_suffix(".slice");
                name.or_else(|| last.strip_suffix(".service"))
                    .unwrap_or(last)
            }
            Self::All | Self::Gone => "every-program",
        }
    }
}

/// A destination as a source lists it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Destination {
    Name(String),
    Prefix(IpNet),
}

/// The use of a destination by the programs of a unit.
struct Use {
    programs: Programs,
    destination: Destination,
    /// The ports, in the form of the configuration.
    ports: BTreeSet<String>,
    /// The paths of the cgroups of the programs.
    cgroups: BTreeSet<String>,
    /// Whether one of the addresses is in a closed range.
    is_closed: bool,
    calls: u64,
    probes: u64,
    first: Duration,
    last: Duration,
}

impl Proposal {
    /// Reads the recorded calls from the kernel, and groups them by unit and destination.
    ///
    /// # Errors
    /// Fails if no egress policy is active.
    pub fn read(view: &View, filter: &LearnFilter) -> Result<Self> {
        let seen = view.seen()?;
        let meta = GenerationMeta::read(view)?.unwrap_or_default();
        let control = view.control()?.egress;
        let now = kernel_clock();
        let taken = meta.egress_rules.keys().chain(meta.sources.keys());
        let mut proposal = Self {
            uses: Vec::new(),
            probed: 0,
            is_full: seen.is_full,
            observes: control.is_some_and(|egress| egress.observe),
            taken: taken.cloned().collect(),
            epoch: Epoch::new(Timestamp::now(), now),
            now,
        };
        proposal.group(&seen, &meta.egress_ids.names, filter);
        Ok(proposal)
    }

    fn group(&mut self, seen: &SeenDestinations, listed: &[String], filter: &LearnFilter) {
        let mut uses: BTreeMap<(Programs, Destination), Use> = BTreeMap::new();
        for one in &seen.destinations {
            let programs = programs(one);
            let is_old = filter
                .since
                .is_some_and(|since| one.last + since < self.now);
            if is_old || !filter.includes(&programs, one.cgroup.as_deref()) {
                continue;
            }
            let [connects, probes, sends] = one.calls;
            let mut calls = connects + sends;
            if filter.probes {
                calls += probes;
            }
            if calls == 0 {
                self.probed += 1;
                continue;
            }
            for destination in destinations(one, listed) {
                let total = uses
                    .entry((programs.clone(), destination.clone()))
                    .or_insert_with(|| Use {
                        programs: programs.clone(),
                        destination,
                        ports: BTreeSet::new(),
                        cgroups: BTreeSet::new(),
                        is_closed: false,
                        calls: 0,
                        probes: 0,
                        first: one.first,
                        last: one.last,
                    });
                total.ports.insert(ports(one).to_string());
                total.cgroups.extend(one.cgroup.clone());
                total.is_closed |= is_closed(&one.address.into());
                total.calls += calls;
                total.probes += probes;
                total.first = total.first.min(one.first);
                total.last = total.last.max(one.last);
            }
        }
        self.uses = uses.into_values().collect();
    }
}

impl LearnFilter {
    fn includes(&self, programs: &Programs, cgroup: Option<&str>) -> bool {
        let Some(unit) = &self.unit else {
            return true;
        };
        let place = UnitPlace::of(unit);
        let path = if place.is_path() { place.text() } else { unit };
        let path = path.trim_start_matches('/');
        *programs == Programs::Unit(unit.clone())
            || cgroup.is_some_and(|cgroup| {
                cgroup
                    .strip_prefix(path)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            })
    }
}

fn programs(one: &SeenDestination) -> Programs {
    match &one.cgroup {
        None => Programs::Gone,
        Some(path) => match unit_of_cgroup(path) {
            Some(unit) => Programs::Unit(unit),
            // The unit of a cgroup that is gone may have been a slice, which is gone too.
            None if one.is_gone => Programs::Gone,
            None => Programs::All,
        },
    }
}

/// Returns the names for which the address was answered, if a source can list them; otherwise the address.
fn destinations(one: &SeenDestination, listed: &[String]) -> Vec<Destination> {
    let listed = one.listed.iter().filter_map(|id| listed.get(*id as usize));
    let names: BTreeSet<&String> = one
        .names
        .iter()
        .chain(listed)
        .filter(|name| is_host_name(name))
        .collect();
    if names.is_empty() {
        return vec![Destination::Prefix(one.address.into())];
    }
    let names = names.into_iter().cloned();
    names.map(Destination::Name).collect()
}

fn ports(one: &SeenDestination) -> Ports {
    let port = one.port..=one.port;
    match one.protocol {
        TCP => Ports::Tcp(port),
        UDP => Ports::Udp(port),
        SCTP => Ports::Sctp(port),
        ICMP | ICMPV6 => Ports::Icmp,
        other => Ports::Protocol(other),
    }
}

/// The kinds of the sources of a rule by their entries, in the order of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Names,
    PrivateNames,
    Addresses,
    PrivateAddresses,
}

impl Kind {
    const ALL: [Self; 4] = [
        Self::Names,
        Self::PrivateNames,
        Self::Addresses,
        Self::PrivateAddresses,
    ];

    const fn suffix(self) -> &'static str {
        match self {
            Self::Names => "",
            Self::PrivateNames => "-private",
            Self::Addresses => "-addresses",
            Self::PrivateAddresses => "-private-addresses",
        }
    }

    const fn comment(self) -> Option<&'static str> {
        match self {
            Self::Names => None,
            Self::PrivateNames => Some(
                "Names with addresses in closed ranges, such as private networks: whoever answers for these names can direct the programs to your network.",
            ),
            Self::Addresses => Some(
                "Addresses for which no program asked by a name, or whose name was forgotten; they may change.",
            ),
            Self::PrivateAddresses => {
                Some("Addresses in closed ranges, such as private networks or cloud metadata.")
            }
        }
    }
}

impl Use {
    const fn kind(&self) -> Kind {
        match (&self.destination, self.is_closed) {
            (Destination::Name(_), false) => Kind::Names,
            (Destination::Name(_), true) => Kind::PrivateNames,
            (Destination::Prefix(_), false) => Kind::Addresses,
            (Destination::Prefix(_), true) => Kind::PrivateAddresses,
        }
    }

    fn destination(&self) -> String {
        match &self.destination {
            Destination::Name(name) => name.clone(),
            Destination::Prefix(prefix) => prefix.to_string(),
        }
    }

    const fn is_once(&self) -> bool {
        self.calls == 1
    }

    fn age(&self, now: Duration) -> String {
        ago(now.saturating_sub(self.last).as_secs().cast_signed())
    }
}

impl Report for Proposal {
    fn text(&self) -> String {
        let mut text = String::new();
        let is_proposed = |one: &&Use| !one.is_once() && one.programs != Programs::Gone;
        let mut rules: BTreeMap<(&Programs, &BTreeSet<String>), Vec<&Use>> = BTreeMap::new();
        for one in self.uses.iter().filter(is_proposed) {
            let of_rule = rules.entry((&one.programs, &one.ports)).or_default();
            of_rule.push(one);
        }
        if rules.is_empty() {
            comment(&mut text, "No destination to propose a rule for.");
        } else {
            comment(
                &mut text,
                "Destinations that programs used and that no rule allows, as rules for the end of the configuration. Read each line, and remove what should stay refused.",
            );
        }
        let mut taken = self.taken.clone();
        let mut before = None;
        let count_of = |programs: &Programs| rules.keys().filter(|one| one.0 == programs).count();
        let has_one: BTreeSet<Programs> = rules
            .keys()
            .filter(|one| count_of(one.0) == 1)
            .map(|one| one.0.clone())
            .collect();
        for ((programs, ports), uses) in rules {
            text.push('\n');
            if before != Some(programs) {
                self.introduce(&mut text, programs);
                before = Some(programs);
            }
            let mut stem = programs.stem().to_owned();
            if let Some(port) = ports.first()
                && ports.len() == 1
                && !has_one.contains(programs)
            {
                stem += &format!("-{port}");
            }
            let rule = new_name(&stem, &taken);
            write_rule(&mut text, &rule, programs, ports, &uses, self.now);
            taken.extend(Kind::ALL.map(|kind| format!("{rule}{}", kind.suffix())));
        }
        self.list(
            &mut text,
            "Called once, so perhaps not meant. To allow one, add it to a source above.",
            |one| one.is_once() && one.programs != Programs::Gone,
        );
        self.list(
            &mut text,
            "Used by programs whose cgroup is gone, with its slice, so that their unit is not known:",
            |one| one.programs == Programs::Gone,
        );
        self.add_notes(&mut text);
        text
    }

    fn json(&self) -> Value {
        let time = |time: Duration| self.epoch.time(time.as_nanos() as u64);
        let destinations: Vec<Value> = self
            .uses
            .iter()
            .map(|one| {
                let (name, prefix) = match &one.destination {
                    Destination::Name(name) => (Some(name), None),
                    Destination::Prefix(prefix) => (None, Some(prefix)),
                };
                let unit = match &one.programs {
                    Programs::Unit(unit) => Some(unit),
                    Programs::All | Programs::Gone => None,
                };
                json!({
                    "unit": unit,
                    "gone": one.programs == Programs::Gone,
                    "cgroups": one.cgroups,
                    "name": name,
                    "prefix": prefix,
                    "closed_range": one.is_closed,
                    "ports": one.ports,
                    "calls": one.calls,
                    "probes": one.probes,
                    "first": time(one.first),
                    "last": time(one.last),
                })
            })
            .collect();
        json!({
            "mode": if self.observes { "observe" } else { "enforce" },
            "destinations": destinations,
            "only_probed": self.probed,
            "full": self.is_full,
        })
    }
}

impl Proposal {
    /// Writes the comment with the cgroups of the programs before the rules of a unit.
    fn introduce(&self, text: &mut String, programs: &Programs) {
        let of_unit = self.uses.iter().filter(|one| one.programs == *programs);
        let cgroups: BTreeSet<&String> = of_unit.flat_map(|one| &one.cgroups).collect();
        let Programs::Unit(unit) = programs else {
            comment(
                text,
                "Programs in no slice. These rules have no `units`, so they apply to every program.",
            );
            return list_cgroups(text, &cgroups);
        };
        let place = UnitPlace::of(unit);
        let is_other = |cgroup: &&String| match &place {
            UnitPlace::Path(path) => *path != format!("/{cgroup}"),
            UnitPlace::Name(name) => Some(name.as_str()) != cgroup.rsplit('/').next(),
        };
        let others: BTreeSet<&String> = cgroups.into_iter().filter(is_other).collect();
        if others.is_empty() {
            comment(text, &format!("Programs in {unit}."));
        } else {
            comment(
                text,
                &format!(
                    "Programs in {unit}; the rules apply to all programs in it. They were used by:"
                ),
            );
            list_cgroups(text, &others);
        }
    }

    /// Writes the destinations that `is_wanted` selects as comments, if there are any.
    fn list(&self, text: &mut String, title: &str, is_wanted: impl Fn(&Use) -> bool) {
        let mut wanted = self.uses.iter().filter(|one| is_wanted(one)).peekable();
        if wanted.peek().is_none() {
            return;
        }
        text.push('\n');
        comment(text, title);
        for one in wanted {
            let unit = match &one.programs {
                Programs::Unit(unit) => format!(", {unit}"),
                Programs::All | Programs::Gone => String::new(),
            };
            let ports: Vec<_> = one.ports.iter().map(String::as_str).collect();
            let _ = writeln!(
                text,
                "#   {} {}{unit}, {}",
                quoted(&one.destination()),
                ports.join(" "),
                history(one, self.now)
            );
        }
    }

    fn add_notes(&self, text: &mut String) {
        let mut notes = Vec::new();
        if self.uses.is_empty() && self.observes {
            notes.push("No call without a rule was seen since the policy was attached, or in the selected time and unit. Let the programs run for some days, which should include updates, backups and log-ins, and run `allowlist learn` again.".to_owned());
        }
        if !self.observes {
            notes.push("The egress policy is in enforce mode: a refused program does not show what it would call next, and names are not recorded. Set mode = \"observe\" in [egress] or run `allowlist mode observe --egress`, and run `allowlist learn` again after some days.".to_owned());
        }
        if self.probed > 0 {
            notes.push(format!(
                "UDP sockets were connected to {} more destinations. Most programs do so only to sort the addresses of a name; --probes includes them.",
                self.probed
            ));
        }
        if self.is_full {
            notes.push("The kernel's table is full, so destinations that were not used for the longest time may be missing. Add the rules above, and run `allowlist learn --forget`.".to_owned());
        }
        for note in notes {
            text.push('\n');
            comment(text, &note);
        }
    }
}

/// Writes the rule with the name `rule`, and its sources.
fn write_rule(
    text: &mut String,
    rule: &str,
    programs: &Programs,
    ports: &BTreeSet<String>,
    uses: &[&Use],
    now: Duration,
) {
    let mut sources: BTreeMap<Kind, Vec<&Use>> = BTreeMap::new();
    for one in uses {
        sources.entry(one.kind()).or_default().push(one);
    }
    let to: Vec<_> = sources
        .keys()
        .map(|kind| format!("{rule}{}", kind.suffix()))
        .collect();
    let _ = writeln!(text, "[egress.rules.{rule}]");
    write_array(text, "to", &to);
    let ports: Vec<_> = ports.iter().cloned().collect();
    write_array(text, "ports", &ports);
    if let Programs::Unit(unit) = programs {
        write_array(text, "units", std::slice::from_ref(unit));
    }
    for (name, (kind, uses)) in to.iter().zip(&sources) {
        text.push('\n');
        if let Some(about) = kind.comment() {
            comment(text, about);
        }
        let _ = writeln!(text, "[sources.{name}]");
        if *kind == Kind::PrivateNames {
            text.push_str("allow_special_use = true\n");
        }
        text.push_str(match kind {
            Kind::Names | Kind::PrivateNames => "names = [\n",
            Kind::Addresses | Kind::PrivateAddresses => "prefixes = [\n",
        });
        for one in uses {
            let destination = quoted(&one.destination());
            let _ = writeln!(text, "  {destination}, # {}", history(one, now));
        }
        text.push_str("]\n");
    }
}

fn history(one: &Use, now: Duration) -> String {
    match one.calls {
        1 => format!("1 call, {} ago", one.age(now)),
        calls => format!("{calls} calls, last {} ago", one.age(now)),
    }
}

/// Returns a name for a rule that begins with `stem`, and that is in `taken` with no suffix of a kind of source.
fn new_name(stem: &str, taken: &BTreeSet<String>) -> String {
    let longest = Kind::PrivateAddresses.suffix();
    let plain: String = stem
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '-' | '_') => c,
            _ => '-',
        })
        .take(MAX_NAME_BYTES - longest.len() - "-1000".len())
        .collect();
    let is_free = |name: &String| {
        let mut all = Kind::ALL
            .map(|kind| format!("{name}{}", kind.suffix()))
            .into_iter();
        !all.any(|name| taken.contains(&name))
    };
    let numbered = (2..).map(|number| format!("{plain}-{number}"));
    let mut names = std::iter::once(plain.clone()).chain(numbered);
    names.find(is_free).unwrap_or(plain)
}

/// Writes an array on one line if that fits, otherwise with one item per line.
fn write_array(text: &mut String, key: &str, items: &[String]) {
    let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
    let line = format!("{key} = [{}]", items.join(", "));
    if line.len() <= WIDTH {
        let _ = writeln!(text, "{line}");
    } else {
        let _ = writeln!(text, "{key} = [\n  {},\n]", items.join(",\n  "));
    }
}

/// Returns a text as a string of TOML. The texts have no control characters.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn list_cgroups(text: &mut String, cgroups: &BTreeSet<&String>) {
    for cgroup in cgroups.iter().take(MAX_CGROUPS) {
        let _ = writeln!(text, "#   {}", cgroup.escape_debug());
    }
    if cgroups.len() > MAX_CGROUPS {
        let _ = writeln!(text, "#   and {} more cgroups", cgroups.len() - MAX_CGROUPS);
    }
}

/// Writes a comment, wrapped between words.
fn comment(text: &mut String, words: &str) {
    let mut line = "#".to_owned();
    for word in words.split(' ') {
        if line.len() > 1 && line.len() + 1 + word.len() > WIDTH {
            let _ = writeln!(text, "{line}");
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line += word;
    }
    let _ = writeln!(text, "{line}");
}

/// The kinds of calls that [`Proposal`] distinguishes, in the order of the kernel's counters.
const _: () = assert!(matches!(
    Call::ALL,
    [Call::Connect, Call::Probe, Call::Send]
));
