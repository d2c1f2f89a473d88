//! `cargo xtask run`: the demonstration, or the program on a real interface.
//!
//! Builds with the caller's privileges, then replaces itself by the program (`exec`), so that Ctrl-C and the exit code
//! are the program's. Prints nothing to standard output, which belongs to the program.

use std::convert::Infallible;
use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

use anyhow::Result;

use crate::privilege::Root;
use crate::{cargo, setup};

/// Demonstrate the filter, or run it on a real interface
///
/// Without arguments, creates two network namespaces with a veth pair between them, attaches the filter in native
/// mode, and sends real frames from allowed and from other addresses. Does not change this machine's own network.
/// With arguments after `--`, runs `allowlist run` with them in the foreground.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask run
  cargo xtask run --json
  cargo xtask run -- --iface eth0 --config allowlist.toml")]
pub(crate) struct Args {
    /// Fetch PagerDuty's list from PagerDuty instead of a local copy
    #[arg(long)]
    online: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// Arguments for `allowlist run`
    #[arg(last = true, value_name = "ARGS", conflicts_with_all = ["online", "json"])]
    forwarded: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let never = if args.forwarded.is_empty() {
        demo(args)?
    } else {
        allowlist(&args.forwarded)?
    };
    match never {}
}

fn demo(args: &Args) -> Result<Infallible> {
    let root = Root::reach("the demonstration")?;
    setup::run()?;
    let built = cargo::build(&[
        "--package=allowlist-user",
        "--bin=allowlist",
        "--package=allowlist-tests",
        "--bin=allowlist-demo",
    ])?;
    let environment = [("ALLOWLIST_BIN", built.executable("allowlist")?.to_owned())];
    let flags = [("--online", args.online), ("--json", args.json)];
    let given = flags
        .iter()
        .filter(|(_, given)| *given)
        .map(|(flag, _)| flag.into());
    root.exec(&environment, built.executable("allowlist-demo")?, given)
}

fn allowlist(args: &[OsString]) -> Result<Infallible> {
    let root = Root::reach("allowlist")?;
    setup::run()?;
    let built = cargo::build(&["--package=allowlist-user", "--bin=allowlist"])?;
    let args = iter::once("run".into()).chain(args.iter().cloned());
    root.exec(&[], built.executable("allowlist")?, args)
}
