//! Reads single interfaces over netlink, in the network namespace of the calling thread. Blocks only on the kernel, and
//! changes only XDP programs ([`Netlink::attach_xdp`]).

mod qdisc;
mod xdp;

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkExtentMask, LinkMessage, LinkXdp, Prop};
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

pub use self::xdp::{Refusal, XdpPlace};
use crate::XdpMode;
use crate::error::{Context as _, Result, bail};
use crate::interface::attached_in;

/// The properties of a network interface at the time of the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The interface index, which is unique only within a network namespace.
    pub index: u32,
    /// The name of the interface.
    pub name: String,
    /// The alternative names of the interface.
    pub other_names: Vec<String>,
    /// The ids of the attached XDP programs, in all modes.
    pub programs: Vec<u32>,
    /// The mode of the attached XDP program; `None` without a program, and with programs in several modes.
    pub xdp_mode: Option<XdpMode>,
}

impl Device {
    /// Returns whether `name` is the name or an alternative name of the interface.
    pub fn is_called(&self, name: &str) -> bool {
        self.name == name || self.other_names.iter().any(|other| other == name)
    }
}

/// A connection to the kernel by the routing netlink protocol (rtnetlink).
pub struct Netlink {
    socket: Socket,
}

impl Netlink {
    /// Opens a connection for the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the process has no descriptor left.
    pub fn open() -> Result<Self> {
        let what = "cannot open a netlink socket";
        let mut socket = Socket::new(NETLINK_ROUTE).context(what)?;
        socket.bind_auto().context(what)?;
        socket.connect(&SocketAddr::new(0, 0)).context(what)?;
        Ok(Self { socket })
    }

    /// Returns the interface with this index, or `None` if there is none.
    ///
    /// # Errors
    /// Fails if the kernel refuses the request for another reason.
    pub fn by_index(&self, index: u32) -> Result<Option<Device>> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.get(message)
            .with_context(|| format!("cannot read the interface with index {index}"))
    }

    fn get(&self, mut message: LinkMessage) -> Result<Option<Device>> {
        message
            .attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let request = RouteNetlinkMessage::GetLink(message);
        match self.exchange(request, NLM_F_REQUEST)?.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                Ok(Some(device(&link)))
            }
            NetlinkPayload::Error(error) => {
                let error = error.to_io();
                match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENODEV) => Ok(None),
                    _ => Err(error.into()),
                }
            }
            other => bail!("unexpected netlink response from the kernel: {other:?}"),
        }
    }

    /// Sends a request, and returns the first message of the answer.
    fn exchange(
        &self,
        request: RouteNetlinkMessage,
        flags: u16,
    ) -> io::Result<NetlinkMessage<RouteNetlinkMessage>> {
        let mut request = NetlinkMessage::from(request);
        request.header.flags = flags;
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _) = self.socket.recv_from_full()?;
        NetlinkMessage::deserialize(&answer).map_err(io::Error::other)
    }
}

fn device(link: &LinkMessage) -> Device {
    let mut device = Device {
        index: link.header.index,
        ..Device::default()
    };
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::PropList(properties) => {
                let names = properties.iter().filter_map(|property| match property {
                    Prop::AltIfName(name) => Some(name.clone()),
                    _ => None,
                });
                device.other_names.extend(names);
            }
            LinkAttribute::Xdp(facts) => {
                for fact in facts {
                    match *fact {
                        LinkXdp::ProgId(id)
                        | LinkXdp::DrvProgId(id)
                        | LinkXdp::SkbProgId(id)
                        | LinkXdp::HwProgId(id)
                            if id != 0 && !device.programs.contains(&id) =>
                        {
                            device.programs.push(id);
                        }
                        LinkXdp::Attached(mode) => device.xdp_mode = attached_in(mode),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    device
}

/// Returns the index of the interface with this name or alternative name; `None` if there is none.
pub fn index_of(name: &str) -> Option<u32> {
    if_nametoindex(name).ok()
}

/// The identity of a network namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// The cookie, which is unique until the host reboots.
    pub cookie: u64,
    /// The inode number, as in the output of `lsns -t net` and in `/proc/PID/ns/net`.
    pub inode: u32,
}

impl Namespace {
    /// Returns the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails if the process has no descriptor left, or `/proc` is not mounted.
    pub fn current() -> Result<Self> {
        let inode = fs::metadata("/proc/thread-self/ns/net")
            .context("cannot read the network namespace of this process from /proc")?
            .ino();
        let socket = Socket::new(NETLINK_ROUTE).context("cannot open a netlink socket")?;
        let mut cookie = 0_u64;
        let mut length = size_of::<u64>() as libc::socklen_t;
        #[expect(unsafe_code, reason = "a system call that writes to `cookie`")]
        // SAFETY: the option is 8 bytes long, as `length` states, and `cookie` has room for them.
        let done = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        Errno::result(done).context("cannot read the cookie of the network namespace")?;
        Ok(Self {
            cookie,
            inode: inode as u32,
        })
    }
}
