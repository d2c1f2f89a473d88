//! The pins of maps and links, and their requirements: a BPF file system and privileges.
//!
//! Layout: the maps are `PIN_DIR/v<ABI version>/<MAP>`, and the links are `link_<interface slot>` and
//! `egress_<interface slot>` in the same directory. Links are named by slot and not by interface, because a BPF file
//! system allows no dot in a name.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use allowlist_common::abi;
use allowlist_files::lock::holder_in_words;
use allowlist_policy::error_code::{CodedError, ErrorCode, bail_with};
use aya::maps::{Map, MapData};
use log::{info, warn};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use nix::unistd::geteuid;
use thiserror::Error;

use super::link::{LinkState, interface_of, state};
use super::sys::{Access, open_pinned, pin};
use crate::error::{Context as _, Result, bail};

/// The mount point where a BPF file system is expected, and where it is mounted if it is missing.
const BPF_FS: &str = "/sys/fs/bpf";

/// The prefix of the pin names of XDP links; the number of the interface slot follows.
pub(super) const LINK: &str = "link_";
/// The prefix of the pin names of the flow tracker's tcx links; the number of the interface slot follows.
pub(super) const EGRESS_LINK: &str = "egress_";

/// The error of opening a pin directory in which no version of the filter has pins.
#[derive(Debug, Error)]
#[error(
    "no filter is active: nothing is pinned under {}; start one with `allowlist run`",
    .0.display()
)]
pub struct NothingPinned(PathBuf);

/// Returns whether an object is pinned at a path.
///
/// # Errors
/// Fails if the path cannot be examined, for example because of its permissions.
pub(super) fn is_pinned(path: &Path) -> Result<bool> {
    path.try_exists()
        .with_context(|| format!("cannot check whether the pin {} exists", path.display()))
}

/// Returns the ABI versions other than `own` that have a pin directory under `root`, with the path of each.
///
/// # Errors
/// Fails if `root` exists and cannot be listed.
pub(super) fn other_versions(root: &Path, own: u32) -> Result<Vec<(u32, PathBuf)>> {
    let version = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        name.strip_prefix('v')?.parse().ok()
    };
    let what = || format!("cannot list the pin directory {}", root.display());
    let entries = match fs::read_dir(root) {
        Err(error) if is_absence(error.kind()) => return Ok(Vec::new()),
        entries => entries.with_context(what)?,
    };
    let mut others = Vec::new();
    for entry in entries {
        let path = entry.with_context(what)?.path();
        if let Some(version) = version(&path).filter(|version| *version != own) {
            others.push((version, path));
        }
    }
    Ok(others)
}

/// Returns whether an I/O error of opening a path states that the path does not exist.
fn is_absence(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Locks a pin directory for the process that publishes into it, and returns the open directory, which holds the lock.
///
/// # Errors
/// Fails with the name of the other daemon if one holds the lock.
pub(super) fn lock(folder: &Path, root: &Path) -> Result<File> {
    let lock = File::open(folder)
        .with_context(|| format!("cannot open the pin directory {}", folder.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail_with!(
            AlreadyRunning,
            "{} uses the pin directory {}; stop that daemon, or choose another --pin-dir (and --state-dir and --socket)",
            holder_in_words(&lock).map_or_else(
                || "another daemon".to_owned(),
                |holder| format!("another daemon, {holder},")
            ),
            root.display()
        ),
        Err(TryLockError::Error(error)) => Err(error)
            .with_context(|| format!("cannot lock the pin directory {}", folder.display())),
    }
}

/// The pin directory of one ABI version, which is this version except in tests of upgrades.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    version: u32,
    folder: PathBuf,
    /// The directory as it was opened, to distinguish it from one that was created later at the same path; `None` if it
    /// was not opened ([`Self::of_version`]). The process that publishes holds a lock on it.
    opened: Option<File>,
    /// The access with which maps are opened.
    access: Access,
}

impl Pins {
    /// Opens and locks the pin directory of `version` under `root` for writing, and creates it if it is missing.
    pub(super) fn create(root: &Path, version: u32) -> Result<Self> {
        let mut pins = Self::at(root, version, Access::ReadWrite);
        mount_bpf_fs(root)?;
        let there = root
            .ancestors()
            .find(|folder| folder.exists())
            .unwrap_or(root);
        let found = statfs(there)
            .with_context(|| format!("cannot read the file system type of {}", there.display()))?;
        if found.filesystem_type() != BPF_FS_MAGIC {
            bail_with!(
                InvalidPinDir,
                "{} is not on a BPF file system, so nothing can be pinned there; choose a --pin-dir under {BPF_FS}",
                root.display()
            );
        }
        pins.require_owner()?; // before creating anything in it
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&pins.folder)
            .map_err(|error| {
                let hint = if root.to_string_lossy().contains('.') {
                    "; a BPF file system allows no dot in a name, so choose a --pin-dir without one"
                } else {
                    ""
                };
                let text = format!(
                    "cannot create the pin directory {}: {error}{hint}",
                    pins.folder.display()
                );
                CodedError::new(ErrorCode::InvalidPinDir, text)
            })?;
        pins.require_owner()?;
        pins.opened = Some(lock(&pins.folder, root)?);
        if !pins.is_current() {
            bail!(
                "another process detached the filter pinned under {} while this daemon opened it; start the daemon again with `allowlist run`",
                root.display()
            );
        }
        Ok(pins)
    }

    /// Opens an existing pin directory under `root`, to read its maps.
    ///
    /// # Errors
    /// Fails with [`NothingPinned`] only if no version has a pin directory there.
    pub(super) fn open(root: &Path) -> Result<Self> {
        Self::open_for(root, Access::ReadOnly)
    }

    /// Opens an existing pin directory under `root` with this access to its maps, without locking it.
    pub(super) fn open_for(root: &Path, access: Access) -> Result<Self> {
        let mut pins = Self::at(root, abi::VERSION, access);
        if fs::metadata(root).is_ok_and(|found| found.uid() != geteuid().as_raw())
            && !geteuid().is_root()
        {
            bail_with!(
                Forbidden,
                "cannot open the pin directory {}: only its owner may open it; try sudo",
                root.display()
            );
        }
        pins.require_owner()?;
        match File::open(&pins.folder) {
            Ok(folder) => {
                pins.opened = Some(folder);
                Ok(pins)
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                bail_with!(
                    Forbidden,
                    "cannot open the pin directory {}: only root may open it; try sudo",
                    root.display()
                )
            }
            Err(error) if !is_absence(error.kind()) => Err(error).with_context(|| {
                format!("cannot open the pin directory {}", pins.folder.display())
            }),
            Err(_) if !other_versions(root, abi::VERSION)?.is_empty() => bail_with!(
                OtherVersion,
                "the filter pinned under {} is of another version of allowlist; `allowlist run` migrates it to this version, `allowlist detach` removes it",
                root.display()
            ),
            Err(_) => Err(NothingPinned(root.to_owned()).into()),
        }
    }

    /// Waits for the lock that every process holds while it changes pins, and returns the file that holds the lock.
    pub(super) fn lock_exclusive(&self) -> Result<File> {
        let lock = File::open(&self.root)
            .with_context(|| format!("cannot open the pin directory {}", self.root.display()))?;
        lock.lock()
            .with_context(|| format!("cannot lock the pin directory {}", self.root.display()))?;
        Ok(lock)
    }

    /// Returns whether every map is pinned and the opened directory is still the one at its path, not one that another
    /// process created there later.
    pub(super) fn is_complete(&self) -> bool {
        self.is_current() && self.have_maps()
    }

    /// Returns whether every map of this ABI version is pinned.
    pub(super) fn have_maps(&self) -> bool {
        abi::PINNED.iter().all(|(name, _)| self.map(name).exists())
    }

    /// Returns the names of the maps that are not pinned.
    pub(super) fn missing_maps(&self) -> Result<Vec<&'static str>> {
        let mut missing = Vec::new();
        for (name, _) in abi::PINNED {
            if !is_pinned(&self.map(name))? {
                missing.push(name);
            }
        }
        Ok(missing)
    }

    /// Returns a path to the opened directory, through its descriptor in `/proc`; `None` if the directory was not
    /// opened.
    ///
    /// The path is valid as long as this value exists, even after the file system was unmounted.
    pub(super) fn opened_folder(&self) -> Option<PathBuf> {
        let opened = self.opened.as_ref()?;
        Some(PathBuf::from(format!(
            "/proc/self/fd/{}",
            opened.as_raw_fd()
        )))
    }

    /// Pins an open object again under its name, after the pin was removed.
    pub(super) fn pin_again(&self, object: std::os::fd::BorrowedFd<'_>, name: &str) -> Result<()> {
        let path = self.map(name);
        pin(object, &path).with_context(|| format!("cannot restore the pin {}", path.display()))
    }

    /// Pins all links of `before`'s opened directory, which was unmounted or removed, again in this directory. Does
    /// nothing if `before` was not opened.
    pub(super) fn take_links_of(&self, before: &Self) -> Result<()> {
        let Some(folder) = before.opened_folder() else {
            return Ok(());
        };
        for slot in 0..abi::MAX_INTERFACES {
            for name in [link_name(slot), egress_name(slot)] {
                match open_pinned(&folder.join(&name), Access::ReadWrite) {
                    Ok(link) => self.pin_again(link.as_fd(), &name)?,
                    Err(error) if is_absence(error.kind()) => {}
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!(
                                "cannot restore the pin of the BPF link {name}, because the link cannot be opened in the earlier pin directory, which was unmounted or removed"
                            )
                        });
                    }
                }
            }
        }
        Ok(())
    }

    /// Returns whether a daemon holds the lock of this pin directory.
    pub(super) fn is_published_into(&self) -> Result<bool> {
        let lock = File::open(&self.folder)
            .with_context(|| format!("cannot open the pin directory {}", self.folder.display()))?;
        Ok(matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
    }

    /// Returns whether the opened directory is still the one at its path.
    pub(super) fn is_current(&self) -> bool {
        let opened = self.opened.as_ref().map(File::metadata);
        match (opened, fs::metadata(&self.folder)) {
            (Some(Ok(opened)), Ok(there)) => {
                (opened.dev(), opened.ino()) == (there.dev(), there.ino())
            }
            _ => false,
        }
    }

    /// Returns the index of the interface that a slot's XDP link is attached to; `None` if no link is pinned or its
    /// interface is gone.
    pub(super) fn interface_of(&self, slot: u32) -> Result<Option<u32>> {
        interface_of(&self.link(slot))
    }

    /// Returns the state of a slot's XDP link; `None` if no link is pinned.
    pub(super) fn link_state(&self, slot: u32) -> Result<Option<LinkState>> {
        state(&self.link(slot))
    }

    /// Fails if another user can replace or rename the pins.
    fn require_owner(&self) -> Result<()> {
        for folder in [&self.root, &self.folder] {
            let Ok(found) = fs::metadata(folder) else {
                continue;
            };
            if found.uid() != geteuid().as_raw() || found.mode() & 0o022 != 0 {
                bail_with!(
                    InvalidPinDir,
                    "the pin directory {} belongs to user {} with mode {:o}, so other users could change its pins; remove it, or choose another --pin-dir",
                    folder.display(),
                    found.uid(),
                    found.mode() & 0o7777
                );
            }
        }
        Ok(())
    }

    /// Returns the pin directory of another version under the same root, without opening it.
    pub(super) fn of_version(&self, version: u32) -> Self {
        Self::at(&self.root, version, self.access)
    }

    /// Returns the access with which maps are opened.
    pub(super) const fn access(&self) -> Access {
        self.access
    }

    fn at(root: &Path, version: u32, access: Access) -> Self {
        Self {
            root: root.to_owned(),
            version,
            folder: root.join(format!("v{version}")),
            opened: None,
            access,
        }
    }

    /// Returns the configured directory (`--pin-dir`), which has a directory for each ABI version.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the ABI version whose pin directory this is.
    pub(super) const fn version(&self) -> u32 {
        self.version
    }

    /// Returns the path of the pin directory of this ABI version.
    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the path of a map's pin.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Opens the pinned map with this name.
    pub(super) fn open_map(&self, name: &str) -> Result<Map> {
        Ok(Map::from_map_data(self.open_data(name)?)?)
    }

    /// Opens the pinned map with this name, which may have a type that [`Map`] does not support.
    pub(super) fn open_data(&self, name: &str) -> Result<MapData> {
        let path = self.map(name);
        let what = || format!("cannot open the map {}", path.display());
        let map = open_pinned(&path, self.access).with_context(what)?;
        MapData::from_fd(map).with_context(what)
    }

    /// Returns the path of the pin of a slot's XDP link.
    pub(super) fn link(&self, slot: u32) -> PathBuf {
        self.folder.join(link_name(slot))
    }

    /// Returns the path of the pin of the flow tracker's tcx link in a slot.
    pub(super) fn egress(&self, slot: u32) -> PathBuf {
        self.folder.join(egress_name(slot))
    }

    /// Returns the path of the directory that `allowlist watch` locks while it reads drop events.
    pub(super) fn watchers(&self) -> PathBuf {
        self.folder.join("watchers")
    }

    /// Returns the path of the directory that `allowlist watch --egress` locks while it reads judged calls.
    pub(super) fn egress_watchers(&self) -> PathBuf {
        self.folder.join("egress_watchers")
    }

    /// Returns whether the XDP link of any slot is pinned.
    pub(super) fn have_links(&self) -> Result<bool> {
        for slot in 0..abi::MAX_INTERFACES {
            if is_pinned(&self.link(slot))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the pin with this name, if it exists.
    pub(super) fn unpin(&self, name: &str) -> Result<()> {
        let path = self.map(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove the pin {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Returns the path of the backup pin of a replaced map, which remains until no program uses that map.
    pub(super) fn backup_path(&self, name: &str) -> PathBuf {
        self.map(&backup_name(name))
    }

    /// Renames the pin of a map to its backup path.
    pub(super) fn back_up(&self, name: &str) -> Result<()> {
        self.unpin_backup(name)?;
        let path = self.map(name);
        fs::rename(&path, self.backup_path(name))
            .with_context(|| format!("cannot rename the pin {}", path.display()))
    }

    /// Restores the pin of a map from its backup path, unless another map is pinned under the name.
    ///
    /// Also repairs the state that a process leaves if it ends between [`Self::back_up`] and the new pin.
    pub(super) fn restore_backup(&self, name: &str) -> Result<()> {
        let (pin, aside) = (self.map(name), self.backup_path(name));
        if is_pinned(&aside)? && !is_pinned(&pin)? {
            fs::rename(aside, &pin)
                .with_context(|| format!("cannot restore the pin {}", pin.display()))?;
        }
        Ok(())
    }

    /// Removes the backup pin of a map, if it exists.
    pub(super) fn unpin_backup(&self, name: &str) -> Result<()> {
        self.unpin(&backup_name(name))
    }

    /// Removes the pins of all maps, and the directories. The links must have been removed before.
    pub(super) fn remove(&self) -> Result<()> {
        for (name, _) in abi::PINNED {
            self.unpin(name)?;
        }
        for name in super::MOVED {
            self.unpin_backup(name)?;
        }
        super::egress::remove(self)?;
        self.unpin(super::migrate::OLDER_NAMES)?;
        for name in [abi::PREFIXES, abi::EGRESS_PREFIXES, abi::METADATA] {
            super::slots::remove_all(self, name)?;
        }
        for lock in [self.watchers(), self.egress_watchers()] {
            let _ = fs::remove_dir(lock); // it exists only if events were read
        }
        if let Err(error) = fs::remove_dir(&self.folder) {
            // The filter is detached, so this is no error.
            warn!(
                "{}: cannot remove the pin directory: {error}; the filter is detached nevertheless",
                self.folder.display()
            );
        }
        // Another ABI version's pins may be beside these, and keep the folder.
        let _ = fs::remove_dir(&self.root);
        Ok(())
    }
}

fn link_name(slot: u32) -> String {
    format!("{LINK}{slot}")
}

fn egress_name(slot: u32) -> String {
    format!("{EGRESS_LINK}{slot}")
}

fn backup_name(name: &str) -> String {
    format!("{name}_aside")
}

/// Mounts the BPF file system on [`BPF_FS`] if `root` is below this path and none is mounted there.
fn mount_bpf_fs(root: &Path) -> Result<()> {
    let mounted = statfs(BPF_FS).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC);
    if !root.starts_with(BPF_FS) || mounted {
        return Ok(());
    }
    mount(
        Some("bpf"),
        BPF_FS,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| {
        format!("cannot mount the BPF file system (try `mount -t bpf bpf {BPF_FS}`)")
    })?;
    info!("mounted a BPF file system on {BPF_FS}; unmounting it removes the filter");
    Ok(())
}

/// Requires the privileges to load and attach kernel programs.
///
/// # Errors
/// Fails with the remedy if this process lacks the capabilities.
pub fn require_privileges() -> Result<()> {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const PERFMON: u64 = 1 << 38;
    const BPF: u64 = 1 << 39;
    let status =
        fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .context("cannot find this process's capabilities in /proc/self/status")?;
    let has = |wanted| effective & wanted == wanted;
    if !has(NET_ADMIN) || !(has(BPF | PERFMON) || has(SYS_ADMIN)) {
        bail_with!(
            NotPrivileged,
            "no privileges: loading and attaching the filter requires root, or the capabilities CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON; try sudo"
        );
    }
    Ok(())
}
