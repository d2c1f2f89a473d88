//! Formats that are a list of prefixes and little else: `plain`, `json`, `nginx`, `haproxy`.
//!
//! Invariant: `plain` and the sources in `json` have what the sources wrote, not merged, so that somebody
//! finds it again. What is only matched against is merged.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Export, Listed, lines};

pub(super) fn plain(export: &Export) -> String {
    let prefixes = export.lists.iter().flat_map(|list| list.prefixes);
    let distinct: BTreeSet<_> = prefixes.map(ipnet::IpNet::trunc).collect();
    let usage = [
        "A source of allowlist takes it as `file = \"PATH\"`. Not merged: a prefix a line, each once.",
    ];
    export.header("#", &usage) + &lines(distinct, "", "")
}

pub(super) fn json(export: &Export) -> String {
    let source = |list: &Listed| {
        let prefixes: BTreeSet<_> = list.prefixes.iter().map(ipnet::IpNet::trunc).collect();
        let value = json!({ "origin": list.origin, "prefixes": prefixes });
        (list.source.to_owned(), value)
    };
    let document = json!({
        "generated": export.at(),
        "name": export.options.name,
        "sources": Value::Object(export.lists.iter().map(source).collect::<Map<_, _>>()),
        "prefixes": export.merged().collect::<Vec<_>>(),
    });
    format!("{document:#}\n")
}

pub(super) fn nginx(export: &Export) -> String {
    let usage = [
        "Use: include FILE; in an http, server, location or stream block. Then: nginx -t && nginx -s reload",
        "Behind a proxy these are the proxy's addresses, unless the realip module is set up.",
    ];
    export.header("#", &usage) + &lines(export.merged(), "allow ", ";") + "deny all;\n"
}

pub(super) fn haproxy(export: &Export) -> String {
    let usage = [
        "Use: acl allowed src -f FILE",
        "     http-request deny unless allowed    (or tcp-request connection reject unless allowed)",
    ];
    export.header("#", &usage) + &lines(export.merged(), "", "")
}
