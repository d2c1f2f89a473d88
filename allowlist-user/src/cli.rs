//! What was typed: options and commands, their defaults, their help. What they mean is `command`'s.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::config::AttachMode;
use crate::feed::parse_prefix;
use crate::policy::{Mode, Ports};

/// A source-address filter for Linux edge hosts: services are reached by the vendors and networks
/// that you name, and by nobody else.
#[derive(Debug, Parser)]
#[command(
    name = "allowlist",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  allowlist check --config allowlist.toml           what would be filtered; needs no privileges
  sudo allowlist run --iface eth0 --provider pagerduty-webhooks-us --port tcp/443
  sudo allowlist run                                as /etc/allowlist/allowlist.toml says
  sudo allowlist status                             is it filtering, and what
  sudo allowlist watch                              what is being dropped, live
  sudo allowlist detach                             take it off, now

Exit codes: 0 done, 1 failed (the reason is on standard error), 2 no such command or option."
)]
pub struct Cli {
    /// Where things are.
    #[command(flatten)]
    pub paths: Paths,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Every path that the program uses, so that several can run side by side.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Paths")]
pub struct Paths {
    /// The configuration file [default: /etc/allowlist/allowlist.toml]
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_CONFIG",
        hide_env_values = true,
        value_name = "FILE"
    )]
    pub config: Option<PathBuf>,
    /// Where last-good lists are kept
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_STATE_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/var/lib/allowlist"
    )]
    pub state_dir: PathBuf,
    /// Where the kernel's maps and links are pinned: on a BPF file system, no dots in its name
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_PIN_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/sys/fs/bpf/allowlist"
    )]
    pub pin_dir: PathBuf,
    /// Where a running daemon answers
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_SOCKET",
        hide_env_values = true,
        value_name = "FILE",
        default_value = "/run/allowlist/socket"
    )]
    pub socket: PathBuf,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Filter: attach, keep the lists in step, until Ctrl-C
    #[command(after_help = "\
Ctrl-C takes the filter off, unless --keep. SIGTERM leaves it in force, as do a closed terminal, a
crash and kill -9: the kernel goes on filtering by the last lists. `allowlist detach` takes it off then.")]
    Run(Run),
    /// Parse, fetch and compile, and print what would be published; changes nothing
    Check(Check),
    /// Print the prefixes of one source, or of one catalogued provider
    Fetch(Fetch),
    /// Print the catalogue of providers
    Providers(Providers),
    /// Is it filtering, what, and what has it done
    Status(Output),
    /// Carry drops out, or only count them: a running daemon changes over at once
    #[command(
        after_help = "Nothing is reloaded, and no packet is missed. It lasts until the daemon ends: the next one does as the configuration says."
    )]
    Mode(ModeChange),
    /// Print packets as they are dropped, a line each, until Ctrl-C
    #[command(
        after_help = "Works with or without a daemon. In observe mode these are the packets that would be dropped. Of a flood a part is shown, so that showing it does not slow down the dropping; how many were not is printed."
    )]
    Watch(Watch),
    /// Print the prefixes that the kernel has now
    List(Output),
    /// Take the filter off every interface, whoever put it there
    Detach(Output),
    /// Load the programs into this kernel, attach them to nothing, and print what its verifier says
    Verify(Output),
}

/// Options of `run`.
#[derive(Debug, Args)]
pub struct Run {
    /// Where in the kernel to run; overrides the file
    #[arg(long, value_enum, value_name = "MODE")]
    pub attach_mode: Option<AttachModeArg>,
    /// Leave the filter in force on Ctrl-C too
    #[arg(long)]
    pub keep: bool,
    /// Print a line a packet: for looking closely, not for a busy interface
    #[arg(long)]
    pub trace: bool,
    /// What to filter, without a file or instead of it.
    #[command(flatten)]
    pub small: Small,
}

/// A small configuration without a file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Without a configuration file")]
pub struct Small {
    /// Interface to filter on; may be repeated; with a file, instead of the file's
    #[arg(long, value_name = "NAME")]
    pub iface: Vec<String>,
    /// Prefix or address to let in; may be repeated
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub allow: Vec<IpNet>,
    /// Catalogued provider to let in; may be repeated
    #[arg(long, value_name = "NAME")]
    pub provider: Vec<String>,
    /// What to protect, such as tcp/443, udp/5000-5010, sctp/3868, icmp or any; may be repeated
    #[arg(long, value_name = "PORT")]
    pub port: Vec<Ports>,
}

impl Small {
    /// Whether these options describe a policy, and no file is needed.
    pub fn is_policy(&self) -> bool {
        !(self.allow.is_empty() && self.provider.is_empty() && self.port.is_empty())
    }
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// How to print.
    #[command(flatten)]
    pub output: Output,
    /// What to filter, without a file or instead of it.
    #[command(flatten)]
    pub small: Small,
}

/// Options of `fetch`.
#[derive(Debug, Args)]
pub struct Fetch {
    /// A source of the configuration, or a provider of the catalogue
    pub name: String,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `providers`.
#[derive(Debug, Args)]
pub struct Providers {
    /// Only those whose name or title has this word
    pub word: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `mode`.
#[derive(Debug, Args)]
pub struct ModeChange {
    /// The mode from now on
    #[arg(value_enum)]
    pub mode: ModeArg,
}

/// `Mode` as typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Drops are carried out
    Enforce,
    /// Everything passes; decisions are counted and told as if they were carried out
    Observe,
}

impl From<ModeArg> for Mode {
    fn from(typed: ModeArg) -> Self {
        match typed {
            ModeArg::Enforce => Self::Enforce,
            ModeArg::Observe => Self::Observe,
        }
    }
}

/// Options of `watch`.
#[derive(Debug, Args)]
pub struct Watch {
    /// Stop after so many packets
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<u64>,
    /// Print one JSON document a line
    #[arg(long)]
    pub json: bool,
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// `AttachMode` as typed.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AttachModeArg {
    /// Native where the driver can, else generic with a warning
    Auto,
    /// In the driver, or not at all
    Native,
    /// In the network stack
    Generic,
    /// On the network card
    Offload,
}

impl From<AttachModeArg> for AttachMode {
    fn from(typed: AttachModeArg) -> Self {
        match typed {
            AttachModeArg::Auto => Self::Auto,
            AttachModeArg::Native => Self::Native,
            AttachModeArg::Generic => Self::Generic,
            AttachModeArg::Offload => Self::Offload,
        }
    }
}

fn prefix(text: &str) -> Result<IpNet, String> {
    parse_prefix(text).map_err(|error| error.to_string())
}
