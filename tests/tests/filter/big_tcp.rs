//! Packets that are longer than their length field can state (BIG TCP). Generic mode sees them as they are, since a
//! veth passes on packets that the sender has not split.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use allowlist_tests::lab::{Tap, set_packet_limit};

use super::*;

/// More than 64 KiB, and no more than the kernel gives to a program in pieces: one piece of this size would take
/// memory that is in one piece.
const LIMIT: u32 = 72_000;
/// Enough for the sender's window to grow past the limit.
const BYTES: usize = 48 << 20;
/// As long as a frame that a [`Tap`] cuts, and longer than any that a length field can state.
const CUT: usize = 1 << 16;

fn filter(site: &Testbed, attach_mode: &str) -> anyhow::Result<Program> {
    for namespace in [&site.host, &site.peer] {
        set_packet_limit(namespace, "eth0", LIMIT)?;
    }
    site.filter(&[
        "--iface",
        "eth0",
        "--allow",
        "198.51.100.2",
        "--allow",
        "2001:db8:1::2",
        "--port",
        "tcp/443",
        "--attach-mode",
        attach_mode,
    ])
}

/// From the peer to the host.
fn transfer(site: &Testbed, to: SocketAddr) -> anyhow::Result<()> {
    let listener = site.host.run(|| TcpListener::bind(to))?;
    let mut client = site.peer.run(|| TcpStream::connect(to))?;
    let (mut server, _) = listener.accept()?;
    server.set_read_timeout(Some(SOON))?;
    let sent = thread::spawn(move || client.write_all(&vec![7; BYTES]));
    let mut received = vec![0; BYTES];
    server.read_exact(&mut received)?;
    sent.join().expect("the sender ends")?;
    Ok(())
}

#[test]
fn merged_packets_pass_in_generic_mode() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = filter(&site, "generic")?;
    for to in ["198.51.100.1:443", "[2001:db8:1::1]:443"] {
        let tap = Tap::new(&site.peer)?;
        transfer(&site, to.parse()?).context(to)?;
        tap.next(|frame| frame.len() == CUT)
            .with_context(|| format!("{to}: no packet was merged"))?;
        let counted = site.counted("eth0")?;
        assert_eq!(counted["drop malformed"], Value::Null, "{to}: {counted}");
    }
    let log = filter.stderr();
    let mut warnings = log
        .lines()
        .filter(|line| line.contains("warning[merged-packets]: eth0"));
    let warning = warnings.next().with_context(|| filter.output())?;
    assert!(warning.contains(&LIMIT.to_string()), "{warning}");
    Ok(())
}

/// Before packets are merged there is nothing to warn of.
#[test]
fn native_mode_warns_of_no_merging() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let filter = filter(&site, "native")?;
    assert!(
        !filter.stderr().contains("[merged-packets]"),
        "{}",
        filter.output()
    );
    Ok(())
}
