//! Creates the control socket in a directory that no other user can change. At first, only root can use the socket.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use allowlist_files::trust;
use allowlist_policy::error_code::bail_with;
use anyhow::{Context as _, Result};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, chown, getegid};
use tokio::net::{UnixListener, UnixSocket};

/// The maximum length of a path in a `sockaddr_un`, without the final zero.
const MAX_PATH: usize = 107;
/// The length of the kernel's queue of connections that are not accepted yet.
const BACKLOG: u32 = 128;

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
/// Fails if this process may not change the group, or if the directory is closed to the group and has other files.
pub(super) fn permit(path: &Path, group: Option<Gid>) -> Result<()> {
    let what = || {
        format!(
            "cannot give {} to the control group, for which the process must be a member of the group (under systemd: SupplementaryGroups= in a drop-in) or have CAP_CHOWN",
            path.display()
        )
    };
    // Only root has access while the group changes.
    fs::set_permissions(path, Permissions::from_mode(0o600)).with_context(what)?;
    chown(path, None, Some(group.unwrap_or(getegid()))).with_context(what)?;
    let Some(group) = group else {
        return Ok(());
    };
    let folder = folder(path);
    let mode = fs::metadata(folder)
        .with_context(what)?
        .permissions()
        .mode()
        & 0o7777;
    // A directory that all users can enter stays as it is.
    if mode & 0o001 == 0 {
        if !is_alone(path, folder).with_context(what)? {
            bail_with!(
                InvalidSocket,
                "cannot give {} to the control group: its members cannot enter the directory, which also has other files; choose a --socket in a directory of its own, or open the directory with `chgrp` and `chmod g+x`",
                path.display()
            );
        }
        chown(folder, None::<Uid>, Some(group)).with_context(what)?;
        fs::set_permissions(folder, Permissions::from_mode(mode | 0o010)).with_context(what)?;
    }
    fs::set_permissions(path, Permissions::from_mode(0o660)).with_context(what)
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Returns whether the socket at `path` is the only file in the directory `folder`.
fn is_alone(path: &Path, folder: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if Some(&*entry?.file_name()) != path.file_name() {
            return Ok(false);
        }
    }
    Ok(true)
}
