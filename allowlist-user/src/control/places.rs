//! Limits the concurrent connections, in total and per user.
//!
//! Invariants: some places are reserved for root; no single user can take all places of the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The maximum number of concurrent connections of all users.
const ALL: usize = 64;
/// The number of connections that are reserved for root.
const FOR_ROOT: usize = 16;
/// The maximum number of concurrent connections of one user other than root.
const OF_ONE_USER: usize = 16;

/// The number of open connections by user id; a user without connections has no entry.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<u32, usize>>>);

/// The permit of one connection; released when dropped.
#[derive(Debug)]
pub(super) struct Place {
    uid: u32,
    places: Places,
}

impl Places {
    /// Returns a permit for a connection of the user `uid`, or `None` if a limit is reached.
    pub(super) fn take(&self, uid: u32) -> Option<Place> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = taken.values().sum();
        let own = taken.get(&uid).copied().unwrap_or(0);
        let is_free = if uid == 0 {
            all < ALL
        } else {
            all - taken.get(&0).copied().unwrap_or(0) < ALL - FOR_ROOT
                && all < ALL
                && own < OF_ONE_USER
        };
        is_free.then(|| {
            *taken.entry(uid).or_default() += 1;
            Place {
                uid,
                places: self.clone(),
            }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = taken.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_the_places_of_others() {
        let places = Places::default();
        let take = |uid: u32, times: usize| -> Vec<Place> {
            (0..times).map_while(|_| places.take(uid)).collect()
        };
        let first = take(1000, ALL);
        assert_eq!(first.len(), OF_ONE_USER);
        let others: Vec<_> = (1001..1100).flat_map(|uid| take(uid, ALL)).collect();
        assert_eq!(first.len() + others.len(), ALL - FOR_ROOT);
        let root = take(0, ALL);
        assert_eq!(root.len(), FOR_ROOT);
        drop(first);
        assert_eq!(take(0, ALL).len(), OF_ONE_USER);
        drop((others, root));
        // Root can take all places.
        assert_eq!(take(0, 2 * ALL).len(), ALL);
        let _root = take(0, ALL);
        assert!(places.take(1000).is_none());
    }
}
