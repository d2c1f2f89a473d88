//! Reports: the state of the filter and its lists, as text and as JSON. Changes nothing; reads the pinned maps and the
//! state directory.

mod added;
mod attach;
mod audit;
mod call;
mod changes;
mod egress;
mod event;
mod explain;
mod explain_call;
mod flows;
mod holders;
mod learn;
mod list;
mod plan;
mod policies;
mod providers;
mod rejected;
mod repeats;
mod sources;
mod status;
mod table;

use allowlist_dataplane::Verified;
use allowlist_policy::{Feed, Source};
use serde_json::{Value, json};

pub use added::Added;
pub use attach::ExpectedAttach;
pub use audit::AuditLog;
pub use call::{
    CallNames, Caller, Users, call_json, call_text, repeats_text, suppressed_calls_text,
};
pub use changes::{
    Outcome, diff_json, diff_text, history_text, refreshed_text, signed, widest_first,
};
pub use event::{Epoch, seen_json, seen_text};
pub use explain::Explanation;
pub use explain_call::{CallExplanation, CallQuestion, Destination};
pub use flows::Flows;
pub use holders::{Holder, Holders, Skipped};
pub use learn::{LearnFilter, Proposal};
pub use list::{List, Only};
pub use plan::Plan;
pub use policies::PolicyList;
pub use providers::{provider_json, provider_text, providers_json, providers_text};
pub use rejected::rejected_text;
pub use repeats::{Repeats, SeenRepeats, reached};
pub use sources::Sources;
pub use status::Status;
use table::{Table, shortened, table, width};
pub use table::{fit_to_terminal, terminal_width, wrapped};

/// A report about the state at the moment when it was read.
pub trait Report {
    /// Returns the report as text for people.
    fn text(&self) -> String;
    /// Returns the report as JSON for programs.
    fn json(&self) -> Value;
}

/// Returns the prefixes of a feed, one per line: the format that `file = "…"` reads.
pub fn feed_text(feed: &Feed) -> String {
    let lines: Vec<_> = feed.prefixes.iter().map(ToString::to_string).collect();
    lines.join("\n") + "\n"
}

/// Returns a feed with its origin, as JSON.
pub fn feed_json(source: &Source, feed: &Feed) -> Value {
    json!({
        "source": source.name,
        "provider": source.provider,
        "origin": source.origin.to_string(),
        "fetched": feed.fetched,
        "prefixes": feed.prefixes,
    })
}

/// Returns the verifier's result for each eBPF program, as text.
pub fn verified_text(verified: &[Verified]) -> String {
    let header = ["program", "instructions", "verified", "memory"];
    let mut table = table(&header, &[1, 2, 3]);
    for one in verified {
        let walked = one.verified_instructions;
        table.add_row([
            one.program.to_owned(),
            one.instructions.to_string(),
            walked.map_or_else(|| "unknown".to_owned(), |walked| walked.to_string()),
            format!("{} KiB", one.memory_bytes.div_ceil(1024)),
        ]);
    }
    format!("{table}\n")
}

/// Returns a duration in seconds as text, such as `90s`, `2m` or `3d`: rounded down, in the largest unit that gives at
/// least 2. A negative duration is `0s`.
fn ago(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{}s", seconds.max(0)),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}
