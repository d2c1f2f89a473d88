//! Who is on the other end of a socket, by what the kernel says, and whether it may ask.

use std::fs;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tokio::net::unix::UCred;

use crate::audit::Peer;

/// What the kernel says of a process that has connected. Its names are for people: they may be gone, or
/// another's, by the time that they are read.
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

/// Whether this user may ask: root, the daemon's own, and the members of a group, where one is configured.
pub(super) fn may_ask(credentials: UCred, group: Option<Gid>) -> bool {
    let uid = Uid::from_raw(credentials.uid());
    if uid.is_root() || uid == geteuid() {
        return true;
    }
    group.is_some_and(|group| {
        credentials.gid() == group.as_raw() || groups(credentials.uid()).contains(&group)
    })
}

/// All groups of a user, as a login would give them.
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

/// The group of this name.
pub(super) fn group(name: &str) -> Option<Gid> {
    let group = Group::from_name(name).ok().flatten()?;
    Some(group.gid)
}
