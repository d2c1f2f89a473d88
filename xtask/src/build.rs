//! `cargo xtask build`: builds the program, which embeds the eBPF object.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::{cargo, setup};

/// Build the `allowlist` program
///
/// The eBPF programs are always optimised, so the verifier sees the same code as in a release. As root, also loads
/// each program and prints the verifier's statistics.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask build
  cargo xtask build --release && sudo install target/release/allowlist /usr/local/sbin")]
pub(crate) struct Args {
    /// Optimise the userspace program too, for installation
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    let mut cargo_args = vec!["--package", "allowlist-user", "--bin", "allowlist"];
    if args.release {
        cargo_args.push("--release");
    }
    let built = cargo::build(&cargo_args)?;
    println!("{}", built.executable("allowlist")?);

    let object = built.generated("allowlist-ebpf")?;
    let size = fs::metadata(&object)
        .with_context(|| format!("cannot read {}", object.display()))?
        .len();
    println!(
        "  contains the eBPF object allowlist-ebpf, {} KiB",
        size.div_ceil(1024)
    );
    verify(built.executable("allowlist")?)
}

/// Loads the programs and prints the verifier's statistics. Needs root; without root it prints the command instead,
/// so that a build never prompts for a password.
fn verify(allowlist: &str) -> Result<ExitCode> {
    if !geteuid().is_root() {
        println!(
            "  to check the eBPF programs with this kernel's verifier, run `sudo {allowlist} verify`"
        );
        return Ok(ExitCode::SUCCESS);
    }
    let table = cargo::stdout(Command::new(allowlist).arg("verify"))?;
    for line in table.lines() {
        println!("  {}", line.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
