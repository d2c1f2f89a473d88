//! Identifies the client of a socket by its kernel credentials, and decides whether it has access.

use std::fs;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tokio::net::unix::UCred;

use crate::audit::Peer;

/// Returns the client at the other end of a connection, with its names. The names are for display only: the process may
/// have ended, and its id may have been reused.
pub(super) fn describe(credentials: UCred) -> Peer {
    let pid = credentials.pid();
    let of_process = |file: &str| fs::read(format!("/proc/{}/{file}", pid?)).ok();
    let program = of_process("comm").map(|name| String::from_utf8_lossy(&name).trim().to_owned());
    let sudo_user = of_process("environ").and_then(|environment| {
        let mut variables = environment.split(|byte| *byte == 0);
        let user = variables.find_map(|variable| variable.strip_prefix(b"SUDO_USER="))?;
        Some(String::from_utf8_lossy(user).into_owned())
    });
    Peer {
        uid: credentials.uid(),
        gid: credentials.gid(),
        pid,
        user: user(credentials.uid()).map(|user| user.name),
        sudo_user: sudo_user.filter(|_| credentials.uid() == 0),
        program,
    }
}

/// Returns whether a client has access: root, the daemon's own user and the members of `group` have.
pub(super) fn may_ask(credentials: UCred, group: Option<Gid>) -> bool {
    let uid = Uid::from_raw(credentials.uid());
    if uid.is_root() || uid == geteuid() {
        return true;
    }
    group.is_some_and(|group| {
        credentials.gid() == group.as_raw() || groups(credentials.uid()).contains(&group)
    })
}

/// Returns the ids of all groups of a user, as for a login.
fn groups(uid: u32) -> Vec<Gid> {
    let Some(user) = user(uid) else {
        return Vec::new();
    };
    let Ok(name) = std::ffi::CString::new(user.name) else {
        return Vec::new();
    };
    getgrouplist(&name, user.gid).unwrap_or_default()
}

fn user(uid: u32) -> Option<User> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

/// Returns the id of the group with this name, or `None` if the group does not exist.
pub(super) fn group(name: &str) -> Option<Gid> {
    let group = Group::from_name(name).ok().flatten()?;
    Some(group.gid)
}
