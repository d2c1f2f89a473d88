//! Several sources fetched at a time, each on its own: a slow one holds up no other.
//!
//! Keeps nothing and decides nothing about failures: they come back beside what was got.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use tokio::sync::Semaphore;
use tokio::task::{Id, JoinSet};
use tokio::time::timeout;

use crate::policy::{Answer, Origin, Source, Validator};
use crate::source::fetch;

/// More than reading any list takes. What is not done then never will be, such as a file of a server that hangs.
const READING: Duration = Duration::from_mins(2);

/// Fetches under way at once. Vendors count requests, and a small host has few sockets to spare.
const AT_ONCE: usize = 8;
/// Files that are read at once, of which some may be on a file system that does not answer.
const FILES_AT_ONCE: usize = 32;

/// What came of fetching a source.
#[derive(Debug)]
pub struct Gathered {
    /// The source.
    pub source: Source,
    /// What it has, or why it could not be had.
    pub answer: Result<Answer>,
    /// How long its server asks to be left alone.
    pub retry_after: Option<Duration>,
}

/// Fetches that are under way.
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
    /// Starts one as soon as there is room. `known` is what is known of the list that the source gave last.
    pub fn start(&mut self, source: Source, known: Vec<Validator>) {
        // A file on this host waits for no server.
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
                    let error = anyhow!("source {name}: was not fetched and read within {within}; look at what it holds");
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

    /// Whether a source is being fetched, or waits for room.
    pub fn is_running(&self, name: &str) -> bool {
        self.sources.values().any(|source| source.name == name)
    }

    /// What came of one of them; none if there is none.
    pub async fn next(&mut self) -> Option<Gathered> {
        let (id, answer, retry_after) = match self.running.join_next_with_id().await? {
            Ok((id, (answer, retry_after))) => (id, answer, retry_after),
            Err(error) => {
                let answer = Err(anyhow!("the fetch ended unexpectedly: {error}"));
                (error.id(), answer, None)
            }
        };
        let source = self.sources.remove(&id)?;
        Some(Gathered {
            source,
            answer,
            retry_after,
        })
    }
}

/// The longest that a fetch may take by all the time-outs that it has.
fn deadline(source: &Source) -> Duration {
    let requests = match &source.origin {
        // A page that leads to the list, the list, and the list again as a whole.
        Origin::Http(http) => http.timeout * 3 * http.urls.len() as u32,
        Origin::Names(lookup) => lookup.timeout,
        Origin::File { .. } | Origin::Prefixes(_) | Origin::Added | Origin::BuiltIn { .. } => {
            Duration::ZERO
        }
    };
    requests + READING
}

/// Fetches these sources; what came of each, in no particular order.
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
