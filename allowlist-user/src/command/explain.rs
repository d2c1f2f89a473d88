//! `allowlist explain`: the verdict for a packet, or with `--to` for a call of a program.

use std::process::ExitCode;

use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::explain::Question;
use anyhow::{Context as _, Result};
use log::info;

use super::{answer, asked, print, print_report};
use crate::cli::{Explain, Output, Paths};
use crate::control::Client;
use crate::report::{CallExplanation, CallQuestion, Explanation, Report};

/// Prints the answer to the question, and returns the exit code: 0 if the verdict is pass.
pub(super) async fn explain(paths: &Paths, options: Explain) -> Result<ExitCode> {
    let output = options.output;
    if let Some(to) = options.to {
        let question = CallQuestion::new(to, options.port, options.unit);
        let question =
            question.map_err(|error| CodedError::new(ErrorCode::InvalidRequest, error))?;
        let name = question.query();
        let mut read = CallExplanation::read(&paths.pin_dir, question);
        if let Ok(explanation) = &mut read
            && let Some(daemon) = Client::new(&paths.socket).live().await
        {
            explanation.next_fetch = daemon.next_fetch;
        }
        return show(paths, &name, output, read, CallExplanation::is_refused).await;
    }
    let typed = options
        .address
        .context("explain needs an address, or --to with a destination")?;
    if let Some(mapped) = typed.instead_of {
        info!(
            "{mapped} is an IPv4-mapped address, which no packet has as its source; explaining {} instead",
            typed.address
        );
    }
    let question = Question {
        address: typed.address,
        target: options.port,
        interface: options.iface.or(typed.zone),
    };
    let name = question.query();
    let read = Explanation::read(&paths.pin_dir, question);
    show(paths, &name, output, read, Explanation::is_dropped).await
}

/// Prints the report that was read. If reading it failed and this user is not root, prints the daemon's report `name`
/// instead. Returns the exit code for the verdict.
async fn show<R: Report>(
    paths: &Paths,
    name: &str,
    output: Output,
    read: Result<R>,
    is_no: impl Fn(&R) -> bool,
) -> Result<ExitCode> {
    match read {
        Ok(report) => {
            print_report(&report, output)?;
            Ok(answer(!is_no(&report)))
        }
        Err(error) => {
            let as_json = Output { json: true };
            let json = asked(paths, name, as_json, error).await?;
            print(&Client::new(&paths.socket).report(name, output.json).await?)?;
            let json: serde_json::Value = serde_json::from_str(&json)
                .context("cannot parse the daemon's report `explain`")?;
            Ok(answer(json["verdict"] == "pass"))
        }
    }
}
