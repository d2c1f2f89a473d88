//! Keeps the addresses that the egress policy learnt from answers on disk, for the next start of the system.
//!
//! The kernel holds them as long as it runs, with or without a daemon. After a start of the system its maps are empty,
//! and a program may still use an address that it stored itself.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use allowlist_dataplane::{LearnedAddress, kernel_clock};
use allowlist_files::bounded::Open;
use allowlist_files::checksum;
use jiff::{SignedDuration, Timestamp};
use log::warn;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Daemon;

/// The file in the state directory.
const FILE: &str = "learned.json";
/// The maximum size of the file in bytes, which is several times that of full maps.
const MAX_BYTES: u64 = 32 << 20;
/// The interval at which the file is written, if the addresses have changed.
pub(super) const STORE_EVERY: Duration = Duration::from_mins(1);

/// An address in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    address: IpAddr,
    /// The time after which the address is no longer allowed for the name.
    until: Timestamp,
}

/// The contents of the file: the addresses of each listed name or wildcard.
type File = BTreeMap<String, Vec<Kept>>;

/// The state of the file.
#[derive(Default)]
pub(super) struct LearnedFile {
    /// The addresses as the file has them; `None` before the first write.
    stored: Option<Vec<LearnedAddress>>,
    /// The time of the next write; `None` before the first.
    next: Option<Instant>,
}

impl Daemon {
    /// Gives the addresses in the file to the kernel that are still valid and that the policy still lists, after the
    /// first publish. A failure is logged.
    pub(super) async fn restore_learned(&mut self) {
        if self.state.policy().egress.is_none() {
            return;
        }
        let path = self.store.state_dir().path().join(FILE);
        let bytes = match Open::state(MAX_BYTES).read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.is_missing() => return,
            Err(error) => {
                warn!(
                    "cannot read the addresses that were answered for names before this start: {error}; programs that stored an address themselves may be refused until they resolve the name again"
                );
                return;
            }
        };
        let file = checksum::verify(&bytes).and_then(|json| serde_json::from_slice(json).ok());
        let Some(file): Option<File> = file else {
            warn!(
                "{}: the file is damaged, so the addresses that were answered for names before this start are lost; programs that stored an address themselves may be refused until they resolve the name again",
                path.display()
            );
            return;
        };
        let names = self.kernel.ids.egress.names.clone();
        let addresses = valid(&file, &names, Timestamp::now(), kernel_clock());
        let restored = self.kernel.run(move |dataplane| {
            let is_wildcard = |id: u32| names[id as usize].starts_with("*.");
            dataplane.restore_addresses(&addresses, is_wildcard)
        });
        if let Err(error) = restored.await {
            warn!(
                "cannot restore the addresses that were answered for names before this start: {error:#}"
            );
        }
    }

    /// Writes the file if a minute has passed since the last time and the addresses have changed.
    pub(super) async fn store_learned_if_due(&mut self) {
        if self.learned.next.is_some_and(|next| next > Instant::now()) {
            return;
        }
        self.learned.next = Some(Instant::now() + STORE_EVERY);
        self.store_learned().await;
    }

    /// Writes the file if the addresses have changed. A failure is logged.
    pub(super) async fn store_learned(&mut self) {
        if self.is_inactive || self.state.policy().egress.is_none() {
            return;
        }
        let read = self.kernel.run(|dataplane| dataplane.learned_addresses());
        let addresses = match read.await {
            Ok(addresses) => addresses,
            Err(error) => {
                warn!("cannot read the addresses that were answered for names: {error:#}");
                return;
            }
        };
        let is_same = match &self.learned.stored {
            Some(stored) => *stored == addresses,
            None => addresses.is_empty(),
        };
        if is_same {
            return;
        }
        let names = &self.kernel.ids.egress.names;
        let file = kept(&addresses, names, Timestamp::now(), kernel_clock());
        let bytes = checksum::prepend(&serde_json::to_vec(&file).expect("it has no other keys"));
        match self.store.write(FILE, bytes) {
            Ok(()) => self.learned.stored = Some(addresses),
            Err(error) => warn!(
                "cannot write the addresses that were answered for names: {error:#}; after a start of the system, programs that stored an address themselves may be refused until they resolve the name again"
            ),
        }
    }
}

/// Returns the contents of the file for these addresses. `now` is the time at which the kernel's clock shows `clock`.
fn kept(addresses: &[LearnedAddress], names: &[String], now: Timestamp, clock: Duration) -> File {
    let mut file = File::new();
    for learnt in addresses {
        let left = SignedDuration::try_from(learnt.until.saturating_sub(clock));
        if let Some(name) = names.get(learnt.name as usize)
            && let Ok(until) = left.map(|left| now.saturating_add(left))
            && let Ok(until) = until
        {
            let address = learnt.address;
            let of_name = file.entry(name.clone()).or_default();
            of_name.push(Kept { address, until });
        }
    }
    file
}

/// Returns the addresses of the file that are still valid at `now`, at which the kernel's clock shows `clock`.
fn valid(file: &File, names: &[String], now: Timestamp, clock: Duration) -> Vec<LearnedAddress> {
    let ids: BTreeMap<&str, u32> = names.iter().map(|name| &**name).zip(0..).skip(1).collect();
    let mut addresses = Vec::new();
    for (name, kept) in file {
        let Some(id) = ids.get(&**name) else {
            continue;
        };
        for one in kept {
            if let Ok(left) = Duration::try_from(now.duration_until(one.until))
                && !left.is_zero()
            {
                addresses.push(LearnedAddress {
                    name: *id,
                    address: one.address,
                    until: clock + left,
                });
            }
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Valid addresses survive a start of the system, after which the kernel's clock begins again; addresses that are
    /// not valid any more, or whose names are not listed any more, do not.
    #[test]
    fn addresses_survive_a_start_of_the_system() {
        let now: Timestamp = "2026-11-30T12:00:00Z".parse().expect("a time");
        let seconds = Duration::from_secs;
        let of = |name, address: &str, until| LearnedAddress {
            name,
            address: address.parse().expect("an address"),
            until: seconds(until),
        };
        let names = ["", "a.example.com", "*.example.net", "gone.example"].map(str::to_owned);
        let before = [
            of(1, "192.0.2.1", 1000 + 60),
            of(1, "2001:db8::1", 1000 + 7200),
            of(2, "192.0.2.1", 1000 + 3600),
            of(3, "192.0.2.3", 1000 + 3600),
        ];
        let file = kept(&before, &names, now, seconds(1000));
        let json = serde_json::to_string(&file).expect("it is JSON");
        let file: File = serde_json::from_str(&json).expect("it is JSON");
        // The ids are others, and one name is gone.
        let names = ["", "*.example.net", "a.example.com"].map(str::to_owned);
        let later = now + SignedDuration::from_secs(600);
        assert_eq!(
            valid(&file, &names, later, seconds(5)),
            [of(1, "192.0.2.1", 5 + 3000), of(2, "2001:db8::1", 5 + 6600),]
        );
    }
}
