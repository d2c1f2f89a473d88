//! What a closed host begins itself, by each way to tell answers.

use allowlist_tests::lab::Ended;
use allowlist_tests::require_root;
use allowlist_tests::vendor::{Answer, Vendor};
use serde_json::json;

use super::talk::{FRAGMENTED, Server, pings};
use super::*;

/// Which of the host's conversations get their answers.
#[derive(Debug, PartialEq, Eq)]
struct Works {
    udp: bool,
    fragments: bool,
    tcp: bool,
    https: bool,
    ping: bool,
}

/// Waits longer for what is expected.
fn works(site: &Site, server: &Server, family: Family, expected: &Works) -> anyhow::Result<Works> {
    let timeout = |is_expected| if is_expected { SOON } else { NEVER };
    Ok(Works {
        udp: server.answers(site, family, 8, timeout(expected.udp))?,
        fragments: server.answers(site, family, FRAGMENTED, timeout(expected.fragments))?,
        tcp: server.accepts(site, family, timeout(expected.tcp))?,
        https: fetches(site, family, timeout(expected.https))?,
        ping: pings(site, family, timeout(expected.ping))?,
    })
}

/// Whether `allowlist fetch` gets a list from an HTTPS server of the peer.
fn fetches(site: &Site, family: Family, timeout: Duration) -> anyhow::Result<bool> {
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
fn check(attach_mode: &str, return_traffic: &str, expected: &Works) {
    let checked = || -> anyhow::Result<()> {
        let site = Site::new()?;
        let server = Server::start(&site)?;
        let lines = format!("return_traffic = '{return_traffic}'");
        let _filter = close(&site, &lines, &["--attach-mode", attach_mode])?;
        for family in FAMILIES {
            let found = works(&site, &server, family, expected)?;
            assert_eq!(found, *expected, "{}", family.peer);
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

const ALL: Works = Works {
    udp: true,
    fragments: true,
    tcp: true,
    https: true,
    ping: true,
};

#[test]
fn tracked_in_native_mode_all_of_it_works() {
    require_root!();
    check("native", "track", &ALL);
}

#[test]
fn tracked_in_generic_mode_all_of_it_works() {
    require_root!();
    check("generic", "track", &ALL);
}

#[test]
fn with_established_only_tcp_works() {
    require_root!();
    let only_tcp = Works {
        udp: false,
        fragments: false,
        ping: false,
        ..ALL
    };
    check("native", "established", &only_tcp);
}

#[test]
fn with_off_nothing_works() {
    require_root!();
    let nothing = Works {
        udp: false,
        fragments: false,
        tcp: false,
        https: false,
        ping: false,
    };
    check("native", "off", &nothing);
}
