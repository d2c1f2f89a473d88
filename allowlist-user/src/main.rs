//! The program: parses what was typed, runs it, prints an error in one place.

use std::process::ExitCode;

use allowlist_user::cli::Cli;
use allowlist_user::command;
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    command::start_log();
    match command::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            command::exit_code(&error)
        }
    }
}
