//! Expands gzip data (RFC 1952) that lies in memory.
//!
//! Invariants: all members are read, and nothing may follow the last one; a member that is cut short, or whose checksum
//! is wrong, makes the whole input an error; and the result is never larger than a limit, independent of the sizes that
//! the data states. Knows no format of lists.

use std::io::{self, Read as _};

use flate2::bufread::GzDecoder;
use thiserror::Error;

/// The first bytes of each gzip member. No text in UTF-8 starts with them.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The maximum number of gzip members in one input, since each needs a new decoder; more are an error. The tool bgzip
/// writes one for each 64 KiB of text, so ordinary lists have several.
const MAX_MEMBERS: usize = 10_000;

/// The reason why gzip data was not expanded. No part of the data is used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum GzipError {
    /// The data ends within a gzip member.
    #[error("the gzip data ends too early")]
    Truncated,
    /// The data has a wrong checksum, bytes that are no gzip member, or too many members. The text is the reason.
    #[error("{0}")]
    Damaged(String),
    /// The data expands to more than the limit.
    #[error("the gzip data expands to more than {limit} bytes")]
    TooLarge {
        /// The limit of the expanded data, in bytes.
        limit: u64,
    },
}

/// Returns `bytes`, the content of a file, expanded if it is gzip data. No list starts like gzip data.
///
/// # Errors
/// The content starts like gzip data and is damaged, or expands to more than `limit` bytes.
pub(super) fn expand_file(bytes: Vec<u8>, limit: u64) -> Result<Vec<u8>, GzipError> {
    if bytes.starts_with(&MAGIC) {
        gunzip(&bytes, limit)
    } else {
        Ok(bytes)
    }
}

/// Expands all gzip members in `bytes`, and returns their content, of at most `limit` bytes. Empty data expands to
/// nothing.
///
/// # Errors
/// The data is anything but complete gzip members, or expands to more than `limit` bytes.
pub(super) fn gunzip(bytes: &[u8], limit: u64) -> Result<Vec<u8>, GzipError> {
    let mut expanded = Vec::new();
    let mut rest = bytes;
    let mut members = 0;
    while !rest.is_empty() {
        if members > 0 && !could_be_member(rest) {
            return Err(GzipError::Damaged(format!(
                "{} bytes that are no gzip data follow the gzip data",
                rest.len()
            )));
        }
        members += 1;
        if members > MAX_MEMBERS {
            let problem = format!("the gzip data has more than {MAX_MEMBERS} members");
            return Err(GzipError::Damaged(problem));
        }
        let mut member = GzDecoder::new(rest);
        let left = limit - expanded.len() as u64;
        // One byte more distinguishes too much from just enough, and reaching the end compares the checksum.
        (&mut member)
            .take(left + 1)
            .read_to_end(&mut expanded)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => GzipError::Truncated,
                _ => GzipError::Damaged(format!("the gzip data is damaged: {error}")),
            })?;
        if expanded.len() as u64 > limit {
            return Err(GzipError::TooLarge { limit });
        }
        rest = member.into_inner();
    }
    Ok(expanded)
}

/// Returns whether `rest` may be the start of a gzip member, even if only one byte is there.
fn could_be_member(rest: &[u8]) -> bool {
    MAGIC.starts_with(&rest[..rest.len().min(MAGIC.len())])
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).expect("in memory");
        encoder.finish().expect("in memory")
    }

    #[test]
    fn all_members_are_read() {
        let two = [gzip(b"192.0.2.1\n"), gzip(b""), gzip(b"192.0.2.2\n")].concat();
        assert_eq!(gunzip(&two, 20), Ok(b"192.0.2.1\n192.0.2.2\n".to_vec()));
        assert_eq!(gunzip(&two, 19), Err(GzipError::TooLarge { limit: 19 }));
        assert_eq!(gunzip(b"", 0), Ok(Vec::new()));
    }

    #[test]
    fn truncated_data_is_an_error_at_every_length() {
        let first = gzip(b"192.0.2.1\n");
        let two = [&first[..], &gzip(b"192.0.2.2\n")].concat();
        for end in 1..two.len() {
            let expanded = gunzip(&two[..end], 100);
            if end == first.len() {
                // Whole members: only the framing of the transfer shows that more was sent.
                assert_eq!(expanded, Ok(b"192.0.2.1\n".to_vec()));
            } else {
                assert_eq!(expanded, Err(GzipError::Truncated), "{end}");
            }
        }
    }

    #[test]
    fn trailing_bytes_and_wrong_checksums_are_errors() {
        for more in [&b"\n"[..], b"192.0.2.3\n", &[0; 8], &[0x1f, 0x00]] {
            let expanded = gunzip(&[&gzip(b"192.0.2.1\n"), more].concat(), 100);
            assert!(
                matches!(expanded, Err(GzipError::Damaged(_))),
                "{expanded:?}"
            );
        }
        let mut wrong = gzip(b"192.0.2.1\n");
        let checksum = wrong.len() - 8;
        wrong[checksum] ^= 1;
        let expanded = gunzip(&wrong, 100);
        assert!(
            matches!(expanded, Err(GzipError::Damaged(_))),
            "{expanded:?}"
        );
        let many = gzip(b"").repeat(MAX_MEMBERS + 1);
        let expanded = gunzip(&many, 100);
        assert!(
            matches!(expanded, Err(GzipError::Damaged(_))),
            "{expanded:?}"
        );
    }
}
