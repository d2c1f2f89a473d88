//! The links of the egress policy's programs to cgroups: attaches, detaches and compares them with the kernel.
//!
//! A link survives its cgroup: it stays pinned and judges nothing, also if a cgroup with the same path is created again.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use allowlist_common::abi;
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program};

use super::cgroup::Cgroup;
use super::link::take_off;
use super::pins::{Pins, is_pinned};
use super::sys::{Access, link_program_and_cgroup, open_pinned, update_link};
use crate::error::{Context as _, Result};

/// The number of programs, each of which is attached to every cgroup.
pub(super) const PROGRAMS: usize = abi::CONNECT_PROGRAMS.len() + 2;

/// A link that this process attached.
#[derive(Debug)]
pub(super) struct AttachedLink {
    /// The path of the link's pin.
    pin: PathBuf,
    /// The id of the program in the link.
    program: u32,
    /// The id of the cgroup.
    cgroup: u64,
    /// The path of the cgroup's directory.
    directory: PathBuf,
}

/// Why the egress policy, as this process attached it, may refuse nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EgressFault {
    /// The pin of a map or link was removed.
    Unpinned,
    /// The cgroup with this directory was removed and created again, after which no program is attached to it.
    NewCgroup(PathBuf),
    /// Another process detached the program of the link with this pin.
    Detached(PathBuf),
    /// Another process replaced the program of the link with this pin.
    Replaced(PathBuf),
}

impl Display for EgressFault {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unpinned => f.write_str("pins of the egress policy were removed"),
            Self::NewCgroup(directory) => write!(
                f,
                "the cgroup {} was removed and created again, without the programs of the egress policy",
                directory.display()
            ),
            Self::Detached(pin) => write!(
                f,
                "another process detached the program of the egress policy in the link {}",
                pin.display()
            ),
            Self::Replaced(pin) => write!(
                f,
                "another process replaced the program of the egress policy in the link {}",
                pin.display()
            ),
        }
    }
}

impl AttachedLink {
    /// Compares the link with its state in the kernel; `None` if both agree, or if the cgroup is gone.
    pub(super) fn fault(&self) -> Result<Option<EgressFault>> {
        let what = || format!("cannot read the BPF link {}", self.pin.display());
        let link = match open_pinned(&self.pin, Access::ReadWrite) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(EgressFault::Unpinned));
            }
            link => link.with_context(what)?,
        };
        let (program, cgroup) = link_program_and_cgroup(link.as_fd()).with_context(what)?;
        let Some(present) = Cgroup::id_of(&self.directory)? else {
            return Ok(None); // no program runs in it
        };
        Ok(if present != self.cgroup {
            Some(EgressFault::NewCgroup(self.directory.clone()))
        } else if cgroup != self.cgroup {
            Some(EgressFault::Detached(self.pin.clone()))
        } else if program != self.program {
            Some(EgressFault::Replaced(self.pin.clone()))
        } else {
            None
        })
    }
}

/// Attaches a program to the cgroup at the index `place` of the configured cgroups, and pins the link; replaces the
/// program in a link that exists.
pub(super) fn attach_one(
    pins: &Pins,
    place: usize,
    cgroup: &Cgroup,
    name: &str,
    program: &mut Program,
) -> Result<AttachedLink> {
    let pin = pins.map(&link_name(name, place));
    let attached = AttachedLink {
        program: program.info()?.id(),
        cgroup: cgroup.id,
        directory: cgroup.path.clone(),
        pin: pin.clone(),
    };
    if is_pinned(&pin)? {
        let link = open_pinned(&pin, Access::ReadWrite)
            .with_context(|| format!("cannot open the link {}", pin.display()))?;
        let (_, id) = link_program_and_cgroup(link.as_fd())?;
        if id == cgroup.id {
            update_link(link.as_fd(), program.fd()?.as_fd())?;
            return Ok(attached);
        }
        take_off(&pin)?;
    }
    // Links to cgroups always permit other programs; the kernel refuses flags (aya#1078).
    let mode = CgroupAttachMode::Single;
    let link: FdLink = match program {
        Program::CgroupSockAddr(program) => {
            let id = program.attach(&cgroup.directory, mode)?;
            program.take_link(id)?.try_into()?
        }
        Program::CgroupSkb(program) => {
            let hook = if name == abi::QUERY_PROGRAM {
                CgroupSkbAttachType::Egress
            } else {
                CgroupSkbAttachType::Ingress
            };
            let id = program.attach(&cgroup.directory, hook, mode)?;
            program.take_link(id)?.try_into()?
        }
        _ => unreachable!("the caller attaches programs of cgroups only"),
    };
    link.pin(&pin)
        .with_context(|| format!("cannot pin the link at {}", pin.display()))?;
    Ok(attached)
}

/// Returns the name of the pin of a program's link to the cgroup at the index `place` of the configured cgroups.
fn link_name(program: &str, place: usize) -> String {
    format!("{program}_{place}")
}

/// Returns the paths of all pinned links to cgroups, each with its cgroup's index in the list of configured cgroups.
pub(super) fn pinned_links(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let what = || format!("cannot list the pin directory {}", folder.display());
    let mut links = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(what)? {
        let path = entry.with_context(what)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = abi::CONNECT_PROGRAMS
            .iter()
            .chain([&abi::RECEIVE_PROGRAM, &abi::QUERY_PROGRAM])
            .find_map(|program| name.strip_prefix(program)?.strip_prefix('_')?.parse().ok());
        if let Some(place) = place {
            links.push((place, path.clone()));
        }
    }
    Ok(links)
}

/// Returns the id of the cgroup of each pinned link that is attached, with the cgroup's index in the list of configured
/// cgroups.
pub(super) fn attached_cgroups(folder: &Path) -> Result<Vec<(usize, u64)>> {
    let mut attached = Vec::new();
    for (place, pin) in pinned_links(folder)? {
        let link = open_pinned(&pin, Access::ReadWrite)
            .with_context(|| format!("cannot open the link {}", pin.display()))?;
        let (_, cgroup) = link_program_and_cgroup(link.as_fd())
            .with_context(|| format!("cannot read the link {}", pin.display()))?;
        if cgroup != 0 {
            attached.push((place, cgroup));
        }
    }
    Ok(attached)
}

/// Detaches the programs from the cgroups with the index `first` or a higher one in the list of configured cgroups, and
/// removes the pins of the links.
pub(super) fn detach_from(pins: &Pins, first: usize) -> Result<()> {
    for (place, pin) in pinned_links(pins.folder())? {
        if place >= first {
            take_off(&pin)?;
        }
    }
    Ok(())
}
