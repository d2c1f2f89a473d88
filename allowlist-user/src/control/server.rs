//! The listening side: who may ask, how much and for how long; each request handed to the daemon, each report
//! read beside it.
//!
//! Invariants: a connection is one request, with a limit on its head, its body (`bodies`) and its time, and there are
//! only so many (`places`); what waits for the daemon is bounded too. Reports come from the pinned maps and the disk,
//! so they cost the daemon nothing.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use log::{debug, warn};
use nix::unistd::Gid;
use serde::Deserialize;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bodies::Bodies;
use super::places::Places;
use super::{Asked, Done, Live, Request, VERSION, Wanted, peer, socket};
use crate::audit::Who;
use crate::cli::Paths;
use crate::error_code::{CodedError, ErrorCode};
use crate::explain::{Question, Target, Typed};
use crate::rejected::RejectedLists;
use crate::report::{
    Added, AuditLog, Explanation, List, Only, PolicyList, Report, Sources, Status,
};
use crate::text::{on_one_line, printable, printable_json};

/// How many requests may wait for the daemon; more are told to come again.
const WAITING: usize = 64;
/// The reports, as `Shared::report` makes them.
const REPORTS: [&str; 8] = [
    "added", "explain", "list", "live", "log", "policies", "sources", "status",
];
/// For the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// For a whole connection: some lists take their time.
const LONGEST: Duration = Duration::from_mins(10);

/// The listening side. Stops, and removes the socket, when it is dropped.
pub struct Control {
    path: PathBuf,
    live: watch::Sender<Live>,
    rejected: watch::Sender<Arc<RejectedLists>>,
    group: watch::Sender<Option<Gid>>,
    requests: mpsc::Receiver<Request>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    asked: mpsc::Sender<Request>,
    live: watch::Receiver<Live>,
    rejected: watch::Receiver<Arc<RejectedLists>>,
    paths: Arc<Paths>,
    bodies: Arc<Bodies>,
}

impl Control {
    /// Listens, for root and the members of `group`, if there is one.
    pub fn listen(paths: &Paths, group: Option<&str>) -> Result<Self> {
        let path = &*paths.socket;
        let listener = socket::bind(path)?;
        let (live, watching) = watch::channel(Live::default());
        let (rejected, waiting) = watch::channel(Arc::default());
        let (asked, requests) = mpsc::channel(WAITING);
        let (admitted, allowed) = watch::channel(None);
        let shared = Shared {
            asked,
            live: watching,
            rejected: waiting,
            paths: Arc::new(paths.clone()),
            bodies: Arc::new(Bodies::default()),
        };
        let control = Self {
            path: path.to_owned(),
            live,
            rejected,
            group: admitted,
            requests,
            server: tokio::spawn(accept(listener, allowed, router(shared))),
        };
        control.admit(group)?;
        Ok(control)
    }

    /// Changes who may ask besides root.
    pub fn admit(&self, name: Option<&str>) -> Result<()> {
        let group = group(name)?;
        socket::permit(&self.path, group)?;
        self.group.send_replace(group);
        Ok(())
    }

    /// Whether there is such a group.
    pub fn require_group(name: Option<&str>) -> Result<()> {
        group(name).map(drop)
    }

    /// What is asked next.
    pub async fn request(&mut self) -> Request {
        match self.requests.recv().await {
            Some(request) => request,
            // The server is gone, and nobody can ask any more.
            None => std::future::pending().await,
        }
    }

    /// The ids of the published rejected lists, by source.
    pub fn rejected_ids(&self) -> BTreeMap<String, String> {
        let lists = Arc::clone(&self.rejected.borrow());
        let ids = lists.sources.iter();
        ids.map(|(source, list)| (source.clone(), list.id.clone()))
            .collect()
    }

    /// Replaces the rejected lists that reports show.
    pub fn publish_rejected(&self, lists: RejectedLists) {
        self.rejected.send_replace(Arc::new(lists));
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

/// The number of a group that must be there.
fn group(name: Option<&str>) -> Result<Option<Gid>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let group = peer::group(name).with_context(|| {
        format!(
            "control_group: there is no group {name:?} on this host; `groupadd --system {name}` makes it"
        )
    })?;
    Ok(Some(group))
}

async fn accept(listener: UnixListener, group: watch::Receiver<Option<Gid>>, router: Router) {
    let places = Places::default();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Usually out of descriptors: those that are open end soon.
                debug!("cannot accept on the control socket: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // The user is known before a place is taken, so that one user cannot take all places.
        let Ok(credentials) = stream.peer_cred() else {
            continue;
        };
        let Some(place) = places.take(credentials.uid()) else {
            // The connection ends, and the client may try again.
            continue;
        };
        let (group, router) = (*group.borrow(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            let served = serve(stream, credentials, group, router);
            if timeout(LONGEST, served).await.is_err() {
                debug!("a connection to the control socket took too long, and was ended");
            }
        });
    }
}

async fn serve(stream: UnixStream, credentials: UCred, group: Option<Gid>, router: Router) {
    let who = peer::describe(credentials);
    let router = if peer::may_ask(credentials, group) {
        router
    } else {
        warn!(
            "control: {who} (uid {}) may not ask, and was turned away",
            who.uid
        );
        let problem = CodedError::new(
            ErrorCode::Forbidden,
            "only root may ask, and the members of control_group; try sudo",
        );
        Router::new().fallback(async move || problem.clone().into_response())
    };
    let router = router.layer(Extension(Who::Peer(who)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            TowerToHyperService::new(router.into_service::<Incoming>()),
        );
    if let Err(error) = served.await {
        debug!("a request on the control socket broke off: {error}");
    }
}

fn router(shared: Shared) -> Router {
    let path = |name: &str| format!("{VERSION}/{name}");
    Router::new()
        .route(&path("{name}"), get(report).post(change))
        .route("/", get(index))
        .route(VERSION, get(index))
        .method_not_allowed_fallback(async || {
            CodedError::new(
                ErrorCode::MethodNotAllowed,
                "reports are read by GET and changes are made by POST; GET / lists both",
            )
        })
        .fallback(async || unknown("path"))
        .with_state(shared)
}

/// Lists the paths.
async fn index() -> Response {
    let paths = |names: &[&str]| -> Vec<String> {
        names
            .iter()
            .map(|name| format!("{VERSION}/{name}"))
            .collect()
    };
    Json(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "get": paths(&REPORTS),
        "post": paths(&Wanted::NAMES),
    }))
    .into_response()
}

fn unknown(what: &str) -> CodedError {
    CodedError::new(
        ErrorCode::NotFound,
        format!("there is no such {what}; docs/api.md lists those there are"),
    )
}

/// Hands what is asked to the daemon, and waits for its answer.
async fn change(
    State(shared): State<Shared>,
    Extension(who): Extension<Who>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<Done>, CodedError> {
    let invalid = |error: String| CodedError::new(ErrorCode::InvalidRequest, error);
    // Held until the request is done, so that large bodies are in memory one after the other.
    let (body, _room) = shared.bodies.read(body, &who).await?;
    let asked: Asked = if body.is_empty() {
        Asked::default()
    } else {
        serde_json::from_slice(&body)
            .map_err(|error| invalid(format!("the body: {}", on_one_line(&error.to_string()))))?
    };
    let (wanted, care) = asked.read(&name)?;
    let busy = |error: &str| CodedError::new(ErrorCode::Busy, error);
    let (answer, answered) = oneshot::channel();
    let request = Request {
        wanted,
        care,
        who,
        answer,
    };
    if shared.asked.try_send(request).is_err() {
        return Err(busy("too many others wait for the daemon; ask again"));
    }
    match answered.await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(busy("the daemon stopped before it came to this")),
    }
}

/// What can be asked about.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct About {
    /// Of the log: only the newest so many.
    count: Option<usize>,
    /// To explain: who, to what, and where.
    address: Option<String>,
    port: Option<Target>,
    iface: Option<String>,
    /// Of the list: only these prefixes.
    only: Option<String>,
    service: Option<String>,
}

/// Reads a report: JSON, or text for those who accept only that.
async fn report(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    about: Result<Query<About>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, CodedError> {
    let Query(about) = about.map_err(|error| {
        let error = on_one_line(&error.body_text()).into_owned();
        CodedError::new(
            ErrorCode::InvalidRequest,
            format!("the query of {name:?}: {error}"),
        )
    })?;
    let wants_text = headers
        .get(ACCEPT)
        .is_some_and(|accepted| accepted.as_bytes().starts_with(b"text/plain"));
    // Reading a large table takes its time, and must not hold up other requests.
    let read = tokio::task::spawn_blocking(move || {
        let report = shared.report(&name, &about)?;
        Ok::<_, CodedError>(if wants_text {
            let text = report.text();
            ("text/plain; charset=utf-8", printable(&text).into_owned())
        } else {
            let json = format!("{:#}\n", report.json());
            ("application/json", printable_json(&json).into_owned())
        })
    });
    let failed = |_| {
        CodedError::new(
            ErrorCode::Refused,
            "the report could not be made; ask again",
        )
    };
    let (kind, text) = read.await.map_err(failed)??;
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

impl Shared {
    fn report(&self, name: &str, about: &About) -> Result<Box<dyn Report>, CodedError> {
        let Paths {
            pin_dir, state_dir, ..
        } = &*self.paths;
        Ok(match name {
            "status" => {
                let mut status = Status::read(pin_dir, state_dir)?;
                status.daemon = Some(self.live.borrow().clone());
                Box::new(status)
            }
            "live" => Box::new(self.live.borrow().clone()),
            "sources" => {
                let mut status = Status::read(pin_dir, state_dir)?;
                status.daemon = Some(self.live.borrow().clone());
                Box::new(Sources(status))
            }
            "list" => {
                let invalid = |error| CodedError::new(ErrorCode::InvalidRequest, error);
                let only = about.only.as_deref().map(str::parse).transpose();
                let only: Option<Only> = only.map_err(invalid)?;
                let list = List::read(pin_dir, state_dir)?;
                Box::new(list.narrow(only.as_ref(), about.service.as_deref())?)
            }
            "explain" => {
                let invalid = |error| CodedError::new(ErrorCode::InvalidRequest, error);
                let typed = about.address.as_deref().unwrap_or_default();
                let typed: Typed = typed.parse().map_err(invalid)?;
                let question = Question {
                    address: typed.address,
                    target: about.port,
                    interface: about.iface.clone().or(typed.zone),
                };
                Box::new(Explanation::read(pin_dir, state_dir, question)?)
            }
            "added" => Box::new(Added::read(state_dir)?),
            "rejected" => Box::new(RejectedLists::clone(&self.rejected.borrow())),
            "log" => Box::new(AuditLog::read(state_dir, about.count)?),
            "policies" => Box::new(PolicyList::read(state_dir)?),
            _ => return Err(unknown("report")),
        })
    }
}

impl IntoResponse for CodedError {
    fn into_response(self) -> Response {
        let status = match self.code {
            ErrorCode::InvalidRequest | ErrorCode::InvalidPrefix | ErrorCode::ConfigInvalid => {
                StatusCode::BAD_REQUEST
            }
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound
            | ErrorCode::UnknownService
            | ErrorCode::UnknownSource
            | ErrorCode::UnknownPolicy => StatusCode::NOT_FOUND,
            ErrorCode::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::Busy => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::CONFLICT,
        };
        (status, Json(self)).into_response()
    }
}
