//! The lists at the start of a policy: the last-good ones, and for a reload also newly fetched ones.
//!
//! Invariant: each list on disk is read independently and within a time limit; a slower one is delivered later.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use allowlist_lists::event::Event;
use allowlist_lists::gather::{Gathered, gather};
use allowlist_lists::list_update::RejectedUpdate;
use allowlist_lists::state::StateDir;
use allowlist_lists::states::SourceStates;
use allowlist_policy::{Feed, Origin, Snapshot, Source};
use anyhow::Result;
use jiff::Timestamp;
use log::warn;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::error_code::code_of;

/// The time limit for reading the last-good lists on disk, which are read in parallel.
const DISK: Duration = Duration::from_secs(2);

/// Which sources are fetched at the start of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fetch {
    /// Sources without a last-good list, and all file sources.
    Missing,
    /// No source: only the lists in the configuration and on disk are used.
    None,
}

/// The sender of lists that were read from disk after the time limit [`DISK`].
pub(super) type Late = UnboundedSender<(Source, Feed)>;

/// The lists at the start of a policy, and what happened when they were read or fetched.
pub(super) struct InitialLists {
    pub(super) lists: SourceStates,
    /// The sources whose lists must be stored on disk again: they differ from those on disk, or their files have an
    /// older format.
    pub(super) fetched: Vec<Source>,
    /// The changes since the lists on disk; the events have no generation number yet.
    pub(super) events: Vec<Event>,
    /// The names of the sources without a list, each with the reason.
    pub(super) missing: Vec<(String, String)>,
}

impl InitialLists {
    /// Reads the lists of these sources from disk, and fetches those that `ask` selects. Lists that are read too late
    /// are sent to `late`.
    pub(super) async fn lists(
        sources: Vec<Source>,
        state: &StateDir,
        ask: Fetch,
        late: &Late,
    ) -> Self {
        let now = Timestamp::now();
        let (last_good, outdated) = load(&sources, state, late).await;
        let mut wanted = Vec::new();
        let mut missing = Vec::new();
        for source in &sources {
            let has_list = last_good.contains_key(&source.name);
            let is_here = match &source.origin {
                Origin::Http(_) | Origin::Names(_) => false,
                Origin::File { .. } => ask == Fetch::Missing,
                _ => true,
            };
            if is_here || (!has_list && ask == Fetch::Missing) {
                wanted.push((source.clone(), Vec::new()));
            } else if !has_list {
                missing.push((source.name.clone(), "not fetched yet".to_owned()));
            }
        }
        let mut lists = SourceStates::new(last_good);
        // Grace periods may have ended while no daemon ran.
        let events = lists.expire_grace(now);
        let differ = sources.iter().filter(|source| {
            outdated.contains(&source.name)
                || events.iter().any(|event| event.source == source.name)
        });
        let mut first = Self {
            fetched: differ.cloned().collect(),
            lists,
            events,
            missing,
        };
        for gathered in gather(wanted).await {
            let source = gathered.source.clone();
            let Err(problem) = first.take(gathered, now) else {
                first.fetched.push(source);
                continue;
            };
            let name = source.name;
            if first.lists.feed(&name).is_some() {
                problem.warn();
            } else {
                first.missing.push((name.clone(), problem.to_string()));
            }
            first.note(&name, problem, now);
        }
        first
    }

    fn take(&mut self, gathered: Gathered, now: Timestamp) -> Result<(), NotTaken> {
        let Gathered { source, answer, .. } = gathered;
        let answer = answer.map_err(NotTaken::Failed)?;
        let proposal = self
            .lists
            .propose(&source, answer, now)
            .map_err(|refused| NotTaken::Refused {
                reason: refused.reason(&source),
                refused,
            })?;
        for note in &proposal.feed.notes {
            warn!("{}: {note}", source.name);
        }
        let events = self.lists.commit(proposal, now);
        // Built-in and configured lists cause no events.
        if source.can_change() {
            self.events.extend(events);
        }
        Ok(())
    }

    /// Records the failure or rejection of a list of source `name`, so that `status` shows it and `accept` finds it.
    fn note(&mut self, name: &str, problem: NotTaken, now: Timestamp) {
        let events = match problem {
            NotTaken::Failed(error) => {
                let code = code_of(&error);
                self.lists
                    .record_failure(name, code, format!("{error:#}"), now)
            }
            NotTaken::Refused { reason, refused } => {
                self.lists.record_rejection(name, *refused, reason, now)
            }
        };
        self.events.extend(events);
    }
}

/// Reads the lists on disk, by source name; also returns the names of the sources whose files have an older format.
///
/// A damaged or late list is logged; a late one is sent to `late`.
async fn load(sources: &[Source], state: &StateDir, late: &Late) -> (Snapshot, BTreeSet<String>) {
    let mut loads = JoinSet::new();
    for source in sources {
        let (state, source, late) = (state.clone(), source.clone(), late.clone());
        loads.spawn_blocking(move || {
            let of_late = source.clone();
            let deliver = move |feed| {
                let _ = late.send((of_late, feed)); // the daemon may have ended
            };
            (
                state.load_or_later(&source, DISK, deliver),
                source.name.clone(),
            )
        });
    }
    let (mut feeds, mut outdated) = (Snapshot::new(), BTreeSet::new());
    for (loaded, name) in loads.join_all().await {
        match loaded {
            Ok(Some(stored)) => {
                if stored.has_older_format {
                    outdated.insert(name.clone());
                }
                feeds.insert(name, stored.feed.into());
            }
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
    }
    (feeds, outdated)
}

/// The reason why a fetched list is not used.
enum NotTaken {
    Failed(anyhow::Error),
    Refused {
        reason: String,
        refused: Box<RejectedUpdate>,
    },
}

impl NotTaken {
    /// Logs the reason why the fetched list is not used.
    fn warn(&self) {
        match self {
            Self::Failed(_) => {
                warn!(target: "allowlist::fetch-failed", "{self}; using the last-good list");
            }
            Self::Refused { .. } => {
                warn!(target: "allowlist::list-rejected", "{self}; using the last-good list");
            }
        }
    }
}

impl fmt::Display for NotTaken {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => write!(out, "{error:#}"),
            Self::Refused { reason, .. } => out.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use allowlist_policy::error_code::ErrorCode;
    use std::fs;
    use std::path::PathBuf;

    use expect_test::expect;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Config;
    use allowlist_lists::event::EventKind;
    use allowlist_policy::GracePrefix;

    /// Returns the lists of a reload after a file with ten addresses was replaced by `now`, or removed.
    fn start(now: Option<&str>) -> InitialLists {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("allowlist.toml");
        let config = "interfaces = ['lo']\n[services.a]\nports = ['tcp/1']\nallow = ['lab']\n\
                      [sources.lab]\nfile = 'lab.txt'\n";
        fs::write(&path, config).expect("a file");
        let list: PathBuf = folder.path().join("lab.txt");
        let before: Vec<_> = (0..10).map(|n| format!("192.0.2.{n}")).collect();
        fs::write(&list, before.join("\n")).expect("a file");
        let config = Config::load(&path).expect("a configuration");
        let state = StateDir::open(&folder.path().join("state")).expect("a state");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let start = || {
            let sources = config.policy.used_sources().cloned().collect();
            let (late, _) = mpsc::unbounded_channel();
            runtime.block_on(InitialLists::lists(sources, &state, Fetch::Missing, &late))
        };
        let source = config.policy.source("lab").expect("it is configured");
        let first = start();
        let mut feed = first.lists.feed("lab").expect("it was read").clone();
        feed.grace = vec![GracePrefix {
            prefix: "198.51.100.7/32".parse().expect("a prefix"),
            until: Timestamp::UNIX_EPOCH,
            seconds: 0,
        }];
        state.store(source, &feed).expect("is stored");
        match now {
            Some(text) => fs::write(&list, text).expect("a file"),
            None => fs::remove_file(&list).expect("it is there"),
        }
        start()
    }

    #[test]
    fn rejected_lists_are_recorded_and_acceptable() {
        let first = start(Some("192.0.2.1\n"));
        let health = first.lists.health("lab").expect("a failure");
        assert_eq!(health.failure_code, Some(ErrorCode::ListRejected));
        let reason = health.failure.as_deref().expect("a reason");
        let (_, reason) = reason.split_once("lab.txt").expect("the origin");
        expect![": the list has lost 9 prefixes, and with them 90 % of its IPv4 addresses; the limit is 50 % at once: raise `max_shrink` if such a loss is expected; the id of this list is 7241ce72b46ed6bc2d98803e2bbe6406; if the list is right, accept it with `allowlist accept lab`"].assert_eq(reason);
        assert_eq!(health.failures, 1);
        assert!(health.rejected.is_some());
        assert_eq!(first.lists.feeds()["lab"].prefixes.len(), 10);
        assert!(
            matches!(first.events[1].kind, EventKind::Refused { .. }),
            "{:?}",
            first.events
        );
    }

    #[test]
    fn ended_grace_periods_are_events() {
        let first = start(None);
        let EventKind::Released { change, .. } = &first.events[0].kind else {
            panic!("{:?}", first.events);
        };
        assert_eq!(change.removed.len(), 1);
        assert_eq!(first.lists.feeds()["lab"].grace, []);
        assert_eq!(first.fetched.len(), 1, "stored again");
    }

    #[test]
    fn unreadable_files_are_recorded() {
        let first = start(None);
        let health = first.lists.health("lab").expect("a failure");
        assert!(health.failure.is_some() && health.rejected.is_none());
        assert_eq!(first.lists.feeds()["lab"].prefixes.len(), 10);
        assert!(
            matches!(first.events[1].kind, EventKind::Failed { .. }),
            "{:?}",
            first.events
        );
    }
}
