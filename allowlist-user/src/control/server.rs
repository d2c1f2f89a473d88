//! The server: checks access, passes changes to the daemon, and reads reports in the background.
//!
//! Invariants: a connection carries one request, with limits of its head, its body (`bodies`) and its time; the numbers
//! of connections (`places`) and of queued requests are limited; reports are read from the pinned maps and the disk,
//! and never block the daemon's loop.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use allowlist_lists::rejected::RejectedLists;
use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::explain::{Question, Target, Typed};
use allowlist_policy::text::{on_one_line, printable, printable_json};
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
use super::{
    ApplyOutcome, DaemonStatus, QueuedRequest, REQUESTS, RequestBody, VERSION, peer, socket,
};
use crate::audit::Actor;
use crate::cli::Paths;
use crate::error_code::ApiError;
use crate::report::{
    Added, AuditLog, CallExplanation, CallQuestion, Destination, Explanation, List, Only,
    PolicyList, Report, Sources, Status,
};

/// The maximum number of requests in the daemon's queue; further requests are answered with `busy`.
const WAITING: usize = 64;
/// The reports with their names, which are also the names of their paths.
const REPORTS: [(&str, ReadReport); 9] = [
    ("added", |shared, _| {
        Ok(boxed(Added::read(&shared.paths.state_dir)?))
    }),
    ("explain", Shared::explain),
    ("list", Shared::list),
    ("live", |shared, _| Ok(boxed(shared.live.borrow().clone()))),
    ("log", |shared, about| {
        Ok(boxed(AuditLog::read(&shared.paths.state_dir, about.count)?))
    }),
    ("policies", |shared, _| {
        Ok(boxed(PolicyList::read(&shared.paths.state_dir)?))
    }),
    ("rejected", |shared, _| {
        Ok(boxed(RejectedLists::clone(&shared.rejected.borrow())))
    }),
    ("sources", |shared, _| Ok(boxed(Sources(shared.status()?)))),
    ("status", |shared, _| Ok(boxed(shared.status()?))),
];
/// The time limit for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// The time limit of a connection, long enough to wait for fetches.
const LONGEST: Duration = Duration::from_mins(10);

/// The running server of the control socket. When dropped, it stops and removes the socket.
pub struct Control {
    path: PathBuf,
    live: watch::Sender<DaemonStatus>,
    rejected: watch::Sender<Arc<RejectedLists>>,
    group: watch::Sender<Option<Gid>>,
    /// The name of the group whose members have access besides root; `None` for root alone.
    admitted: Option<String>,
    requests: mpsc::Receiver<QueuedRequest>,
    server: JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    request: mpsc::Sender<QueuedRequest>,
    live: watch::Receiver<DaemonStatus>,
    rejected: watch::Receiver<Arc<RejectedLists>>,
    paths: Arc<Paths>,
    bodies: Arc<Bodies>,
}

impl Control {
    /// Starts the server on the control socket, with access for root and the members of `group`, if any.
    pub fn listen(paths: &Paths, group: Option<&str>) -> Result<Self> {
        let path = &*paths.socket;
        let listener = socket::bind(path)?;
        let (live, watching) = watch::channel(DaemonStatus::default());
        let (rejected, waiting) = watch::channel(Arc::default());
        let (request, requests) = mpsc::channel(WAITING);
        let (sender, allowed) = watch::channel(None);
        let shared = Shared {
            request,
            live: watching,
            rejected: waiting,
            paths: Arc::new(paths.clone()),
            bodies: Arc::new(Bodies::default()),
        };
        let mut control = Self {
            path: path.to_owned(),
            live,
            rejected,
            group: sender,
            admitted: None,
            requests,
            server: tokio::spawn(accept(listener, allowed, router(shared))),
        };
        control.admit(group)?;
        Ok(control)
    }

    /// Sets the group whose members have access besides root; `None` for root alone.
    ///
    /// # Errors
    /// The group with access is unchanged.
    pub fn admit(&mut self, name: Option<&str>) -> Result<()> {
        let group = group(name)?;
        socket::permit(&self.path, group)?;
        self.group.send_replace(group);
        self.admitted = name.map(str::to_owned);
        Ok(())
    }

    /// Returns the name of the group whose members have access; `None` for root alone.
    pub fn admitted(&self) -> Option<&str> {
        self.admitted.as_deref()
    }

    /// Returns an error if the group does not exist on this host.
    pub fn require_group(name: Option<&str>) -> Result<()> {
        group(name).map(drop)
    }

    /// Waits for the next request of a client, and returns it.
    pub async fn request(&mut self) -> QueuedRequest {
        match self.requests.recv().await {
            Some(request) => request,
            // The server has ended.
            None => std::future::pending().await,
        }
    }

    /// Returns the ids of the rejected lists that reports show, by source name.
    pub fn rejected_ids(&self) -> BTreeMap<String, String> {
        let lists = Arc::clone(&self.rejected.borrow());
        let ids = lists.sources.iter();
        ids.map(|(source, list)| (source.clone(), list.id.clone()))
            .collect()
    }

    /// Sets the rejected lists that reports show.
    pub fn publish_rejected(&self, lists: RejectedLists) {
        self.rejected.send_replace(Arc::new(lists));
    }

    /// Sets the daemon's status that reports show.
    pub fn set_status(&self, live: DaemonStatus) {
        self.live.send_replace(live);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// Returns the id of the group `name`, or `None` without a name.
///
/// # Errors
/// Fails if the group does not exist.
fn group(name: Option<&str>) -> Result<Option<Gid>> {
    let Some(name) = name else {
        return Ok(None);
    };
    let group = peer::group(name).with_context(|| {
        format!(
            "control_group: group {name:?} does not exist; create it with `groupadd --system {name}`"
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
                // Usually a lack of descriptors, which ends with the open connections.
                debug!("cannot accept on the control socket: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Read the user first, since the limits are per user.
        let Ok(credentials) = stream.peer_cred() else {
            continue;
        };
        let Some(place) = places.take(credentials.uid()) else {
            // Closes the connection; the client can try again.
            continue;
        };
        let (group, router) = (*group.borrow(), router.clone());
        tokio::spawn(async move {
            let _place = place;
            let served = serve(stream, credentials, group, router);
            if timeout(LONGEST, served).await.is_err() {
                debug!("closed a connection to the control socket at its time limit");
            }
        });
    }
}

async fn serve(stream: UnixStream, credentials: UCred, group: Option<Gid>, router: Router) {
    let actor = peer::describe(credentials);
    let router = if peer::may_ask(credentials, group) {
        router
    } else {
        warn!(
            "control: refused a connection of {actor} (uid {}), since only root and the members of control_group have access",
            actor.uid
        );
        let problem = ApiError::new(
            ErrorCode::Forbidden,
            "only root and the members of control_group have access to the control socket; try sudo",
        );
        Router::new().fallback(async move || problem.clone().into_response())
    };
    let router = router.layer(Extension(Actor::Peer(actor)));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            TowerToHyperService::new(router.into_service::<Incoming>()),
        );
    if let Err(error) = served.await {
        debug!("a connection to the control socket failed: {error}");
    }
}

fn router(shared: Shared) -> Router {
    let path = |name: &str| format!("{VERSION}/{name}");
    Router::new()
        .route(&path("{name}"), get(report).post(change))
        .route("/", get(index))
        .route(VERSION, get(index))
        .method_not_allowed_fallback(async || {
            ApiError::new(
                ErrorCode::MethodNotAllowed,
                "use GET for reports and POST for changes; GET / lists both",
            )
        })
        .fallback(async || unknown("such path"))
        .with_state(shared)
}

/// Answers with the list of all paths of the API.
async fn index() -> Response {
    let path = |name: &str| format!("{VERSION}/{name}");
    Json(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "get": REPORTS.map(|(name, _)| path(name)),
        "post": REQUESTS.map(path),
    }))
    .into_response()
}

fn unknown(what: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("there is no {what}; GET / lists the paths of the API"),
    )
}

/// Passes a request to the daemon, and answers with the daemon's answer.
async fn change(
    State(shared): State<Shared>,
    Extension(actor): Extension<Actor>,
    Path(name): Path<String>,
    body: Body,
) -> Result<Json<ApplyOutcome>, ApiError> {
    let invalid = |error: String| ApiError::new(ErrorCode::InvalidRequest, error);
    // The permit is held until the answer, so that only one large body is in memory.
    let (body, _room) = shared.bodies.read(body, &actor).await?;
    let request: RequestBody = if body.is_empty() {
        RequestBody::default()
    } else {
        serde_json::from_slice(&body).map_err(|error| {
            invalid(format!(
                "invalid body of the request: {}",
                on_one_line(&error.to_string())
            ))
        })?
    };
    let (operation, options) = request.read(&name)?;
    let busy = |error: &str| ApiError::new(ErrorCode::Busy, error);
    let (answer, answered) = oneshot::channel();
    let request = QueuedRequest {
        operation,
        options,
        actor,
        answer,
    };
    if shared.request.try_send(request).is_err() {
        return Err(busy("the daemon has too many requests; try again"));
    }
    match answered.await {
        Ok(answer) => answer.map(Json),
        Err(_) => Err(busy(
            "the daemon stopped before it answered; start it again, and repeat the request",
        )),
    }
}

/// The query parameters of a report.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct About {
    /// For `log`: the number of newest entries to show; `None` for all entries.
    count: Option<usize>,
    /// For `explain`: the source address of the packet; `port` is its destination, `iface` its interface.
    address: Option<String>,
    port: Option<Target>,
    iface: Option<String>,
    /// For `explain`, instead of `address`: the destination of a call; `port` is its port, `unit` the unit of the program.
    to: Option<String>,
    unit: Option<String>,
    /// For `list`: the address, prefix or source to select, `None` for all; `service` selects the prefixes of that
    /// service.
    only: Option<String>,
    service: Option<String>,
}

/// Answers with the report `name`, as JSON, or as text if the client accepts only text.
async fn report(
    State(shared): State<Shared>,
    Path(name): Path<String>,
    about: Result<Query<About>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let Query(about) = about.map_err(|error| {
        let error = on_one_line(&error.body_text()).into_owned();
        ApiError::new(
            ErrorCode::InvalidRequest,
            format!("invalid query of the report {name:?}: {error}"),
        )
    })?;
    let wants_text = headers
        .get(ACCEPT)
        .is_some_and(|accepted| accepted.as_bytes().starts_with(b"text/plain"));
    // In a thread of its own, since a large table takes long to read.
    let read = tokio::task::spawn_blocking(move || {
        let report = shared.report(&name, &about)?;
        Ok::<_, ApiError>(if wants_text {
            let text = report.text();
            ("text/plain; charset=utf-8", printable(&text).into_owned())
        } else {
            let json = format!("{:#}\n", report.json());
            ("application/json", printable_json(&json).into_owned())
        })
    });
    let failed = |_| {
        ApiError::new(
            ErrorCode::Refused,
            "the daemon failed to make the report, and its log has the reason; try again",
        )
    };
    let (kind, text) = read.await.map_err(failed)??;
    Ok(([(CONTENT_TYPE, kind)], text).into_response())
}

/// A function that reads a report.
type ReadReport = fn(&Shared, &About) -> ReportResult;
type ReportResult = Result<Box<dyn Report>, ApiError>;

fn boxed(report: impl Report + 'static) -> Box<dyn Report> {
    Box::new(report)
}

impl Shared {
    fn report(&self, name: &str, about: &About) -> ReportResult {
        let found = REPORTS.iter().find(|(known, _)| *known == name);
        let (_, read) = found.ok_or_else(|| unknown(&format!("report {name:?}")))?;
        read(self, about)
    }

    fn status(&self) -> Result<Status, ApiError> {
        let mut status = Status::read(&self.paths.pin_dir, &self.paths.state_dir)?;
        status.daemon = Some(self.live.borrow().clone());
        Ok(status)
    }

    fn list(&self, about: &About) -> ReportResult {
        let invalid = |error| ApiError::new(ErrorCode::InvalidRequest, error);
        let only = about.only.as_deref().map(str::parse).transpose();
        let only: Option<Only> = only.map_err(invalid)?;
        let list = List::read(&self.paths.pin_dir)?;
        Ok(boxed(list.narrow(only.as_ref(), about.service.as_deref())?))
    }

    fn explain(&self, about: &About) -> ReportResult {
        let invalid = |error| ApiError::new(ErrorCode::InvalidRequest, error);
        if about.to.is_some() {
            return self.explain_call(about);
        }
        if about.unit.is_some() {
            return Err(invalid(
                "`unit` requires `to`; a packet has no unit".to_owned(),
            ));
        }
        let typed = about.address.as_deref().unwrap_or_default();
        let typed: Typed = typed.parse().map_err(invalid)?;
        let question = Question {
            address: typed.address,
            target: about.port,
            interface: about.iface.clone().or(typed.zone),
        };
        Ok(boxed(Explanation::read(&self.paths.pin_dir, question)?))
    }

    fn explain_call(&self, about: &About) -> ReportResult {
        let invalid = |error| ApiError::new(ErrorCode::InvalidRequest, error);
        if about.address.is_some() || about.iface.is_some() {
            return Err(invalid(
                "`to` excludes `address` and `iface`, which are about packets; use either"
                    .to_owned(),
            ));
        }
        let to = about.to.as_deref().unwrap_or_default();
        let to: Destination = to.parse().map_err(invalid)?;
        let question = CallQuestion::new(to, about.port, about.unit.clone()).map_err(invalid)?;
        let mut explanation = CallExplanation::read(&self.paths.pin_dir, question)?;
        explanation
            .next_fetch
            .clone_from(&self.live.borrow().next_fetch);
        Ok(boxed(explanation))
    }
}

impl IntoResponse for ApiError {
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
