//! Finds the process that holds the `flock` of a file, in `/proc/locks`.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use nix::sys::stat::{major, minor};

/// Returns the id of the process that holds an exclusive `flock` of this file or directory.
///
/// Returns `None` if no process holds one, if the holder is in another PID namespace, or if `/proc/locks` cannot be
/// read.
pub fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let device = (major(found.dev()), minor(found.dev()));
    find(
        &fs::read_to_string("/proc/locks").ok()?,
        device,
        found.ino(),
    )
}

/// Returns the process that holds an exclusive `flock` of this file, for display: `process 123 (allowlist)`; `None` as
/// for [`holder`].
pub fn holder_in_words(file: &File) -> Option<String> {
    let process = holder(file)?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {process}"),
        name => format!("process {process} ({name})"),
    })
}

/// Returns the id of the process that locks an inode of a device, from the text of `/proc/locks`; `None` if no lock
/// matches or several do, or if its process is in another PID namespace.
///
/// Some file systems (Btrfs, overlayfs) report different devices in `/proc/locks` and in `stat`. If no lock matches
/// both numbers, a lock that matches the inode number is used, provided that there is only one.
fn find(locks: &str, device: (u64, u64), inode: u64) -> Option<u32> {
    let of_inode: Vec<_> = locks
        .lines()
        .filter_map(Lock::parse)
        .filter(|lock| lock.inode == inode)
        .collect();
    let exact = of_inode.iter().find(|lock| lock.device == device);
    let lock = exact.or(match &of_inode[..] {
        [only] => Some(only),
        _ => None,
    })?;
    // 0 and -1 are processes of other namespaces.
    u32::try_from(lock.process)
        .ok()
        .filter(|&process| process != 0)
}

struct Lock {
    process: i64,
    device: (u64, u64),
    inode: u64,
}

impl Lock {
    /// Parses a line of `/proc/locks` such as `1: FLOCK ADVISORY WRITE 724 08:01:1835 0 EOF`.
    ///
    /// Returns `None` for other kinds of locks, and for processes that wait for a lock (`1: -> FLOCK …`).
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace().skip(1);
        if (words.next()?, words.next()?, words.next()?) != ("FLOCK", "ADVISORY", "WRITE") {
            return None;
        }
        let process = words.next()?.parse().ok()?;
        let mut place = words.next()?.split(':');
        let mut number = || u64::from_str_radix(place.next()?, 16).ok();
        let device = (number()?, number()?);
        let inode = place.next()?.parse().ok()?;
        Some(Self {
            process,
            device,
            inode,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCKS: &str = "\
1: FLOCK  ADVISORY  WRITE 724 08:01:1835 0 EOF
1: -> FLOCK  ADVISORY  WRITE 725 08:01:1835 0 EOF
2: POSIX  ADVISORY  WRITE 726 08:01:1836 0 EOF
3: FLOCK  ADVISORY  READ  727 08:01:1837 0 EOF
4: FLOCK  ADVISORY  WRITE 728 00:1c:99 0 EOF
5: FLOCK  ADVISORY  WRITE 729 00:1d:99 0 EOF
6: FLOCK  ADVISORY  WRITE 0 08:01:1838 0 EOF
7: FLOCK  ADVISORY  WRITE -1 08:01:1839 0 EOF
8: FLOCK  ADVISORY
garbage
";

    #[test]
    fn locks_are_found() {
        for (device, inode, expected) in [
            ((8, 1), 1835, Some(724)),
            ((0, 0x1c), 99, Some(728)),
            ((0, 0x1d), 99, Some(729)),
            ((0, 0x2f), 1835, Some(724)), // another device, only lock of the inode
            ((0, 0x2f), 99, None),        // ambiguous
            ((8, 1), 1836, None),
            ((8, 1), 1837, None),
            ((8, 1), 1838, None),
            ((8, 1), 1839, None),
            ((8, 1), 1, None),
        ] {
            assert_eq!(find(LOCKS, device, inode), expected, "{device:?} {inode}");
        }
        assert_eq!(find("", (8, 1), 1835), None);
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File::open(folder.path()).expect("a folder can be opened");
        assert_eq!(holder(&file), None);
        file.lock().expect("the lock is free");
        assert_eq!(holder(&file), Some(std::process::id()));
        let words = holder_in_words(&file).expect("held");
        assert!(
            words.starts_with(&format!("process {} (", std::process::id())),
            "{words}"
        );
    }
}
