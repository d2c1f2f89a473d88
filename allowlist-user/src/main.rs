//! The program: parses what was typed, runs it, prints an error in one place.

use std::process::ExitCode;

use allowlist_user::cli::{self, Cli};
use allowlist_user::command;
use clap::FromArgMatches as _;

fn main() -> ExitCode {
    let typed = cli::command().get_matches();
    let cli = Cli::from_arg_matches(&typed).unwrap_or_else(|error| error.exit());
    command::start_log();
    match command::run(cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", command::error_text(&error));
            command::exit_code(&error)
        }
    }
}
