//! Creates an XDP link on an interface, and finds the kernel's reason for a refusal.
//!
//! `BPF_LINK_CREATE` returns only an error number. The driver's message, such as which MTU is too large, is emitted to
//! the tracepoint `xdp:bpf_xdp_link_attach_failed` (Linux 6.6), or returned in the answer to a netlink request.
//! Therefore a refused program is attached once more by netlink: this calls the same driver code, returns the message
//! on every supported kernel, and needs neither tracefs nor a reader that is ready before the attempt.
//!
//! The request names the same interface and mode, in the network namespace of the calling thread, and only takes effect
//! if no program is attached. If it succeeds, because the cause is gone, the program is detached again, by a request
//! that detaches only this program, and the link is created once more.

use std::fmt;
use std::os::fd::AsFd as _;

use allowlist_policy::error_code::{CodedError, ErrorCode};
use aya::programs::Xdp;
use aya::programs::links::FdLink;
use aya::programs::xdp::XdpMode as AyaMode;
use log::{debug, warn};
use nix::errno::Errno;

use super::attach::{XdpMode, off_command, other_program};
use crate::attach_mode::AttachModeRequest;
use crate::error::{Error, Result};
use crate::interface::InterfaceInfo;
use crate::netlink::{Netlink, XdpPlace};

impl XdpMode {
    const fn flags(self) -> AyaMode {
        match self {
            Self::Native => AyaMode::Driver,
            Self::Generic => AyaMode::Skb,
            Self::Offload => AyaMode::Hardware,
        }
    }

    const fn place(self) -> XdpPlace {
        match self {
            Self::Native => XdpPlace::Driver,
            Self::Generic => XdpPlace::Stack,
            Self::Offload => XdpPlace::Card,
        }
    }
}

/// Attaches a loaded program by a new link in the `wanted` mode, and returns the link, its mode, and a warning.
///
/// The warning is present if the mode is not the preferred one.
///
/// # Errors
/// Fails with the kernel's reason in each mode that was tried, and the remedy.
pub(super) fn new_link(
    program: &mut Xdp,
    facts: &InterfaceInfo,
    wanted: AttachModeRequest,
) -> Result<(FdLink, XdpMode, Option<String>)> {
    let mode = match wanted {
        AttachModeRequest::Native | AttachModeRequest::Auto => XdpMode::Native,
        AttachModeRequest::Generic => XdpMode::Generic,
        AttachModeRequest::Offload => XdpMode::Offload,
    };
    let refused = match create(program, facts, mode) {
        Ok(link) => return Ok((link, mode, None)),
        Err(refused) => refused,
    };
    if wanted != AttachModeRequest::Auto {
        return Err(with_remedy(&[refused], facts));
    }
    match create(program, facts, XdpMode::Generic) {
        Ok(link) => {
            let warning = format!(
                "{} runs the filter in generic mode, in the network stack, which is slower: {refused}; `allowlist check` lists known causes and their remedies",
                facts.name
            );
            Ok((link, XdpMode::Generic, Some(warning)))
        }
        Err(generic) => Err(with_remedy(&[refused, generic], facts)),
    }
}

/// A mode in which the kernel did not attach the program, and the reason.
struct Refused {
    mode: XdpMode,
    /// The kernel's message; `None` if the kernel sends none.
    reason: Option<String>,
    error: Box<Error>,
}

impl fmt::Display for Refused {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = self.mode.name();
        match (&self.reason, self.errno()) {
            (Some(reason), Some(errno)) => {
                write!(out, "{mode} mode is refused: {reason} ({errno:?})")
            }
            (Some(reason), None) => write!(out, "{mode} mode is refused: {reason}"),
            (None, Some(errno)) => write!(
                out,
                "{mode} mode is refused without a reason: {} ({errno:?}); the driver may have logged one, see `dmesg`",
                errno.desc()
            ),
            (None, None) => write!(out, "{mode} mode is refused: {:#}", self.error),
        }
    }
}

impl Refused {
    fn errno(&self) -> Option<Errno> {
        self.error.errno()
    }
}

/// Creates a link in one mode.
///
/// # Errors
/// Fails with the kernel's reason for the refusal.
fn create(program: &mut Xdp, facts: &InterfaceInfo, mode: XdpMode) -> Result<FdLink, Refused> {
    let error = match link(program, facts, mode) {
        Ok(link) => return Ok(link),
        Err(error) => error,
    };
    let refused = |error, reason| Refused {
        mode,
        reason,
        error: Box::new(error),
    };
    match attempt(program, facts, mode) {
        Ok(Attempt::Refused(reason)) => Err(refused(error, reason)),
        Ok(Attempt::Accepted) => link(program, facts, mode).map_err(|error| refused(error, None)),
        Err(failure) => {
            debug!(
                "{}: cannot query the kernel's reason for the refusal: {failure:#}",
                facts.name
            );
            Err(refused(error, None))
        }
    }
}

fn link(program: &mut Xdp, facts: &InterfaceInfo, mode: XdpMode) -> Result<FdLink> {
    let id = program.attach_to_if_index(facts.index, mode.flags())?;
    let link = program.take_link(id)?;
    link.try_into().map_err(|_| {
        // The library attached by netlink where the kernel took no link.
        let detached = Netlink::open()
            .and_then(|netlink| Ok(netlink.detach_xdp(facts.index, program.fd()?.as_fd(), mode.place())?));
        if let Err(error) = detached {
            warn_of_trial(program, facts, mode, &error);
        }
        Error::Message("the kernel supports no XDP link, without which the filter would end with this process; use Linux 5.18 or later".to_owned())
    })
}

/// The result of attaching a program by netlink, to obtain the kernel's reason for a refusal.
enum Attempt {
    /// The kernel refused the program, with this message; `None` if it sends none.
    Refused(Option<String>),
    /// The kernel accepted the program, which is detached again.
    Accepted,
}

/// Attaches a program by netlink to obtain the reason for the refusal, and detaches it if it is accepted.
fn attempt(program: &Xdp, facts: &InterfaceInfo, mode: XdpMode) -> Result<Attempt> {
    let netlink = Netlink::open()?;
    let descriptor = program.fd()?.as_fd();
    if let Err(refusal) = netlink.attach_xdp(facts.index, descriptor, mode.place()) {
        debug!("{}: {} mode by netlink: {refusal}", facts.name, mode.name());
        return Ok(Attempt::Refused(refusal.reason));
    }
    match netlink.detach_xdp(facts.index, descriptor, mode.place()) {
        Ok(()) => Ok(Attempt::Accepted),
        Err(refusal) => {
            warn_of_trial(program, facts, mode, &refusal.into());
            // A link cannot be created beside the program.
            Ok(Attempt::Refused(None))
        }
    }
}

/// Warns if the program is still attached by netlink, so that it judges packets and no other can be attached. `error`
/// is the failure to detach it.
fn warn_of_trial(program: &Xdp, facts: &InterfaceInfo, mode: XdpMode, error: &Error) {
    let is_left = || -> Result<bool> {
        let device = Netlink::open()?.by_index(facts.index)?;
        let id = program.info()?.id();
        Ok(device.is_some_and(|device| device.programs.contains(&id)))
    };
    // Without an answer, the program is taken to be attached.
    if !is_left().unwrap_or(true) {
        return;
    }
    warn!(
        target: "allowlist::trial-program",
        "{}: cannot detach the XDP program that was attached in {} mode for a trial: {error:#}; it stays on the interface, so run {}",
        facts.name,
        mode.name(),
        off_command(&facts.name, Some(mode))
    );
}

/// Returns the error with the reason of each refused mode, and the remedy.
fn with_remedy(refused: &[Refused], facts: &InterfaceInfo) -> Error {
    let name = &facts.name;
    let is_native = matches!(refused, [one] if one.mode == XdpMode::Native);
    let is_offload = matches!(refused, [one] if one.mode == XdpMode::Offload);
    let has_another = |one: &Refused| matches!(one.errno(), Some(Errno::EBUSY | Errno::EEXIST));
    let is_in_use = refused.iter().any(has_another);
    let remedy = if is_in_use {
        // Since the look at the interface; empty where the program is on another interface, which the reason names.
        other_program_now(facts).map_or_else(String::new, |other| format!("; {other}"))
    } else if is_native || is_offload {
        "; `allowlist check` lists known causes and their remedies, and attach_mode = \"auto\" or `--attach-mode auto` falls back to generic mode".to_owned()
    } else {
        String::new()
    };
    let modes: Vec<String> = refused.iter().map(ToString::to_string).collect();
    let code = if is_in_use {
        ErrorCode::InterfaceInUse
    } else {
        ErrorCode::AttachFailed
    };
    let text = format!("cannot attach to {name}: {}{remedy}", modes.join("; "));
    CodedError::new(code, text).into()
}

/// Returns the error text for an XDP program that is attached to the interface now; `None` if there is none.
fn other_program_now(facts: &InterfaceInfo) -> Option<String> {
    let device = Netlink::open().ok()?.by_index(facts.index).ok()??;
    let program = device.programs.first()?;
    let now = InterfaceInfo {
        xdp_mode: device.xdp_mode,
        ..facts.clone()
    };
    Some(other_program(&now, *program))
}
