//! What a closed host begins itself, by each way to tell answers.

use std::io::ErrorKind;
use std::net::TcpStream;

use allowlist_tests::lab::Ended;
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use serde_json::json;

use super::talk::{FRAGMENTED, Server, pings};
use super::*;

/// All that a host may begin.
const ALL: [&str; 5] = ["udp", "fragments", "tcp", "https", "ping"];

/// Which of it gets its answers. What is expected is waited for longer.
fn working(
    site: &Testbed,
    server: &Server,
    family: Family,
    expected: &[&str],
) -> anyhow::Result<Vec<&'static str>> {
    let mut working = Vec::new();
    for what in ALL {
        let timeout = if expected.contains(&what) {
            SOON
        } else {
            NEVER
        };
        let works = match what {
            "udp" => server.answers(site, family, 8, timeout)?,
            "fragments" => server.answers(site, family, FRAGMENTED, timeout)?,
            "tcp" => server.accepts(site, family, timeout)?,
            "https" => fetches(site, family, timeout)?,
            _ => pings(site, family, timeout)?,
        };
        if works {
            working.push(what);
        }
    }
    Ok(working)
}

/// Whether `allowlist fetch` gets a list from an HTTPS server of the peer.
fn fetches(site: &Testbed, family: Family, timeout: Duration) -> anyhow::Result<bool> {
    let address = family.peer(0).ip();
    let answers = [("/list", Answer::json(r#"["198.18.0.1"]"#))];
    let vendor = site.peer.run(|| Vendor::start_tls_at(address, answers))?;
    let authority = vendor.ca_pem().expect("it is HTTPS");
    site.scratch.write("ca.pem", authority)?;
    let config = site.scratch.write(
        "fetch.toml",
        format!(
            "[services.web]\nports = ['tcp/443']\nallow = ['list']\n[sources.list]\nurl = '{}'\n\
             format = 'json'\nca_file = 'ca.pem'\ntimeout = '{}ms'\n",
            vendor.url("/list"),
            timeout.as_millis()
        ),
    )?;
    let fetched: Ended = site.run(&["fetch", "list", "--config", &config.display().to_string()])?;
    Ok(fetched.code == Some(0) && fetched.stdout.contains("198.18.0.1"))
}

#[track_caller]
fn check(attach_mode: &str, return_traffic: &str, expected: &[&str]) {
    let checked = || -> anyhow::Result<()> {
        let site = Testbed::new()?;
        let server = Server::start(&site)?;
        let lines = format!("return_traffic = '{return_traffic}'");
        let _filter = close(&site, &lines, &["--attach-mode", attach_mode])?;
        for family in FAMILIES {
            let found = working(&site, &server, family, expected)?;
            assert_eq!(found, expected, "{}", family.peer);
        }
        let counted = site.counted("eth0")?;
        if return_traffic == "track" {
            // Nothing but answers came.
            assert_eq!(counted, json!({"pass answer": counted["pass answer"]}));
        } else {
            assert!(packets(&counted, "drop default") > 0, "{counted}");
        }
        Ok(())
    };
    checked().unwrap_or_else(|error| panic!("{attach_mode}, {return_traffic}: {error:?}"));
}

#[test]
fn all_protocols_work_with_tracking_in_native_mode() {
    require_root!();
    check("native", "track", &ALL);
}

#[test]
fn all_protocols_work_with_tracking_in_generic_mode() {
    require_root!();
    check("generic", "track", &ALL);
}

#[test]
fn with_established_only_tcp_works() {
    require_root!();
    check("native", "established", &["tcp", "https"]);
}

#[test]
fn with_off_nothing_works() {
    require_root!();
    check("native", "off", &[]);
}

/// "Nobody is there" is an answer as well: a segment or an ICMP error of the peer's.
#[test]
fn a_refusal_arrives_at_once() -> anyhow::Result<()> {
    /// Where the peer has no socket.
    const CLOSED: u16 = 9;
    require_root!();
    let site = Testbed::new()?;
    let _filter = close(&site, "", &[])?;
    for family in FAMILIES {
        let connected = site
            .host
            .run(|| TcpStream::connect_timeout(&family.peer(CLOSED), SOON));
        let refused = connected.expect_err("nobody listens").kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{}", family.peer);

        let client = site.host.run(|| UdpSocket::bind(family.host(0)))?;
        client.connect(family.peer(CLOSED))?;
        client.set_read_timeout(Some(SOON))?;
        client.send(b"question")?;
        let refused = client
            .recv(&mut [0; 8])
            .expect_err("nobody is there")
            .kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{}", family.peer);
    }
    let expected = json!({"pass answer": 2, "pass icmp-error": 2});
    site.check_counted("eth0", &expected)
}
