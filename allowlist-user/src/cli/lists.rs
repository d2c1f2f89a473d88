//! Arguments of the commands that read lists, sources and the catalogue.

use std::net::IpAddr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Output;
use crate::additions::SOURCE_PREFIX;
use crate::export;

/// The options of `allowlist fetch`, which prints the prefixes of a source or of a provider.
#[derive(Debug, Args)]
pub struct Fetch {
    /// A source of the configuration, or a provider of the catalogue
    pub name: String,
    /// Fetch only this region of the provider; repeatable
    #[arg(long, value_name = "CODE")]
    pub region: Vec<String>,
    /// A parameter of a provider, such as subdomain=acme; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameter: Vec<(String, String)>,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist providers`, which prints the catalogue of providers.
#[derive(Debug, Args)]
pub struct Providers {
    /// The command for one provider; `None` to list providers.
    #[command(subcommand)]
    pub show: Option<ProvidersCommand>,
    /// Print only providers with this word in their name, title or description
    pub word: Option<String>,
    /// Print only providers that list this address: in a compiled-in list, or a last-good list of a configured source
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// With --address: also fetch and search the lists of all providers that need no parameter
    #[arg(long, requires = "address")]
    pub fetch: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The commands of `providers`.
#[derive(Debug, Subcommand)]
pub enum ProvidersCommand {
    /// Print one entry: its origin, and its configuration to copy
    Show {
        /// The provider's name
        name: String,
        /// Whether the output is text or JSON.
        #[command(flatten)]
        output: Output,
    },
}

/// The options of `allowlist diff`, which prints the changes that a refresh would make.
#[derive(Debug, Args)]
pub struct Diff {
    /// Print the changes of this source only
    pub source: Option<String>,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist history`, which prints the changes of the lists.
#[derive(Debug, Args)]
pub struct History {
    /// Print the changes of this source only
    pub source: Option<String>,
    /// Print at most this number of events, the newest ones
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub count: usize,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist accept`, which accepts a list that the gate rejected.
#[derive(Debug, Args)]
pub struct Accept {
    /// The source whose list was rejected
    pub source: String,
    /// The id of the list, as `allowlist diff` shows it; without it, the command prompts on a terminal
    pub id: Option<String>,
    /// Skip the lockout check: accept the list even if it cuts your own connection
    #[arg(long)]
    pub force: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist export`, which prints the allowed prefixes in another firewall's format.
#[derive(Debug, Args)]
pub struct Export {
    /// The export format; docs/export.md describes how to load each
    #[arg(long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(export::Format::ALL.map(export_value)).map(export_format))]
    pub format: export::Format,
    /// Export only this source [default: all that services allow]
    pub source: Option<String>,
    /// Fetch every list now instead of reading the last-good lists on disk
    #[arg(long)]
    pub fetch: bool,
    /// The name of sets, chains and variables [default: the source's name, or allowlist]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The TCP port to open, where the format has ports
    #[arg(long, value_name = "PORT", default_value_t = export::Options::PORT)]
    pub port: u16,
    /// The user of the MySQL accounts, for mysql-grant
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// The database that the MySQL accounts may read, for mysql-grant
    #[arg(long, value_name = "DATABASE")]
    pub database: Option<String>,
}

impl Export {
    /// Returns the options of the export format; `at` is the time of the export.
    pub fn settings(&self, at: Timestamp) -> export::Options<'_> {
        // No name has a dot.
        let plain = |source| str::strip_prefix(source, SOURCE_PREFIX).unwrap_or(source);
        let name = self.name.as_deref();
        let name = name.or_else(|| self.source.as_deref().map(plain));
        export::Options {
            port: self.port,
            user: self.user.as_deref(),
            database: self.database.as_deref(),
            ..export::Options::new(name.unwrap_or("allowlist"), at)
        }
    }
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE, such as subdomain=acme".to_owned()),
    }
}

fn export_value(format: export::Format) -> PossibleValue {
    PossibleValue::new(format.name()).help(format.describe())
}

#[expect(clippy::needless_pass_by_value, reason = "clap hands it over")]
fn export_format(name: String) -> export::Format {
    let mut formats = export::Format::ALL.into_iter();
    formats
        .find(|format| format.name() == name)
        .expect("only these names are taken")
}
