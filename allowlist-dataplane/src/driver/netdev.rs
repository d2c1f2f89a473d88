//! Reads the XDP features of a driver by the generic netlink family `netdev` (Linux 6.3).

use ethtool::EthtoolHandle;
use futures_util::StreamExt as _;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _,
    NlasIterator, Parseable as _, ParseableParametrized,
};

use super::XdpFeatures;

/// `NETDEV_CMD_DEV_GET` of the kernel's `linux/netdev.h`, and the attributes of its request and answer.
const DEV_GET: u8 = 1;
const INDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;

/// A request or an answer of the generic netlink family `netdev`, as a list of attributes.
#[derive(Clone, Debug)]
struct Netdev(Vec<DefaultNla>);

impl GenlFamily for Netdev {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Netdev {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Netdev {
    fn parse_with_param(buffer: &[u8], _: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(buffer).map(|one| DefaultNla::parse(&one?));
        Ok(Self(attributes.collect::<Result<_, _>>()?))
    }
}

/// Returns the XDP features of an interface, or `None` on a kernel that does not report them.
pub(super) async fn xdp_features(netlink: &mut EthtoolHandle, index: u32) -> Option<XdpFeatures> {
    let attributes = vec![DefaultNla::new(INDEX, index.to_ne_bytes().to_vec())];
    let mut request = NetlinkMessage::from(GenlMessage::from_payload(Netdev(attributes)));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = netlink.handle.request(request).await.ok()?;
    let NetlinkPayload::InnerMessage(answer) = answers.next().await?.ok()?.payload else {
        return None;
    };
    answer.payload.features()
}

impl Netdev {
    fn features(&self) -> Option<XdpFeatures> {
        let mut attributes = self.0.iter();
        let features = attributes.find(|one| one.kind() == XDP_FEATURES)?;
        let mut bytes = [0; 8];
        if features.value_len() != bytes.len() {
            return None;
        }
        features.emit_value(&mut bytes);
        Some(XdpFeatures(u64::from_ne_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_read_from_an_answer() {
        let header = GenlHeader {
            cmd: DEV_GET,
            version: 1,
        };
        let features = DefaultNla::new(XDP_FEATURES, 0x23_u64.to_ne_bytes().to_vec());
        let short = DefaultNla::new(XDP_FEATURES, vec![0x23; 4]);
        let index = DefaultNla::new(INDEX, vec![7, 0, 0, 0]);
        for (attributes, expected) in [
            (vec![index.clone(), features], Some(XdpFeatures(0x23))),
            (vec![index, short], None),
            (vec![], None),
        ] {
            let sent = Netdev(attributes);
            let mut bytes = vec![0; sent.buffer_len()];
            sent.emit(&mut bytes);
            let read = Netdev::parse_with_param(&bytes, header).expect("is a message");
            assert_eq!(read.features(), expected);
        }
        assert!(Netdev::parse_with_param(&[0xff; 6], header).is_err());
    }
}
