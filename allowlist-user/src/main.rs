//! The program: parses the command line, runs the command and prints its error.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use allowlist_policy::text::printable;
use allowlist_user::cli::{self, Cli, Command};
use allowlist_user::{command, logger};
use clap::FromArgMatches as _;

fn main() -> ExitCode {
    let typed = cli::command().get_matches();
    let cli = Cli::from_arg_matches(&typed).unwrap_or_else(|error| error.exit());
    let is_daemon = matches!(cli.command, Command::Run(_));
    logger::start(logger::Prefix::detect(is_daemon));
    match command::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{}", printable(&command::error_text(&error)));
            command::exit_code(&error)
        }
    }
}
