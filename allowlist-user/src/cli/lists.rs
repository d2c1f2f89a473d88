//! Arguments about lists, sources and the catalogue: options of the commands that read them.

use std::net::IpAddr;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser as _};
use clap::{Args, Subcommand};
use jiff::Timestamp;

use super::Output;
use crate::additions::SOURCE_PREFIX;
use crate::export;

/// Options of `fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// A source of the configuration, or a provider of the catalogue
    pub name: String,
    /// Of a provider: only this region; may be repeated
    #[arg(long, value_name = "CODE")]
    pub region: Vec<String>,
    /// Of a provider: a parameter, such as subdomain=acme; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameter: Vec<(String, String)>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `providers`.
#[derive(Debug, Args)]
pub struct Providers {
    /// One provider.
    #[command(subcommand)]
    pub show: Option<ProvidersCommand>,
    /// Only those whose name, title or description has this word
    pub word: Option<String>,
    /// Only those that hold this address: compiled in, or in a last good list of a configured source
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<IpAddr>,
    /// With --address: fetch the lists of all entries that need no parameter, and search them too
    #[arg(long, requires = "address")]
    pub fetch: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// What else `providers` does.
#[derive(Debug, Subcommand)]
pub enum ProvidersCommand {
    /// Print one entry: where it comes from, and as configuration to copy
    Show {
        /// The provider's name
        name: String,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
}

/// Options of `diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// Only this source
    pub source: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `history`.
#[derive(Debug, Args)]
pub struct History {
    /// Only this source
    pub source: Option<String>,
    /// Only the newest so many events
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub count: usize,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `accept`.
#[derive(Debug, Args)]
pub struct Accept {
    /// The source whose list was rejected
    pub source: String,
    /// The id of the list, as `allowlist diff` shows it; without it, the command prompts on a terminal
    pub id: Option<String>,
    /// Do it even if it cuts the connection that this is typed over
    #[arg(long)]
    pub force: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `export`.
#[derive(Debug, Args)]
pub struct Export {
    /// The language; docs/export.md says how to load each
    #[arg(long, value_name = "FORMAT", value_parser = PossibleValuesParser::new(export::Format::ALL.map(export_value)).map(export_format))]
    pub format: export::Format,
    /// Only this source; without it, all that services allow
    pub source: Option<String>,
    /// Fetch every list now, instead of taking the last good ones on disk
    #[arg(long)]
    pub fetch: bool,
    /// What sets, chains and variables are called [default: the source's name, or allowlist]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// The TCP port to open, where the format has ports
    #[arg(long, value_name = "PORT", default_value_t = export::Options::PORT)]
    pub port: u16,
    /// mysql-grant: whose accounts
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// mysql-grant: for which database
    #[arg(long, value_name = "DATABASE")]
    pub database: Option<String>,
}

impl Export {
    /// The parameters of the formats besides the lists.
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
