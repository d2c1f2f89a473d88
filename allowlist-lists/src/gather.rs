//! Fetches several sources at the same time. A slow source delays no other.
//!
//! Keeps no lists and handles no failures: it returns them with their sources.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use allowlist_policy::{Answer, Origin, Source, Validator};
use anyhow::{Result, anyhow};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::timeout;

use crate::source::fetch;

/// The time limit for parsing a list, longer than parsing any list takes. It ends fetches that hang, such as on a dead
/// file server.
const READING: Duration = Duration::from_mins(2);

/// The most fetches over the network at the same time; further ones are queued. Vendors limit requests, and a small
/// host has few sockets.
const AT_ONCE: usize = 8;
/// The most fetches of files at the same time; further ones are queued. Some may hang on a file system that does not
/// respond.
const FILES_AT_ONCE: usize = 32;

/// The result of fetching one source.
#[derive(Debug)]
pub struct Gathered {
    /// The source that was fetched.
    pub source: Source,
    /// The origin's answer, or the error of the fetch.
    pub answer: Result<Answer>,
    /// The time until the server permits the next request; `None` if it states none.
    pub retry_after: Option<Duration>,
}

/// The fetches that are in progress or queued.
pub struct Fetches {
    running: JoinSet<(Result<Answer>, Option<Duration>)>,
    sources: HashMap<Id, Source>,
    room: Arc<Semaphore>,
    room_for_files: Arc<Semaphore>,
}

impl Default for Fetches {
    fn default() -> Self {
        Self {
            running: JoinSet::new(),
            sources: HashMap::new(),
            room: Arc::new(Semaphore::new(AT_ONCE)),
            room_for_files: Arc::new(Semaphore::new(FILES_AT_ONCE)),
        }
    }
}

impl Fetches {
    /// Queues a fetch of `source`, which starts as soon as a slot is free. `known` has the validators of its last
    /// answer.
    pub fn start(&mut self, source: Source, known: Vec<Validator>) {
        // Files have slots of their own, so no server delays them.
        let room = Arc::clone(match source.origin {
            Origin::Http(_) | Origin::Names(_) => &self.room,
            _ => &self.room_for_files,
        });
        let of_task = source.clone();
        let task = self.running.spawn(async move {
            let _room = room.acquire().await; // it is never closed
            let deadline = deadline(&of_task);
            match timeout(deadline, fetch(&of_task, &known)).await {
                Ok(Ok(answer)) => (Ok(answer), None),
                Err(_) => {
                    let within = humantime::format_duration(deadline);
                    let name = &of_task.name;
                    let error = anyhow!("source {name}: fetching and parsing the list took longer than {within}; check the size of the list");
                    (Err(error), None)
                }
                Ok(Err(error)) => {
                    let retry_after = error.retry_after;
                    (Err(error.into()), retry_after)
                }
            }
        });
        self.sources.insert(task.id(), source);
    }

    /// Returns whether the source named `name` is being fetched or queued.
    pub fn is_running(&self, name: &str) -> bool {
        self.sources.values().any(|source| source.name == name)
    }

    /// Waits for a fetch to finish and returns its result, or `None` if no fetch is in progress or queued.
    pub async fn next(&mut self) -> Option<Gathered> {
        let ended = self.running.join_next_with_id().await?;
        let id = ended.as_ref().map_or_else(JoinError::id, |(id, _)| *id);
        let source = self.sources.remove(&id)?;
        let (answer, retry_after) = match ended {
            Ok((_, result)) => result,
            Err(error) => {
                let name = &source.name;
                let error = anyhow!(
                    "source {name}: the fetch ended unexpectedly, because of a bug of this program: {error}; report this message"
                );
                (Err(error), None)
            }
        };
        Some(Gathered {
            source,
            answer,
            retry_after,
        })
    }
}

/// Returns the time limit for a whole fetch of `source`: the sum of the timeouts of its requests, and the time for
/// parsing.
fn deadline(source: &Source) -> Duration {
    let requests = match &source.origin {
        // A page with the link, a conditional request, and an unconditional one.
        Origin::Http(http) => http.timeout * 3 * http.urls.len() as u32,
        Origin::Names(lookup) => lookup.timeout,
        Origin::File { .. } | Origin::Prefixes(_) | Origin::Added | Origin::BuiltIn { .. } => {
            Duration::ZERO
        }
    };
    requests + READING
}

/// Fetches `sources`, each with the validators of its last answer, and returns the results in no particular order.
pub async fn gather(sources: Vec<(Source, Vec<Validator>)>) -> Vec<Gathered> {
    let mut fetches = Fetches::default();
    for (source, known) in sources {
        fetches.start(source, known);
    }
    let mut gathered = Vec::new();
    while let Some(one) = fetches.next().await {
        gathered.push(one);
    }
    gathered
}
