//! The stable identifiers of errors: what programs, scripts and tests distinguish, so that the text of a message
//! can change at any time.
//!
//! A code is printed in brackets on the command line (`error[lockout]: ...`), is the key `code` of an error of the
//! API and the key `failure_code` of a source in `status --json`. Invariant: a code keeps its meaning once it was
//! released; docs/errors.md has a line for each, which a test checks.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, IntoStaticStr};

/// The stable identifier of an error. Its text and JSON form is in kebab case, such as `unknown-source`.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    Display,
    EnumIter,
    IntoStaticStr,
)]
#[serde(rename_all = "kebab-case")]
#[strum(serialize_all = "kebab-case")]
pub enum ErrorCode {
    // Requests.
    /// The request or an argument is invalid.
    InvalidRequest,
    /// The caller lacks the privilege for the request.
    Forbidden,
    /// The API has no endpoint with the path of the request.
    NotFound,
    /// The API has an endpoint with the path of the request, but not for its HTTP method.
    MethodNotAllowed,
    /// The daemon is busy; the client can repeat the request.
    Busy,
    /// The request is valid, but impossible in the daemon's present state.
    Refused,
    /// The change would cut the connection over which it was requested.
    Lockout,
    /// No service has the requested name.
    UnknownService,
    /// No source has the requested name.
    UnknownSource,
    /// No stored policy has the requested number.
    UnknownPolicy,
    /// The catalogue has no provider with the requested name.
    UnknownProvider,
    /// The host has no interface with the requested name.
    UnknownInterface,
    /// An argument is not an address, a prefix or a network.
    InvalidPrefix,
    /// The prefix to add is so wide that its length is probably a mistake; `--force` adds it.
    PrefixTooWide,
    /// The prefix to remove was not added by command.
    NotAdded,
    /// No egress policy is active, and the command needs one.
    NoEgressPolicy,
    /// No change is pending confirmation, so there is nothing to confirm.
    NothingPending,
    /// Another change is pending and has to be confirmed or rolled back first.
    ChangePending,
    /// The pending change was rolled back, since it was not confirmed in time.
    NotConfirmed,
    /// The requested policy is active already, so a rollback would change nothing.
    AlreadyActive,
    /// A source has no list, so the configuration cannot become active.
    MissingLists,
    /// There is no rejected list of the source to accept.
    NoRejectedList,
    /// The source's rejected list does not have the id in the request, since a newer list was rejected or the id is
    /// wrong.
    AnotherRejectedList,
    /// The change must be written to disk first, and writing failed.
    DiskFailed,

    // The configuration.
    /// The daemon cannot reload, because it was started without a configuration file.
    NoConfigFile,
    /// The configuration file cannot be read.
    ConfigUnreadable,
    /// The configuration has mistakes.
    ConfigInvalid,
    /// The configuration and the command line name no interface, so the filter cannot be attached.
    NoInterface,
    /// Users other than root and the daemon's own can change a file that the configuration names.
    UntrustedPath,

    // The program and the kernel.
    /// No daemon answers on the control socket.
    NoDaemon,
    /// Another daemon uses the same pin directory, state directory or control socket.
    AlreadyRunning,
    /// No filter is attached to any interface, and the command needs one.
    NothingAttached,
    /// The process lacks the privileges to load and attach BPF programs.
    NotPrivileged,
    /// The pin directory cannot hold BPF pins.
    InvalidPinDir,
    /// cgroup v2 is not mounted, and the egress policy needs it.
    NoCgroups,
    /// The kernel cannot report the starts of units, so rules of the egress policy cannot name services.
    NoUnitStarts,
    /// The control socket cannot be created.
    InvalidSocket,
    /// The state directory cannot be used.
    InvalidStateDir,
    /// The interface cannot carry the filter.
    UnsupportedInterface,
    /// The filter under the pin directory belongs to another network namespace than the process.
    OtherNamespace,
    /// Another version of the program pinned the filter under the pin directory, so this version cannot read its maps.
    OtherVersion,
    /// Another XDP program is attached to the interface.
    InterfaceInUse,
    /// The kernel refuses to attach the filter.
    AttachFailed,
    /// The lists have more prefixes than `max_prefixes` allows.
    TooManyPrefixes,
    /// The services or the sources overlap in more combinations than the kernel's tables hold.
    TooManyCombinations,

    // Fetching a list.
    /// The file of a source cannot be read.
    FileUnreadable,
    /// A token, header or certificate file cannot be used.
    InvalidCredentials,
    /// The server of a source, or the daemon, did not answer in time.
    Timeout,
    /// The server of a source cannot be reached.
    Unreachable,
    /// The certificate of a source's server is not trusted.
    UntrustedServer,
    /// The list would be fetched without TLS, or from an address that no source may use.
    AddressRefused,
    /// The server's redirect or the page's link leads to a URL that is not followed.
    RedirectRefused,
    /// The server of a source answered with a status other than 200.
    HttpStatus,
    /// The server's response is incomplete, or cannot be shown to be complete.
    Incomplete,
    /// The response or the file is larger than its limit, such as `max_size`.
    TooLarge,
    /// The response or file cannot be decompressed, or its archive has no list.
    InvalidArchive,
    /// A DNS name of a source has no usable addresses.
    NameFailed,

    // Reading a list.
    /// The list is empty.
    ListEmpty,
    /// The origin delivered a web page instead of a list.
    ListIsWebPage,
    /// The list does not have the configured format.
    ListMalformed,
    /// The configured selector, filter or page part matches nothing in the list.
    NothingSelected,

    // The gate.
    /// The gate rejected the list; the operator may accept the list by command.
    ListRejected,
    /// The gate rejected the list; only a change of the configuration can allow it.
    ListForbidden,

    /// An error without a code of its own, or with a code that a newer version of the program added.
    #[default]
    #[serde(other)]
    Failed,
}

/// An error message with its code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CodedError {
    /// The message with the reason and the remedy, for people.
    pub error: String,
    /// The stable identifier of the error, for programs.
    pub code: ErrorCode,
}

impl CodedError {
    /// Returns the error with the code `code` and the message `error`.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            code,
        }
    }
}

/// Returns a [`CodedError`] from the calling function: `bail_with!(Busy, "text {}", argument)`.
#[macro_export]
macro_rules! bail_with {
    ($code:ident, $($text:tt)+) => {
        return Err($crate::error_code::CodedError::new(
            $crate::error_code::ErrorCode::$code,
            format!($($text)+),
        )
        .into())
    };
}
pub use bail_with;

#[cfg(test)]
mod tests {
    use strum::IntoEnumIterator as _;

    use super::*;

    #[test]
    fn codes_are_kebab_case_in_text_and_json() {
        for code in ErrorCode::iter() {
            let text = code.to_string();
            assert!(
                text.bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte == b'-'),
                "{text}"
            );
            let json = serde_json::to_string(&code).expect("a code is JSON");
            assert_eq!(json, format!("\"{text}\""));
            let read: ErrorCode = serde_json::from_str(&json).expect("a code is read again");
            assert_eq!(read, code);
        }
    }

    #[test]
    fn a_code_of_a_newer_version_is_an_error_without_a_code() {
        let read: ErrorCode = serde_json::from_str("\"brand-new\"").expect("an unknown code");
        assert_eq!(read, ErrorCode::Failed);
    }
}
