//! Arguments of the commands that send a request to the daemon.

use std::time::Duration;

use clap::Args;

use super::Output;
use crate::control::CONFIRM_WITHIN;
use crate::report::Only;

/// The options of commit confirm and of the lockout check, for commands that change the policy.
#[derive(Clone, Debug, Default, Args)]
pub struct CareArgs {
    /// Roll the change back after this time, such as 60s, unless `allowlist confirm` follows; the kernel does so
    /// even if the daemon dies
    #[arg(long, value_name = "TIME", value_parser = confirm_within)]
    pub confirm_within: Option<Duration>,
    /// Skip the lockout check: apply the change even if it cuts your own connection
    #[arg(long)]
    pub force: bool,
}

/// The options of `allowlist list`, which prints the active prefixes.
#[derive(Debug, Args)]
pub struct List {
    /// Print only the prefixes of this source, or those that contain an address or lie within a prefix
    #[arg(value_name = "SOURCE|PREFIX")]
    pub only: Option<Only>,
    /// Print only the prefixes that may reach this service
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// Print only the prefixes that were added by command
    #[arg(long, conflicts_with_all = ["only", "service"])]
    pub added: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist add`, which allows prefixes to reach a service.
#[derive(Debug, Args)]
pub struct Add {
    /// Prefixes or addresses to allow; without any, they are read from standard input
    pub prefix: Vec<String>,
    /// The service that the prefixes may reach
    #[arg(long, value_name = "NAME")]
    pub service: String,
    /// The time until the prefixes expire, such as 2h or 7d [default: never]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub ttl: Option<Duration>,
    /// A note for the audit log and `allowlist list --added`
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist remove`, which removes prefixes that were added by command.
#[derive(Debug, Args)]
pub struct Remove {
    /// Prefixes or addresses, as they were added; without any, they are read from standard input
    pub prefix: Vec<String>,
    /// Remove the prefixes from this service only
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist refresh`, which fetches the lists of sources now.
#[derive(Debug, Args)]
pub struct Refresh {
    /// Fetch the list of this source only
    pub source: Option<String>,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist reload`, which reads the configuration again and activates it.
#[derive(Debug, Args)]
pub struct Reload {
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist rollback`, which activates an earlier policy.
#[derive(Debug, Args)]
pub struct Rollback {
    /// The number of the policy to activate [default: the previous one]
    #[arg(value_name = "NUMBER")]
    pub policy: Option<u64>,
    /// Print the stored policies; changes nothing
    #[arg(long, conflicts_with_all = ["policy", "confirm_within", "force"])]
    pub list: bool,
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist log`, which prints the audit log.
#[derive(Debug, Args)]
pub struct Log {
    /// Print at most this number of entries, the newest ones
    #[arg(long, value_name = "NUMBER", default_value_t = 100)]
    pub count: usize,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

pub(super) fn time(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if time.as_secs() > 0 && time.subsec_nanos() == 0 => Ok(time),
        Ok(_) => Err("write whole seconds, at least one".to_owned()),
        Err(error) => Err(format!("{error}; write a duration such as 90s, 2h or 7d")),
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
