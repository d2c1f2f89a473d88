//! Arguments of `allowlist learn`.

use std::time::Duration;

use clap::Args;

use super::Output;
use super::change::time;

/// The options of `allowlist learn`, which proposes rules of the egress policy.
#[derive(Debug, Args)]
pub struct Learn {
    /// Only destinations that were used within this time, such as 24h or 7d [default: all that were seen]
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub since: Option<Duration>,
    /// Only programs of this slice, or of this cgroup and those in it
    #[arg(long, value_name = "UNIT")]
    pub unit: Option<String>,
    /// Also destinations to which UDP sockets were only connected
    #[arg(long)]
    pub probes: bool,
    /// Print nothing, and forget what was seen so far
    #[arg(long, conflicts_with_all = ["since", "unit", "probes", "json"])]
    pub forget: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}
