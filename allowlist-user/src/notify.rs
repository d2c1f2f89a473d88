//! What a service manager is told: ready, reloading, stopping, still alive (the protocol of `sd_notify`).
//!
//! Invariants: without a service manager nothing happens; what cannot be told is no reason to stop or to wait
//! long, since the filter does not depend on who looks after it. Does not know when any of it is true.

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

/// What names the service manager's socket. Who starts other programs removes it from their environment, for
/// they are not the service.
pub const SOCKET: &str = "NOTIFY_SOCKET";

/// How long a service manager that does not read may hold up who tells it.
const PATIENCE: Duration = Duration::from_millis(500);

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notify {
    manager: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the service manager set the environment of this process.
    pub fn from_environment() -> Self {
        Self::to(env::var_os(SOCKET), sd_notify::watchdog_enabled())
    }

    fn to(socket: Option<OsString>, limit: Option<Duration>) -> Self {
        let open = |name: OsString| {
            let opened = open(&name);
            opened
                .inspect_err(|error| debug!("{SOCKET}={}: {error}", name.display()))
                .ok()
        };
        Self {
            manager: socket.filter(|name| !name.is_empty()).and_then(open),
            watchdog: limit.map(|limit| limit / 2).filter(|half| !half.is_zero()),
        }
    }

    /// How often to call [`alive`](Self::alive): twice in the time after which the service manager acts. None
    /// where it does not watch this process.
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The start, or a reload, is done.
    pub fn ready(&self, status: &str) {
        self.tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
    }

    /// What to show beside the service's name.
    pub fn status(&self, status: &str) {
        self.tell(&[NotifyState::Status(&one_line(status))]);
    }

    /// A reload begins. [`ready`](Self::ready) ends it, whether anything changed or not.
    pub fn reloading(&self) {
        // The time tells this reload from one before; systemd 253 and later take none without it.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => self.tell(&[NotifyState::Reloading, now]),
            Err(error) => debug!("the service manager is not told of a reload: {error}"),
        }
    }

    /// The end begins.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping]);
    }

    /// The loop still turns.
    pub fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, states: &[NotifyState]) {
        let Some((socket, address)) = &self.manager else {
            return;
        };
        let mut message = String::new();
        for state in states {
            writeln!(message, "{state}").expect("a string takes all");
        }
        // To its name each time: a service manager that was started anew has another socket there.
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            debug!("the service manager is not told {message:?}: {error}");
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("is neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(PATIENCE))?;
    Ok((socket, address))
}

/// A line break would begin another assignment.
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

    /// Each call is one datagram, and what it says is exactly this.
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
        // It starts anew: the same name, another socket.
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
            "@nobody-has-this",
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
        // Fills its queue, so that the next would wait for it for ever.
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
        // A timer without a length would turn for ever.
        assert_eq!(half(0), None);
        assert_eq!(Notify::to(None, None).watchdog(), None);
    }
}
