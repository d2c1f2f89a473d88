//! A CRC-32 checksum in front of bytes: `CRC32 SPACE BYTES`, with the checksum as 8 hexadecimal digits.
//!
//! Invariant: the checksum is over the bytes as they are stored, not over a value that was decoded and encoded again. A
//! version of the program whose values have more or fewer fields verifies the same bytes.

/// The length of the checksum and the space after it, in bytes.
const LENGTH: usize = 9;

/// Returns `bytes` with their checksum in front.
///
/// # Examples
///
/// ```
/// use allowlist_files::checksum;
///
/// let stored = checksum::prepend(b"{}");
/// assert_eq!(stored, b"a3a6bf43 {}");
/// assert_eq!(checksum::verify(&stored), Some(&b"{}"[..]));
/// assert_eq!(checksum::verify(b"a3a6bf43 []"), None);
/// ```
pub fn prepend(bytes: &[u8]) -> Vec<u8> {
    let mut stored = format!("{:08x} ", crc32fast::hash(bytes)).into_bytes();
    stored.extend_from_slice(bytes);
    stored
}

/// Returns the bytes after the checksum, or `None` if `stored` has no checksum or one that does not match.
pub fn verify(stored: &[u8]) -> Option<&[u8]> {
    let (checksum, bytes) = stored.split_at_checked(LENGTH)?;
    let checksum = std::str::from_utf8(checksum).ok()?.strip_suffix(' ')?;
    let is_hexadecimal = checksum.bytes().all(|digit| digit.is_ascii_hexdigit());
    let checksum = u32::from_str_radix(checksum, 16).ok()?;
    (is_hexadecimal && checksum == crc32fast::hash(bytes)).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_of_one_bit_is_detected() {
        let stored = prepend(b"{\"policy\":7}");
        assert_eq!(verify(&stored), Some(&b"{\"policy\":7}"[..]));
        for bit in 0..stored.len() * 8 {
            let mut damaged = stored.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // The case of a hexadecimal digit is no damage.
            let is_same = damaged.eq_ignore_ascii_case(&stored) && bit / 8 < 8;
            assert_eq!(verify(&damaged).is_some(), is_same, "bit {bit}");
        }
        for length in 0..stored.len() {
            assert_eq!(verify(&stored[..length]), None, "{length} bytes");
        }
    }
}
