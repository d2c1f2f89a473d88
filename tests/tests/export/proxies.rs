//! nginx and `HAProxy`: their configuration checks, and the addresses that they serve.

use std::collections::BTreeSet;
use std::net::IpAddr;

use allowlist_tests::lab::{Ended, Program, eventually};
use allowlist_user::export::Format;
use anyhow::ensure;

use crate::{AFTER, BEFORE, EVERYBODY, Machine, require_programs, visitors};

const REQUEST: &str = "GET / HTTP/1.0\r\n\r\n";
const HTTP: u16 = 8080;
const STREAM: u16 = 8081;

/// Returns the addresses that a port serves. It refuses the others with a status or by closing the connection.
fn served(machine: &Machine, port: u16) -> anyhow::Result<BTreeSet<IpAddr>> {
    let answers = visitors::answers(&machine.namespace, port, REQUEST)?;
    let mut served = BTreeSet::new();
    for (visitor, answer) in answers {
        if answer.contains(" 200 ") || answer == "hello" {
            served.insert(visitor);
        } else {
            ensure!(answer.is_empty() || answer.contains(" 403 "), "{answer}");
        }
    }
    Ok(served)
}

/// Tests a server with each list.
fn check_served(format: Format, check: &str, serve: &str, config: &str) -> anyhow::Result<()> {
    let machine = Machine::new()?;
    let config = machine.with_paths(config);
    std::fs::write(machine.folder().join("config"), config)?;
    for texts in [BEFORE, AFTER, EVERYBODY] {
        machine.write(format, texts)?;
        machine.run(check)?;
        let mut server = Program::start(machine.command(serve)?)?;
        let is_up = || {
            machine
                .namespace
                .run(|| std::net::TcpStream::connect(("::1", STREAM)).is_ok())
        };
        eventually(|| Ok(is_up()))?;
        for port in [HTTP, STREAM] {
            assert_eq!(
                served(&machine, port)?,
                visitors::listed(texts),
                "{format} {port}"
            );
        }
        server.signal(nix::sys::signal::Signal::SIGKILL)?;
        server.wait(std::time::Duration::from_secs(20))?;
    }
    // Negative check: an invalid prefix is refused.
    machine.scratch.write("FILE", "allow 192.0.2.0/33;\n")?;
    let ended = Ended::of(machine.command(check)?)?;
    ensure!(ended.code != Some(0), "{ended:?}");
    Ok(())
}

#[test]
fn nginx_loads_the_export() -> anyhow::Result<()> {
    require_programs!("nginx" from "nginx");
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    if !std::path::Path::new(module).exists() {
        allowlist_tests::skip!(
            "{module} is not installed: run `apt-get install libnginx-mod-stream`"
        );
    }
    let config = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
user root;
daemon off;
master_process off;
pid FOLDER/pid;
error_log stderr;
events {}
http {
    access_log off;
    client_body_temp_path FOLDER/body;
    proxy_temp_path FOLDER/proxy;
    fastcgi_temp_path FOLDER/fastcgi;
    uwsgi_temp_path FOLDER/uwsgi;
    scgi_temp_path FOLDER/scgi;
    server {
        listen 8080;
        listen [::]:8080;
        location / {
            include FILE;
            root FOLDER;
            index config;
        }
    }
    # Elsewhere it only has to be taken.
    server {
        listen 8082;
        include FILE;
    }
    include FILE;
}
stream {
    server {
        listen 8081;
        listen [::]:8081;
        include FILE;
        return hello;
    }
}
";
    check_served(
        Format::Nginx,
        "nginx -t -e stderr -p . -c config",
        "nginx -e stderr -p . -c config",
        config,
    )
}

#[test]
fn haproxy_loads_the_export() -> anyhow::Result<()> {
    require_programs!("haproxy" from "haproxy");
    let config = "defaults
    mode http
    timeout client 20s
    timeout connect 20s
    timeout server 20s
frontend web
    bind :::8080 v4v6
    acl allowed src -f FILE
    http-request deny unless allowed
    http-request return status 200
frontend early
    bind :::8081 v4v6
    acl allowed src -f FILE
    tcp-request connection reject unless allowed
    http-request return status 200
";
    check_served(
        Format::Haproxy,
        "haproxy -c -f config",
        "haproxy -db -f config",
        config,
    )
}
