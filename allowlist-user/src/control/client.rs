//! Sends requests to a daemon's socket.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use allowlist_policy::error_code::ErrorCode;
use anyhow::{Context as _, Result, anyhow};
use http_body_util::{BodyExt as _, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

use super::{ApplyOptions, ApplyOutcome, DaemonStatus, Request, RequestBody, VERSION};

use crate::error_code::ApiError;

/// The time limit for a status request.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit for a change, which may fetch lists and publish a million prefixes.
const PATIENCE: Duration = Duration::from_mins(10);

/// A client of a daemon's control socket.
#[derive(Debug)]
pub struct Client<'p> {
    path: &'p Path,
}

impl<'p> Client<'p> {
    /// Returns a client of the daemon whose control socket is at `path`.
    pub const fn new(path: &'p Path) -> Self {
        Self { path }
    }

    /// Sends an operation to the daemon, and returns the answer.
    ///
    /// # Errors
    /// The error is an [`ApiError`] if the daemon refuses the operation, or if no daemon answers.
    pub async fn ask(&self, operation: Request, options: &ApplyOptions) -> Result<ApplyOutcome> {
        let name = operation.name();
        let body = serde_json::to_vec(&RequestBody::new(operation, options))?;
        let request = hyper::Request::post(format!("{VERSION}/{name}"))
            .header("content-type", "application/json");
        let (status, body) = self.send(request, body, PATIENCE).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .context("cannot parse the daemon's answer; after an upgrade, restart the daemon, so that it has the version of this command");
        }
        Err(problem(status, &body))
    }

    /// Returns the daemon's status, or `None` if no daemon answers.
    pub async fn live(&self) -> Option<DaemonStatus> {
        let request = hyper::Request::get(format!("{VERSION}/live"));
        let (_, body) = self.send(request, Vec::new(), TIMEOUT).await.ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// Returns the report `name` from the daemon, as text or JSON, for users who cannot read the maps and the state
    /// directory.
    pub async fn report(&self, name: &str, as_json: bool) -> Result<String> {
        let accepted = if as_json {
            "application/json"
        } else {
            "text/plain"
        };
        let request = hyper::Request::get(format!("{VERSION}/{name}")).header("accept", accepted);
        let (status, body) = self.send(request, Vec::new(), PATIENCE).await?;
        if status.is_success() {
            return Ok(String::from_utf8_lossy(&body).into_owned());
        }
        Err(problem(status, &body))
    }

    async fn send(
        &self,
        request: hyper::http::request::Builder,
        body: Vec<u8>,
        patience: Duration,
    ) -> Result<(StatusCode, Bytes)> {
        let request = request
            .header("host", "allowlist")
            .body(Full::new(Bytes::from(body)))
            .context("cannot build the request")?;
        let deadline = Instant::now() + patience;
        let late = |_| no_answer(self.path, patience);
        let connected = timeout_at(deadline, UnixStream::connect(self.path)).await;
        let stream = connected
            .map_err(late)?
            .map_err(|error| not_connected(self.path, &error))?;
        let sent = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            connection.abort();
            anyhow::Ok((status, body))
        };
        let answered = timeout_at(deadline, sent).await.map_err(late)?;
        answered.map_err(|error| no_daemon(self.path, &format!("{error:#}")))
    }
}

fn problem(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<ApiError>(body) {
        Ok(problem) => anyhow::Error::new(problem),
        Err(_) => anyhow!(
            "the daemon answered {status} without an error code; after an upgrade, restart the daemon, so that it has the version of this command"
        ),
    }
}

fn not_connected(path: &Path, error: &io::Error) -> anyhow::Error {
    if error.kind() == ErrorKind::PermissionDenied {
        let text = format!(
            "cannot connect to the daemon on {}: only root and the members of control_group may; try sudo",
            path.display()
        );
        return ApiError::new(ErrorCode::Forbidden, text).into();
    }
    no_daemon(path, &error.to_string())
}

fn no_daemon(path: &Path, error: &str) -> anyhow::Error {
    let path = path.display();
    let text = format!("no daemon answers on {path}: {error}; start one with `allowlist run`");
    ApiError::new(ErrorCode::NoDaemon, text).into()
}

/// Returns the error for a daemon that has not answered within `patience`.
fn no_answer(path: &Path, patience: Duration) -> anyhow::Error {
    let text = format!(
        "the daemon on {} has not answered within {}; it may still carry out the request: read its log, and check `allowlist status` before you repeat the request",
        path.display(),
        humantime::format_duration(patience)
    );
    ApiError::new(ErrorCode::Timeout, text).into()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;
    use crate::error_code::code_of;

    #[tokio::test]
    async fn a_silent_daemon_is_not_a_missing_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("socket");
        let client = Client::new(&path);
        let code = async || {
            let request = hyper::Request::get("/v1/status");
            let patience = Duration::from_millis(50);
            let sent = client.send(request, Vec::new(), patience).await;
            code_of(&sent.expect_err("there is no answer"))
        };
        assert_eq!(code().await, ErrorCode::NoDaemon);
        let listener = UnixListener::bind(&path).expect("a socket");
        assert_eq!(code().await, ErrorCode::Timeout);
        drop(listener);
        assert_eq!(code().await, ErrorCode::NoDaemon);
    }
}
