//! Reads the queueing discipline at the clsact and ingress hook of an interface.

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_ECHO, NLM_F_REQUEST, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};

use super::Netlink;
use crate::error::{Context as _, Result, bail};

impl Netlink {
    /// Returns the kind of the queueing discipline at an interface's ingress hook; `None` if there is none.
    ///
    /// The kind is `clsact` or `ingress`.
    pub fn ingress_qdisc(&self, index: u32) -> Result<Option<String>> {
        let mut message = TcMessage::default();
        message.header.index = index.cast_signed();
        message.header.parent = TcHandle::INGRESS;
        let request = RouteNetlinkMessage::GetQueueDiscipline(message);
        let what =
            || format!("cannot read the queueing disciplines of the interface with index {index}");
        // Without the echo flag, the kernel sends the answer only to multicast subscribers.
        let answer = self
            .exchange(request, NLM_F_REQUEST | NLM_F_ECHO)
            .with_context(what)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewQueueDiscipline(found)) => {
                Ok(found.attributes.into_iter().find_map(|one| match one {
                    TcAttribute::Kind(kind) => Some(kind),
                    _ => None,
                }))
            }
            NetlinkPayload::Error(error) => {
                let error = error.to_io();
                match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::ENOENT) => Ok(None),
                    _ => Err(error).with_context(what),
                }
            }
            other => bail!("unexpected netlink response from the kernel: {other:?}"),
        }
    }
}
