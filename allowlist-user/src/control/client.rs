//! Asks a daemon over its socket.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use http_body_util::{BodyExt as _, Full};
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Asked, Care, Done, Live, VERSION, Wanted};
use crate::error_code::{CodedError, ErrorCode};

/// How long a daemon may take to tell of itself before it counts as not answering.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long what changes something may take: lists are fetched, and a million prefixes published.
const PATIENCE: Duration = Duration::from_mins(10);

/// Asks on one socket.
#[derive(Debug)]
pub struct Client<'p> {
    path: &'p Path,
}

impl<'p> Client<'p> {
    /// Of the daemon that answers at `path`.
    pub const fn new(path: &'p Path) -> Self {
        Self { path }
    }

    /// Asks for something to be done. What the daemon refuses is a [`CodedError`].
    pub async fn ask(&self, wanted: Wanted, care: &Care) -> Result<Done> {
        let name = wanted.name();
        let body = serde_json::to_vec(&Asked::new(wanted, care))?;
        let request = hyper::Request::post(format!("{VERSION}/{name}"))
            .header("content-type", "application/json");
        let (status, body) = self.send(request, body, PATIENCE).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .context("the daemon's answer is not understood; is it of another version?");
        }
        Err(problem(status, &body))
    }

    /// What the daemon tells of itself; none where none answers.
    pub async fn live(&self) -> Option<Live> {
        let request = hyper::Request::get(format!("{VERSION}/live"));
        let (_, body) = self.send(request, Vec::new(), TIMEOUT).await.ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// A report, as text or as JSON, for those who may not read what it is made of.
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
            .context("that cannot be asked")?;
        let sent = async {
            let stream = UnixStream::connect(self.path).await?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let connection = tokio::spawn(connection);
            let answer = sender.send_request(request).await?;
            let status = answer.status();
            let body = answer.into_body().collect().await?.to_bytes();
            connection.abort();
            anyhow::Ok((status, body))
        };
        let answered = match timeout(patience, sent).await {
            Ok(answered) => answered,
            Err(_) => Err(anyhow!("it does not answer within {patience:?}")),
        };
        answered.map_err(|error| unreachable(self.path, &error))
    }
}

fn problem(status: StatusCode, body: &[u8]) -> anyhow::Error {
    match serde_json::from_slice::<CodedError>(body) {
        Ok(problem) => anyhow::Error::new(problem),
        Err(_) => anyhow!("the daemon did not do it ({status}); is it of another version?"),
    }
}

fn unreachable(path: &Path, error: &anyhow::Error) -> anyhow::Error {
    let path = path.display();
    let is_forbidden = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::PermissionDenied);
    if is_forbidden {
        let text = format!(
            "cannot ask the daemon on {path}: only root may, and the members of control_group; try sudo"
        );
        return CodedError::new(ErrorCode::Forbidden, text).into();
    }
    let text = format!(
        "no daemon answers on {path}, and it alone can do this; start one with `allowlist run`: {error:#}"
    );
    CodedError::new(ErrorCode::NoDaemon, text).into()
}
