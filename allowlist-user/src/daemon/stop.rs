//! How a daemon ends: with the filter in force, or off, and saying which.

use anyhow::{Result, bail};
use log::{info, warn};
use nix::errno::Errno;

use super::Daemon;
use super::interfaces::present;
use crate::audit::{Deed, Who};
use crate::dataplane::has_private_pins;

impl Daemon {
    /// Ctrl-C.
    pub(super) async fn interrupted(self) -> Result<()> {
        if self.options.keep {
            return self
                .leave("stopped; the filter stays in force, as --keep asks; `allowlist detach` takes it off")
                .await;
        }
        if self.dataplane.is_detached() {
            self.detached();
            return Ok(());
        }
        if self.waiting && self.dataplane.generation() != 0 {
            return self
                .leave("stopped while it waited for lists; what was in force before stays in force")
                .await;
        }
        self.notify.stopping();
        let interfaces = self.dataplane.detach()?;
        self.log(Who::Signal, Deed::Stop { filtering: false }, None);
        if interfaces.is_empty() {
            info!("stopped before anything was attached");
        } else {
            info!(
                target: "allowlist::detached",
                "stopped; detached from {}: everything passes",
                interfaces.join(", ")
            );
        }
        Ok(())
    }

    /// A service manager's stop.
    pub(super) async fn terminated(self) -> Result<()> {
        if self.waiting && self.dataplane.generation() == 0 {
            // Nothing filters, and what was made to do so should not look as if it did.
            self.notify.stopping();
            self.dataplane.detach()?;
            info!("stopped before anything was attached");
            return Ok(());
        }
        self.leave("stopped; the filter stays in force, and `allowlist detach` takes it off")
            .await
    }

    /// Whether the filter was detached on purpose, which ends the daemon. Pins that are gone by accident are made again.
    ///
    /// # Errors
    /// Fails where the pin folder is gone and cannot be made again: then nothing holds the filter. Fails too where a
    /// change of this process has detached the filter, since the daemon ends with success only where that was meant.
    pub(super) fn is_detached(&mut self) -> Result<bool> {
        if self.dataplane.has_detached() {
            bail!(
                "the change that failed has detached the filter, so there is nothing left to run"
            );
        }
        if self.dataplane.is_detached() {
            self.detached();
            return Ok(true);
        }
        match self.dataplane.restore_folder() {
            Ok(false) => {}
            Ok(true) => warn!(
                "the pin folder was unmounted or removed while the filter was on; it is made again with all pins"
            ),
            Err(error) if lacks_resources(&error) => self.self_check.fail(&error),
            Err(error) => {
                self.notify.stopping();
                self.log(Who::Daemon, Deed::Stop { filtering: false }, None);
                return Err(error.context(
                    "the pin folder was unmounted or removed, and cannot be made again, so nothing is filtered any more once this process has ended",
                ));
            }
        }
        Ok(false)
    }

    /// A `detach` took the filter off.
    pub(super) fn detached(&self) {
        self.notify.stopping();
        self.log(Who::Daemon, Deed::Stop { filtering: false }, None);
        info!(target: "allowlist::detached", "stopped: the filter was detached");
    }

    /// Ends with the filter in force, and without a trace that nobody would read.
    async fn leave(mut self, last_words: &str) -> Result<()> {
        self.notify.stopping();
        self.write_record();
        if self.options.trace {
            for facts in present(&self.config.interfaces).await? {
                self.attach(&facts, false)?;
            }
        }
        self.log(Who::Signal, Deed::Stop { filtering: true }, None);
        info!(target: "allowlist::stopped", "{last_words}");
        if has_private_pins(&self.options.paths.pin_dir) {
            warn!(
                "{} is mounted in a private mount namespace only: the filter ends with the last process of that namespace",
                self.options.paths.pin_dir.display()
            );
        }
        Ok(())
    }
}

/// Whether an error is of a moment at which this process or the host has too little of something.
fn lacks_resources(error: &anyhow::Error) -> bool {
    let cause = error.root_cause();
    let code = match (
        cause.downcast_ref::<std::io::Error>(),
        cause.downcast_ref::<Errno>(),
    ) {
        (Some(error), _) => error.raw_os_error().map(Errno::from_raw),
        (None, errno) => errno.copied(),
    };
    matches!(
        code,
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN)
    )
}
