//! Attaches and detaches an XDP program by a netlink request, and reports the kernel's reason for a refusal.
//!
//! Invariant: a refusal keeps the escaped text of the extended acknowledgement, if the kernel sends one.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use allowlist_policy::text::on_one_line;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_REQUEST, NetlinkPayload, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage, LinkXdp};

use super::Netlink;

/// `XDP_FLAGS_UPDATE_IF_NOEXIST` of the kernel's `linux/if_link.h`: attach only if no program is attached.
const UPDATE_IF_NOEXIST: u32 = 1 << 0;
const REPLACE: u32 = 1 << 4;
/// The value of a descriptor that stands for no program.
const NO_PROGRAM: i32 = -1;
/// The length of the header of the refused request, a `struct nlmsghdr`, in a capped error message.
const REQUEST_HEADER: usize = 16;
/// `NLMSGERR_ATTR_MSG` of the kernel's `linux/netlink.h`.
const MESSAGE_ATTRIBUTE: u16 = 1;

/// The place in the kernel where an XDP program runs, by its `XDP_FLAGS_*_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpPlace {
    /// In the network stack.
    Stack = 1 << 1,
    /// In the driver.
    Driver = 1 << 2,
    /// On the network card.
    Card = 1 << 3,
}

/// A netlink request that the kernel refused, or that could not be sent.
#[derive(Debug)]
pub struct Refusal {
    /// The error number of the refusal, or the error of sending the request.
    pub error: io::Error,
    /// The kernel's reason as text on one line; `None` if the kernel sends none.
    pub reason: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(out, "{reason}: {}", self.error),
            None => self.error.fmt(out),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self {
            error,
            reason: None,
        }
    }
}

impl Netlink {
    /// Attaches an XDP program, without a link, to an interface that has no program in this mode.
    ///
    /// # Errors
    /// Fails with the kernel's reason if the kernel or the driver refuses the program.
    pub fn attach_xdp(
        &self,
        index: u32,
        program: BorrowedFd<'_>,
        place: XdpPlace,
    ) -> Result<(), Refusal> {
        self.set_xdp(
            index,
            vec![
                LinkXdp::Fd(program.as_raw_fd()),
                LinkXdp::Flags(place as u32 | UPDATE_IF_NOEXIST),
            ],
        )
    }

    /// Detaches an XDP program that [`Self::attach_xdp`] attached, and no other program.
    ///
    /// # Errors
    /// Fails if the program is not attached in this mode.
    pub fn detach_xdp(
        &self,
        index: u32,
        program: BorrowedFd<'_>,
        place: XdpPlace,
    ) -> Result<(), Refusal> {
        self.set_xdp(
            index,
            vec![
                LinkXdp::Fd(NO_PROGRAM),
                LinkXdp::Flags(place as u32 | REPLACE),
                LinkXdp::ExpectedFd(program.as_raw_fd().cast_unsigned()),
            ],
        )
    }

    fn set_xdp(&self, index: u32, xdp: Vec<LinkXdp>) -> Result<(), Refusal> {
        // The answer leaves out the refused request, so that the attributes are at a fixed offset.
        self.socket.set_cap_ack(true)?;
        self.socket.set_ext_ack(true)?;
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::Xdp(xdp));
        let request = RouteNetlinkMessage::SetLink(message);
        let answer = self.exchange(request, NLM_F_REQUEST | NLM_F_ACK)?;
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(Refusal {
                error: error.to_io(),
                reason: reason(answer.header.flags, &error.header),
            }),
            other => Err(Refusal::from(io::Error::other(format!(
                "unexpected netlink response from the kernel: {other:?}"
            )))),
        }
    }
}

/// Returns the text of an extended acknowledgement as one line; `None` if it has no text.
///
/// `flags` are the flags of the error message, and `bytes` the bytes after its error number.
fn reason(flags: u16, bytes: &[u8]) -> Option<String> {
    if flags & NLM_F_CAPPED == 0 || flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    let mut attributes = NlasIterator::new(bytes.get(REQUEST_HEADER..)?).map_while(Result::ok);
    let message = attributes.find(|attribute| attribute.kind() == MESSAGE_ATTRIBUTE)?;
    let text = String::from_utf8_lossy(message.value());
    let text = text.trim_end_matches('\0').trim();
    (!text.is_empty()).then(|| on_one_line(text).into_owned())
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::{DefaultNla, Emitable as _};

    use super::*;

    fn answer(attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let attributes: Vec<_> = attributes
            .iter()
            .map(|(kind, value)| DefaultNla::new(*kind, value.to_vec()))
            .collect();
        let attributes = attributes.as_slice();
        let mut bytes = vec![0; REQUEST_HEADER + attributes.buffer_len()];
        attributes.emit(&mut bytes[REQUEST_HEADER..]);
        bytes
    }

    #[test]
    fn reasons_are_the_kernel_text_on_one_line() {
        const BOTH: u16 = NLM_F_CAPPED | NLM_F_ACK_TLVS;
        let offset: (u16, &[u8]) = (2, &[0; 4]);
        for (flags, attributes, expected) in [
            (
                BOTH,
                &[offset, (1, b"veth: too few queues\0")][..],
                Some("veth: too few queues"),
            ),
            (
                BOTH,
                &[(1, b"MTU 9000 not supported.\n\0")],
                Some("MTU 9000 not supported."),
            ),
            (
                BOTH,
                &[(1, b"a\x1b[2J\nok: b\0")],
                Some(r"a\u{1b}[2J\nok: b"),
            ),
            (BOTH, &[(1, b"\xff\0")], Some("\u{fffd}")),
            (BOTH, &[(1, b"\0")], None),
            (BOTH, &[offset], None),
            (BOTH, &[], None),
            (NLM_F_CAPPED, &[(1, b"no attributes\0")], None),
            (NLM_F_ACK_TLVS, &[(1, b"at another place\0")], None),
        ] {
            let found = reason(flags, &answer(attributes));
            assert_eq!(found.as_deref(), expected, "{attributes:?}");
        }
        assert_eq!(reason(BOTH, &[0; 3]), None);
        assert_eq!(reason(BOTH, &[0xff; 40]), None);
    }
}
