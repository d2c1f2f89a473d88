//! The socket on which a running daemon answers: HTTP with JSON over a Unix socket, so that
//! `curl --unix-socket` can ask as well. It only tells; changes come later.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long a daemon may take to answer before it counts as not answering.
const TIMEOUT: Duration = Duration::from_secs(2);
/// `sockaddr_un` has room for so much, and a zero.
const MAX_PATH: usize = 107;
const STATUS: &str = "/v1/status";

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

/// The listening side. Stops, and removes the socket, when it is dropped.
pub struct Control {
    path: PathBuf,
    live: watch::Sender<Live>,
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
        let router = Router::new()
            .route(
                STATUS,
                get(|State(live): State<watch::Receiver<Live>>| async move {
                    Json(live.borrow().clone())
                }),
            )
            .with_state(watching);
        let server = tokio::spawn(async move {
            // Ends with the task; accepting goes on after an error.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self {
            path: path.to_owned(),
            live,
            server,
        })
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

/// Asks the daemon; `None` where none answers.
pub async fn ask(path: &Path) -> Option<Live> {
    let asked = async {
        let stream = UnixStream::connect(path).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = hyper::Request::get(STATUS)
            .header("host", "allowlist")
            .body(Empty::<hyper::body::Bytes>::new())?;
        let answer = sender.send_request(request).await?;
        let body = answer.into_body().collect().await?.to_bytes();
        connection.abort();
        anyhow::Ok(serde_json::from_slice(&body)?)
    };
    tokio::time::timeout(TIMEOUT, asked).await.ok()?.ok()
}
