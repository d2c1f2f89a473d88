//! The end of a daemon: leaves the filter attached or detaches it, and logs which.

use allowlist_dataplane::{Dataplane, has_private_pins};
use anyhow::{Context as _, Result, bail};
use log::{info, warn};
use nix::errno::Errno;

use super::interfaces::present;
use super::{Daemon, Logged};
use crate::audit::Actor;
use crate::operation::Operation;

impl Daemon {
    /// Handles SIGINT (Ctrl-C): detaches the filter and ends the daemon; with `--keep`, leaves the filter attached.
    pub(super) async fn interrupted(self) -> Result<()> {
        if self.options.keep {
            return self
                .exit_attached(
                    "stopped; the filter stays attached (--keep); `allowlist detach` removes it",
                )
                .await;
        }
        if self.kernel.run(|dataplane| dataplane.is_detached()).await {
            self.detached();
            return Ok(());
        }
        if self.is_inactive && self.kernel.generation() != 0 {
            return self
                .exit_attached("stopped while waiting for lists; the earlier filter stays attached")
                .await;
        }
        self.notify.stopping();
        let interfaces = self.kernel.run(|dataplane| dataplane.detach()).await?;
        self.log(
            Actor::Signal,
            Operation::Stop { filtering: false },
            Logged::done(),
        );
        if interfaces.is_empty() {
            info!("stopped; nothing was attached");
        } else {
            info!(
                target: "allowlist::detached",
                "stopped; detached from {}: every packet passes",
                interfaces.join(", ")
            );
        }
        Ok(())
    }

    /// Handles SIGTERM, the stop signal of a service manager: ends the daemon, and leaves the filter attached.
    pub(super) async fn terminated(self) -> Result<()> {
        if self.is_inactive && self.kernel.generation() == 0 {
            // Nothing is filtered: remove the pins of the unfinished start.
            self.notify.stopping();
            self.kernel.run(|dataplane| dataplane.detach()).await?;
            info!("stopped; nothing was attached");
            return Ok(());
        }
        self.exit_attached("stopped; the filter stays attached; `allowlist detach` removes it")
            .await
    }

    /// Returns whether the filter was detached by `allowlist detach`, which ends the daemon. Pins that were lost in
    /// another way are restored.
    ///
    /// # Errors
    /// Fails if the pin directory cannot be restored, or if a failed change of this process has detached the filter.
    pub(super) async fn is_detached(&mut self) -> Result<bool> {
        let read = |dataplane: &mut Dataplane| {
            let is_detached = dataplane.is_detached();
            let restored = if is_detached {
                Ok(false)
            } else {
                dataplane.restore_folder()
            };
            (dataplane.has_detached(), is_detached, restored)
        };
        let (has_detached, is_detached, restored) = self.kernel.run(read).await;
        if has_detached {
            bail!(
                "a change failed and detached the filter, so every packet passes and the daemon ends; start it again with `allowlist run`"
            );
        }
        if is_detached {
            self.detached();
            return Ok(true);
        }
        match restored {
            Ok(false) => {}
            Ok(true) => {
                warn!(
                    "the pin directory {} was unmounted or removed; it is restored with all pins",
                    self.options.paths.pin_dir.display()
                );
            }
            Err(error) if lacks_resources(&error) => {
                self.interfaces.self_check.fail(format!("{error:#}"));
            }
            Err(error) => {
                self.notify.stopping();
                self.log(
                    Actor::Daemon,
                    Operation::Stop { filtering: false },
                    Logged::done(),
                );
                return Err(error).context(
                    "the daemon and the filter end, because the pin directory was unmounted or removed and cannot be restored; mount the BPF file system again, then start the daemon",
                );
            }
        }
        Ok(false)
    }

    /// Logs that the daemon ends because of `allowlist detach`.
    pub(super) fn detached(&self) {
        self.notify.stopping();
        self.log(
            Actor::Daemon,
            Operation::Stop { filtering: false },
            Logged::done(),
        );
        info!(target: "allowlist::detached", "stopped, because another process detached the filter: every packet passes");
    }

    /// Ends the daemon with the filter attached, and stops its trace. `message` is the log record.
    async fn exit_attached(mut self, message: &str) -> Result<()> {
        self.notify.stopping();
        self.end_egress_exemption().await;
        self.store_learned().await;
        self.update_meta().await;
        if self.options.trace {
            for facts in present(&self.state.config().interfaces).await? {
                self.attach(facts, false).await?;
            }
        }
        self.log(
            Actor::Signal,
            Operation::Stop { filtering: true },
            Logged::done(),
        );
        info!(target: "allowlist::stopped", "{message}");
        if has_private_pins(&self.options.paths.pin_dir) {
            warn!(
                "{} is in a private mount namespace: the filter ends with the last process of that namespace",
                self.options.paths.pin_dir.display()
            );
        }
        Ok(())
    }
}

/// Returns whether an error is due to a temporary lack of memory or file descriptors.
fn lacks_resources(error: &allowlist_dataplane::Error) -> bool {
    matches!(
        error.errno(),
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN)
    )
}
