//! Prints the log lines of the kernel programs for `--trace`: one line per packet, in real time.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;

use crate::error::{Context as _, Error, Result};

/// Starts a task that prints the log lines of programs loaded with the trace on, through the `log` crate.
///
/// The task runs until it is aborted.
pub fn print_trace(mut object: Ebpf) -> Result<JoinHandle<()>> {
    let logger = EbpfLogger::init(&mut object).map_err(|error| {
        Error::message(format!("cannot read the kernel program's log: {error}"))
    })?;
    #[expect(
        unsafe_code,
        reason = "the only constructor that tokio does not deprecate"
    )]
    // SAFETY: the logger owns its descriptor, never replaces it, and is moved in here.
    let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
        .map_err(std::io::Error::from)
        .context("cannot wait for log lines of the kernel programs")?;
    Ok(tokio::spawn(async move {
        let _loaded = object; // its maps hold the log's ring buffer
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }))
}
