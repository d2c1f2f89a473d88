//! Creates the control socket in a directory that no other user can change. At first, only root can use the socket.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _,
};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use allowlist_files::trust;
use allowlist_policy::error_code::bail_with;
use anyhow::{Context as _, Result};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, chown, getegid};
use tokio::net::{UnixListener, UnixSocket};

/// The maximum length of a path in a `sockaddr_un`, in bytes, without the terminating NUL.
const MAX_PATH: usize = 107;
/// The length of the kernel's queue of connections that are not accepted yet.
const BACKLOG: u32 = 128;
/// The bit of a directory's mode that lets its group enter the directory.
const GROUP_ENTERS: u32 = 0o010;
/// The bit of a directory's mode that lets all users enter the directory who are not in its group.
const OTHERS_ENTER: u32 = 0o001;

/// Listens on a socket at `path`, which only root can use. Creates a missing directory (mode 0700), and replaces the
/// socket of a daemon that was killed.
///
/// # Errors
/// Fails if the path is too long, is not a socket, has a running daemon, or can be changed by a user other than root.
pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    let what = || format!("cannot listen on {}", path.display());
    if path.as_os_str().len() > MAX_PATH {
        bail_with!(
            InvalidSocket,
            "{} is longer than {MAX_PATH} bytes, the limit for the path of a socket; choose another --socket",
            path.display()
        );
    }
    let folder = folder(path);
    trust::require(folder).with_context(what)?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(what)?;
    // Checked again, in case another user created it meanwhile. From here on, only root can replace the directory or
    // the socket.
    trust::require(folder).with_context(what)?;
    if UnixStream::connect(path).is_ok() {
        bail_with!(
            AlreadyRunning,
            "another daemon answers on {}; stop it, or choose another --socket",
            path.display()
        );
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path).with_context(what)?,
        Ok(_) => bail_with!(
            InvalidSocket,
            "{} exists and is not a socket; remove it, or choose another --socket",
            path.display()
        ),
        Err(_) => {}
    }
    let socket = UnixSocket::new_stream().with_context(what)?;
    // The kernel creates the file with the mode of the socket.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).with_context(what)?;
    socket.bind(path).with_context(what)?;
    socket.listen(BACKLOG).with_context(what)
}

/// Gives a group access to the socket at `path`; without a group, only root has access.
///
/// # Errors
/// Fails if this process may not change the group, or if the directory is closed to the group and has other files. The
/// socket and the directory then have their earlier groups and modes; if these cannot be restored, the error says so.
pub(super) fn permit(path: &Path, group: Option<Gid>) -> Result<()> {
    let folder = folder(path);
    let context = || cannot_permit(path);
    let before = [
        Access::of(folder).with_context(context)?,
        Access::of(path).with_context(context)?,
    ];
    let must_open = match group {
        Some(group) => must_open(path, &before[0], group)?,
        None => false,
    };
    change(path, folder, group, must_open.then_some(&before[0])).map_err(|error| {
        // The socket comes last, so that its former group never has access to a directory of another group.
        match before.iter().try_for_each(Access::restore) {
            Ok(()) => error,
            Err(cause) => error.context(format!(
                "only root has access to the control socket, because its earlier group and mode cannot be restored ({cause})"
            )),
        }
    })
}

/// Gives `group` the socket at `path`, and the directory `folder` too if its access `opened` is given.
fn change(path: &Path, folder: &Path, group: Option<Gid>, opened: Option<&Access>) -> Result<()> {
    let context = || cannot_permit(path);
    // Only root has access while the group changes.
    fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(context)?;
    chown(path, None, Some(group.unwrap_or(getegid()))).with_context(context)?;
    let Some(group) = group else {
        return Ok(());
    };
    if let Some(before) = opened {
        chown(folder, None, Some(group)).with_context(context)?;
        let mode = Permissions::from_mode(before.mode | GROUP_ENTERS);
        fs::set_permissions(folder, mode).with_context(context)?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o660)).with_context(context)
}

/// Returns whether the directory of the socket at `path` must be opened, so that `group` can enter it.
///
/// # Errors
/// Fails if the directory must be opened and has other files.
fn must_open(path: &Path, folder: &Access, group: Gid) -> Result<bool> {
    let can_enter = folder.mode & OTHERS_ENTER != 0
        || (folder.group == group && folder.mode & GROUP_ENTERS != 0);
    if can_enter {
        return Ok(false);
    }
    if !is_alone(path, &folder.path).with_context(|| cannot_permit(path))? {
        bail_with!(
            InvalidSocket,
            "cannot give {} to the control group: its members cannot enter the directory, which also has other files; choose a --socket in a directory of its own, or open the directory with `chgrp` and `chmod g+x`",
            path.display()
        );
    }
    Ok(true)
}

fn cannot_permit(path: &Path) -> String {
    format!(
        "cannot give {} to the control group, for which the process must be a member of the group (under systemd: SupplementaryGroups= in a drop-in) or have CAP_CHOWN",
        path.display()
    )
}

/// The group and the mode of a file or directory, to restore them.
struct Access {
    path: PathBuf,
    group: Gid,
    mode: u32,
}

impl Access {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        Ok(Self {
            path: path.to_owned(),
            group: Gid::from_raw(found.gid()),
            mode: found.permissions().mode() & 0o7777,
        })
    }

    fn restore(&self) -> io::Result<()> {
        let now = Self::of(&self.path)?;
        if now.group != self.group {
            chown(&self.path, None, Some(self.group))?;
        }
        if now.mode != self.mode {
            fs::set_permissions(&self.path, Permissions::from_mode(self.mode))?;
        }
        Ok(())
    }
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns whether the socket at `path` is the only file in the directory `folder`.
fn is_alone(path: &Path, folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if Some(&*entry?.file_name()) != path.file_name() {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use allowlist_policy::error_code::ErrorCode;

    use super::*;
    use crate::error_code::code_of;

    /// Returns the group and the mode of the socket and of its directory.
    fn access(path: &Path) -> [(u32, u32); 2] {
        [path, folder(path)].map(|path| {
            let access = Access::of(path).expect("the file exists");
            (access.group.as_raw(), access.mode)
        })
    }

    #[test]
    fn a_refused_group_changes_no_access() {
        let folder = tempfile::tempdir().expect("a folder");
        let closed = Permissions::from_mode(0o700);
        fs::set_permissions(folder.path(), closed).expect("a mode");
        let path = folder.path().join("socket");
        fs::write(&path, "").expect("a file");
        let group = getegid();
        permit(&path, Some(group)).expect("the directory has no other file");
        let opened = access(&path);
        assert_eq!(opened, [(group.as_raw(), 0o660), (group.as_raw(), 0o710)]);
        fs::write(folder.path().join("other"), "").expect("a file");
        // The group can enter the directory already.
        permit(&path, Some(group)).expect("the directory is open to the group");
        assert_eq!(access(&path), opened);
        let other = Gid::from_raw(group.as_raw() + 1);
        let error = permit(&path, Some(other)).expect_err("the directory is closed to the group");
        assert_eq!(code_of(&error), ErrorCode::InvalidSocket, "{error:#}");
        assert_eq!(access(&path), opened);
    }
}
