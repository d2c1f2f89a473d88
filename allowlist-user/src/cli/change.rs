//! What was typed to change what is in force: options of the commands that ask the daemon.

use std::time::Duration;

use clap::Args;

use super::Output;
use crate::control::CONFIRM_WITHIN;
use crate::report::Only;

/// How carefully something is done.
#[derive(Clone, Debug, Default, Args)]
pub struct CareArgs {
    /// Take it back after this time, such as 60s, unless `allowlist confirm` follows; the kernel does so even
    /// if the daemon dies
    #[arg(long, value_name = "TIME", value_parser = confirm_within)]
    pub confirm_within: Option<Duration>,
    /// Do it even if it cuts the connection that this is typed over
    #[arg(long)]
    pub force: bool,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only the prefixes of this source, or those that hold an address or lie within a prefix
    #[arg(value_name = "SOURCE|PREFIX")]
    pub only: Option<Only>,
    /// Only the prefixes that reach this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Only what was added by command
    #[arg(long, conflicts_with_all = ["only", "service"])]
    pub added: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `add`.
#[derive(Debug, Args)]
pub struct Add {
    /// Prefixes or addresses; without any, from standard input
    pub prefix: Vec<String>,
    /// The service that they reach
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// How long, such as 2h or 7d; without it, until they are removed
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub ttl: Option<Duration>,
    /// Why, for whoever looks at it later
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Prefixes or addresses, as they were added; without any, from standard input
    pub prefix: Vec<String>,
    /// Only from this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `refresh`.
#[derive(Debug, Args)]
pub struct Refresh {
    /// Only this source
    pub source: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `reload`.
#[derive(Debug, Args)]
pub struct Reload {
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `rollback`.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The policy's number [default: the one before this one]
    #[arg(value_name = "NUMBER")]
    pub policy: Option<u64>,
    /// Print the policies that there are, and change nothing
    #[arg(long, conflicts_with_all = ["policy", "confirm_within", "force"])]
    pub list: bool,
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `log`.
#[derive(Debug, Args)]
pub struct Log {
    /// Only the newest so many entries
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub count: usize,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_secs() > 0 && time.subsec_nanos() == 0 => Ok(time),
        Ok(_) => Err("write whole seconds, at least one".to_owned()),
        Err(error) => Err(format!("{error}; write a time such as 90s, 2h or 7d")),
    }
}

fn confirm_within(text: &str) -> Result<Duration, String> {
    let within = time(text)?;
    if CONFIRM_WITHIN.contains(&within.as_secs()) {
        Ok(within)
    } else {
        Err("write a time from 1s to 24h".to_owned())
    }
}
