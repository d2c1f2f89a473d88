//! The control socket as a file: made where no other user can interfere, and closed to everyone but root before
//! anyone can connect.

use std::fs::{self, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, chown, getegid};
use tokio::net::{UnixListener, UnixSocket};

use crate::error_code::bail_with;
use crate::trust;

/// `sockaddr_un` has room for so many bytes, and a zero.
const MAX_PATH: usize = 107;
/// How many connections the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;

/// Listens on a path, for root alone. Makes the folder (mode 0700) if there is none, and replaces the socket of a
/// daemon that was killed.
///
/// # Errors
/// A path that is too long, that another daemon listens on, that is no socket, or that a user other than root could
/// redirect.
pub(super) fn bind(path: &Path) -> Result<UnixListener> {
    let what = || format!("cannot listen on {}", path.display());
    if path.as_os_str().len() > MAX_PATH {
        bail_with!(
            InvalidSocket,
            "{} is longer than the {MAX_PATH} bytes that a socket's path may have; choose another --socket",
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
    // Again, in case that another user made it just then. From here on, only root can replace the folder or the
    // socket.
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
            "{} is there and is no socket; remove it, or choose another --socket",
            path.display()
        ),
        Err(_) => {}
    }
    let socket = UnixSocket::new_stream().with_context(what)?;
    // The kernel gives the file the mode that the socket has when it is bound.
    fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).with_context(what)?;
    socket.bind(path).with_context(what)?;
    socket.listen(BACKLOG).with_context(what)
}

/// Opens the socket to a group besides root, or closes it to all others.
///
/// # Errors
/// A process that may not give the file to the group, and a folder that is closed to the group and holds other files,
/// which this program does not open to anyone.
pub(super) fn permit(path: &Path, group: Option<Gid>) -> Result<()> {
    let what = || {
        format!(
            "cannot give {} to the control group; this process has to be in it (under systemd: SupplementaryGroups= in a drop-in), or to have CAP_CHOWN",
            path.display()
        )
    };
    // For root alone while the group changes.
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
    // A folder that everyone may enter needs nothing.
    if mode & 0o001 == 0 {
        if !is_alone(path, folder).with_context(what)? {
            bail_with!(
                InvalidSocket,
                "cannot give {} to the control group: the members of the group cannot enter {0}'s folder, which holds other files, too; choose a --socket in a folder of its own, or open the folder by `chgrp` and `chmod g+x`",
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

/// Whether a folder holds nothing but this file.
fn is_alone(path: &Path, folder: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        if Some(&*entry?.file_name()) != path.file_name() {
            return Ok(false);
        }
    }
    Ok(true)
}
