//! Decides whether users other than root and this process's own could change the target of a path, in the way of
//! sshd's `StrictModes`.
//!
//! Examines every component of the path from `/` on, and of the target of every symbolic link in it: each must be owned
//! by a trusted user, and only a sticky directory may be writable by others. A path without findings cannot be
//! redirected between this check and its use, except by a trusted user. Does not examine the content of files, and does
//! not know the configuration.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, geteuid};
use thiserror::Error;

/// The number of symbolic links that the kernel follows in one path; a path with more is an error.
const MAX_LINKS: usize = 40;
const STICKY: u32 = 0o1000;

/// A component of a path that an untrusted user controls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path of the component.
    pub path: PathBuf,
    /// The reason why the component is not trusted.
    pub problem: Problem,
}

/// The reason why a component of a path is not trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The component belongs to this user, who is neither root nor the user of this process.
    Owner(Uid),
    /// The component belongs to this user, who runs this program by sudo. A caller may tolerate this for files without
    /// commands and secrets.
    SudoUser(Uid),
    /// The members of this group may write to the component.
    GroupWritable(Gid),
    /// Every user may write to the component.
    WorldWritable,
}

/// The error for a path that must be trusted and is not.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("users other than root could change {}: {finding}", path.display())]
pub struct Untrusted {
    /// The path that must be trusted.
    pub path: PathBuf,
    /// The first component that is not trusted.
    pub finding: Finding,
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.problem {
            Problem::Owner(uid) | Problem::SudoUser(uid) => {
                let user = User::from_uid(uid).ok().flatten();
                let user = user.map_or_else(|| uid.to_string(), |user| user.name);
                write!(out, "{path} belongs to user {user}; `chown root {path}`")
            }
            Problem::GroupWritable(gid) => {
                let group = Group::from_gid(gid).ok().flatten();
                let group = group.map_or_else(|| gid.to_string(), |group| group.name);
                write!(
                    out,
                    "{path} is writable by group {group}; `chmod g-w {path}`"
                )
            }
            Problem::WorldWritable => {
                write!(out, "{path} is writable by every user; `chmod o-w {path}`")
            }
        }
    }
}

/// The users that are trusted with the components of a path.
#[derive(Clone, Copy, Debug)]
struct Users {
    own: Uid,
    sudo: Option<Uid>,
}

impl Users {
    fn of_process() -> Self {
        let sudo = std::env::var("SUDO_UID")
            .ok()
            .and_then(|uid| uid.parse().ok());
        Self {
            own: geteuid(),
            sudo: sudo.map(Uid::from_raw),
        }
    }

    fn problem(self, found: &Metadata) -> Option<Problem> {
        let (uid, mode) = (Uid::from_raw(found.uid()), found.mode());
        let is_link = found.file_type().is_symlink();
        // A device or a pipe stores nothing: every user may write to /dev/null.
        let is_protected = is_link
            || !(found.is_dir() || found.is_file())
            || (found.is_dir() && mode & STICKY != 0);
        if !uid.is_root() && uid != self.own && Some(uid) != self.sudo {
            Some(Problem::Owner(uid))
        } else if mode & 0o002 != 0 && !is_protected {
            Some(Problem::WorldWritable)
        } else if mode & 0o020 != 0 && !is_protected && found.gid() != 0 && Some(uid) != self.sudo {
            Some(Problem::GroupWritable(Gid::from_raw(found.gid())))
        } else if !uid.is_root() && uid != self.own {
            Some(Problem::SudoUser(uid))
        } else {
            None
        }
    }
}

/// Returns the components of a path that are not trusted, from `/` on.
///
/// Stops at a component that does not exist: only a user who controls its directory can create it.
///
/// # Errors
/// Fails if a component cannot be examined, or if the path has more symbolic links than the kernel follows.
pub fn examine(path: &Path) -> io::Result<Vec<Finding>> {
    examine_for(path, Users::of_process())
}

fn examine_for(path: &Path, users: Users) -> io::Result<Vec<Finding>> {
    let path = std::path::absolute(path)?;
    let mut left: VecDeque<OsString> = path
        .components()
        .map(|part| part.as_os_str().to_owned())
        .collect();
    let (mut at, mut links, mut findings) = (PathBuf::new(), 0, Vec::new());
    while let Some(part) = left.pop_front() {
        match Path::new(&part).components().next() {
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            Some(Component::CurDir) | None => continue,
            _ => {}
        }
        let next = at.join(&part);
        let found = match fs::symlink_metadata(&next) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            found => found?,
        };
        if let Some(problem) = users.problem(&found) {
            findings.push(Finding {
                path: next.clone(),
                problem,
            });
        }
        if found.file_type().is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from_raw_os_error(libc::ELOOP));
            }
            let target = fs::read_link(&next)?;
            for part in target.components().rev() {
                left.push_front(part.as_os_str().to_owned());
            }
            if target.is_absolute() {
                at = PathBuf::new();
            }
        } else {
            at = next;
        }
    }
    Ok(findings)
}

/// Checks that only root and the user of this process can change the target of a path.
///
/// # Errors
/// Fails with the first component that others control, or if a component cannot be examined.
pub fn require(path: &Path) -> io::Result<()> {
    match examine(path)?.into_iter().next() {
        None => Ok(()),
        Some(finding) => {
            let path = path.to_owned();
            Err(io::Error::other(Untrusted { path, finding }))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use expect_test::expect;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .expect("the owner can change the mode");
    }

    /// Returns the problems of the components below a directory of this user.
    fn problems(folder: &Path, path: &str) -> Vec<(String, Problem)> {
        let users = Users {
            own: geteuid(),
            sudo: None,
        };
        let found = examine_for(&folder.join(path), users).expect("can be examined");
        let below = found.into_iter().filter_map(|finding| {
            let path = finding.path.strip_prefix(folder).ok()?.to_owned();
            Some((path.display().to_string(), finding.problem))
        });
        below.collect()
    }

    #[test]
    fn components_and_link_targets_are_examined() {
        let folder = tempfile::tempdir().expect("a folder");
        let folder = folder.path().canonicalize().expect("it is there");
        for name in ["safe", "open", "sticky"] {
            fs::create_dir(folder.join(name)).expect("is made");
            fs::write(folder.join(name).join("file"), "").expect("is written");
            set_mode(&folder.join(name).join("file"), 0o644);
        }
        set_mode(&folder.join("safe"), 0o755);
        set_mode(&folder.join("open"), 0o757);
        set_mode(&folder.join("sticky"), 0o1777);
        symlink("open/file", folder.join("to-open")).expect("is linked");
        symlink(folder.join("safe"), folder.join("open/to-safe")).expect("is linked");
        let open = ("open".to_owned(), Problem::WorldWritable);
        for (path, expected) in [
            ("safe/file", vec![]),
            ("safe/none/below", vec![]),
            ("sticky/file", vec![]),
            ("safe/../safe/./file", vec![]),
            ("open/file", vec![open.clone()]),
            ("safe/../open/file", vec![open.clone()]),
            ("to-open", vec![open.clone()]),
            // A user who may write to the directory of a link can change its target.
            ("open/to-safe/file", vec![open]),
        ] {
            assert_eq!(problems(&folder, path), expected, "{path}");
        }
        set_mode(&folder.join("safe/file"), 0o666);
        assert_eq!(
            problems(&folder, "safe/file"),
            [("safe/file".to_owned(), Problem::WorldWritable)]
        );
        symlink("loop", folder.join("loop")).expect("is linked");
        let users = Users {
            own: geteuid(),
            sudo: None,
        };
        let error = examine_for(&folder.join("loop"), users).expect_err("has no end");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn owners_are_distinguished() {
        let folder = tempfile::tempdir().expect("a folder");
        let own = fs::symlink_metadata(folder.path()).expect("it is there");
        let (me, other) = (Uid::from_raw(own.uid()), Uid::from_raw(own.uid() + 1));
        let problem = |own, sudo| {
            Users { own, sudo }.problem(&fs::symlink_metadata(folder.path()).expect("is there"))
        };
        assert_eq!(problem(me, None), None);
        // Root is always trusted, so the rest cannot be tested as root.
        if !me.is_root() {
            assert_eq!(problem(other, None), Some(Problem::Owner(me)));
            assert_eq!(problem(other, Some(me)), Some(Problem::SudoUser(me)));
        }
    }

    #[test]
    fn findings_name_the_component_and_the_remedy() {
        let nobody = 4_000_000_000;
        let texts = [
            Problem::Owner(Uid::from_raw(nobody)),
            Problem::SudoUser(Uid::from_raw(nobody)),
            Problem::GroupWritable(Gid::from_raw(nobody)),
            Problem::WorldWritable,
        ]
        .map(|problem| {
            let finding = Finding {
                path: "/srv/lists".into(),
                problem,
            };
            let path = "/srv/lists/office.txt".into();
            Untrusted { path, finding }.to_string()
        })
        .join("\n");
        expect![[r#"
            users other than root could change /srv/lists/office.txt: /srv/lists belongs to user 4000000000; `chown root /srv/lists`
            users other than root could change /srv/lists/office.txt: /srv/lists belongs to user 4000000000; `chown root /srv/lists`
            users other than root could change /srv/lists/office.txt: /srv/lists is writable by group 4000000000; `chmod g-w /srv/lists`
            users other than root could change /srv/lists/office.txt: /srv/lists is writable by every user; `chmod o-w /srv/lists`"#]].assert_eq(&texts);
    }
}
