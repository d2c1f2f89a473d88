//! Matches the cgroups of units by name.
//!
//! The name of a systemd unit is unique, and the unit's cgroup has the name as its last component. But a user with a
//! delegated cgroup, such as that of a user's own service manager, may create cgroups with any name inside. So a cgroup
//! counts as a unit with a name only if every component before its last one is a slice: systemd delegates services and
//! scopes, and never slices.

use crate::abi::MAX_UNIT_TEXT;

/// The number of levels of cgroups below the root at which a rule can name a unit: a rule for a unit at a deeper level has
/// no effect.
pub const MAX_LEVELS: i32 = 12;

/// Returns the offset of the last component of a cgroup's path below the root of cgroup v2 if all components before it
/// are slices.
///
/// `path` returns the byte at an offset, and 0 at the end of the path. Returns `None` for a path in another cgroup than
/// slices, and for one with [`MAX_UNIT_TEXT`] bytes or more.
#[inline(always)]
pub fn name_offset(path: impl Fn(usize) -> u8) -> Option<usize> {
    const SUFFIX: u64 = u64::from_be_bytes(*b"\0\0.slice");
    const SUFFIX_BITS: u64 = (1 << (8 * 6)) - 1;
    if path(0) != b'/' {
        return None;
    }
    let mut start = 1;
    // The last bytes, which may begin before the component. A suffix with a slash is not that of a slice.
    let mut tail = 0;
    // VERIFIER: nothing depends on `start` but an address that the kernel checks, and `tail` has no bits that depend on
    // the branches, so paths through the loop with different values are equivalent.
    for place in 1..MAX_UNIT_TEXT {
        let byte = path(place);
        let before = tail;
        tail = tail << 8 | u64::from(byte);
        match byte {
            0 => return Some(start),
            b'/' if before & SUFFIX_BITS == SUFFIX => start = place + 1,
            b'/' => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the last component of a path if [`name_offset`] accepts it.
    fn name(path: &str) -> Option<&str> {
        let offset = name_offset(|place| path.as_bytes().get(place).copied().unwrap_or(0));
        offset.map(|offset| &path[offset..])
    }

    #[test]
    fn names_in_slices_are_accepted() {
        for (path, expected) in [
            ("/init.scope", Some("init.scope")),
            ("/system.slice/alerts.service", Some("alerts.service")),
            ("/a.slice/a-b.slice/w@1.service", Some("w@1.service")),
            ("/a.slice", Some("a.slice")),
            (
                "/user.slice/user-1.slice/user@1.service/alerts.service",
                None,
            ),
            ("/machine/alerts.service", None),
            ("/a.slice/x.slicer/alerts.service", None),
            ("/a.slice/x.slic/alerts.service", None),
            ("/slice/alerts.service", None),
            ("/.slice/alerts.service", Some("alerts.service")),
            ("/a.slice//alerts.service", None),
            ("alerts.service", None),
            ("", None),
        ] {
            assert_eq!(name(path), expected, "{path}");
        }
    }
}
