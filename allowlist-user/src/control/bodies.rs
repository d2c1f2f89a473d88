//! Reads the bodies of requests within limits of size, time and memory.
//!
//! Invariants: of bodies that are not small, one of root and one of all other users are in memory at a time; the
//! others wait, for a limited time.

use std::time::Duration;

use axum::body::{Body, to_bytes};
use hyper::body::{Body as _, Bytes};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;

use crate::audit::Who;
use crate::error_code::{CodedError, ErrorCode};

/// The longest body, in bytes: some 200,000 prefixes.
const LONGEST: usize = 32 << 20;
/// Bodies up to so many bytes do not wait for each other.
const SMALL: usize = 64 << 10;
/// How long a body may take, and how long it may wait for others.
const TIME: Duration = Duration::from_secs(10);

/// The memory for bodies.
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
    /// Reads a body. Where it is not small, the permit keeps other such bodies waiting until it is dropped.
    pub(super) async fn read(
        &self,
        body: Body,
        who: &Who,
    ) -> Result<(Bytes, Option<SemaphorePermit<'_>>), CodedError> {
        let invalid = |error: String| CodedError::new(ErrorCode::InvalidRequest, error);
        // Without a length it may be of any size.
        let is_small = body
            .size_hint()
            .upper()
            .is_some_and(|most| most <= SMALL as u64);
        let permit = if is_small {
            None
        } else {
            let is_root = matches!(who, Who::Peer(peer) if peer.uid == 0);
            let room = if is_root {
                &self.of_root
            } else {
                &self.of_others
            };
            let Ok(Ok(permit)) = timeout(TIME, room.acquire()).await else {
                let error = "another large request is being read; send this one again later";
                return Err(CodedError::new(ErrorCode::Busy, error));
            };
            Some(permit)
        };
        match timeout(TIME, to_bytes(body, LONGEST)).await {
            Ok(Ok(bytes)) => Ok((bytes, permit)),
            Ok(Err(error)) => Err(invalid(format!(
                "the body cannot be read, or is longer than {LONGEST} bytes: {error}"
            ))),
            Err(_) => Err(invalid(format!("the body took longer than {TIME:?}"))),
        }
    }
}
