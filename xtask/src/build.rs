//! `cargo xtask build`: the program, with the eBPF object inside it.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result};

use crate::{cargo, setup};

/// Build the `allowlist` program
///
/// The eBPF side is always optimised: the verifier and the packet path see what ships.
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
    Ok(ExitCode::SUCCESS)
}
