//! The lists that a policy begins with: last-good where there is one, and what can be had at once.

use std::convert::Infallible;
use std::fmt;

use anyhow::Result;
use jiff::Timestamp;
use log::warn;

use crate::event::Event;
use crate::gather::{Gathered, gather};
use crate::lists::Lists;
use crate::policy::{Origin, Snapshot, Source};
use crate::renew::Refused;
use crate::state::StateDir;

/// What is asked for sources of which there is no last good list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// What is on this host: a start must not wait for the network.
    Host,
    /// Whoever has it.
    Everybody,
    /// Nobody: what the configuration and the disk hold has to do.
    Nobody,
}

/// What a policy begins with.
pub(super) struct First {
    pub(super) lists: Lists,
    /// The sources whose lists are other than those on disk.
    pub(super) fetched: Vec<Source>,
    /// What is other than it was before; the generation is yet to be made.
    pub(super) events: Vec<Event>,
    /// The sources of which there is no list, and why.
    pub(super) missing: Vec<(String, String)>,
}

impl First {
    /// These sources' lists: a fetched one from disk where there is one, and everything else as it is now.
    pub(super) async fn lists(sources: Vec<Source>, state: &StateDir, ask: Ask) -> Self {
        let now = Timestamp::now();
        let mut last_good = Snapshot::new();
        let mut wanted = Vec::new();
        let mut missing = Vec::new();
        for source in &sources {
            let feed = state.load(source).unwrap_or_else(|error| {
                warn!("{error}");
                None
            });
            let is_here = match &source.origin {
                Origin::Http(_) | Origin::Names(_) => false,
                Origin::File { .. } => ask != Ask::Nobody,
                _ => true,
            };
            if is_here || (feed.is_none() && ask == Ask::Everybody) {
                wanted.push((source.clone(), Vec::new()));
            } else if feed.is_none() {
                missing.push((source.name.clone(), "was not asked for yet".to_owned()));
            }
            if let Some(feed) = feed {
                last_good.insert(source.name.clone(), feed);
            }
        }
        let mut lists = Lists::new(last_good);
        // While nothing ran, time went on.
        let Ok(events) = lists.release(now, |_| Ok::<_, Infallible>(0));
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
                warn!("{problem}; its last good list is used");
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
        let Ok(events) = self.lists.adopt(proposal, now, |_| Ok::<_, Infallible>(0));
        // What the configuration or the program holds is news to nobody.
        if source.can_change() {
            self.events.extend(events);
        }
        Ok(())
    }

    /// What is not as it should be, as a daemon that runs would say it: so that it can be seen, and accepted.
    fn note(&mut self, name: &str, problem: NotTaken, now: Timestamp) {
        let events = match problem {
            NotTaken::Failed(error) => self.lists.fail(name, format!("{error:#}"), now),
            NotTaken::Refused { reason, refused } => self.lists.refuse(name, *refused, reason, now),
        };
        self.events.extend(events);
    }
}

/// Why a source's last good list is used, if there is one.
enum NotTaken {
    Failed(anyhow::Error),
    Refused {
        reason: String,
        refused: Box<Refused>,
    },
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

    use super::*;
    use crate::config::Config;
    use crate::event::What;
    use crate::policy::Held;

    /// What a start makes of a file that held ten addresses before, and holds this now.
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
            runtime.block_on(First::lists(sources, &state, Ask::Host))
        };
        let source = config.policy.source("lab").expect("it is configured");
        let first = start();
        let mut feed = first.lists.feed("lab").expect("it was read").clone();
        feed.held = vec![Held {
            prefix: "198.51.100.7/32".parse().expect("a prefix"),
            until: Timestamp::UNIX_EPOCH,
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
        let standing = first.lists.standing("lab").expect("it is not well");
        let reason = standing.failure.as_deref().expect("it was refused");
        assert!(reason.contains("lists 9 prefixes less"), "{reason}");
        assert!(
            reason.ends_with("`allowlist accept lab` lets it in"),
            "{reason}"
        );
        assert_eq!(standing.times, 1);
        assert!(standing.refused.is_some());
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
        assert_eq!(first.fetched.len(), 1, "it is kept");
    }

    #[test]
    fn what_a_start_cannot_read_is_told() {
        let first = start(None);
        let standing = first.lists.standing("lab").expect("it is not well");
        assert!(standing.failure.is_some() && standing.refused.is_none());
        assert_eq!(first.lists.feeds()["lab"].prefixes.len(), 10);
        assert!(
            matches!(first.events[1].what, What::Failed { .. }),
            "{:?}",
            first.events
        );
    }
}
