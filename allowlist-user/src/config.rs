//! The configuration: TOML text, or what was typed instead of it, to validated words.
//!
//! Invariants: a `Config` that exists is right by itself: every name that it uses exists, every
//! prefix, port, URL and duration is one, and nothing in the text was ignored. All that is wrong is
//! reported at once, each with its place, its key and what would be right. `parse` does no input or
//! output: whether a file, an interface or a vendor is there is for others to find out.

mod document;
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
use ipnet::IpNet;
use serde::Serialize;

use crate::bounded::{Open, ReadError};
use crate::catalogue::{self, Provider};
use crate::error_code::ErrorCode;
use crate::feed;
use crate::hints::nearest;
use crate::hook::Hook;
use crate::policy::{
    AtStart, DefaultVerdict, Direction, Mode, Origin, Policy, Ports, ReturnTraffic, Rules, Service,
    Source, is_loopback,
};
use crate::text::is_deceptive;
use document::Problems;
pub use secrets::{Secret, secrets, without_comments};
pub use sources::provided;

/// Everything that a run needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where packets are filtered; may be empty, for the command line to fill in.
    pub interfaces: Vec<String>,
    /// Whether verdicts are carried out.
    pub mode: Mode,
    /// What is let in besides the services.
    pub rules: Rules,
    /// How the program is attached.
    pub attach: AttachMode,
    /// The most prefixes that a publish may have.
    pub max_prefixes: u32,
    /// The most flows of this host that are tracked at once.
    pub max_flows: u32,
    /// Whom to tell when a list changes.
    pub hook: Hook,
    /// How much of the disk the history of changes may take.
    pub history_bytes: u64,
    /// The same for the audit trail.
    pub log_bytes: u64,
    /// What a start does about sources that have no list yet.
    pub at_start: AtStart,
    /// The group whose members may ask the daemon, besides root.
    pub control_group: Option<String>,
    /// Who may reach what.
    pub policy: Policy,
}

/// How the kernel runs the program: `attach_mode = "…"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// Native where the driver can, else generic with a warning.
    #[default]
    Auto,
    /// In the driver, before the kernel's network stack.
    Native,
    /// In the network stack: slower, works on every interface.
    Generic,
    /// On the network card.
    Offload,
}

/// `max_prefixes`, unless it is configured.
const MAX_PREFIXES: u32 = 250_000;
/// The default of `max_flows`: about 15 MB of kernel memory, with the flows' peers.
const MAX_FLOWS: u32 = 65_536;
/// `history_size`, unless it is configured.
const HISTORY_BYTES: u64 = 8 << 20;
/// `log_size`, unless it is configured.
const LOG_BYTES: u64 = 8 << 20;
/// IFNAMSIZ without its terminating zero.
const MAX_INTERFACE_BYTES: usize = 15;
/// The largest configuration, in bytes.
const MAX_BYTES: u64 = 16 << 20;
/// How many problems an error prints; the rest are counted.
const SHOWN_PROBLEMS: usize = 20;

impl Config {
    /// Reads and validates a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::text(path)?, path)
    }

    /// The text of a file, or of a pipe such as `/dev/stdin`.
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

    /// The text of a regular file, for callers that must not wait for a pipe.
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

    /// Validates `text`; `file` is named in errors, and its folder is where relative paths start.
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

    /// One service, `cli`, from the options that do without a file.
    pub fn small(
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
                "nobody is let in; give --allow PREFIX or --provider NAME".to_owned(),
            );
        }
        if ports.is_empty() {
            wrong(
                "--port",
                "nothing is protected; give --port, such as --port tcp/443".to_owned(),
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
            },
        ))
    }

    /// The options that do without a file, as a file would say them.
    pub fn small_text(
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

    /// What is legal, and yet probably not what was meant.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.interfaces.is_empty() {
            warnings.push(
                "no interface to filter on: set `interfaces` in the configuration, or give --iface"
                    .to_owned(),
            );
        }
        if self.policy.services.is_empty() {
            warnings.push("no service is protected: add a [services.NAME] table".to_owned());
        }
        warnings.extend(self.rules_warnings());
        for service in &self.policy.services {
            for source in service
                .allow
                .iter()
                .filter_map(|name| self.policy.source(name))
            {
                if let Origin::Prefixes(prefixes) = &source.origin {
                    for everyone in prefixes.iter().filter(|prefix| prefix.prefix_len() == 0) {
                        warnings.push(format!(
                            "services.{} is open to everyone: sources.{} holds {everyone}",
                            service.name, source.name,
                        ));
                    }
                }
            }
        }
        for source in &self.policy.sources {
            if self.policy.user_of(source).is_none() {
                warnings.push(format!(
                    "sources.{} is not used: name it in a service's `allow`, or remove it",
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
                    "sources.{}: comes unprotected, so anybody on the way can let anybody in",
                    source.name
                ));
            }
        }
        warnings
    }

    /// Warnings about services that cover ports from which this host's own connections are made. Without tracking,
    /// packets to such a port are the service's to judge, so answers to this host are dropped with the rest.
    pub fn own_port_warnings(&self, own: &RangeInclusive<u16>) -> Vec<String> {
        let meets = |ports: &Ports| ports.meets(TCP, own) || ports.meets(UDP, own);
        let services = self.policy.services.iter().filter(|_| !self.rules.tracks());
        services
            .filter(|service| service.ports.iter().any(meets))
            .map(|service| {
                format!(
                    "services.{} covers ports from which this host's own connections are made ({}-{}): answers to them are dropped unless they come from a source that it allows",
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
            (DefaultVerdict::Drop, ReturnTraffic::Off) => warn(
                "return_traffic = \"off\" with default = \"drop\" drops the answers to this host's own connections: name \
                 resolution, time and updates will fail unless a service covers them",
            ),
            (DefaultVerdict::Drop, ReturnTraffic::Established) => warn(
                "return_traffic = \"established\" lets every TCP segment with ACK or RST in, whoever sends \
                 it, and no answer by UDP, such as a name server's",
            ),
            _ => {}
        }
        let keep = self.rules.keep;
        for (key, is_on, consequence) in [
            (
                "arp",
                keep.arp,
                "nobody on its network finds this host by IPv4, nor it anybody",
            ),
            (
                "neighbour_discovery",
                keep.neighbour_discovery,
                "unless a service lets it in, nobody on its network finds this host by IPv6, nor it anybody",
            ),
            (
                "icmp_errors",
                keep.icmp_errors,
                "unless a service lets them in, connections over paths with a smaller MTU hang",
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
                        "services.{} is limited to {name}, which is not among the interfaces that are filtered",
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
            attach: AttachMode::default(),
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

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there, or may not be read.
    #[error("{}: cannot be read: {cause}; check the path and its permissions", file.display())]
    Unreadable {
        /// As it was given.
        file: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// It is something else than text, or text of another encoding.
    #[error("{}:{line}: is not UTF-8; write the file as that", file.display())]
    NotText {
        /// As it was given.
        file: PathBuf,
        /// The first line that is not.
        line: usize,
    },
    /// Everything that is wrong, in the order of the text. Printed a line each.
    #[error("{}", Lines(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// Returns the code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Unreadable { .. } => ErrorCode::ConfigUnreadable,
            Self::NotText { .. } | Self::Invalid(_) => ErrorCode::ConfigInvalid,
        }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File, line and column, both from 1; none for what was typed on the command line.
    pub place: Option<(PathBuf, usize, usize)>,
    /// The key, such as `sources.office.prefixes[1]`, or the option; may be empty.
    pub key: String,
    /// What is wrong, then what would be right.
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
            more => write!(out, "\nand {more} more"),
        }
    }
}

fn check_interface(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("is empty; write an interface's name, such as \"eth0\"".to_owned());
    }
    if name.len() > MAX_INTERFACE_BYTES
        || name.contains(|c: char| c == '/' || c.is_whitespace() || is_deceptive(c))
    {
        return Err(format!(
            "{name:?} cannot be an interface; the kernel's names have up to {MAX_INTERFACE_BYTES} \
             bytes, without spaces, slashes and control characters"
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
            format!("there is no provider {name:?}; `allowlist providers` lists those there are")
        }
    }
}

/// Of a source that a service cannot allow.
fn outbound(name: &str) -> String {
    format!(
        "{name:?} lists where this host connects to, and not who connects to it; if both are meant, set direction = \"any\" in [sources.{name}]"
    )
}

fn sorted(mut prefixes: Vec<IpNet>) -> Vec<IpNet> {
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes
}
