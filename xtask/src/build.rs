//! `cargo xtask build`: the program, with the eBPF object inside it.

use std::fs;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use nix::unistd::geteuid;

use crate::{cargo, setup};

/// Build the `allowlist` program
///
/// The eBPF side is always optimised: the verifier and the packet path see what ships. As root, ends
/// with what this kernel's verifier says of each program.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask build
  cargo xtask build --release && sudo install target/release/allowlist /usr/local/sbin")]
pub(crate) struct Args {
    /// Optimise the userspace side too: the binary to install
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
        "  holds the eBPF object allowlist-ebpf, {} KiB",
        size.div_ceil(1024)
    );
    verify(built.executable("allowlist")?)
}

/// What this kernel's verifier makes of the programs. A build needs no root, and this does, so nobody
/// is asked for a password for it.
fn verify(allowlist: &str) -> Result<ExitCode> {
    if !geteuid().is_root() {
        println!("  `sudo {allowlist} verify` prints what this kernel's verifier says of it");
        return Ok(ExitCode::SUCCESS);
    }
    let table = cargo::stdout(Command::new(allowlist).arg("verify"))?;
    for line in table.lines() {
        println!("  {}", line.trim_end());
    }
    Ok(ExitCode::SUCCESS)
}
