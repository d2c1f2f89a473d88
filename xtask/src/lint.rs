//! `cargo xtask lint`: formatting, clippy for userspace and eBPF, and the repository's own rules.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{cargo, language, setup, tidy};

/// Check formatting, lints and the repository's own rules
///
/// Treats warnings as errors; other builds do not.
#[derive(clap::Args)]
#[command(after_help = "Example:
  cargo fmt --all && cargo xtask lint")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let findings = tidy::check(cargo::root())?;
    if !findings.is_empty() {
        bail!(
            "these lines violate the repository's rules, which xtask/src/tidy.rs states:\n  {}",
            findings.join("\n  ")
        );
    }

    let language = language::Summary::of(cargo::root())?;
    if language.rate() > language::LIMIT {
        bail!(
            "comments, messages and documents have more than {} hard-to-read constructions per 1,000 words (`cargo xtask language FILE` lists those of a file):\n{}",
            language::LIMIT,
            language.text()
        );
    }

    let mut format = cargo::command("cargo");
    format.args(["fmt", "--all", "--check"]);
    check(&mut format, "formatting differs: run `cargo fmt --all`")?;

    setup::run()?;
    let mut userspace = cargo::command("cargo");
    userspace.args(["clippy", "--all-targets", "--", "-D", "warnings"]);
    check(&mut userspace, "clippy failed for the userspace crates")?;

    check(&mut ebpf_clippy()?, "clippy failed for the eBPF crates")?;
    eprintln!("xtask lint: passed");
    Ok(ExitCode::SUCCESS)
}

/// Returns a clippy command for the BPF target, with `core` built from source as in the build scripts.
fn ebpf_clippy() -> Result<Command> {
    let mut clippy = cargo::command("cargo");
    clippy
        .args([
            "clippy",
            "--quiet",
            "--package",
            "allowlist-ebpf",
            "--package",
            "allowlist-bench-ebpf",
            "--release",
        ])
        .args(["--target", "bpfel-unknown-none", "-Z", "build-std=core"])
        // RUSTC_BOOTSTRAP invalidates every proc macro: a separate target folder keeps both builds cached.
        .arg("--target-dir")
        .arg(cargo::target_dir()?.join("ebpf-clippy"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1");
    Ok(clippy)
}

fn check(command: &mut Command, failure: &str) -> Result<()> {
    if !cargo::status(command)?.success() {
        bail!("{failure}");
    }
    Ok(())
}
