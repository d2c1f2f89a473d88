//! `cargo xtask run`: the demonstration, or the program on a real interface.
//!
//! Builds with the caller's rights, then becomes that one program, so that Ctrl-C and the exit code
//! are the program's own. Prints nothing to standard output: that is the program's too.

use std::convert::Infallible;
use std::ffi::OsString;
use std::iter;
use std::process::ExitCode;

use anyhow::Result;

use crate::privilege::Root;
use crate::{cargo, setup};

/// Show the filter at work, or run it on a real interface
///
/// Without arguments: two network namespaces, a veth pair between them, the filter in native mode,
/// and real frames from allowed and not allowed addresses. This machine's own network is not touched.
/// With arguments behind `--`: `allowlist run` with these, in the foreground.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask run
  cargo xtask run --json
  cargo xtask run -- --iface eth0 --config allowlist.toml")]
pub(crate) struct Args {
    /// Fetch PagerDuty's list from PagerDuty, instead of a copy from loopback
    #[arg(long)]
    online: bool,

    /// Print one JSON document
    #[arg(long)]
    json: bool,

    /// What to give to `allowlist run`
    #[arg(last = true, value_name = "ARGS", conflicts_with_all = ["online", "json"])]
    of_allowlist: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let never = if args.of_allowlist.is_empty() {
        demo(args)?
    } else {
        allowlist(&args.of_allowlist)?
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
