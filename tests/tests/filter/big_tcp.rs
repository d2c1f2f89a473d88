//! Packets that are longer than their length field can state (BIG TCP). A veth passes on packets that the sender has not
//! split, so generic mode gets these packets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use allowlist_tests::lab::{Tap, set_packet_limit};

use super::*;

/// More than 64 KiB, and small enough for a frame with fragments: a linear buffer of this size would need contiguous
/// memory.
const LIMIT: u32 = 72_000;
/// Enough data for the sender's window to exceed the limit.
const BYTES: usize = 48 << 20;
/// The length at which a [`Tap`] truncates frames, which is longer than any length field can state.
const CUT: usize = 1 << 16;

fn filter(testbed: &Testbed, attach_mode: &str) -> anyhow::Result<Program> {
    for namespace in [&testbed.host, &testbed.peer] {
        set_packet_limit(namespace, "eth0", LIMIT)?;
    }
    testbed.filter(&[
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

/// Transfers data from the peer to the host.
fn transfer(testbed: &Testbed, to: SocketAddr) -> anyhow::Result<()> {
    let listener = testbed.host.run(|| TcpListener::bind(to))?;
    let mut client = testbed.peer.run(|| TcpStream::connect(to))?;
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
    let testbed = Testbed::new()?;
    let filter = filter(&testbed, "generic")?;
    for to in ["198.51.100.1:443", "[2001:db8:1::1]:443"] {
        let tap = Tap::new(&testbed.peer)?;
        transfer(&testbed, to.parse()?).context(to)?;
        tap.next(|frame| frame.len() == CUT)
            .with_context(|| format!("{to}: no packet was merged"))?;
        let counted = testbed.counted("eth0")?;
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

/// Native mode runs before packets are merged, so there is no warning.
#[test]
fn native_mode_has_no_warning_about_merging() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let filter = filter(&testbed, "native")?;
    assert!(
        !filter.stderr().contains("[merged-packets]"),
        "{}",
        filter.output()
    );
    Ok(())
}
