//! The error type of this crate, with an error code for programs and the error number of the operating system.
//!
//! The text of an error states the object and the remedy; [`std::error::Error::source`] returns the cause. Within the
//! crate, [`Context`] adds the object to the error of a library.

use std::fmt::{self, Display};
use std::io;

use allowlist_policy::error_code::{CodedError, ErrorCode};
use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::links::LinkError;
use aya::programs::{ProgramError, TcError};
use nix::errno::Errno;

use crate::netlink::Refusal;
use crate::pins::NothingPinned;

/// The result of an operation on the kernel's maps, programs, links or interfaces.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of an operation on the kernel's maps, programs, links or interfaces.
///
/// `{:#}` prints the causes too, separated by colons.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The request was refused, with an error code for programs.
    #[error(transparent)]
    Refused(#[from] CodedError),
    /// No filter is pinned in the pin directory.
    #[error(transparent)]
    NothingPinned(#[from] NothingPinned),
    /// An I/O error of a file or a socket.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// An error of a system call.
    #[error(transparent)]
    Errno(#[from] Errno),
    /// The kernel refused a netlink request.
    #[error(transparent)]
    Netlink(#[from] Refusal),
    /// aya's error for an operation on a map.
    #[error("{}", Causes(.0))]
    Map(MapError),
    /// aya's error for an operation on a program, such as loading or attaching it.
    #[error("{}", Causes(.0))]
    Program(ProgramError),
    /// aya's error for an operation on a link.
    #[error("{}", Causes(.0))]
    Link(LinkError),
    /// aya's error for pinning an object.
    #[error("{}", Causes(.0))]
    Pin(PinError),
    /// aya's error for loading the object file of the kernel programs.
    #[error("{}", Causes(.0))]
    Object(EbpfError),
    /// aya's error for the clsact queueing discipline or its filters.
    #[error("{}", Causes(.0))]
    Tc(TcError),
    /// An error with the operation that failed and its object.
    #[error(fmt = with_cause)]
    Context {
        /// The operation and its object.
        context: String,
        /// The error that caused this one.
        source: Box<Error>,
    },
    /// An error that is only a text, without a cause.
    #[error("{0}")]
    Message(String),
}

macro_rules! from_library {
    ($($error:ident => $variant:ident),+) => {$(
        impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        }
    )+};
}
from_library!(
    MapError => Map, ProgramError => Program, LinkError => Link, PinError => Pin, EbpfError => Object, TcError => Tc
);

impl From<rtnetlink::Error> for Error {
    fn from(error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(answer) => Self::Io(answer.to_io()),
            other => Self::message(other),
        }
    }
}

/// Displays a library's error followed by its causes, which the error's own text omits.
struct Causes<'e>(&'e (dyn std::error::Error + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(out, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

#[expect(
    clippy::borrowed_box,
    reason = "thiserror passes a reference to the field"
)]
fn with_cause(context: &str, source: &Box<Error>, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    out.write_str(context)?;
    if out.alternate() {
        write!(out, ": {source:#}")?;
    }
    Ok(())
}

impl Error {
    /// Returns an error with only this text.
    pub(crate) fn message(text: impl Display) -> Self {
        Self::Message(text.to_string())
    }

    /// Returns this error with the operation that failed and its object prepended to its text.
    pub(crate) fn context(self, context: impl Display) -> Self {
        Self::Context {
            context: context.to_string(),
            source: Box::new(self),
        }
    }

    /// Returns the error code, which programs can rely on across versions.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Refused(refused) => refused.code,
            Self::NothingPinned(_) => ErrorCode::NothingAttached,
            Self::Context { source, .. } => source.code(),
            _ => ErrorCode::Failed,
        }
    }

    /// Returns the error number of the failed system call; `None` if the cause is not a system call.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io(error) => of_io(error),
            Self::Errno(errno) => Some(*errno),
            Self::Netlink(refusal) => of_io(&refusal.error),
            Self::Map(error) | Self::Object(EbpfError::MapError(error)) => of_map(error),
            Self::Program(error) | Self::Object(EbpfError::ProgramError(error)) => {
                of_program(error)
            }
            Self::Link(LinkError::SyscallError(error))
            | Self::Pin(PinError::SyscallError(error)) => of_io(&error.io_error),
            Self::Context { source, .. } => source.errno(),
            _ => None,
        }
    }
}

impl From<Error> for CodedError {
    /// Returns the text of the error with its causes, and its code.
    fn from(error: Error) -> Self {
        Self::new(error.code(), format!("{error:#}"))
    }
}

fn of_io(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}

fn of_map(error: &MapError) -> Option<Errno> {
    match error {
        MapError::CreateError { io_error, .. } => of_io(io_error),
        MapError::SyscallError(error) => of_io(&error.io_error),
        MapError::IoError(error) => of_io(error),
        _ => None,
    }
}

/// Returns the error number that aya's program error was caused by; `None` if the cause is not a system call.
pub(crate) fn of_program(error: &ProgramError) -> Option<Errno> {
    match error {
        ProgramError::LoadError { io_error, .. } => of_io(io_error),
        ProgramError::SyscallError(error) => of_io(&error.io_error),
        ProgramError::MapError(error) => of_map(error),
        ProgramError::IOError(error) => of_io(error),
        _ => None,
    }
}

/// Adds the operation that failed and its object to the error of a result.
pub(crate) trait Context<T> {
    /// Prepends `context` and a colon to the text of the error.
    fn context(self, context: impl Display) -> Result<T>;

    /// Prepends the text that `context` returns and a colon to the text of the error. Calls `context` only for an
    /// error.
    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context(self, context: impl Display) -> Result<T> {
        self.with_context(|| context)
    }

    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

impl<T> Context<T> for Option<T> {
    fn context(self, context: impl Display) -> Result<T> {
        self.with_context(|| context)
    }

    fn with_context<C: Display>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.ok_or_else(|| Error::message(context()))
    }
}

/// Returns early from a function with an error that has this formatted text.
macro_rules! bail {
    ($($text:tt)+) => {
        return Err($crate::error::Error::Message(format!($($text)+)))
    };
}
pub(crate) use bail;

/// Returns early from a function with an error that has this formatted text, unless the condition is true.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            $crate::error::bail!($($text)+)
        }
    };
}
pub(crate) use ensure;

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> io::Error {
        io::Error::from_raw_os_error(libc::EPERM)
    }

    #[test]
    fn context_keeps_code_and_error_number() {
        let refused = CodedError::new(ErrorCode::InterfaceInUse, "another program is attached");
        let error = Err::<(), _>(refused)
            .context("eth0")
            .expect_err("it is one");
        assert_eq!(error.code(), ErrorCode::InterfaceInUse);
        assert_eq!(error.errno(), None);

        let map = MapError::SyscallError(aya::sys::SyscallError {
            call: "bpf_map_lookup_elem",
            io_error: denied(),
        });
        let error = Error::from(map)
            .context("cannot read CONTROL")
            .context("eth0");
        assert_eq!(error.code(), ErrorCode::Failed);
        assert_eq!(error.errno(), Some(Errno::EPERM));
    }

    #[test]
    fn the_alternate_form_has_the_causes() {
        let error = Err::<(), _>(denied())
            .context("cannot open a")
            .context("eth0");
        let error = error.expect_err("it is one");
        assert_eq!(error.to_string(), "eth0");
        let whole = "eth0: cannot open a: Operation not permitted (os error 1)";
        assert_eq!(format!("{error:#}"), whole);
        assert_eq!(format!("{:#}", anyhow::Error::from(error)), whole);
    }
}
