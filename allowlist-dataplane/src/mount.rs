//! Detects whether the BPF file system with the pins ends together with this process.
//!
//! A pin keeps a filter attached as long as its file system exists. A file system that is mounted only in a private
//! mount namespace (`ip netns exec`, `unshare --mount`, a container without the host's `/sys/fs/bpf`) ends with the
//! last process of that namespace, and the filter with it.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The root directory as the first process of the host, or of the container, sees it.
const INIT_ROOT: &str = "/proc/1/root";

/// Returns whether the pins exist only in mount namespaces other than that of the first process.
///
/// Returns false if this process may not examine the first process's namespace.
pub fn has_private_pins(pin_dir: &Path) -> bool {
    let Some((here, ours)) = pin_dir
        .ancestors()
        .find_map(|folder| Some((folder, fs::metadata(folder).ok()?)))
    else {
        return false;
    };
    let Ok(below_root) = here.strip_prefix("/") else {
        return false;
    };
    is_elsewhere(&ours, fs::metadata(Path::new(INIT_ROOT).join(below_root)))
}

/// Returns whether the first process sees another directory than `ours` at the same path, or none.
fn is_elsewhere(ours: &Metadata, theirs: io::Result<Metadata>) -> bool {
    match theirs {
        Ok(theirs) => (ours.dev(), ours.ino()) != (theirs.dev(), theirs.ino()),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_folder_in_the_same_place_is_elsewhere() {
        let folders = [0; 2].map(|_| tempfile::tempdir().expect("a folder"));
        let [a, b] = folders
            .each_ref()
            .map(|folder| fs::metadata(folder.path()).expect("is there"));
        assert!(is_elsewhere(&a, Ok(b)));
        assert!(!is_elsewhere(&a, fs::metadata(folders[0].path())));
        assert!(is_elsewhere(
            &a,
            fs::metadata(folders[0].path().join("none"))
        ));
        assert!(!is_elsewhere(&a, Err(ErrorKind::PermissionDenied.into())));
    }
}
