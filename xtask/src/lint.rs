//! `cargo xtask lint`: formatting, clippy for both sides, the repository's own rules.

use std::process::{Command, ExitCode};

use anyhow::{Result, bail};

use crate::{cargo, language, setup, tidy};

/// Check formatting, lints and the repository's own rules
///
/// Warnings are errors here, and only here: while you work they stay warnings.
#[derive(clap::Args)]
#[command(after_help = "Example:
  cargo fmt --all && cargo xtask lint")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let findings = tidy::check(cargo::root())?;
    if !findings.is_empty() {
        bail!(
            "the repository's rules (xtask/src/tidy.rs) are not kept:\n  {}",
            findings.join("\n  ")
        );
    }

    let language = language::Summary::of(cargo::root())?;
    if language.rate() > language::LIMIT {
        bail!(
            "more than {} hard constructions per 1,000 words (`cargo xtask language FILE` shows them):\n{}",
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
    check(
        &mut userspace,
        "clippy has something to say about the userspace side",
    )?;

    check(
        &mut ebpf_clippy()?,
        "clippy has something to say about the eBPF side",
    )?;
    eprintln!("xtask lint: passed");
    Ok(ExitCode::SUCCESS)
}

/// Clippy as the build scripts compile: for the BPF target, with a `core` of its own.
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
        // RUSTC_BOOTSTRAP rebuilds every proc macro: in a folder of their own they stay built.
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
