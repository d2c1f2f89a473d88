//! `allowlist learn`: proposes rules for the destinations that programs used and that no rule allows.

use allowlist_dataplane::{View, require_privileges};
use anyhow::Result;
use log::info;

use super::{print, print_json};
use crate::cli::{Learn, Paths};
use crate::report::{LearnFilter, Proposal, Report as _};

/// Prints the proposal, or removes the recorded destinations and names.
pub(super) fn learn(paths: &Paths, options: Learn) -> Result<()> {
    require_privileges()?;
    if options.forget {
        View::forget_seen(&paths.pin_dir)?;
        info!("what was seen so far is forgotten; later calls are recorded");
        return Ok(());
    }
    let view = View::open(&paths.pin_dir)?;
    let filter = LearnFilter {
        since: options.since,
        unit: options.unit,
        probes: options.probes,
    };
    let proposal = Proposal::read(&view, &filter)?;
    if options.output.json {
        print_json(&proposal.json())
    } else {
        // Not wrapped: a wrapped line would be no TOML.
        print(&proposal.text())
    }
}
