//! The command line: commands and options with their defaults and help texts.
//!
//! Parses and validates arguments alone; `command` carries the commands out.

mod change;
mod explain;
pub mod generate;
mod groups;
mod learn;
mod lists;

use std::path::PathBuf;

use allowlist_dataplane::AttachModeRequest;
use allowlist_lists::feed::parse_prefix;
use allowlist_policy::{Mode, Ports};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

pub use self::change::{Add, CareArgs, List, Log, Refresh, Reload, Remove, Rollback};
pub use self::explain::Explain;
pub use self::groups::command;
pub use self::learn::Learn;
pub use self::lists::{Accept, Diff, Export, Fetch, History, Providers, ProvidersCommand};

/// A source-address filter for Linux edge hosts: only the vendors and networks that you list reach
/// your services.
#[derive(Debug, Parser)]
#[command(
    name = "allowlist",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  allowlist check --config allowlist.toml             validate a configuration; needs no privileges
  sudo allowlist run --iface eth0 --provider pagerduty-webhooks-us --port tcp/443
  sudo allowlist run                                  filter by /etc/allowlist/allowlist.toml
  sudo allowlist status                               state, counters and list ages
  sudo allowlist watch                                dropped packets, live
  sudo allowlist explain 203.0.113.9 --port tcp/443   the verdict for an address, and the reason
  sudo allowlist explain --to api.example.com --port tcp/443 --unit alertd.service
  sudo allowlist add 203.0.113.9 --service ssh --ttl 2h
  sudo allowlist reload --confirm-within 60s          apply the file; rolled back unless confirmed
  sudo allowlist diff                                 changes in the vendors' lists
  allowlist providers show github                     a provider as configuration to copy
  sudo allowlist detach                               remove the filter from every interface

Exit codes: 0 success; 1 error, with the reason on standard error; 2 usage error; 3 the answer is no (status: not attached as configured; explain: the verdict is drop or refuse, in either mode); 4 the lockout check refused the change, because it would cut your own connection."
)]
pub struct Cli {
    /// The paths of the configuration file, the state directory, the pin directory and the control socket.
    #[command(flatten)]
    pub paths: Paths,
    /// The command on the command line, such as `run` or `status`, with its options.
    #[command(subcommand)]
    pub command: Command,
}

/// The paths of one instance of the filter; instances with different paths run side by side.
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
    /// The folder of last-good lists, policies and logs
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_STATE_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/var/lib/allowlist"
    )]
    pub state_dir: PathBuf,
    /// The folder of pinned maps and links, on a BPF file system; no dots in its name
    #[arg(
        long,
        global = true,
        env = "ALLOWLIST_PIN_DIR",
        hide_env_values = true,
        value_name = "FOLDER",
        default_value = "/sys/fs/bpf/allowlist"
    )]
    pub pin_dir: PathBuf,
    /// The control socket of the daemon
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

/// The commands of the program.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Attach the filter and refresh its lists until Ctrl-C
    #[command(after_help = "\
Ctrl-C detaches the filter, unless --keep is given. After SIGTERM, a closed terminal, a crash or
kill -9 the kernel keeps filtering with the last lists, until `allowlist detach`.

Examples:
  sudo allowlist run                                filter by /etc/allowlist/allowlist.toml
  sudo allowlist run --iface eth1 --keep            on another interface; Ctrl-C does not detach
  sudo allowlist run --iface eth0 --port tcp/22 --allow 203.0.113.0/24            observe: drop nothing
  sudo allowlist run --iface eth0 --port tcp/22 --allow 203.0.113.0/24 --enforce  drop")]
    Run(Run),
    /// Validate a configuration, fetch its lists and print the policy of a start; changes nothing
    #[command(after_help = "\
Examples:
  allowlist check                                   /etc/allowlist/allowlist.toml
  allowlist check --config new.toml                 another file, before it is installed
  sudo allowlist check --offline                    with the last-good lists on disk

The report is always printed, and predicts the attach mode of each interface from its driver. Exit codes: 0 a start \
would filter, with last-good lists where a fetch fails; 1 it would fail, or wait for a list that is neither fetched nor on disk.")]
    Check(Check),
    /// Fetch and print the prefixes of a source or of a provider
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
  allowlist providers webhook           with this word in the name, title or description
  allowlist providers show github       one entry as configuration to copy
  allowlist providers --address 52.5.142.59      whose lists contain the address
  allowlist providers crawler --address 17.22.237.9 --fetch"
    )]
    Providers(Providers),
    /// Print the changes that a refresh would make, by source; changes nothing
    #[command(
        after_help = "Compares the current lists of the sources with the last-good lists on disk. Works with or without a daemon; a running daemon adds its rejected lists, each with the command that accepts it. Without a last-good list, every prefix is new.

Examples:
  sudo allowlist diff                   all sources
  sudo allowlist diff pagerduty --json  one, as data"
    )]
    Diff(Diff),
    /// Print the changes of the lists, oldest first
    #[command(after_help = "\
Examples:
  sudo allowlist history                all sources
  sudo allowlist history pagerduty --count 5")]
    History(History),
    /// Accept a list that the gate rejected, after you verified the change with the vendor
    #[command(
        after_help = "The gate rejects a list with too few or too many prefixes or addresses, one that lost or gained too much, and one that lacks an address of must_cover. `allowlist diff SOURCE` shows the rejected list with its id; only the list of that id is accepted. Without an ID, the command shows the list and prompts on a terminal.

Examples:
  sudo allowlist diff pagerduty
  sudo allowlist accept pagerduty 4be1f8a6d0b7c2935e8f60d1a2c4b397"
    )]
    Accept(Accept),
    /// Print the allowed prefixes in another firewall's format
    #[command(after_help = "\
Examples:
  sudo allowlist export --format nft > allowlist.nft
  allowlist export --format nginx pagerduty --fetch --config allowlist.toml")]
    Export(Export),
    /// Explain whether a new packet from an address, or a call to one, would pass, and which rule decides
    #[command(after_help = explain::AFTER_HELP)]
    Explain(Explain),
    /// Print filter state, counters and list ages
    #[command(
        after_help = "Reads the kernel, with or without a daemon. Exit codes: 0 attached as configured, in either mode; 3 not attached \
everywhere, or not as configured. With --require enforce, observe mode is 3 too.

Examples:
  sudo allowlist status
  sudo allowlist status --require enforce --json"
    )]
    Status(StatusOptions),
    /// Switch between enforcing drops and only counting them; takes effect at once
    #[command(
        after_help = "The configuration is not reloaded. Both modes count every packet with its verdict. The mode persists across restarts, until the configuration states another one.

Examples:
  sudo allowlist mode observe           every packet passes
  sudo allowlist mode enforce --confirm-within 60s"
    )]
    Mode(ModeChange),
    /// Print dropped packets, or with --egress refused calls, until Ctrl-C
    #[command(
        after_help = "Works with or without a daemon. In observe mode it prints the packets that enforce mode would drop. A flood is sampled, so that printing does not slow down the filter; the number of packets that were not printed is reported.

With --egress, each line has the program, its process, unit and user, the destination, and the reason. Equal calls are \
printed once, and then as a number each minute; in JSON, every call is printed.

Examples:
  sudo allowlist watch                  until Ctrl-C
  sudo allowlist watch --count 10 --json
  sudo allowlist watch --egress         calls that the egress policy refuses"
    )]
    Watch(Watch),
    /// Propose rules of the egress policy for the destinations that no rule allows
    #[command(
        after_help = "Prints rules and sources to paste into the configuration, by unit, with names where programs asked for them. Run it after some days with mode = \"observe\" in [egress]. Destinations that were called once are comments. Works with or without a daemon; what was seen is kept until `allowlist detach` or a restart of the host.

Examples:
  sudo allowlist learn                            all that was seen
  sudo allowlist learn --since 24h --unit batch.slice
  sudo allowlist learn --forget                   begin anew, after the rules were pasted"
    )]
    Learn(Learn),
    /// List or remove tracked flows
    #[command(
        subcommand_required = true,
        after_help = "With tracking, answers to flows that this host initiated pass. Works with or without a daemon; needs root.

Examples:
  sudo allowlist flows list                   every flow, with its remaining time
  sudo allowlist flows list 203.0.113.0/24    flows with the addresses of a prefix
  sudo allowlist flows cut 203.0.113.9        remove flows: their answers are dropped from now on"
    )]
    Flows {
        /// The command of `allowlist flows`: `list` or `cut`.
        #[command(subcommand)]
        command: FlowsCommand,
    },
    /// Print the active prefixes, or only those added by command
    #[command(after_help = "\
Examples:
  sudo allowlist list                   every prefix with its services and sources
  sudo allowlist list 203.0.113.9       prefixes that contain an address, or lie within a prefix
  sudo allowlist list github --service webhooks
  sudo allowlist list --added           prefixes added by command: expiry, user and note")]
    List(List),
    /// Allow prefixes to reach a service; adds all or none
    #[command(
        after_help = "Added prefixes persist across restarts, until they are removed or expire. Without a PREFIX they are read from standard input, one per line; `#` starts a comment.

Examples:
  sudo allowlist add 203.0.113.7 --service ssh --ttl 2h --note 'on call'
  sudo allowlist add 2001:db8:7::/48 --service webhooks --confirm-within 60s
  cat prefixes.txt | sudo allowlist add --service webhooks"
    )]
    Add(Add),
    /// Remove prefixes that were added by command; removes all or none
    #[command(
        after_help = "A prefix that a source lists stays allowed: remove it from the source. Without a PREFIX they are read from standard input, one per line.

Examples:
  sudo allowlist remove 203.0.113.7                       from every service
  sudo allowlist remove 203.0.113.7 --service ssh --confirm-within 60s"
    )]
    Remove(Remove),
    /// Print the sources: state, age of the list and time of the next fetch
    Sources(Output),
    /// Fetch the lists of all sources, or of one, now
    #[command(after_help = "\
Examples:
  sudo allowlist refresh                every source
  sudo allowlist refresh github         one source")]
    Refresh(Refresh),
    /// Reread the configuration file and activate it as a whole; an error changes nothing
    #[command(
        after_help = "SIGHUP to the daemon does the same, but reports a refusal only in the daemon's log.

Examples:
  sudo allowlist reload
  sudo allowlist reload --confirm-within 60s"
    )]
    Reload(Reload),
    /// Confirm a change that was made with --confirm-within
    Confirm(Output),
    /// Activate an earlier policy: configuration, added prefixes and mode
    #[command(
        after_help = "The last 20 policies are kept. The configuration file is not modified; it is ignored until it changes or you run `allowlist reload`.

Examples:
  sudo allowlist rollback               to the previous policy
  sudo allowlist rollback --list        print the stored policies
  sudo allowlist rollback 7 --confirm-within 60s"
    )]
    Rollback(Rollback),
    /// Print the audit log: time, user and change, oldest first
    #[command(after_help = "\
Examples:
  sudo allowlist log
  sudo allowlist log --count 1000 --json")]
    Log(Log),
    /// Detach the filter from every interface
    #[command(after_help = "\
Examples:
  sudo allowlist detach
  sudo allowlist detach --force         also from interfaces of another network namespace")]
    Detach(Detach),
    /// Load the eBPF programs without attaching them, and print the verifier's result
    Verify(Output),
    /// Print a completion script for a shell
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

/// The commands of `allowlist flows`.
#[derive(Debug, Subcommand)]
pub enum FlowsCommand {
    /// Print the tracked flows: the initiator and the expiry of each
    List {
        /// Print only flows with remote addresses in this prefix
        #[arg(value_parser = prefix)]
        prefix: Option<IpNet>,
        /// Whether the output is text or JSON.
        #[command(flatten)]
        output: Output,
    },
    /// Remove and print flows: their answers are dropped until this host initiates them again
    Cut {
        /// The remote addresses of the flows to remove, as a prefix
        #[arg(value_parser = prefix)]
        prefix: IpNet,
        /// Whether the output is text or JSON.
        #[command(flatten)]
        output: Output,
    },
}

/// The options of `allowlist run`, which attaches the filter and refreshes its lists.
#[derive(Debug, Args)]
pub struct Run {
    /// The XDP attach mode; overrides `attach_mode` of the configuration
    #[arg(long, value_enum, value_name = "MODE")]
    pub attach_mode: Option<AttachModeArg>,
    /// Keep the filter attached after Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Log each packet: for debugging, not for a busy interface
    ///
    /// A line has the verdict, the reason, the source address, the IP protocol, and as `port-or-type` the destination
    /// port or, for ICMP, the message type (0 for later fragments and for protocols without either). Packets that are
    /// not IP, or are malformed, have only the verdict and the reason.
    #[arg(long)]
    pub trace: bool,
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// The configuration that command-line options define instead of a file.
    #[command(flatten)]
    pub inline: InlineConfig,
}

/// The command-line options that define a configuration without a file.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Without a configuration file")]
pub struct InlineConfig {
    /// Interface to filter; repeatable; replaces the interfaces of the file
    #[arg(long, value_name = "NAME")]
    pub iface: Vec<String>,
    /// Prefix or address to allow; repeatable
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    pub allow: Vec<IpNet>,
    /// Provider of the catalogue to allow; repeatable
    #[arg(long, value_name = "NAME")]
    pub provider: Vec<String>,
    /// Port to protect, such as tcp/443, udp/5000-5010, sctp/3868, icmp, ip/112 (an IP protocol) or any; repeatable
    #[arg(long, value_name = "PORT")]
    pub port: Vec<Ports>,
    /// Drop packets that are not allowed; without it, they are only counted (observe mode)
    #[arg(long)]
    pub enforce: bool,
}

impl InlineConfig {
    /// Returns whether these options define a policy, in which case no configuration file is read.
    pub fn is_policy(&self) -> bool {
        !(self.allow.is_empty() && self.provider.is_empty() && self.port.is_empty())
    }

    /// Returns the mode that these options define: enforce with `--enforce`, otherwise observe.
    pub fn mode(&self) -> Mode {
        if self.enforce {
            Mode::Enforce
        } else {
            Mode::Observe
        }
    }
}

/// The options of `allowlist check`, which validates a configuration and prints the policy of a start.
#[derive(Debug, Args)]
pub struct Check {
    /// Use the last-good lists on disk, as a start without a network does
    #[arg(long)]
    pub offline: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
    /// The configuration that command-line options define instead of a file.
    #[command(flatten)]
    pub inline: InlineConfig,
}

/// The options of `allowlist detach`, which detaches the filter from every interface.
#[derive(Debug, Args)]
pub struct Detach {
    /// Detach also from interfaces of another network namespace
    #[arg(long)]
    pub force: bool,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The options of `allowlist status`, which prints filter state, counters and list ages.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatusOptions {
    /// A further condition that must be met for exit code 0
    #[arg(long, value_enum, value_name = "WHAT")]
    pub require: Option<Require>,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// A further condition that `allowlist status --require` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Require {
    /// Require enforce mode, in which packets are dropped
    Enforce,
}

/// The options of `allowlist mode`, which switches between enforce mode and observe mode.
#[derive(Debug, Args)]
pub struct ModeChange {
    /// The new mode
    #[arg(value_enum)]
    pub mode: ModeArg,
    /// Set the mode of the egress policy; the mode for packets stays
    #[arg(long)]
    pub egress: bool,
    /// The options of the lockout check and of commit confirm.
    #[command(flatten)]
    pub care: CareArgs,
    /// Whether the output is text or JSON.
    #[command(flatten)]
    pub output: Output,
}

/// The argument of `allowlist mode`: the [`Mode`] to activate.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ModeArg {
    /// Packets that are not allowed are dropped
    Enforce,
    /// Every packet passes; verdicts are only counted and reported
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

/// The options of `allowlist watch`, which prints dropped packets or refused calls.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one field for each option of the command line"
)]
pub struct Watch {
    /// Print the calls of this host's programs that the egress policy refuses
    #[arg(long)]
    pub egress: bool,
    /// With --egress: also print calls that pass
    #[arg(long, requires = "egress")]
    pub all: bool,
    /// With --egress: also print connects of UDP sockets, by which programs sort the addresses of a name
    #[arg(long, requires = "egress")]
    pub probes: bool,
    /// Stop after this number of packets or calls
    #[arg(long, value_name = "NUMBER")]
    pub count: Option<u64>,
    /// Print one JSON document per line
    #[arg(long)]
    pub json: bool,
}

/// The output format: text, or with `--json` one JSON document.
#[derive(Clone, Copy, Debug, Args)]
pub struct Output {
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// The argument of `--attach-mode`: where the XDP program runs, as an [`AttachModeRequest`].
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AttachModeArg {
    /// Run in the driver if it supports that, otherwise in the network stack, with a warning
    Auto,
    /// Run in the driver; fail if the driver does not support it
    Native,
    /// Run in the kernel's network stack, which is slower
    Generic,
    /// Run on the network card; fail if the card does not support it
    Offload,
}

impl From<AttachModeArg> for AttachModeRequest {
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
