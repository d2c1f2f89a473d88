//! Arguments of `allowlist explain`.

use allowlist_policy::explain::{Target, Typed};
use clap::Args;

use super::Output;
use crate::report::Destination;

/// The end of the help page.
pub(super) const AFTER_HELP: &str = "\
Examples:
  sudo allowlist explain 203.0.113.9                     every service
  sudo allowlist explain 203.0.113.9 --port tcp/443      one port
  sudo allowlist explain 2001:db8::9 --port icmp --iface eth1
  sudo allowlist explain --to 203.0.113.9                every port, for programs in no unit that a rule names
  sudo allowlist explain --to api.example.com --port tcp/443 --unit alertd.service

Reads the kernel's tables, with or without a daemon. The packet begins a new flow (in TCP, a SYN), so it is no answer to a flow of this host. \
With --to, the answer is the verdict of the egress policy on a call of a program. A name is not resolved: the addresses are those that resolvers answered to programs, and those that the daemon polled. \
Exit codes: 0 the verdict is pass; 3 a verdict is drop or refuse. In observe mode the packet or the call passes in both cases, and 3 states \
that enforce mode would not let it pass.";

/// The options of `allowlist explain`, which prints the verdict for a new packet from an address, or for a call to a
/// destination, and the reason.
#[derive(Debug, Args)]
pub struct Explain {
    /// The source address of the packet
    #[arg(required_unless_present = "to")]
    pub address: Option<Typed>,
    /// Explain the calls of this host's programs to this destination, an address or a name, by the egress policy
    #[arg(long, value_name = "NAME|ADDRESS", conflicts_with_all = ["address", "iface"])]
    pub to: Option<Destination>,
    /// The destination port: tcp/443, udp/53, icmp; for packets also sctp/3868, ip/112, or other (all other protocols without ports) [default: each]
    #[arg(long, value_name = "PORT")]
    pub port: Option<Target>,
    /// With --to, the unit or the cgroup of the program, as in rules [default: none that a rule names]
    #[arg(long, value_name = "UNIT", requires = "to", conflicts_with = "address")]
    pub unit: Option<String>,
    /// The receiving interface [default: each filtered interface]
    #[arg(long, value_name = "NAME")]
    pub iface: Option<String>,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}
