//! A thread that owns a value and runs commands on it, one after the other.
//!
//! Callers are async and wait without blocking their thread, so system calls that take long delay no event loop.

use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use tokio::sync::oneshot;

type Command<T> = Box<dyn FnOnce(&mut T) + Send>;

/// The handle of a thread that owns a `T`. When dropped, it waits until the commands are done and the thread has ended.
pub(crate) struct Worker<T> {
    /// The queue of commands; `None` only while the handle is dropped.
    commands: Option<mpsc::Sender<Command<T>>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: 'static> Worker<T> {
    /// Starts a thread with this name, on which `make` makes the value.
    ///
    /// # Errors
    /// Returns the error of `make`; the thread has ended then.
    pub(crate) async fn start<E: Send + 'static>(
        name: &str,
        make: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<Self, E> {
        let (commands, queue) = mpsc::channel::<Command<T>>();
        let (started, has_started) = oneshot::channel();
        let run = move || {
            let mut value = match make() {
                Ok(value) => value,
                Err(error) => {
                    let _ = started.send(Err(error));
                    return;
                }
            };
            let _ = started.send(Ok(()));
            for command in queue {
                command(&mut value);
            }
        };
        let thread = thread::Builder::new().name(name.to_owned()).spawn(run);
        let thread = thread.expect("the limit of threads is not reached at a start");
        has_started.await.expect("the thread answers")?;
        Ok(Self {
            commands: Some(commands),
            thread: Some(thread),
        })
    }

    /// Runs a command on the thread after all earlier ones, and returns its result.
    ///
    /// # Panics
    /// Panics if a command has panicked.
    pub(crate) async fn run<R: Send + 'static>(
        &self,
        command: impl FnOnce(&mut T) -> R + Send + 'static,
    ) -> R {
        let (answer, result) = oneshot::channel();
        let command = Box::new(move |value: &mut T| {
            let _ = answer.send(command(value)); // the caller may have been cancelled
        });
        let commands = self.commands.as_ref().expect("the handle exists");
        commands
            .send(command)
            .unwrap_or_else(|_| panic!("the thread has ended by a panic"));
        result.await.expect("the thread has not panicked")
    }
}

impl<T> Drop for Worker<T> {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic was reported where it happened
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn commands_run_in_order() {
        let worker = Worker::start("test", || Ok::<_, ()>(Vec::new())).await;
        let worker = worker.expect("it starts");
        let first = worker.run(|done: &mut Vec<i32>| done.push(1));
        let second = worker.run(|done| done.push(2));
        tokio::join!(first, second);
        assert_eq!(worker.run(|done| done.clone()).await, [1, 2]);
    }

    #[tokio::test]
    async fn a_failed_start_is_an_error() {
        let worker = Worker::<()>::start("test", || Err("no")).await;
        assert_eq!(worker.err(), Some("no"));
    }
}
