//! The configuration: parses and validates TOML text, or the command line options that replace it.
//!
//! Invariants: every `Config` is valid: all names that it uses are defined, all prefixes, ports, URLs and
//! durations parse, and no part of the text was ignored. All mistakes are reported at once, each with its
//! position, its key and the remedy. `parse` does no I/O and does not know whether files, interfaces or
//! vendors exist.

mod accepted;
mod document;
mod egress;
mod exposure;
mod read;
mod secrets;
mod sources;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use allowlist_common::packet::{TCP, UDP};
use allowlist_dataplane::AttachModeRequest;
use allowlist_files::bounded::{Open, ReadError};
use allowlist_lists::catalogue::{self, Provider};
use allowlist_lists::feed;
use allowlist_policy::compile::Tables;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints::nearest;
use allowlist_policy::lockout::Generation;
use allowlist_policy::text::is_deceptive;
use allowlist_policy::{
    AtStart, Direction, Mode, Origin, Policy, Ports, ReturnTraffic, Rules, Service, Source,
    Verdict, is_loopback,
};
use ipnet::IpNet;

use crate::hook::Hook;
pub use accepted::{is_host_name, parse_host_name, unit_of_cgroup};
use document::Problems;
pub use egress::check_unit;
pub use secrets::{Secret, secrets, without_comments};
pub use sources::provided;

/// A validated configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The names of the interfaces to filter on; empty if only the command line names them.
    pub interfaces: Vec<String>,
    /// Whether packets are dropped (enforce), or decisions are only counted (observe).
    pub mode: Mode,
    /// The rules for packets: default verdict, return traffic, exemptions and lookup.
    pub rules: Rules,
    /// The mode in which to attach the XDP program.
    pub attach: AttachModeRequest,
    /// The maximum number of prefixes in a generation; a generation with more is not published.
    pub max_prefixes: u32,
    /// The maximum number of tracked flows in the flow table; when it is full, the least recently used flow is evicted.
    pub max_flows: u32,
    /// The command and the webhook that receive events.
    pub hook: Hook,
    /// The maximum size of the history of list changes on disk, in bytes; beyond it, the oldest records are removed.
    pub history_bytes: u64,
    /// The maximum size of the audit log on disk, in bytes; beyond it, the oldest records are removed.
    pub log_bytes: u64,
    /// The behaviour of a start while a source has no list.
    pub at_start: AtStart,
    /// The name of the group whose members may use the control socket, besides root; `None` for root alone.
    pub control_group: Option<String>,
    /// The services and their sources.
    pub policy: Policy,
}

/// The default of `max_prefixes`.
const MAX_PREFIXES: u32 = 250_000;
/// The default of `max_flows`, which needs about 15 MB of kernel memory, including the table of the flows' peers.
const MAX_FLOWS: u32 = 65_536;
/// The default of `history_size`, in bytes.
const HISTORY_BYTES: u64 = 8 << 20;
/// The default of `log_size`, in bytes.
const LOG_BYTES: u64 = 8 << 20;
/// The maximum length of an interface name: IFNAMSIZ without the terminating NUL.
const MAX_INTERFACE_BYTES: usize = 15;
/// The maximum size of a configuration file, in bytes; a larger file is an error.
const MAX_BYTES: u64 = 16 << 20;
/// The maximum number of problems that an error prints; the rest are only counted.
const SHOWN_PROBLEMS: usize = 20;

impl Config {
    /// Returns a generation for the lockout check: this configuration, `mode`, and the tables compiled from it.
    pub fn generation<'a>(&'a self, mode: Mode, tables: &'a Tables) -> Generation<'a> {
        Generation {
            interfaces: &self.interfaces,
            policy: &self.policy,
            rules: &self.rules,
            mode,
            tables,
        }
    }

    /// Reads and validates the configuration file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::text(path)?, path)
    }

    /// Reads the text of a configuration file, or of a pipe such as `/dev/stdin`.
    pub fn text(path: &Path) -> Result<String, ConfigError> {
        let is_other = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
        if !is_other {
            return Self::file_text(path);
        }
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path)
            .and_then(|pipe| pipe.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        let read = match read {
            Ok(_) if bytes.len() as u64 > MAX_BYTES => {
                Err(ReadError::TooLarge { limit: MAX_BYTES })
            }
            Ok(_) => Ok(bytes),
            Err(error) => Err(error.into()),
        };
        Self::decode(path, read)
    }

    /// Reads the text of a configuration file; refuses a pipe, for callers that must not block.
    pub fn file_text(path: &Path) -> Result<String, ConfigError> {
        Self::decode(path, Open::configured(MAX_BYTES).read(path))
    }

    fn decode(path: &Path, read: Result<Vec<u8>, ReadError>) -> Result<String, ConfigError> {
        let file = path.to_owned();
        match read {
            Ok(bytes) => String::from_utf8(bytes).map_err(|error| {
                let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let line = before.split(|byte| *byte == b'\n').count();
                ConfigError::NotText { file, line }
            }),
            Err(error) => Err(ConfigError::Unreadable {
                file,
                cause: error.into(),
            }),
        }
    }

    /// Validates `text`. Errors name `file`, and relative paths start in its folder.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let config = match document::parse(text, &mut problems) {
            Some(document) => {
                let folder = file.parent().unwrap_or(Path::new(""));
                read::config(&document, folder, &mut problems)
            }
            None => Self::new(Vec::new(), Policy::default()),
        };
        problems.result(config, text, file)
    }

    /// Returns the configuration that the options of a run without a file define: one service, named `cli`.
    pub fn from_inline(
        interfaces: Vec<String>,
        allow: Vec<IpNet>,
        providers: Vec<String>,
        ports: Vec<Ports>,
    ) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut wrong = |option: &str, message: String| {
            problems.push(Problem {
                place: None,
                key: option.to_owned(),
                message,
            });
        };
        for name in &interfaces {
            if let Err(message) = check_interface(name) {
                wrong("--iface", message);
            }
        }
        for prefix in &allow {
            if let Err(error) = feed::check_prefix(*prefix) {
                wrong("--allow", error.to_string());
            }
        }
        let providers: BTreeSet<String> = providers.into_iter().collect();
        let mut sources = Vec::new();
        for name in &providers {
            match catalogue::find(name) {
                Some(provider) => match provided(name, provider, &[], &BTreeMap::new()) {
                    Ok(source) if source.direction == Direction::Outbound => {
                        wrong("--provider", outbound(name));
                    }
                    Ok(source) => sources.push(source),
                    Err(message) => wrong("--provider", format!("{name}: {message}")),
                },
                None => wrong("--provider", unknown_provider(name)),
            }
        }
        if allow.is_empty() && providers.is_empty() {
            wrong(
                "--allow",
                "no source is allowed; add --allow PREFIX or --provider NAME".to_owned(),
            );
        }
        if ports.is_empty() {
            wrong(
                "--port",
                "no port is protected; add one, such as --port tcp/443".to_owned(),
            );
        }
        if !problems.is_empty() {
            return Err(ConfigError::Invalid(problems));
        }
        if !allow.is_empty() {
            sources.push(Source::new("cli", Origin::Prefixes(sorted(allow))));
        }
        sources.sort_by(|a, b| a.name.cmp(&b.name));
        let service = Service {
            name: "cli".to_owned(),
            ports,
            interfaces: Vec::new(),
            allow: sources.iter().map(|source| source.name.clone()).collect(),
        };
        Ok(Self::new(
            interfaces,
            Policy {
                services: vec![service],
                sources,
                egress: None,
            },
        ))
    }

    /// Returns the text of a configuration file that has the same meaning as these command-line options.
    pub fn inline_toml(
        mode: Mode,
        allow: &[IpNet],
        providers: &[String],
        ports: &[Ports],
    ) -> String {
        let quoted = |text: String| format!("{text:?}");
        let list = |items: Vec<String>| items.join(", ");
        let ports = list(ports.iter().map(|port| quoted(port.to_string())).collect());
        let providers: BTreeSet<&String> = providers.iter().collect();
        let cli = (!allow.is_empty()).then(|| "cli".to_owned());
        let names = cli.iter().chain(providers.iter().copied());
        let names = list(names.map(|name| quoted(name.clone())).collect());
        let mode = mode.name();
        let mut text =
            format!("mode = {mode:?}\n[services.cli]\nports = [{ports}]\nallow = [{names}]\n");
        if !allow.is_empty() {
            let prefixes = list(allow.iter().map(|one| quoted(one.to_string())).collect());
            text += &format!("[sources.cli]\nprefixes = [{prefixes}]\n");
        }
        for name in providers {
            text += &format!("[sources.{name}]\nprovider = {name:?}\n");
        }
        text
    }

    /// Returns warnings about settings of this configuration that are valid but probably mistakes.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.interfaces.is_empty() {
            warnings.push(
                "no interface to filter on: set `interfaces` in the configuration, or give --iface"
                    .to_owned(),
            );
        }
        if self.policy.services.is_empty() && self.policy.egress.is_none() {
            warnings.push("no service is configured: add a [services.NAME] table".to_owned());
        }
        warnings.extend(self.rules_warnings());
        warnings.extend(self.egress_warnings().map(str::to_owned));
        for (open, names) in self.source_users() {
            for source in names.iter().filter_map(|name| self.policy.source(name)) {
                if let Origin::Prefixes(prefixes) = &source.origin {
                    for everyone in prefixes.iter().filter(|prefix| prefix.prefix_len() == 0) {
                        warnings.push(format!(
                            "{open}: sources.{} contains {everyone}",
                            source.name,
                        ));
                    }
                }
            }
        }
        let users = match self.policy.egress {
            Some(_) => "a service's `allow` or an egress rule's `to`",
            None => "a service's `allow`",
        };
        for source in &self.policy.sources {
            if !self.policy.is_used(source) {
                warnings.push(format!(
                    "sources.{} is not used: name it in {users}, or remove it",
                    source.name,
                ));
                continue;
            }
            if let Some(warning) = &source.warning {
                warnings.push(format!("sources.{}: {warning}", source.name));
            }
            if let Origin::Http(http) = &source.origin
                && http
                    .urls
                    .iter()
                    .any(|url| url.scheme() == "http" && !is_loopback(url))
            {
                warnings.push(format!(
                    "sources.{}: the list is fetched over plain HTTP, so anyone on the network path can change it; use an https:// URL",
                    source.name
                ));
            }
        }
        warnings
    }

    /// Returns warnings about services that cover ephemeral ports of this host, which are the range `own`.
    ///
    /// Without flow tracking, such a service also decides about the answers to this host's own connections.
    pub fn own_port_warnings(&self, own: &RangeInclusive<u16>) -> Vec<String> {
        let meets = |ports: &Ports| ports.meets(TCP, own) || ports.meets(UDP, own);
        let services = self.policy.services.iter().filter(|_| !self.rules.tracks());
        services
            .filter(|service| service.ports.iter().any(meets))
            .map(|service| {
                format!(
                    "services.{} covers ephemeral ports of this host ({}-{}): answers to the host's own connections are dropped unless the service allows their source",
                    service.name,
                    own.start(),
                    own.end()
                )
            })
            .collect()
    }

    fn rules_warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |text: &str| warnings.push(text.to_owned());
        match (self.rules.default, self.rules.return_traffic) {
            (Verdict::Drop, ReturnTraffic::Off) => warn(
                "return_traffic = \"off\" with default = \"drop\" drops the answers to this host's own connections: name \
                 resolution, time synchronization and updates fail unless a service covers them",
            ),
            (Verdict::Drop, ReturnTraffic::Established) => warn(
                "return_traffic = \"established\" passes every TCP segment with ACK or RST from any sender, and drops \
                 answers over UDP, such as those of name servers",
            ),
            _ => {}
        }
        let keep = self.rules.keep;
        for (key, is_on, consequence) in [
            (
                "arp",
                keep.arp,
                "this host and its neighbours cannot resolve each other's addresses, so IPv4 fails",
            ),
            (
                "neighbour_discovery",
                keep.neighbour_discovery,
                "IPv6 fails unless a service allows neighbour discovery",
            ),
            (
                "icmp_errors",
                keep.icmp_errors,
                "connections over paths with a smaller MTU hang unless a service allows ICMP errors",
            ),
        ] {
            if !is_on {
                warn(&format!("keep.{key} = false: {consequence}"));
            }
        }
        for service in &self.policy.services {
            for name in &service.interfaces {
                if !self.interfaces.contains(name) {
                    warn(&format!(
                        "services.{} is limited to {name}, which is not a filtered interface: add it to `interfaces`",
                        service.name
                    ));
                }
            }
        }
        warnings
    }

    fn new(interfaces: Vec<String>, policy: Policy) -> Self {
        Self {
            interfaces,
            mode: Mode::default(),
            rules: Rules::default(),
            attach: AttachModeRequest::default(),
            max_prefixes: MAX_PREFIXES,
            max_flows: MAX_FLOWS,
            hook: Hook::default(),
            history_bytes: HISTORY_BYTES,
            log_bytes: LOG_BYTES,
            at_start: AtStart::default(),
            control_group: None,
            policy,
        }
    }
}

/// The error of a configuration that cannot be read or is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or not readable.
    #[error("{}: the file cannot be read: {cause}; check the path and its permissions", file.display())]
    Unreadable {
        /// The path of the file, as the caller named it.
        file: PathBuf,
        /// The error of the operating system.
        cause: io::Error,
    },
    /// The file is not UTF-8 text.
    #[error("{}:{line}: not valid UTF-8; convert the file to UTF-8", file.display())]
    NotText {
        /// The path of the file, as the caller named it.
        file: PathBuf,
        /// The number of the first line with invalid bytes.
        line: usize,
    },
    /// All mistakes in the configuration, in the order of the text; printed one per line.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// Returns the code of the error, for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => ErrorCode::ConfigUnreadable,
            Self::NotText { .. } | Self::Invalid(_) => ErrorCode::ConfigInvalid,
        }
    }
}

/// A mistake in a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, and the line and column of the mistake, both from 1; `None` for the command line.
    pub place: Option<(PathBuf, usize, usize)>,
    /// The key with the mistake, such as `sources.office.prefixes[1]`, or the command-line option; empty if the text is
    /// not TOML.
    pub key: String,
    /// The description of the mistake, with its remedy.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((file, line, column)) = &self.place {
            write!(out, "{}:{line}:{column}: ", file.display())?;
        }
        if !self.key.is_empty() {
            write!(out, "{}: ", self.key)?;
        }
        out.write_str(&self.message)
    }
}

struct Lines<'p>(&'p [Problem]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().take(SHOWN_PROBLEMS).enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(out, "{separator}{problem}")?;
        }
        match self.0.len().saturating_sub(SHOWN_PROBLEMS) {
            0 => Ok(()),
            1 => write!(out, "\nand 1 more mistake"),
            more => write!(out, "\nand {more} more mistakes"),
        }
    }
}

fn check_interface(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty; write the name of an interface, such as \"eth0\"".to_owned());
    }
    if name.len() > MAX_INTERFACE_BYTES
        || name.contains(|c: char| c == '/' || c.is_whitespace() || is_deceptive(c))
    {
        return Err(format!(
            "{name:?} is not an interface name; names have up to {MAX_INTERFACE_BYTES} bytes, without spaces, \
             slashes and control characters"
        ));
    }
    Ok(())
}

fn unknown_provider(name: &str) -> String {
    let names: Vec<_> = catalogue::all()
        .iter()
        .map(|provider| &*provider.name)
        .collect();
    let is_of_vendor = |provider: &&Provider| {
        provider.direction != Direction::Outbound && provider.name.starts_with(&format!("{name}-"))
    };
    let of_vendor: Vec<_> = catalogue::all()
        .iter()
        .filter(is_of_vendor)
        .map(|provider| format!("{:?}", provider.name))
        .collect();
    match nearest(name, &names) {
        _ if !of_vendor.is_empty() => {
            let of_vendor = of_vendor.join(" or ");
            format!("there is no provider {name:?}; did you mean {of_vendor}?")
        }
        Some(near) => format!("there is no provider {name:?}; did you mean {near:?}?"),
        None => {
            format!("there is no provider {name:?}; `allowlist providers` lists them")
        }
    }
}

/// Returns the message for a service that allows the outbound source `name`.
fn outbound(name: &str) -> String {
    format!(
        "{name:?} lists destinations of outbound connections; to allow inbound connections from them too, set direction = \"any\" in [sources.{name}]"
    )
}

fn sorted(mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}
