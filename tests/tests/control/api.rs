//! The API for any HTTP client: paths, methods, errors, and the shape of the documents.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use super::*;

/// An answer, with its headers in lower case.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: String,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

pub(super) fn ask(
    host: &Host,
    method: &str,
    path: &str,
    headers: &str,
    body: &str,
) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(host.testbed.scratch.file("socket"))?;
    stream.set_read_timeout(Some(SOON))?;
    let length = body.len();
    // The daemon may close the connection early.
    let _ = write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: allowlist\r\n{headers}content-length: {length}\r\n\r\n{body}"
    );
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| text.clone())?;
    let status = head.split(' ').nth(1).context("a status")?;
    Ok(Answer {
        status: status.parse()?,
        headers: head.to_lowercase(),
        body: body.to_owned(),
    })
}

/// Returns the shape of a document: `{key: shape}`, `[shape of the first]`, or the name of a type.
fn shape(value: &Value) -> Value {
    match value {
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| (key.clone(), shape(value)))
            .collect(),
        Value::Array(items) => items
            .first()
            .map_or(json!([]), |first| json!([shape(first)])),
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
    }
}

#[test]
fn documents_keep_their_shape() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&[
        "add",
        STRANGERS[0],
        "--service",
        "web",
        "--ttl",
        "1h",
        "--note",
        "n",
    ]);
    let get = |path: &str| -> anyhow::Result<Value> {
        let answer = ask(&host, "GET", path, "", "")?;
        ensure!(
            answer.status == 200 && answer.headers.contains("application/json"),
            "{path}: {}",
            answer.body
        );
        Ok(answer.json())
    };
    let added = shape(&get("/v1/added")?);
    assert_eq!(
        added,
        json!({"added": [{"prefix": "string", "service": "string", "until": "string", "note": "string", "added": "string", "by": "string"}]})
    );
    assert_eq!(
        shape(&get("/v1/list")?),
        json!({"generation": "number", "prefixes": [{"prefix": "string", "services": ["string"], "sources": ["string"]}]})
    );
    let log = get("/v1/log?count=1")?;
    assert_eq!(
        shape(&log["entries"][0]),
        json!({
            "action": "string", "count": "number", "generation": "number", "note": "string", "prefixes": ["string"],
            "services": ["string"], "time": "string", "until": "string",
            "who": {"peer": {"gid": "number", "pid": "number", "program": "string", "uid": "number", "user": "string"}}
        })
    );
    assert_eq!(log["entries"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        shape(&get("/v1/policies")?["policies"][0]),
        json!({"by": "string", "configuration": "string", "file": "string", "policy": "number", "time": "string", "what": "string"})
    );
    let sources = get("/v1/sources")?;
    assert_eq!(
        shape(&sources["sources"]["friends"]),
        json!({
            "age_seconds": "number", "failure": "null", "failure_code": "null", "fetched": "string", "grace": "number", "last_passed": "null",
            "max_age_seconds": "null", "next_fetch": "null", "notes": [], "origin": "string", "passed_bytes": "number",
            "passed_packets": "number", "prefixes": "number", "regions": [], "state": "string"
        })
    );
    let status = get("/v1/status")?;
    assert_eq!(status["sources"]["friends"], sources["sources"]["friends"]);
    let keys: Vec<_> = status
        .as_object()
        .context("an object")?
        .keys()
        .map(String::as_str)
        .collect();
    assert_eq!(
        keys.join(" "),
        "as_configured configured_mode counters daemon default differences egress filtering flows generation interfaces \
         mode return_traffic services since sources unconfirmed warnings"
    );
    let live = get("/v1/live")?;
    assert_eq!(live["pid"], status["daemon"]["pid"]);
    assert_eq!(
        shape(&live),
        json!({
            "config_suppressed": "bool", "configuration": "string", "configured_mode": "string", "failing_open": "bool",
            "inactive": "bool", "missing_interfaces": [], "missing_sources": [], "next_fetch": {}, "pending": "null",
            "pid": "number", "policy": "number", "started": "string", "version": "string", "warnings": []
        })
    );
    let explained = get(&format!(
        "/v1/explain?address={}&port=udp/443",
        STRANGERS[0]
    ))?;
    assert_eq!(
        (&explained["verdict"], &explained["passes"]),
        (&json!("pass"), &json!(true))
    );
    Ok(())
}

#[test]
fn commands_print_the_same_documents() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    host.done(&["add", STRANGERS[0], "--service", "web"]);
    let get = |path: &str| anyhow::Ok(ask(&host, "GET", path, "", "")?.json());
    for (path, command) in [
        ("/v1/list", &["list", "--json"][..]),
        (
            "/v1/list?only=203.0.113.7&service=web",
            &["list", "203.0.113.7", "--service", "web", "--json"],
        ),
        ("/v1/added", &["list", "--added", "--json"]),
        ("/v1/policies", &["rollback", "--list", "--json"]),
        ("/v1/log?count=100", &["log", "--json"]),
    ] {
        let printed: Value = serde_json::from_str(&host.done(command))?;
        assert_eq!(get(path)?, printed, "{path}");
    }
    let text = ask(&host, "GET", "/v1/list", "accept: text/plain\r\n", "")?;
    assert_eq!(text.body, host.done(&["list"]));
    assert!(text.headers.contains("text/plain"), "{}", text.headers);
    Ok(())
}

#[test]
fn requests_may_have_bodies() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let post = |path: &str, body: &str| ask(&host, "POST", path, "", body);
    let entry = json!({"entries": [{"prefix": STRANGERS[0], "service": "web"}]}).to_string();
    let done = post("/v1/add", &entry)?;
    assert_eq!(done.status, 200, "{}", done.body);
    assert_eq!(
        done.json(),
        json!({"generation": 2, "policy": 2, "changes": ["added 192.0.2.66/32 to web"]})
    );
    assert!(host.passes(STRANGERS[0]));
    let done = post(
        "/v1/mode",
        r#"{"mode": "observe", "confirm_within_seconds": 600}"#,
    )?;
    assert!(done.json()["confirm_until"].is_string(), "{}", done.body);
    assert_eq!(post("/v1/confirm", "")?.status, 200);
    assert_eq!(post("/v1/rollback", "{}")?.status, 200);
    assert_eq!(post("/v1/reload", "")?.status, 200);
    assert_eq!(post("/v1/refresh", "")?.status, 200);
    let before = host.active_state()?;
    let mut snapshot = Snapshot::new();
    for (path, body, status, code) in [
        ("/v1/add", "{}", 400, "invalid-request"),
        ("/v1/add", "[1", 400, "invalid-request"),
        (
            "/v1/add",
            r#"{"entries": [{"prefix": "192.0.2.1", "service": "web", "ttl": 9}]}"#,
            400,
            "invalid-request",
        ),
        ("/v1/add", r#"{"entries": []}"#, 400, "invalid-request"),
        (
            "/v1/add",
            r#"{"entries": [{"prefix": "192.0.2.1"}]}"#,
            400,
            "invalid-request",
        ),
        (
            "/v1/add",
            r#"{"entries": [{"prefix": "192.0.2.1", "service": "wbe"}]}"#,
            404,
            "unknown-service",
        ),
        ("/v1/mode", r#"{"mode": "off"}"#, 400, "invalid-request"),
        ("/v1/reload", r#"{"to": 1}"#, 400, "invalid-request"),
        ("/v1/confirm", "", 409, "nothing-pending"),
        ("/v1/accept", r#"{"source": "x"}"#, 404, "unknown-source"),
        ("/v1/nothing", "", 404, "not-found"),
    ] {
        let answer = post(path, body)?;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.body);
        let problem = answer.json();
        assert_eq!(problem["code"], code, "{path} {body}");
        snapshot.text(
            &format!("POST {path} {body}"),
            &answer.body,
            Some(&host.testbed.scratch),
        );
        assert_eq!(host.active_state()?, before, "{path} {body}");
    }
    snapshot.check(&expect_file!["snapshots/api.txt"]);
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("GET", "/", 200),
        ("GET", "/v1", 200),
        ("GET", "/v2/status", 404),
        ("GET", "/v1/log?count=many", 400),
        ("GET", "/v1/explain", 400),
        ("DELETE", "/v1/status", 405),
    ] {
        assert_eq!(
            ask(&host, method, path, "", "")?.status,
            status,
            "{method} {path}"
        );
    }
    Ok(())
}

/// `GET /` lists the paths that docs/api.md describes, and the server serves each of them.
#[test]
fn the_index_lists_every_path() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    let index = ask(&host, "GET", "/", "", "")?.json();
    let document = include_str!("../../../docs/api.md");
    let (_, document) = document.split_once("## Reports: GET").context("reports")?;
    let (reports, requests) = document
        .split_once("## Changes: POST")
        .context("requests")?;
    for (method, part) in [("get", reports), ("post", requests)] {
        let documented: BTreeSet<&str> = part
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split(['`', '?']).next())
            .filter(|path| path.starts_with("/v1/"))
            .collect();
        let listed: BTreeSet<&str> = index[method]
            .as_array()
            .context("paths")?
            .iter()
            .filter_map(Value::as_str)
            .collect();
        assert_eq!(listed, documented, "{method}");
    }
    for path in index["get"].as_array().context("paths")? {
        let path = path.as_str().context("a path")?;
        let query = if path.ends_with("/explain") {
            "?address=192.0.2.1"
        } else {
            ""
        };
        let answer = ask(&host, "GET", &format!("{path}{query}"), "", "")?;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
    }
    Ok(())
}
