//! Whether the BPF file system that holds the pins outlives this process.
//!
//! A pin keeps a filter attached as long as its file system exists. One that is mounted in a private mount namespace
//! only (`ip netns exec`, `unshare --mount`, a container without the host's `/sys/fs/bpf`) goes with the last process of
//! that namespace, and the filter with it.

use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The root folder as the first process of the host, or of the container, sees it.
const INIT_ROOT: &str = "/proc/1/root";

/// Whether the pins are in no mount namespace but this process's own, as far as can be seen: false where this process may
/// not look into that of the first process.
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

/// Whether the first process of the host sees another folder in the same place, or none.
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
