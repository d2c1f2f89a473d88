//! The stable identifiers of errors: what programs, scripts and tests distinguish, so that the text of a message
//! can change at any time.
//!
//! A code is printed in brackets on the command line (`error[lockout]: ...`), is the key `code` of an error of the
//! API and the key `failure_code` of a source in `status --json`. Invariant: a code keeps its meaning once it was
//! released; docs/errors.md has a line for each, which a test checks.

use serde::{Deserialize, Serialize};
use strum::{Display, EnumIter, IntoStaticStr};

/// The stable identifier of an error, in kebab case wherever it is written.
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
    /// The API has no such path.
    NotFound,
    /// The API has the path, but not with this method.
    MethodNotAllowed,
    /// The daemon is busy; the request can be repeated.
    Busy,
    /// The request is valid, and impossible in the current state.
    Refused,
    /// The change would cut the connection over which it was requested.
    Lockout,
    /// No service has this name.
    UnknownService,
    /// No source has this name.
    UnknownSource,
    /// No stored policy has this number.
    UnknownPolicy,
    /// The catalogue has no provider with this name.
    UnknownProvider,
    /// The host has no interface with this name.
    UnknownInterface,
    /// The text is not an address, a prefix or a network.
    InvalidPrefix,
    /// The prefix is wider than any network; `--force` adds it.
    PrefixTooWide,
    /// The prefix was not added by command.
    NotAdded,
    /// No change is pending confirmation.
    NothingPending,
    /// Another change is pending confirmation.
    ChangePending,
    /// The pending change was rolled back, since it was not confirmed in time.
    NotConfirmed,
    /// The policy is active already.
    AlreadyActive,
    /// A source has no list, so the configuration cannot become active.
    MissingLists,
    /// The gate has rejected no list of the source.
    NoRejectedList,
    /// The rejected list is not the one that the id names.
    AnotherRejectedList,
    /// The change needs the disk, and the disk refuses it.
    DiskFailed,

    // The configuration.
    /// The daemon runs without a configuration file.
    NoConfigFile,
    /// The configuration file cannot be read.
    ConfigUnreadable,
    /// The configuration has mistakes.
    ConfigInvalid,
    /// The configuration and the command line name no interface.
    NoInterface,
    /// Other users can change a file that the configuration names.
    UntrustedPath,

    // The program and the kernel.
    /// No daemon answers on the control socket.
    NoDaemon,
    /// Another daemon uses the pin directory, the state directory or the control socket.
    AlreadyRunning,
    /// No filter is attached.
    NothingAttached,
    /// The process lacks the privileges to load and attach BPF programs.
    NotPrivileged,
    /// The pin directory cannot hold BPF pins.
    InvalidPinDir,
    /// The control socket cannot be made.
    InvalidSocket,
    /// The state directory cannot be used.
    InvalidStateDir,
    /// The interface cannot carry the filter.
    UnsupportedInterface,
    /// The filter under the pin directory is in another network namespace.
    OtherNamespace,
    /// Another version of the program pinned the filter.
    OtherVersion,
    /// Another XDP program is attached to the interface.
    InterfaceInUse,
    /// The kernel refuses to attach the filter.
    AttachFailed,
    /// The prefixes do not fit `max_prefixes`.
    TooManyPrefixes,
    /// The services or the sources overlap in too many combinations.
    TooManyCombinations,

    // Fetching a list.
    /// The list's file cannot be read.
    FileUnreadable,
    /// A token, header or certificate file cannot be used.
    InvalidCredentials,
    /// The server did not answer in time.
    Timeout,
    /// The server cannot be reached.
    Unreachable,
    /// The server's certificate is not trusted.
    UntrustedServer,
    /// The list would be fetched without protection, or from an address that no source may use.
    AddressRefused,
    /// The redirect or link is not followed.
    RedirectRefused,
    /// The server answered with a status other than 200.
    HttpStatus,
    /// The answer is incomplete.
    Incomplete,
    /// The answer is larger than `max_size`.
    TooLarge,
    /// The answer cannot be decompressed, or its archive has no list.
    InvalidArchive,
    /// A name has no addresses.
    NameFailed,

    // Reading a list.
    /// The list is empty.
    ListEmpty,
    /// The answer is a web page, not a list.
    ListIsWebPage,
    /// The list does not have the configured format.
    ListMalformed,
    /// The selector, a filter or a part of it matches nothing.
    NothingSelected,

    // The gate.
    /// The gate rejected the list; the operator may accept it.
    ListRejected,
    /// The gate rejected the list; only the configuration can allow it.
    ListForbidden,

    /// An error without a code of its own, or with a code of a newer version.
    #[default]
    #[serde(other)]
    Failed,
}

/// An error with a code: the refusal of a request, on the command line and as the body of an answer of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct CodedError {
    /// The reason and the remedy, for people.
    pub error: String,
    /// The reason, for programs.
    pub code: ErrorCode,
}

impl CodedError {
    /// Returns the error with this code and text.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            code,
        }
    }
}

/// Returns early with a [`CodedError`]: `bail_with!(Busy, "text {}", argument)`.
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
