//! Conversations that a closed host initiates, with each value of `return_traffic`.

use std::io::ErrorKind;
use std::net::TcpStream;

use allowlist_tests::lab::Ended;
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use serde_json::json;

use super::conversations::{FRAGMENTED, Server, pings};
use super::*;

/// The kinds of conversations.
const ALL: [&str; 5] = ["udp", "fragments", "tcp", "https", "ping"];

/// Returns the conversations that get answers. Waits longer for the expected ones.
fn working(
    testbed: &Testbed,
    server: &Server,
    family: Family,
    expected: &[&str],
) -> anyhow::Result<Vec<&'static str>> {
    let mut working = Vec::new();
    for kind in ALL {
        let timeout = if expected.contains(&kind) {
            SOON
        } else {
            NEVER
        };
        let works = match kind {
            "udp" => server.answers(testbed, family, 8, timeout)?,
            "fragments" => server.answers(testbed, family, FRAGMENTED, timeout)?,
            "tcp" => server.accepts(testbed, family, timeout)?,
            "https" => fetches(testbed, family, timeout)?,
            _ => pings(testbed, family, timeout)?,
        };
        if works {
            working.push(kind);
        }
    }
    Ok(working)
}

/// Reports whether `allowlist fetch` gets a list from an HTTPS server on the peer.
fn fetches(testbed: &Testbed, family: Family, timeout: Duration) -> anyhow::Result<bool> {
    let address = family.peer(0).ip();
    let answers = [("/list", Answer::json(r#"["198.18.0.1"]"#))];
    let vendor = testbed
        .peer
        .run(|| Vendor::start_tls_at(address, answers))?;
    let authority = vendor.ca_pem().expect("the certificate of the authority");
    testbed.scratch.write("ca.pem", authority)?;
    let config = testbed.scratch.write(
        "fetch.toml",
        format!(
            "[services.web]\nports = ['tcp/443']\nallow = ['list']\n[sources.list]\nurl = '{}'\n\
             format = 'json'\nca_file = 'ca.pem'\ntimeout = '{}ms'\n",
            vendor.url("/list"),
            timeout.as_millis()
        ),
    )?;
    let fetched: Ended =
        testbed.run(&["fetch", "list", "--config", &config.display().to_string()])?;
    Ok(fetched.code == Some(0) && fetched.stdout.contains("198.18.0.1"))
}

#[track_caller]
fn check(attach_mode: &str, return_traffic: &str, expected: &[&str]) {
    let checked = || -> anyhow::Result<()> {
        let testbed = Testbed::new()?;
        let server = Server::start(&testbed)?;
        let lines = format!("return_traffic = '{return_traffic}'");
        let _filter = close(&testbed, &lines, &["--attach-mode", attach_mode])?;
        for family in FAMILIES {
            let found = working(&testbed, &server, family, expected)?;
            assert_eq!(found, expected, "{}", family.peer);
        }
        let counted = testbed.counted("eth0")?;
        if return_traffic == "track" {
            // Only answers arrived.
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
fn only_tcp_works_with_established() {
    require_root!();
    check("native", "established", &["tcp", "https"]);
}

#[test]
fn no_protocol_works_with_off() {
    require_root!();
    check("native", "off", &[]);
}

/// A refusal is an answer too: an RST or an ICMP error of the peer.
#[test]
fn a_refusal_arrives_at_once() -> anyhow::Result<()> {
    /// A port without a socket on the peer.
    const CLOSED: u16 = 9;
    require_root!();
    let testbed = Testbed::new()?;
    let _filter = close(&testbed, "", &[])?;
    for family in FAMILIES {
        let connected = testbed
            .host
            .run(|| TcpStream::connect_timeout(&family.peer(CLOSED), SOON));
        let refused = connected.expect_err("no socket listens").kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{}", family.peer);

        let client = testbed.host.run(|| UdpSocket::bind(family.host(0)))?;
        client.connect(family.peer(CLOSED))?;
        client.set_read_timeout(Some(SOON))?;
        client.send(b"question")?;
        let refused = client
            .recv(&mut [0; 8])
            .expect_err("no socket listens")
            .kind();
        assert_eq!(refused, ErrorKind::ConnectionRefused, "{}", family.peer);
    }
    let expected = json!({"pass answer": 2, "pass icmp-error": 2});
    testbed.check_counted("eth0", &expected)
}
