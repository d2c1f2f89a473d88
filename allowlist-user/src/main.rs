//! The program: parses what was typed, runs it, prints an error in one place.

use std::process::ExitCode;

use allowlist_user::cli::{Cli, Command};
use allowlist_user::text::printable;
use allowlist_user::{command, logger};
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let is_daemon = matches!(cli.command, Command::Run(_));
    logger::start(logger::Prefix::detect(is_daemon));
    match command::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", printable(&format!("{error:#}")));
            command::exit_code(&error)
        }
    }
}
