//! The socket on which a running daemon answers: HTTP with JSON over a Unix socket, so that
//! `curl --unix-socket` can ask as well.
//!
//! It tells what only the daemon knows, and passes on what is asked of it: the daemon alone writes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::event::Change;
use crate::policy::Mode;

/// How long a daemon may take to answer before it counts as not answering.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The same for what it publishes, which takes seconds for a million prefixes.
const PATIENCE: Duration = Duration::from_mins(1);
/// `sockaddr_un` has room for so much, and a zero.
const MAX_PATH: usize = 107;
const STATUS: &str = "/v1/status";
const MODE: &str = "/v1/mode";
const ACCEPT: &str = "/v1/accept";
/// How many requests may wait for the daemon; more are told to come again.
const WAITING: usize = 16;

/// What only a running daemon knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Live {
    /// Its process id.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// By source name: when it will be fetched next.
    pub next_fetch: BTreeMap<String, Timestamp>,
}

/// What is asked of a daemon. It answers when it is done.
#[derive(Debug)]
pub enum Request {
    /// To carry verdicts out, or only to count them.
    Mode(Mode, oneshot::Sender<()>),
    /// To let in the list of a source that the gate refused.
    Accept(String, oneshot::Sender<Result<Accepted, String>>),
}

/// What letting a list in changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Accepted {
    /// The generation that has it.
    pub generation: u32,
    /// What it has more, and less; what it has less stays for its grace period.
    #[serde(flatten)]
    pub change: Change,
}

/// The body of a request to accept a list.
#[derive(Debug, Serialize, Deserialize)]
struct WantedList {
    source: String,
}

/// The body of an answer that is no success.
#[derive(Debug, Serialize, Deserialize)]
struct Problem {
    error: String,
}

/// The body of a request for a mode.
#[derive(Debug, Serialize, Deserialize)]
struct WantedMode {
    mode: Mode,
}

/// The listening side. Stops, and removes the socket, when it is dropped.
pub struct Control {
    path: PathBuf,
    live: watch::Sender<Live>,
    requests: mpsc::Receiver<Request>,
    server: JoinHandle<()>,
}

impl Control {
    /// Listens at `path`, for root only.
    pub fn listen(path: &Path) -> Result<Self> {
        let what = || format!("cannot listen on {}", path.display());
        if path.as_os_str().len() > MAX_PATH {
            bail!(
                "{} is longer than the {MAX_PATH} bytes that a socket's path may have; choose another --socket",
                path.display()
            );
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            bail!(
                "another daemon answers on {}; stop it, or choose another --socket",
                path.display()
            );
        }
        if let Some(folder) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .with_context(what)?;
        }
        match fs::symlink_metadata(path) {
            // Of a daemon that was killed: nobody answers on it.
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).with_context(what)?;
            }
            Ok(_) => bail!(
                "{} is there, and is no socket; choose another --socket",
                path.display()
            ),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).with_context(what)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).with_context(what)?;
        let (live, watching) = watch::channel(Live::default());
        let (asked, requests) = mpsc::channel(WAITING);
        let router = Router::new()
            .route(STATUS, get(async move || Json(watching.borrow().clone())))
            .route(MODE, post(set_mode))
            .route(ACCEPT, post(accept))
            .with_state(asked);
        let server = tokio::spawn(async move {
            // Ends with the task; accepting goes on after an error.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            path: path.to_owned(),
            live,
            requests,
            server,
        })
    }

    /// What is asked next.
    pub async fn request(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // The server is gone, and nobody can ask any more.
            None => std::future::pending().await,
        }
    }

    /// What to answer from now on.
    pub fn tell(&self, live: Live) {
        self.live.send_replace(live);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
        let _ = fs::remove_file(&self.path);
    }
}

async fn set_mode(
    State(requests): State<mpsc::Sender<Request>>,
    Json(wanted): Json<WantedMode>,
) -> StatusCode {
    let (done, answer) = oneshot::channel();
    if requests.try_send(Request::Mode(wanted.mode, done)).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match answer.await {
        Ok(()) => StatusCode::NO_CONTENT,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE, // it stopped before it came to this
    }
}

async fn accept(
    State(requests): State<mpsc::Sender<Request>>,
    Json(wanted): Json<WantedList>,
) -> Response {
    let (done, answer) = oneshot::channel();
    if requests
        .try_send(Request::Accept(wanted.source, done))
        .is_err()
    {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answer.await {
        Ok(Ok(accepted)) => Json(accepted).into_response(),
        Ok(Err(error)) => (StatusCode::CONFLICT, Json(Problem { error })).into_response(),
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Asks the daemon; `None` where none answers.
pub async fn ask(path: &Path) -> Option<Live> {
    let request = hyper::Request::get(STATUS)
        .body(Full::default())
        .expect("its parts are constants");
    let (_, body) = send(path, request, TIMEOUT).await.ok()?;
    serde_json::from_slice(&body).ok()
}

/// Asks the daemon to carry verdicts out, or only to count them.
pub async fn ask_for_mode(path: &Path, mode: Mode) -> Result<()> {
    let body = serde_json::to_vec(&WantedMode { mode })?;
    let request = hyper::Request::post(MODE)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("its parts are constants");
    let (status, _) = send(path, request, PATIENCE)
        .await
        .map_err(|error| unreachable(path, error, "it alone changes the mode"))?;
    if !status.is_success() {
        bail!("the daemon did not change the mode ({status}); ask again");
    }
    Ok(())
}

/// Asks the daemon to let in the list of a source that the gate refused.
pub async fn ask_to_accept(path: &Path, source: &str) -> Result<Accepted> {
    let body = serde_json::to_vec(&WantedList {
        source: source.to_owned(),
    })?;
    let request = hyper::Request::post(ACCEPT)
        .header("content-type", "application/json")
        .body(Full::from(body))
        .expect("its parts are constants");
    let (status, body) = send(path, request, PATIENCE)
        .await
        .map_err(|error| unreachable(path, error, "it alone knows what was refused"))?;
    if status.is_success() {
        return Ok(serde_json::from_slice(&body)?);
    }
    match serde_json::from_slice::<Problem>(&body) {
        Ok(Problem { error }) => bail!("{error}"),
        Err(_) => bail!("the daemon did not accept the list ({status}); ask again"),
    }
}

fn unreachable(path: &Path, error: anyhow::Error, why: &str) -> anyhow::Error {
    let path = path.display();
    let is_forbidden = error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::PermissionDenied);
    if is_forbidden {
        return anyhow!("cannot ask the daemon on {path}: only root may; try sudo");
    }
    error.context(format!(
        "no daemon answers on {path}, and {why}; start one with `allowlist run`"
    ))
}

async fn send(
    path: &Path,
    mut request: hyper::Request<Full<Bytes>>,
    patience: Duration,
) -> Result<(StatusCode, Bytes)> {
    let host = hyper::header::HeaderValue::from_static("allowlist");
    request.headers_mut().insert("host", host);
    let sent = async {
        let stream = UnixStream::connect(path).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        anyhow::Ok((status, body))
    };
    tokio::time::timeout(patience, sent)
        .await
        .context("it does not answer")?
}
