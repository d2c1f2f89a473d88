//! The commands that change the policy: each sends a request to the daemon, which is the only writer.

use std::io::{IsTerminal as _, Read as _};
use std::time::Duration;

use allowlist_lists::feed::parse_prefix;
use allowlist_lists::rejected::{RejectedLists, command};
use allowlist_policy::error_code::{CodedError, ErrorCode, bail_with};
use allowlist_policy::hints::counted;
use anyhow::{Context as _, Result, ensure};
use log::{info, warn};

use super::{print, print_json};
use crate::cli::{
    Accept, Add, CareArgs, ModeChange, Output, Paths, Refresh, Reload, Remove, Rollback,
};
use crate::control::{ApplyOptions, ApplyOutcome, Client, PrefixRequest, Request};
use crate::operation::Operation;
use crate::report;
use crate::report::rejected_text;
use crate::session;

/// The maximum number of prefixes from standard input in one request, for which the daemon's limit in bytes has room;
/// more are an error.
const MOST: usize = 200_000;

/// Returns the options of a change from the command line, with the session of this process for the lockout check.
pub(super) fn care(typed: &CareArgs) -> ApplyOptions {
    ApplyOptions {
        force: typed.force,
        confirm_within: typed.confirm_within,
        session: session::find(),
    }
}

pub(super) async fn add(paths: &Paths, options: Add) -> Result<()> {
    let entry = |prefix| PrefixRequest {
        prefix,
        service: Some(options.service.clone()),
        ttl_seconds: options.ttl.as_ref().map(Duration::as_secs),
        note: options.note.clone(),
    };
    let entries = prefixes(options.prefix)?.into_iter().map(entry).collect();
    ask(
        paths,
        Operation::Add(entries),
        &options.care,
        options.output,
    )
    .await
}

pub(super) async fn remove(paths: &Paths, options: Remove) -> Result<()> {
    let entry = |prefix| PrefixRequest {
        prefix,
        service: options.service.clone(),
        ..PrefixRequest::default()
    };
    let entries = prefixes(options.prefix)?.into_iter().map(entry).collect();
    ask(
        paths,
        Operation::Remove(entries),
        &options.care,
        options.output,
    )
    .await
}

pub(super) async fn mode(paths: &Paths, options: ModeChange) -> Result<()> {
    let wanted = Operation::Mode {
        mode: options.mode.into(),
        egress: options.egress,
    };
    ask(paths, wanted, &options.care, options.output).await
}

pub(super) async fn reload(paths: &Paths, options: Reload) -> Result<()> {
    ask(
        paths,
        Operation::Reload { from: None },
        &options.care,
        options.output,
    )
    .await
}

pub(super) async fn confirm(paths: &Paths, output: Output) -> Result<()> {
    ask(paths, Operation::Confirm, &CareArgs::default(), output).await
}

pub(super) async fn rollback(paths: &Paths, options: Rollback) -> Result<()> {
    let wanted = Operation::Rollback { to: options.policy };
    ask(paths, wanted, &options.care, options.output).await
}

pub(super) async fn refresh(paths: &Paths, options: Refresh) -> Result<()> {
    let client = Client::new(&paths.socket);
    let wanted = Operation::Refresh {
        sources: options.source.into_iter().collect(),
    };
    let done = client.ask(wanted, &ApplyOptions::default()).await?;
    if options.output.json {
        print_json(&serde_json::to_value(&done)?)?;
    } else {
        print(&report::refreshed_text(&done.sources))?;
    }
    let failed: Vec<_> = done.sources.values().filter(|one| !one.ok).collect();
    let Some(first) = failed.first() else {
        return Ok(());
    };
    let text = format!(
        "{} of {} could not be refreshed, for the reasons above; the previous lists stay active",
        failed.len(),
        counted(done.sources.len(), "source")
    );
    Err(CodedError::new(first.failure_code.unwrap_or(ErrorCode::Failed), text).into())
}

pub(super) async fn accept(paths: &Paths, options: Accept) -> Result<()> {
    let typed = CareArgs {
        force: options.force,
        ..CareArgs::default()
    };
    let client = Client::new(&paths.socket);
    let source = options.source;
    let id = match options.id {
        Some(id) => Some(id),
        None => approved(&client, &source, options.output).await?,
    };
    let done = client
        .ask(Operation::Accept { source, id }, &care(&typed))
        .await?;
    if options.output.json {
        return print_json(&serde_json::to_value(&done)?);
    }
    let change = done.change.unwrap_or_default();
    print(&format!(
        "accepted: {} added and {} removed; generation {}\n{}",
        counted(change.added_count, "prefix"),
        change.removed_count,
        done.generation,
        report::signed(&change.added, &change.removed)
    ))
}

/// Shows the rejected list of a source, and returns its id if the operator approves the list on a terminal. Returns
/// `None` if there is no list to approve; the daemon then states the reason.
async fn approved(client: &Client<'_>, source: &str, output: Output) -> Result<Option<String>> {
    let rejected: RejectedLists = serde_json::from_str(&client.report("rejected", true).await?)
        .context("cannot parse the daemon's answer (after an upgrade, restart the daemon, so that it has the version of this command)")?;
    let Some(list) = rejected.sources.get(source).filter(|list| list.acceptable) else {
        return Ok(None);
    };
    let text = rejected_text(source, list);
    if output.json {
        eprint!("{text}");
    } else {
        print(&text)?;
    }
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        bail_with!(
            InvalidRequest,
            "no list was accepted: without a terminal, `accept` requires the id of the list; run `{}`",
            command(source, &list.id)
        );
    }
    eprint!("accept this list? [y/N] ");
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("no list was accepted, because the answer cannot be read from standard input")?;
    ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "no list was accepted, since the answer was not \"yes\"; the last-good list stays active"
    );
    Ok(Some(list.id.clone()))
}

async fn ask(paths: &Paths, wanted: Request, typed: &CareArgs, output: Output) -> Result<()> {
    let client = Client::new(&paths.socket);
    let done = client.ask(wanted, &care(typed)).await?;
    for warning in &done.warnings {
        warn!("{warning}");
    }
    if output.json {
        return print_json(&serde_json::to_value(&done)?);
    }
    print(&report::wrapped(&text(&done, typed)))
}

fn text(done: &ApplyOutcome, typed: &CareArgs) -> String {
    let lines = done.changes.iter().chain(&done.notes);
    let lines = lines.flat_map(|line| [line, "\n"]);
    let mut text: String = lines.collect();
    text += &match done.policy {
        Some(policy) => format!("done: generation {}, policy {policy}\n", done.generation),
        None => format!("done: generation {}\n", done.generation),
    };
    if let Some(within) = typed.confirm_within
        && done.confirm_until.is_some()
    {
        text += &format!(
            "the change is rolled back in {} unless you run `allowlist confirm`\n",
            humantime::format_duration(within)
        );
    }
    text
}

/// Returns the prefixes in the arguments, or without arguments those of standard input. An error names the lines of
/// standard input.
fn prefixes(typed: Vec<String>) -> Result<Vec<String>> {
    if !typed.is_empty() {
        return Ok(typed);
    }
    let mut input = std::io::stdin();
    if input.is_terminal() {
        info!("reading prefixes from standard input, one per line; Ctrl-D ends the input");
    }
    let mut text = String::new();
    input
        .read_to_string(&mut text)
        .context("cannot read standard input as UTF-8 text; nothing was changed")?;
    let mut prefixes = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let prefix = line.split('#').next().unwrap_or_default().trim();
        if prefix.is_empty() {
            continue;
        }
        match parse_prefix(prefix) {
            Ok(prefix) => prefixes.push(prefix.to_string()),
            Err(error) => problems.push(format!("standard input:{number}: {error}")),
        }
    }
    let more = problems.len().saturating_sub(20);
    problems.truncate(20);
    if more > 0 {
        problems.push(format!("and {more} more"));
    }
    if !problems.is_empty() {
        bail_with!(
            InvalidPrefix,
            "{}\nnothing was changed",
            problems.join("\n")
        );
    }
    ensure!(
        !prefixes.is_empty(),
        "standard input has no prefix; nothing was changed; write one prefix per line"
    );
    ensure!(
        prefixes.len() <= MOST,
        "standard input has {} prefixes, more than the limit of {MOST}; nothing was changed; configure a source with `file` for longer lists",
        prefixes.len()
    );
    Ok(prefixes)
}
