//! Reads the bodies of requests within limits of size, time and memory.
//!
//! Invariant: at most one large body of root and one of all other users are in memory; others wait, for a limited
//! time.

use std::time::Duration;

use allowlist_policy::error_code::ErrorCode;
use axum::body::{Body, to_bytes};
use hyper::body::{Body as _, Bytes};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::audit::Actor;
use crate::error_code::ApiError;

/// The maximum length of a request's body in bytes, enough for about 200,000 prefixes; a longer body is refused.
const LONGEST: usize = 32 << 20;
/// The length in bytes up to which a body is read without a permit.
const SMALL: usize = 64 << 10;
/// The time limit for reading a body, and for the wait for a permit.
const TIME: Duration = Duration::from_secs(10);

/// The permits for large bodies, which limit the memory that requests use.
#[derive(Debug)]
pub(super) struct Bodies {
    of_root: Semaphore,
    of_others: Semaphore,
}

impl Default for Bodies {
    fn default() -> Self {
        Self {
            of_root: Semaphore::new(1),
            of_others: Semaphore::new(1),
        }
    }
}

impl Bodies {
    /// Reads the body of a request. A large body needs a permit, which is returned too: other large bodies wait until
    /// it is dropped.
    pub(super) async fn read(
        &self,
        body: Body,
        actor: &Actor,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), ApiError> {
        let invalid = |error: String| ApiError::new(ErrorCode::InvalidRequest, error);
        // A body without a length counts as large.
        let is_small = body
            .size_hint()
            .upper()
            .is_some_and(|most| most <= SMALL as u64);
        let permit = if is_small {
            None
        } else {
            let is_root = matches!(actor, Actor::Peer(peer) if peer.uid == 0);
            let room = if is_root {
                &self.of_root
            } else {
                &self.of_others
            };
            let Ok(Ok(permit)) = timeout(TIME, room.acquire()).await else {
                let error = "another large request is being read; try again later";
                return Err(ApiError::new(ErrorCode::Busy, error));
            };
            Some(permit)
        };
        match timeout(TIME, to_bytes(body, LONGEST)).await {
            Ok(Ok(bytes)) => Ok((bytes, permit)),
            Ok(Err(error)) => Err(invalid(format!(
                "the body of the request cannot be read, or is longer than {LONGEST} bytes: {error}"
            ))),
            Err(_) => Err(invalid(format!(
                "the body of the request was not complete within {TIME:?}"
            ))),
        }
    }
}
