//! The lists that a policy begins with: the last-good ones, and for a reload those of the sources now.
//!
//! Invariant: each list on disk is read independently and within a time limit; a list that is read later is delivered later.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use log::warn;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;

use crate::error_code::ErrorCode;
use crate::event::Event;
use crate::gather::{Gathered, gather};
use crate::list_update::RejectedUpdate;
use crate::lists::SourceStates;
use crate::policy::{Feed, Origin, Snapshot, Source};
use crate::state::StateDir;

/// How long a start or a change waits for the lists on disk, all of which are read at once.
const DISK: Duration = Duration::from_secs(2);

/// What is asked for sources of which there is no last good list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whoever has it.
    Everybody,
    /// Nobody: what the configuration and the disk hold has to do.
    Nobody,
}

/// Delivers lists that were read from disk after [`DISK`].
pub(super) type Late = UnboundedSender<(Source, Feed)>;

/// What a policy begins with.
pub(super) struct First {
    pub(super) lists: SourceStates,
    /// The sources whose lists are other than those on disk.
    pub(super) fetched: Vec<Source>,
    /// What is other than it was before; the generation is yet to be made.
    pub(super) events: Vec<Event>,
    /// The sources of which there is no list, and why.
    pub(super) missing: Vec<(String, String)>,
}

impl First {
    /// These sources' lists: a fetched one from disk where there is one, and everything else as it is now.
    pub(super) async fn lists(
        sources: Vec<Source>,
        state: &StateDir,
        ask: Ask,
        late: &Late,
    ) -> Self {
        let now = Timestamp::now();
        let last_good = load(&sources, state, late).await;
        let mut wanted = Vec::new();
        let mut missing = Vec::new();
        for source in &sources {
            let has_list = last_good.contains_key(&source.name);
            let is_here = match &source.origin {
                Origin::Http(_) | Origin::Names(_) => false,
                Origin::File { .. } => ask == Ask::Everybody,
                _ => true,
            };
            if is_here || (!has_list && ask == Ask::Everybody) {
                wanted.push((source.clone(), Vec::new()));
            } else if !has_list {
                missing.push((source.name.clone(), "was not asked for yet".to_owned()));
            }
        }
        let mut lists = SourceStates::new(last_good);
        // While nothing ran, time went on.
        let Ok(events) = lists.expire_grace(now, |_| Ok::<_, Infallible>(0));
        let released = sources
            .iter()
            .filter(|source| events.iter().any(|event| event.source == source.name));
        let mut first = Self {
            fetched: released.cloned().collect(),
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
        let Ok(events) = self.lists.commit(proposal, now, |_| Ok::<_, Infallible>(0));
        // What the configuration or the program holds is news to nobody.
        if source.can_change() {
            self.events.extend(events);
        }
        Ok(())
    }

    /// What is not as it should be, as a daemon that runs would say it: so that it can be seen, and accepted.
    fn note(&mut self, name: &str, problem: NotTaken, now: Timestamp) {
        let events = match problem {
            NotTaken::Failed(error) => {
                let code = ErrorCode::of(&error);
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

/// The lists on disk, by source name. A list that is damaged or late is logged.
async fn load(sources: &[Source], state: &StateDir, late: &Late) -> Snapshot {
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
    let mut feeds = Snapshot::new();
    for (loaded, name) in loads.join_all().await {
        match loaded {
            Ok(Some(feed)) => {
                feeds.insert(name, feed);
            }
            Ok(None) => {}
            Err(error) => warn!("{error}"),
        }
    }
    feeds
}

/// Why a source's last good list is used, if there is one.
enum NotTaken {
    Failed(anyhow::Error),
    Refused {
        reason: String,
        refused: Box<RejectedUpdate>,
    },
}

impl NotTaken {
    fn warn(&self) {
        match self {
            Self::Failed(_) => {
                warn!(target: "allowlist::fetch-failed", "{self}; its last good list is used");
            }
            Self::Refused { .. } => {
                warn!(target: "allowlist::list-rejected", "{self}; its last good list is used");
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
    use std::fs;
    use std::path::PathBuf;

    use expect_test::expect;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Config;
    use crate::event::What;
    use crate::policy::Held;

    /// The lists of a reload, for a file that held ten addresses before and holds `now` since.
    fn start(now: Option<&str>) -> First {
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
            runtime.block_on(First::lists(sources, &state, Ask::Everybody, &late))
        };
        let source = config.policy.source("lab").expect("it is configured");
        let first = start();
        let mut feed = first.lists.feed("lab").expect("it was read").clone();
        feed.held = vec![Held {
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
    fn what_a_start_refuses_is_told_and_can_be_accepted() {
        let first = start(Some("192.0.2.1\n"));
        let health = first.lists.health("lab").expect("a failure");
        assert_eq!(health.failure_code, Some(ErrorCode::ListRejected));
        let reason = health.failure.as_deref().expect("a reason");
        let (_, reason) = reason.split_once("lab.txt").expect("the origin");
        expect![": has 9 prefixes less, and with them 90 % of its IPv4 addresses; the limit is 50 % at once; raise `max_shrink` if that is right; the id of this list is 7241ce72b46ed6bc2d98803e2bbe6406; if the list is right, accept it with `allowlist accept lab`"].assert_eq(reason);
        assert_eq!(health.failures, 1);
        assert!(health.rejected.is_some());
        assert_eq!(first.lists.feeds()["lab"].prefixes.len(), 10);
        assert!(
            matches!(first.events[1].what, What::Refused { .. }),
            "{:?}",
            first.events
        );
    }

    #[test]
    fn what_was_let_go_of_while_nothing_ran_is_told() {
        let first = start(None);
        let What::Released { change, .. } = &first.events[0].what else {
            panic!("{:?}", first.events);
        };
        assert_eq!(change.removed.len(), 1);
        assert_eq!(first.lists.feeds()["lab"].held, []);
        assert_eq!(first.fetched.len(), 1, "stored again");
    }

    #[test]
    fn what_a_start_cannot_read_is_told() {
        let first = start(None);
        let health = first.lists.health("lab").expect("a failure");
        assert!(health.failure.is_some() && health.rejected.is_none());
        assert_eq!(first.lists.feeds()["lab"].prefixes.len(), 10);
        assert!(
            matches!(first.events[1].what, What::Failed { .. }),
            "{:?}",
            first.events
        );
    }
}
