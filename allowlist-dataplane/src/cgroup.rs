//! The cgroups of version 2: finds their mount point, the id of a cgroup, and the path of an id.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use allowlist_policy::error_code::bail_with;

use super::sys::open_by_id;
use crate::error::{Context as _, Result};

/// The file that lists the mounts of this process's mount namespace (proc(5), `/proc/pid/mountinfo`).
const MOUNTS: &str = "/proc/self/mountinfo";

/// The maximum number of cgroups whose paths are kept.
const MAX_NAMES: usize = 4096;

/// A cgroup, open for attaching programs.
pub(super) struct Cgroup {
    /// The path of the cgroup's directory.
    pub(super) path: PathBuf,
    /// The open directory.
    pub(super) directory: File,
    /// The id of the cgroup in the kernel: the inode number of its directory.
    pub(super) id: u64,
}

impl Cgroup {
    /// Opens a cgroup by its path below the root of cgroup v2, such as `/system.slice`.
    ///
    /// # Errors
    /// Fails if cgroup v2 is not mounted, or if there is no such cgroup.
    pub(super) fn open(below_root: &Path) -> Result<Self> {
        let root = mount_point()?;
        let path = below_root
            .strip_prefix("/")
            .map_or_else(|_| root.join(below_root), |below| root.join(below));
        let what = || {
            format!(
                "cannot open the cgroup {}, to which the egress policy applies",
                path.display()
            )
        };
        let directory = File::open(&path).with_context(what)?;
        let id = directory.metadata().with_context(what)?.ino();
        Ok(Self {
            path,
            directory,
            id,
        })
    }

    /// Returns the id of the cgroup with a directory; `None` if there is none.
    pub(super) fn id_of(directory: &Path) -> Result<Option<u64>> {
        match fs::metadata(directory) {
            Ok(metadata) => Ok(Some(metadata.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => {
                Err(error).with_context(|| format!("cannot read {}", directory.display()))
            }
        }
    }
}

/// The paths of cgroups by their ids.
///
/// A path is kept, so that the events of a program have it after its cgroup was removed. The kernel gives no id twice,
/// and renames no cgroup of version 2.
pub(super) struct Names {
    /// The open root of cgroup v2 and its path; `None` if cgroup v2 is not mounted.
    root: Option<(File, PathBuf)>,
    known: BTreeMap<u64, String>,
}

impl Names {
    pub(super) fn new() -> Self {
        let root = mount_point().ok();
        Self {
            root: root.and_then(|path| Some((File::open(&path).ok()?, path))),
            known: BTreeMap::new(),
        }
    }

    /// Returns the path of a cgroup below the root of cgroup v2, without a leading `/`, and `/` for the root itself.
    ///
    /// Returns `None` if the cgroup is gone, is outside of the mount, or may not be opened by its id, which requires the
    /// capability `CAP_DAC_READ_SEARCH`.
    pub(super) fn get(&mut self, id: u64) -> Option<String> {
        if let Some(known) = self.known.get(&id) {
            return Some(known.clone());
        }
        let name = self.read(id)?;
        if self.known.len() >= MAX_NAMES {
            self.known.clear();
        }
        self.known.insert(id, name.clone());
        Some(name)
    }

    fn read(&self, id: u64) -> Option<String> {
        let (root, path) = self.root.as_ref()?;
        let cgroup: OwnedFd = open_by_id(root.as_fd(), id).ok()?;
        let opened = fs::read_link(format!("/proc/self/fd/{}", cgroup.as_raw_fd())).ok()?;
        let below = opened.strip_prefix(path).ok()?.to_string_lossy();
        Some(if below.is_empty() {
            "/".into()
        } else {
            below.into_owned()
        })
    }
}

/// Returns the mount point of cgroup v2.
///
/// # Errors
/// Fails with the command that mounts it if it is not mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string(MOUNTS).with_context(|| format!("cannot read {MOUNTS}"))?;
    let Some(path) = find(&mounts) else {
        bail_with!(
            NoCgroups,
            "cgroup v2 is not mounted, and the egress policy needs it to know which program makes a call; mount it: `mount -t cgroup2 none /sys/fs/cgroup`, or remove [egress] from the configuration"
        );
    };
    Ok(path)
}

/// Returns the first mount point of the root of cgroup v2 in the lines of a `mountinfo` file; `None` if it is not
/// mounted.
fn find(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        // Fields: id, parent, device, root, mount point, options, optional fields, "-", type, source, options.
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let is_root = after.starts_with("cgroup2 ") && root == "/";
        is_root.then(|| PathBuf::from(unescaped(point)))
    })
}

/// Returns a field of `mountinfo` with its octal escapes decoded, such as `\\040` for a space.
fn unescaped(field: &str) -> String {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| first == b'\\');
        let code =
            digits.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        if let Some(code) = code {
            bytes.push(code);
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_its_id() {
        let Ok(root) = mount_point() else {
            return; // this machine has no cgroup v2
        };
        let mut names = Names::new();
        let id = |path: &Path| Some(fs::metadata(path).ok()?.ino());
        if names.read(id(&root).expect("it is mounted")).is_none() {
            return; // this user may not open by id
        }
        assert_eq!(
            names.get(id(&root).expect("it is mounted")),
            Some("/".to_owned())
        );
        let own = fs::read_to_string("/proc/self/cgroup").expect("it is readable");
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .expect("every process has one");
        let expected = if own.is_empty() { "/" } else { own };
        assert_eq!(
            names
                .get(id(&root.join(own)).expect("it exists"))
                .as_deref(),
            Some(expected)
        );
        assert_eq!(names.get(u64::MAX - 1), None);
    }

    #[test]
    fn the_mount_point_is_found_in_mountinfo() {
        let mounts = "\
22 1 0:20 / /proc rw,nosuid - proc proc rw
31 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
32 31 0:27 /docker/ab /mnt rw,relatime shared:9 - cgroup2 cgroup2 rw
33 31 0:27 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:9 master:2 - cgroup2 cgroup2 rw
34 31 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
";
        assert_eq!(find(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(find("34 31 0:28 / /sys rw - cgroup cgroup rw,cpu\n"), None);
    }
}
