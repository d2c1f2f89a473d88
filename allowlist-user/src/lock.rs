//! Who holds a file that is locked: which the kernel tells, so that nobody needs to write it down.
//!
//! Knows locks by `flock` only, and nothing of what is locked for.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;

use nix::sys::stat::{major, minor};

/// The process that has an exclusive lock on this very file or folder; `None` if it cannot be told, as where
/// that process is in another PID namespace, or `/proc/locks` cannot be read.
pub fn holder(file: &File) -> Option<u32> {
    let found = file.metadata().ok()?;
    let device = (major(found.dev()), minor(found.dev()));
    find(
        &fs::read_to_string("/proc/locks").ok()?,
        device,
        found.ino(),
    )
}

/// The holder as errors name it: `process 123 (allowlist)`.
pub fn holder_in_words(file: &File) -> Option<String> {
    let process = holder(file)?;
    let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
    Some(match name.trim() {
        "" => format!("process {process}"),
        name => format!("process {process} ({name})"),
    })
}

/// The process in the lines of `/proc/locks`.
///
/// Some file systems (Btrfs, overlays) tell another device there than they tell of a file. So where no lock has
/// this one, a lock on the only such inode number is taken for it.
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
    // 0 and -1 stand for processes that this namespace does not know.
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
    /// Of a line such as `1: FLOCK  ADVISORY  WRITE 724 08:01:1835 0 EOF`; `None` for any other kind of lock,
    /// and for those who wait for one (`1: -> FLOCK …`).
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
    fn lines_of_the_kernel() {
        for (device, inode, expected) in [
            ((8, 1), 1835, Some(724)),
            ((0, 0x1c), 99, Some(728)),
            ((0, 0x1d), 99, Some(729)),
            ((0, 0x2f), 1835, Some(724)), // another device, and no other lock that it could be
            ((0, 0x2f), 99, None),        // either of two
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
    fn this_process_holds_what_it_locks() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = File::open(folder.path()).expect("a folder can be opened");
        assert_eq!(holder(&file), None);
        file.lock().expect("nobody else knows of it");
        assert_eq!(holder(&file), Some(std::process::id()));
        let words = holder_in_words(&file).expect("held");
        assert!(
            words.starts_with(&format!("process {} (", std::process::id())),
            "{words}"
        );
    }
}
