//! The errors of the API, and the code of an error that reaches the command line.

use std::io;

use allowlist_files::trust::Untrusted;
use allowlist_lists::source::FetchError;
use allowlist_lists::state::StateError;
use allowlist_policy::compile::CompileError;
use allowlist_policy::error_code::{CodedError, ErrorCode};
use serde::{Deserialize, Serialize};

use crate::config::ConfigError;
use crate::export::ExportError;

/// The refusal of a request: the body of an API answer, and the error of the command that made the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// The reason of the refusal and the remedy, as text for people.
    pub error: String,
    /// The code of the reason, for programs.
    pub code: ErrorCode,
}

impl ApiError {
    /// Returns the error with this code and text.
    pub fn new(code: ErrorCode, error: impl Into<String>) -> Self {
        Self {
            error: error.into(),
            code,
        }
    }
}

impl From<CodedError> for ApiError {
    fn from(CodedError { error, code }: CodedError) -> Self {
        Self { error, code }
    }
}

impl From<allowlist_dataplane::Error> for ApiError {
    /// Converts an error of the data plane, and keeps its code. An error without a code becomes
    /// [`Refused`](ErrorCode::Refused).
    fn from(error: allowlist_dataplane::Error) -> Self {
        refusal(error.into())
    }
}

impl From<anyhow::Error> for ApiError {
    /// Converts an error, and keeps the first code in its chain. An error without a code becomes
    /// [`Refused`](ErrorCode::Refused).
    fn from(error: anyhow::Error) -> Self {
        refusal(coded(&error))
    }
}

/// Returns the refusal of a request for this error. An error without a code ([`Failed`](ErrorCode::Failed)) becomes
/// [`Refused`](ErrorCode::Refused).
pub(crate) fn refusal(error: CodedError) -> ApiError {
    let code = match error.code {
        ErrorCode::Failed => ErrorCode::Refused,
        code => code,
    };
    ApiError {
        code,
        ..error.into()
    }
}

/// Returns the text of an error with its causes, and the first code in its chain.
pub fn coded(error: &anyhow::Error) -> CodedError {
    CodedError::new(code_of(error), format!("{error:#}"))
}

/// Returns the code of the first error in the chain that has a code, or [`ErrorCode::Failed`] if none has.
pub fn code_of(error: &anyhow::Error) -> ErrorCode {
    let codes = error.chain().filter_map(|cause| {
        if let Some(error) = cause.downcast_ref::<CodedError>() {
            Some(error.code)
        } else if let Some(error) = cause.downcast_ref::<ApiError>() {
            Some(error.code)
        } else if let Some(error) = cause.downcast_ref::<ConfigError>() {
            Some(error.code())
        } else if let Some(error) = cause.downcast_ref::<FetchError>() {
            Some(error.cause.code())
        } else if let Some(error) = cause.downcast_ref::<ExportError>() {
            Some(error.code())
        } else if let Some(error) = cause.downcast_ref::<StateError>() {
            Some(error.code())
        } else if let Some(error) = cause.downcast_ref::<allowlist_dataplane::Error>() {
            Some(error.code()).filter(|code| *code != ErrorCode::Failed)
        } else if is_untrusted(cause) {
            Some(ErrorCode::UntrustedPath)
        } else {
            cause.downcast_ref::<CompileError>().map(CompileError::code)
        }
    });
    codes.into_iter().next().unwrap_or_default()
}

/// Returns whether the error means that a path can be changed by other users.
fn is_untrusted(cause: &(dyn std::error::Error + 'static)) -> bool {
    let inner = cause
        .downcast_ref::<io::Error>()
        .and_then(io::Error::get_ref);
    inner.is_some_and(<dyn std::error::Error + Send + Sync>::is::<Untrusted>)
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn context_keeps_the_code() {
        let error = Err::<(), _>(CodedError::new(ErrorCode::Busy, "the daemon is busy"));
        let error = error.context("reload").expect_err("it is an error");
        assert_eq!(code_of(&error), ErrorCode::Busy);
        assert_eq!(code_of(&anyhow::anyhow!("other")), ErrorCode::Failed);
    }
}
