//! Real programs: each resolves a name by the C library or its own resolver, and fetches a page from an allowed name;
//! from another name it fails at once.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use allowlist_tests::lab::{Cgroup, Ended, Program, Testbed, add_addresses};
use allowlist_tests::require_root;
use anyhow::ensure;
use serde_json::json;

use super::names::{SOON, records, rule, serve_on, start_unpolled};
use super::*;

/// The address of the web server, which no rule lists.
const WEB: &str = "192.0.2.77";
const PAGE: &str = "hello";

/// The programs, with their arguments before the URL.
const CLIENTS: [&[&str]; 4] = [
    &[
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--max-time",
        "60",
    ],
    &[
        "wget",
        "--quiet",
        "--output-document=-",
        "--tries=1",
        "--timeout=60",
    ],
    &[
        "python3",
        "-c",
        "import sys, urllib.request\nprint(urllib.request.urlopen(sys.argv[1], timeout=60).read().decode())",
    ],
    &["java"],
];

/// A program for `java`, which compiles it first.
const JAVA: &str = r#"
public class Fetch {
    public static void main(String[] arguments) throws Exception {
        try (var in = new java.net.URI(arguments[0]).toURL().openStream()) {
            System.out.print(new String(in.readAllBytes()));
        }
    }
}
"#;

/// Runs a program in the cgroup and in the host's namespace, with the test's own `/etc/resolv.conf`.
fn run(testbed: &Testbed, cgroup: &Cgroup, conf: &Path, words: &[&str]) -> anyhow::Result<Ended> {
    let mut command = testbed.host.command("unshare")?;
    let script = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    command
        .args(["--mount", "sh", "-c", script])
        .arg(conf)
        .args(words);
    command
        .env_remove("http_proxy")
        .env_remove("HTTP_PROXY")
        .env_remove("all_proxy");
    cgroup.hold(&mut command)?;
    Ended::of(command)
}

/// Starts a web server with the files of a folder, at [`WEB`] in the peer's namespace.
fn serve_pages(testbed: &Testbed, folder: &Path) -> anyhow::Result<Program> {
    add_addresses(&testbed.peer, "eth0", &[WEB.parse()?])?;
    let mut command = testbed.peer.command("python3")?;
    command
        .args(["-u", "-m", "http.server", "80", "--bind", WEB])
        .arg("--directory")
        .arg(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let web = Program::start(command)?;
    web.wait_for_line("Serving HTTP", SOON)?;
    Ok(web)
}

pub(super) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

#[test]
fn real_programs_reach_allowed_names_only() -> anyhow::Result<()> {
    require_root!();
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let allowed = "web.example.com";
    let table = json!({
        "web.example.com": records(&[("A", WEB)]),
        "other.example.com": records(&[("A", "192.0.2.78")]),
    });
    let rule = rule(&[allowed]).replace("tcp/443", "tcp/80");
    let settings = format!("resolvers = [\"127.0.0.1\"]\n{rule}");
    let conf = testbed
        .scratch
        .write("resolv.conf", "nameserver 127.0.0.1\n")?;
    let java = testbed.scratch.write("Fetch.java", JAVA)?;
    let pages = testbed.scratch.write("index.html", PAGE)?;
    let _web = serve_pages(&testbed, pages.parent().expect("it has one"))?;
    let _names = serve_on(&testbed.host, "127.0.0.1", 53, &table)?;
    let _daemon = start_unpolled(&testbed, &cgroup, &settings)?;
    let mut ran = 0;
    for client in CLIENTS {
        if !is_installed(client[0]) {
            println!("{}: not installed", client[0]);
            continue;
        }
        let mut words = client.to_vec();
        if client[0] == "java" {
            words.push(java.to_str().expect("it is text"));
        }
        let fetch = |name: &str| {
            let url = format!("http://{name}/index.html");
            run(&testbed, &cgroup, &conf, &[&words[..], &[&url]].concat())
        };
        let ended = fetch(allowed)?;
        ensure!(
            ended.code == Some(0) && ended.stdout.trim() == PAGE,
            "{}: {ended:?}",
            client[0]
        );
        let refused = || counter(&testbed, "connect", "refuse", "default");
        let before = refused()?;
        let ended = fetch("other.example.com")?;
        assert_ne!(ended.code, Some(0), "{}: {ended:?}", client[0]);
        assert!(refused()? > before, "{}: {ended:?}", client[0]);
        ran += 1;
    }
    assert!(ran > 0);
    Ok(())
}

/// A package manager updates from an allowed mirror.
#[test]
fn apt_updates_from_an_allowed_mirror() -> anyhow::Result<()> {
    require_root!();
    if !is_installed("apt-get") {
        allowlist_tests::skip!("needs apt-get");
    }
    let (testbed, cgroup) = (Testbed::new()?, Cgroup::new()?);
    let table = json!({ "mirror.example.com": records(&[("A", WEB)]) });
    let rule = rule(&["mirror.example.com"]).replace("tcp/443", "tcp/80");
    let settings = format!("resolvers = [\"127.0.0.1\"]\n{rule}");
    let conf = testbed
        .scratch
        .write("resolv.conf", "nameserver 127.0.0.1\n")?;
    let folder = conf.parent().expect("it has one").to_owned();
    for name in [
        "mirror",
        "apt",
        "apt/lists/partial",
        "apt/cache/archives/partial",
    ] {
        fs::create_dir_all(folder.join(name))?;
    }
    fs::write(folder.join("mirror/Packages"), "")?;
    fs::write(folder.join("apt/status"), "")?;
    let sources = "deb [trusted=yes] http://mirror.example.com/ ./\n";
    fs::write(folder.join("apt/sources.list"), sources)?;
    let _web = serve_pages(&testbed, &folder.join("mirror"))?;
    let _names = serve_on(&testbed.host, "127.0.0.1", 53, &table)?;
    let _daemon = start_unpolled(&testbed, &cgroup, &settings)?;
    let apt = folder.join("apt");
    let option = |key: &str, path: &Path| format!("{key}={}", path.display());
    let options = [
        option("Dir::State::Lists", &apt.join("lists")),
        option("Dir::State::Status", &apt.join("status")),
        option("Dir::Cache", &apt.join("cache")),
        option("Dir::Etc::SourceList", &apt.join("sources.list")),
        "Dir::Etc::SourceParts=/dev/null".to_owned(),
        "Dir::Etc::Parts=/dev/null".to_owned(),
        "Acquire::AllowInsecureRepositories=true".to_owned(),
        "Acquire::Retries=0".to_owned(),
        "Acquire::http::Timeout=60".to_owned(),
        "Acquire::http::Proxy=false".to_owned(),
        "APT::Sandbox::User=root".to_owned(),
        "APT::Update::Error-Mode=any".to_owned(),
    ];
    let mut words = vec!["apt-get", "update"];
    for option in &options {
        words.extend(["-o", option]);
    }
    let ended = run(&testbed, &cgroup, &conf, &words)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    assert!(
        counter(&testbed, "connect", "pass", "allowed-name")? > 0,
        "{ended:?}"
    );
    Ok(())
}
