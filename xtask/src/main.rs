//! `cargo xtask`: installs missing build tools, then builds, runs and tests allowlist.
//!
//! Each subcommand is a module; [`main`] parses the arguments, runs the subcommand and prints its error. Does not
//! know how packets are filtered, and links no crate of the product, so that it compiles in seconds.

mod bench;
mod build;
mod cargo;
mod dist;
mod fuzz;
mod language;
mod lint;
mod privilege;
mod run;
mod setup;
mod skip;
mod test;
mod tidy;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Build, run and test allowlist.
///
/// Each command first installs missing build tools: the compiler's rust-src component, and an eBPF linker under
/// `target/tools`. This takes half a minute, once; the first build takes about four minutes more.
#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    after_help = "Examples:
  cargo xtask run                                         demonstrate the filter
  cargo xtask run -- --iface eth0 --config allowlist.toml filter a real interface until Ctrl-C
  cargo xtask test                                        all tests; kernel tests run as root
  cargo xtask vm                                          the packet tables on Linux 6.1, in qemu
  cargo xtask build --release                             the binary to install
  cargo xtask dist                                        the archive to install"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Build(build::Args),
    Run(run::Args),
    Test(test::Args),
    Lint(lint::Args),
    Language(language::Args),
    Bench(bench::Args),
    Fuzz(fuzz::Args),
    Vm(vm::Args),
    Dist(dist::Args),
}

fn main() -> ExitCode {
    run(Cli::parse().command).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Build(args) => build::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Language(args) => language::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Vm(args) => vm::run(&args),
        Command::Dist(args) => dist::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
