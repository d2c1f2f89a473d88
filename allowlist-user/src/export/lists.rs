//! Formats that are plain lists of prefixes: `plain`, `json`, `nginx`, `haproxy`.
//!
//! Invariant: `plain` and the sources in `json` contain the prefixes as the sources list them, so that each can be
//! traced to its source. The other lists, which are only matched against packets, contain merged prefixes.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Export, Listed, lines};

pub(super) fn plain(export: &Export) -> String {
    let prefixes = export.lists.iter().flat_map(|list| list.prefixes);
    let distinct: BTreeSet<_> = prefixes.map(ipnet::IpNet::trunc).collect();
    let usage = [
        "A source of allowlist reads it with `file = \"PATH\"`. One prefix per line, distinct, not merged.",
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
        "Behind a proxy nginx matches the address of the proxy, unless the realip module is configured.",
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
