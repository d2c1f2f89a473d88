//! Notifications for a service manager: ready, reloading, stopping, alive (the protocol of `sd_notify(3)`).
//!
//! Invariants: without a service manager nothing happens; a notification that cannot be sent neither stops nor
//! delays the daemon. Does not know when the states are reached.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use log::debug;
use sd_notify::NotifyState;

/// The environment variable that names the service manager's socket. It is removed from the environment of child
/// processes, which are not the service.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// The time limit for a message to a service manager that does not read its socket.
const PATIENCE: Duration = Duration::from_millis(500);

/// The connection to the service manager, if there is a service manager.
#[derive(Debug)]
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// Returns a connection to the service manager that the environment of this process names, if any.
    pub fn from_environment() -> Self {
        Self::to(env::var_os(SOCKET), sd_notify::watchdog_enabled())
    }

    fn to(socket: Option<OsString>, limit: Option<Duration>) -> Self {
        let open = |name: OsString| {
            let opened = open(&name);
            opened
                .inspect_err(|error| {
                    debug!(
                        "cannot use the service manager's socket {SOCKET}={}: {error}",
                        name.display()
                    );
                })
                .ok()
        };
        Self {
            manager: socket.filter(|name| !name.is_empty()).and_then(open),
            watchdog: limit.map(|limit| limit / 2).filter(|half| !half.is_zero()),
        }
    }

    /// Returns the interval at which to call [`alive`](Self::alive): half of the watchdog's time limit. `None` without
    /// a watchdog.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Reports to the service manager that the start, or a reload, has ended. `status` is the new status text.
    pub fn ready(&self, status: &str) {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// Sets the status text that the service manager shows for the service.
    pub fn status(&self, status: &str) {
        self.send(&[NotifyState::Status(&one_line(status))]);
    }

    /// Reports to the service manager that a reload begins. [`ready`](Self::ready) ends the reload, whether anything
    /// changed or not.
    pub fn reloading(&self) {
        // The time identifies this reload; systemd 253 and later require it.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.send(&[NotifyState::Reloading, now]),
            Err(error) => debug!("cannot notify the service manager of a reload: {error}"),
        }
    }

    /// Reports to the service manager that the daemon stops.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping]);
    }

    /// Reports to the service manager's watchdog that the event loop still runs.
    pub fn alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState]) {
        let Some((socket, address)) = &self.manager else {
            return;
        };
        let mut message = String::new();
        for state in states {
            writeln!(message, "{state}").expect("a string takes any text");
        }
        // By its path each time: a service manager that was restarted has another socket there.
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            debug!("cannot send {message:?} to the service manager: {error}");
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => {
            return Err(io::Error::other(
                "the address of the socket is neither a path nor an abstract name",
            ));
        }
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// Returns the text without line breaks, since a line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.split(['\r', '\n']).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = manager.recv(&mut bytes).expect("something was sent");
        String::from_utf8(bytes[..length].to_vec()).expect("it is text")
    }

    /// Checks that each call sends exactly one datagram with the expected text to `manager`.
    fn check(notify: &Notify, manager: &UnixDatagram) {
        type Call = fn(&Notify);
        manager
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let table: [(Call, &str); 5] = [
            (
                |n| n.ready("filtering eth0\nREADY=0"),
                "READY=1\nSTATUS=filtering eth0 READY=0\n",
            ),
            (|n| n.status("7 prefixes"), "STATUS=7 prefixes\n"),
            (Notify::alive, "WATCHDOG=1\n"),
            (Notify::stopping, "STOPPING=1\n"),
            (Notify::reloading, "RELOADING=1\nMONOTONIC_USEC="),
        ];
        for (call, expected) in table {
            call(notify);
            let found = received(manager);
            match found.strip_prefix(expected) {
                Some("") => {}
                Some(rest) => {
                    let time = rest.trim_end().parse::<u64>();
                    assert!(expected.ends_with('=') && time.is_ok(), "{found:?}");
                }
                None => panic!("{found:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn a_service_manager_at_a_path_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(Some(path.clone().into()), None);
        check(&notify, &manager);
        // A restart: the same path, another socket.
        drop(manager);
        notify.alive();
        std::fs::remove_file(&path).unwrap();
        check(&notify, &UnixDatagram::bind(&path).unwrap());
    }

    #[test]
    fn a_service_manager_with_an_abstract_name_is_told() {
        let name = format!("allowlist-notify-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&address).unwrap();
        check(&Notify::to(Some(format!("@{name}").into()), None), &manager);
    }

    #[test]
    fn nobody_to_tell_is_fine() {
        for name in [
            "",
            "relative",
            "vsock:2:1",
            "/nowhere/at/all",
            "@no-such-socket",
        ] {
            let notify = Notify::to(Some(name.into()), None);
            notify.ready("filtering");
            notify.reloading();
            notify.stopping();
        }
        Notify::to(None, None).alive();
    }

    #[test]
    fn one_that_does_not_read_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notify = Notify::to(Some(path.into()), None);
        // Fills the queue of the socket, so that the next datagram would block.
        let (socket, address) = notify.manager.as_ref().unwrap();
        socket.set_nonblocking(true).unwrap();
        while socket.send_to_addr(b"WATCHDOG=1\n", address).is_ok() {}
        socket.set_nonblocking(false).unwrap();
        notify.alive();
        drop(manager);
    }

    #[test]
    fn a_watchdog_is_fed_twice_in_its_time() {
        let half = |micros| Notify::to(None, Some(Duration::from_micros(micros))).watchdog();
        assert_eq!(half(30_000_000), Some(Duration::from_secs(15)));
        // A timer with an interval of zero would spin.
        assert_eq!(half(0), None);
        assert_eq!(Notify::to(None, None).watchdog(), None);
    }
}
