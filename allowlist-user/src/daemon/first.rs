//! The lists that a daemon starts with: strict, but content with last-good.

use std::convert::Infallible;
use std::fmt;

use anyhow::{Result, bail};
use jiff::Timestamp;
use log::warn;

use crate::config::Config;
use crate::event::Event;
use crate::gather::{Gathered, gather};
use crate::lists::Lists;
use crate::policy::{Origin, Snapshot, Source};
use crate::renew::Refused;
use crate::state::StateDir;

/// What a daemon starts with.
pub(super) struct First {
    pub(super) lists: Lists,
    /// The sources whose lists are other than those on disk.
    pub(super) fetched: Vec<Source>,
    /// What is other than it was before; the generation is yet to be made.
    pub(super) events: Vec<Event>,
}

impl First {
    /// Every used source's list: a fetched one from disk where there is one, so that a start needs no
    /// network, and everything else as it is now.
    pub(super) async fn lists(config: &Config, state: &StateDir) -> Result<Self> {
        let now = Timestamp::now();
        let mut last_good = Snapshot::new();
        let mut wanted = Vec::new();
        for source in config.policy.used_sources() {
            let feed = state.load(source).unwrap_or_else(|error| {
                warn!("{error}");
                None
            });
            let is_remote = matches!(source.origin, Origin::Http(_) | Origin::Names(_));
            if feed.is_none() || !is_remote {
                wanted.push((source.clone(), Vec::new()));
            }
            if let Some(feed) = feed {
                last_good.insert(source.name.clone(), feed);
            }
        }
        let mut lists = Lists::new(last_good);
        // While nothing ran, time went on.
        let Ok(events) = lists.release(now, |_| Ok::<_, Infallible>(0));
        let released = events
            .iter()
            .filter_map(|event| config.policy.source(&event.source));
        let mut first = Self {
            fetched: released.cloned().collect(),
            lists,
            events,
        };
        let mut failed = 0;
        for gathered in gather(wanted).await {
            let source = gathered.source.clone();
            match first.take(gathered, now) {
                Ok(()) => first.fetched.push(source),
                Err(error) if first.lists.feed(&source.name).is_some() => {
                    warn!("{error}; its last good list is used");
                    first.note(&source.name, error, now);
                }
                Err(error) => {
                    failed += 1;
                    log::error!("{error}");
                }
            }
        }
        if failed > 0 {
            bail!(
                "{failed} of the sources could not be had and have no last good list, so nothing was attached"
            );
        }
        Ok(first)
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
            let first = runtime.block_on(First::lists(&config, &state));
            first.unwrap_or_else(|error| panic!("{error:#}"))
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
