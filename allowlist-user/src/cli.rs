//! What was typed: options and commands, their defaults, their help. What they mean is `command`'s.

mod change;
pub mod generate;
mod groups;
mod lists;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

pub use self::change::{Add, CareArgs, List, Log, Refresh, Reload, Remove, Rollback};
pub use self::groups::command;
pub use self::lists::{Accept, Diff, Export, Fetch, History, Providers, ProvidersCommand};
use crate::config::AttachMode;
use crate::explain::{Target, Typed};
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
  allowlist check --config allowlist.toml             what would be filtered; needs no privileges
  sudo allowlist run --iface eth0 --provider pagerduty-webhooks-us --port tcp/443
  sudo allowlist run                                  as /etc/allowlist/allowlist.toml says
  sudo allowlist status                               is it filtering, and what
  sudo allowlist watch                                what is being dropped, live
  sudo allowlist explain 203.0.113.9 --port tcp/443  would it pass, and why
  sudo allowlist add 203.0.113.9 --service ssh --ttl 2h
  sudo allowlist reload --confirm-within 60s          as the file says now; undone unless confirmed
  sudo allowlist diff                                 what the vendors have changed
  allowlist providers show github                     a vendor, as configuration to copy
  sudo allowlist detach                               take it off, now

Exit codes: 0 done; 1 failed, and standard error says why; 2 no such command or option; 3 the answer is no (status: not attached as configured; explain: the verdict is drop, in either mode); 4 refused, since it would cut your own connection."
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
crash and kill -9: the kernel goes on filtering by the last lists. `allowlist detach` takes it off then.

Examples:
  sudo allowlist run                                as /etc/allowlist/allowlist.toml says
  sudo allowlist run --iface eth1 --keep            another interface than the file's, and to stay
  sudo allowlist run --iface eth0 --port tcp/22 --allow 203.0.113.0/24            observes: drops nothing
  sudo allowlist run --iface eth0 --port tcp/22 --allow 203.0.113.0/24 --enforce  drops")]
    Run(Run),
    /// Parse, fetch and compile, and print what would be published; changes nothing
    #[command(after_help = "\
Examples:
  allowlist check                                   /etc/allowlist/allowlist.toml
  allowlist check --config new.toml                 before it takes the other's place
  sudo allowlist check --offline                    by the last-good lists on disk

The report is printed whatever fails. It predicts the attach mode of each interface from its driver. Exit codes: 0 a \
start would filter, if need be by last-good lists; 1 it would fail, or wait for a list that is neither fetched nor on disk.")]
    Check(Check),
    /// Print the prefixes of one source, or of one catalogued provider
    #[command(after_help = "\
Examples:
  allowlist fetch workato --region US
  allowlist fetch zendesk --parameter subdomain=acme
  allowlist fetch office --config allowlist.toml    a source of the configuration")]
    Fetch(Fetch),
    /// Print the catalogue of providers, or one entry as configuration to copy
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "\
Examples:
  allowlist providers                   all of them
  allowlist providers webhook           those with that word in their name, title or description
  allowlist providers show github       one, with everything that is known, to copy
  allowlist providers --address 52.5.142.59      those that hold the address
  allowlist providers crawler --address 17.22.237.9 --fetch"
    )]
    Providers(Providers),
    /// Print what a refresh would change, source by source; changes nothing
    #[command(
        after_help = "Compares the present lists of the sources with the last good lists on disk. Works with or without a daemon; a running daemon adds its rejected lists, each with the command that accepts it. Where there is no last good list, everything is new.

Examples:
  sudo allowlist diff                   all sources
  sudo allowlist diff pagerduty --json  one, as data"
    )]
    Diff(Diff),
    /// Print what changed when, the oldest first
    #[command(after_help = "\
Examples:
  sudo allowlist history                all sources
  sudo allowlist history pagerduty --count 5")]
    History(History),
    /// Accept one list that was rejected: when the vendor really made that change
    #[command(
        after_help = "A list is rejected when it has too few or too many prefixes or addresses, when it has lost or gained too much, or when it lacks an address of must_cover. `allowlist diff SOURCE` shows it with its id, and exactly the list of that id is accepted. Without an ID the command shows the list and asks, if there is a terminal.

Examples:
  sudo allowlist diff pagerduty
  sudo allowlist accept pagerduty 4be1f8a6d0b7c2935e8f60d1a2c4b397"
    )]
    Accept(Accept),
    /// Print the allowed prefixes in the language of another firewall
    #[command(after_help = "\
Examples:
  sudo allowlist export --format nft > allowlist.nft
  allowlist export --format nginx pagerduty --fetch --config allowlist.toml")]
    Export(Export),
    /// Would a new packet of an address pass, and why
    #[command(after_help = "\
Examples:
  sudo allowlist explain 203.0.113.9                     all that it reaches
  sudo allowlist explain 203.0.113.9 --port tcp/443      what becomes of a connection to that port
  sudo allowlist explain 2001:db8::9 --port icmp --iface eth1

The kernel is asked, with or without a daemon. What is meant is a packet that answers nothing: of TCP, the one that \
opens a connection. Exit codes: 0 the verdict is pass; 3 a verdict is drop. The exit code is the verdict's in both modes: in observe mode the \
packet passes all the same, and 3 states that enforce mode would drop it.")]
    Explain(Explain),
    /// Is it filtering, what, and what has it done
    #[command(
        after_help = "The kernel is queried, with or without a daemon. Exit codes: 0 attached as configured, in either mode; 3 not \
attached everywhere, or not as configured. With --require enforce, observe mode is 3 too.

Examples:
  sudo allowlist status
  sudo allowlist status --require enforce --json"
    )]
    Status(StatusOptions),
    /// Carry drops out, or only count them: a running daemon changes over at once
    #[command(
        after_help = "Nothing is reloaded, and no packet is missed. It lasts until the configuration's mode changes, also over restarts.

Examples:
  sudo allowlist mode observe           everything passes
  sudo allowlist mode enforce --confirm-within 60s"
    )]
    Mode(ModeChange),
    /// Print packets as they are dropped, a line each, until Ctrl-C
    #[command(
        after_help = "Works with or without a daemon. In observe mode these are the packets that would be dropped. Of a flood a part is shown, so that showing it does not slow down the dropping; how many were not is printed.

Examples:
  sudo allowlist watch                  until Ctrl-C
  sudo allowlist watch --count 10 --json"
    )]
    Watch(Watch),
    /// Show the flows that are tracked, or remove some
    #[command(
        subcommand_required = true,
        after_help = "With tracking, answers to the flows that this host initiated pass. Works with or without a daemon; takes root.

Examples:
  sudo allowlist flows list                   all of them, with the time that they have left
  sudo allowlist flows list 203.0.113.0/24    those with the addresses of a prefix
  sudo allowlist flows cut 203.0.113.9        end them: their answers are dropped from now on"
    )]
    Flows {
        /// List or cut.
        #[command(subcommand)]
        command: FlowsCommand,
    },
    /// Print the prefixes that the kernel has now, or only those that were added by command
    #[command(after_help = "\
Examples:
  sudo allowlist list                   every prefix, what it reaches, who lists it
  sudo allowlist list 203.0.113.9       those that hold an address, or lie within a prefix
  sudo allowlist list github --service webhooks
  sudo allowlist list --added           what was added by command, until when, by whom")]
    List(List),
    /// Let prefixes in, from now on: all of them, or none
    #[command(
        after_help = "They stay over restarts, until they are removed or their time is over. Without a PREFIX they are read from standard input, one a line; `#` starts a comment.

Examples:
  sudo allowlist add 203.0.113.7 --service ssh --ttl 2h --note 'on call'
  sudo allowlist add 2001:db8:7::/48 --service webhooks --confirm-within 60s
  cat prefixes.txt | sudo allowlist add --service webhooks"
    )]
    Add(Add),
    /// Let prefixes in no more that were added by command: all of them, or none
    #[command(
        after_help = "What a source lists is not removed so: take it out of the source. Without a PREFIX they are read from standard input, one a line.

Examples:
  sudo allowlist remove 203.0.113.7                       from every service that it was added to
  sudo allowlist remove 203.0.113.7 --service ssh --confirm-within 60s"
    )]
    Remove(Remove),
    /// Print the sources: how they stand, how old their lists are, when they are asked next
    Sources(Output),
    /// Ask for lists now, instead of when they are due
    #[command(after_help = "\
Examples:
  sudo allowlist refresh                every source
  sudo allowlist refresh github         one")]
    Refresh(Refresh),
    /// Read the configuration again: all of it is put in force, or none of it
    #[command(
        after_help = "SIGHUP does the same, and has nobody to tell the reason to but the log.

Examples:
  sudo allowlist reload
  sudo allowlist reload --confirm-within 60s"
    )]
    Reload(Reload),
    /// Keep a change that was made with --confirm-within
    Confirm(Output),
    /// Put an earlier policy in force again: configuration, added prefixes and mode
    #[command(
        after_help = "The last 20 policies are kept. The file is not written to: what it says does not count until it is changed, or reloaded.

Examples:
  sudo allowlist rollback               the policy before this one
  sudo allowlist rollback --list        those there are
  sudo allowlist rollback 7 --confirm-within 60s"
    )]
    Rollback(Rollback),
    /// Print who changed what and when, the oldest first
    #[command(after_help = "\
Examples:
  sudo allowlist log
  sudo allowlist log --count 1000 --json")]
    Log(Log),
    /// Take the filter off every interface, whoever put it there
    #[command(after_help = "\
Examples:
  sudo allowlist detach
  sudo allowlist detach --force         also where it is on interfaces of another network namespace")]
    Detach(Detach),
    /// Load the programs into this kernel, attach them to nothing, and print what its verifier says
    Verify(Output),
    /// Print what a shell reads to complete commands and options
    #[command(after_help = "\
Examples:
  allowlist completions bash > /usr/local/share/bash-completion/completions/allowlist
  allowlist completions zsh > /usr/local/share/zsh/site-functions/_allowlist
  allowlist completions fish > /usr/local/share/fish/vendor_completions.d/allowlist.fish")]
    Completions(generate::Completions),
    /// Print the version: the same as --version
    #[command(hide = true)]
    Version,
    /// Write a man page for each command
    #[command(after_help = "\
Examples:
  allowlist man /usr/local/share/man/man8")]
    Man(generate::Pages),
}

/// What to do with flows.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// Print the tracked flows: which side initiated each, and when it expires
    List {
        /// Only flows with these addresses on the other side
        #[arg(value_parser = prefix)]
        prefix: Option<IpNet>,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
    /// Remove flows, and print them: answers to them are dropped until this host initiates them again
    Cut {
        /// The addresses on the other side
        #[arg(value_parser = prefix)]
        prefix: IpNet,
        /// How to print.
        #[command(flatten)]
        output: Output,
    },
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
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
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
    /// What to protect, such as tcp/443, udp/5000-5010, sctp/3868, icmp, ip/112 (an IP protocol) or any; may be repeated
    #[arg(long, value_name = "PORT")]
    pub port: Vec<Ports>,
    /// Drop packets that are not allowed; without it, these options observe: everything passes, and drops are counted
    #[arg(long)]
    pub enforce: bool,
}

impl Small {
    /// Whether these options describe a policy, and no file is needed.
    pub fn is_policy(&self) -> bool {
        !(self.allow.is_empty() && self.provider.is_empty() && self.port.is_empty())
    }

    /// The mode that these options describe: a try drops nothing without `--enforce`.
    pub fn mode(&self) -> Mode {
        if self.enforce {
            Mode::Enforce
        } else {
            Mode::Observe
        }
    }
}

/// Options of `check`.
#[derive(Debug, Args)]
pub struct Check {
    /// Fetch nothing: take the last-good lists on disk, as a start without a network does
    #[arg(long)]
    pub offline: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
    /// What to filter, without a file or instead of it.
    #[command(flatten)]
    pub small: Small,
}

/// Options of `explain`.
#[derive(Debug, Args)]
pub struct Explain {
    /// Who sends the packet
    pub address: Typed,
    /// To what: tcp/443, udp/53, sctp/3868, icmp, ip/112, or other (all other protocols without ports) [default: each]
    #[arg(long, value_name = "PORT")]
    pub port: Option<Target>,
    /// By which interface it comes in [default: each that is filtered]
    #[arg(long, value_name = "NAME")]
    pub iface: Option<String>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `detach`.
#[derive(Debug, Args)]
pub struct Detach {
    /// Even if the filter is on interfaces of another network namespace
    #[arg(long)]
    pub force: bool,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// Options of `status`.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatusOptions {
    /// What else must be so for exit code 0
    #[arg(long, value_enum, value_name = "WHAT")]
    pub require: Option<Require>,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
}

/// What `status` can be required to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Require {
    /// Mode enforce: packets are dropped
    Enforce,
}

/// Options of `mode`.
#[derive(Debug, Args)]
pub struct ModeChange {
    /// The mode from now on
    #[arg(value_enum)]
    pub mode: ModeArg,
    /// How carefully.
    #[command(flatten)]
    pub care: CareArgs,
    /// How to print.
    #[command(flatten)]
    pub output: Output,
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
