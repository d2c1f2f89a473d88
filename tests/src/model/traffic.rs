//! Random frames between a host and remote addresses, in both directions: packets of every kind that the filter
//! distinguishes, answers to sent packets, ICMP errors that quote sent packets, and damaged variants of all these.
//!
//! Each frame depends only on its own seed and on the packets sent before, so a scenario shrinks by removing frames.
//! Frames are written byte by byte; checksums are 0, because the filter ignores them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use allowlist_common::packet::{ICMP, ICMPV6, IGMP, SCTP, TCP, UDP};

use super::policy_strategies::INTERFACES;

/// A frame that is sent or received.
#[derive(Clone)]
pub struct Moment {
    /// The host's interface that sends or receives the frame: one of [`INTERFACES`].
    pub interface: &'static str,
    /// Whether the host sends the frame.
    pub is_sent: bool,
    /// The bytes of the frame.
    pub frame: Vec<u8>,
}

impl fmt::Debug for Moment {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.is_sent { "sends" } else { "receives" };
        write!(out, "{} {verb} ", self.interface)?;
        self.frame
            .iter()
            .try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

/// Generates one frame for each seed, between the host and `remotes`.
pub fn traffic(remotes: &[IpAddr], seeds: &[u64]) -> Vec<Moment> {
    let mut sent = Vec::new();
    let mut moments = Vec::with_capacity(seeds.len());
    for seed in seeds {
        let mut dice = Dice(*seed);
        let interface = dice.pick(&INTERFACES);
        // Often at the start, so that later frames can be answers.
        let is_sent = dice.one_in(if sent.len() < 8 { 2 } else { 8 });
        let frame = if is_sent {
            let packet = outbound(&mut dice, remotes);
            // The flow tracker gets sent frames as one linear buffer, whose size is limited.
            let mut frame = framed(&mut dice, &packet.bytes());
            frame.truncate(ORDINARY);
            if dice.one_in(12) {
                damage(&mut dice, &mut frame, SHORTEST_SENT);
            }
            sent.push(packet);
            frame
        } else {
            inbound(&mut dice, remotes, &sent)
        };
        moments.push(Moment {
            interface,
            is_sent,
            frame,
        });
    }
    moments
}

/// The host's addresses. The third one, of IPv6, begins with the bytes of the first, to detect missing family checks.
const HOSTS: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2)),
    IpAddr::V6(Ipv6Addr::new(0xc633, 0x6401, 0, 0, 0, 0, 0, 0)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 2)),
];

/// Ports of services, adjacent ports, DHCP ports, ephemeral ports, and 0, which no program uses but packets can have.
const PORTS: [u16; 16] = [
    0, 1, 22, 22, 80, 443, 443, 444, 8080, 65535, 67, 68, 546, 547, 40_000, 40_001,
];
const IDENTIFIERS: [u16; 4] = [0, 1, 443, 40_000];
/// SYN, SYN ACK, ACK, RST, FIN ACK, FIN, none, all.
const FLAGS: [u8; 8] = [0x02, 0x12, 0x10, 0x04, 0x11, 0x01, 0x00, 0xff];

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const ESP: u8 = 50;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;

/// A random number generator: `SplitMix64`.
struct Dice(u64);

impl Dice {
    const fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    }

    const fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    const fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    const fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    const fn byte(&mut self) -> u8 {
        self.number() as u8
    }

    /// Picks an address of the host, of the same family as `remote`.
    fn host(&mut self, remote: IpAddr) -> IpAddr {
        let hosts: Vec<IpAddr> = HOSTS
            .into_iter()
            .filter(|host| host.is_ipv4() == remote.is_ipv4())
            .collect();
        self.pick(&hosts)
    }
}

/// A packet before it is written as bytes.
#[derive(Clone)]
struct Draft {
    source: IpAddr,
    destination: IpAddr,
    hops: u8,
    protocol: u8,
    /// The fragment offset in units of 8 bytes, and whether more fragments follow; `None` for a whole packet.
    fragment: Option<(u16, bool)>,
    /// The number of 32-bit words of IPv4 options.
    options: u8,
    /// The IPv6 extension headers; the fields of a fragment header come from `fragment`.
    extensions: Vec<u8>,
    body: Vec<u8>,
}

impl Draft {
    fn new(source: IpAddr, destination: IpAddr, protocol: u8, body: Vec<u8>) -> Self {
        Self {
            source,
            destination,
            hops: 64,
            protocol,
            fragment: None,
            options: 0,
            extensions: Vec::new(),
            body,
        }
    }

    fn bytes(&self) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => self.v4(source, destination),
            (IpAddr::V6(source), IpAddr::V6(destination)) => self.v6(source, destination),
            _ => unreachable!("both addresses are of one family"),
        }
    }

    fn v4(&self, source: Ipv4Addr, destination: Ipv4Addr) -> Vec<u8> {
        let options = usize::from(self.options) * 4;
        let length = (20 + options + self.body.len()) as u16;
        let (offset, more) = self.fragment.unwrap_or((0, false));
        let fragment = offset | u16::from(more) << 13;
        let mut bytes = vec![0x45 + self.options, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([0, 7]);
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([self.hops, self.protocol, 0, 0]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(vec![1; options]);
        bytes.extend(&self.body);
        bytes
    }

    fn v6(&self, source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        let mut kinds = self.extensions.clone();
        if self.fragment.is_some() && !kinds.contains(&FRAGMENT) {
            kinds.push(FRAGMENT);
        }
        let mut chain = Vec::new();
        for (place, kind) in kinds.iter().enumerate() {
            let next = *kinds.get(place + 1).unwrap_or(&self.protocol);
            match *kind {
                FRAGMENT => {
                    let (offset, more) = self.fragment.unwrap_or((0, false));
                    let fragment = offset << 3 | u16::from(more);
                    chain.extend([next, 0]);
                    chain.extend(fragment.to_be_bytes());
                    chain.extend([0, 0, 0, 7]);
                }
                AUTHENTICATION => {
                    chain.extend([next, 1]);
                    chain.extend([0; 10]);
                }
                ROUTING => {
                    chain.extend([next, 1]);
                    chain.extend([0; 14]);
                }
                _ => {
                    chain.extend([next, 0]);
                    chain.extend([0; 6]);
                }
            }
        }
        let length = (chain.len() + self.body.len()) as u16;
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(length.to_be_bytes());
        bytes.extend([kinds.first().copied().unwrap_or(self.protocol), self.hops]);
        bytes.extend(source.octets());
        bytes.extend(destination.octets());
        bytes.extend(chain);
        bytes.extend(&self.body);
        bytes
    }

    /// Returns the 16-bit number at an offset of the body, or 0 behind its end.
    fn number(&self, at: usize) -> u16 {
        match self.body.get(at..at + 2) {
            Some(bytes) => u16::from_be_bytes([bytes[0], bytes[1]]),
            None => 0,
        }
    }
}

fn tcp(source: u16, destination: u16, flags: u8) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    header
}

fn udp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = [source.to_be_bytes(), destination.to_be_bytes()].concat();
    header.extend([0, 8, 0, 0]);
    header
}

fn sctp(source: u16, destination: u16) -> Vec<u8> {
    let mut header = udp(source, destination);
    header.extend([0; 4]);
    header
}

fn icmp(kind: u8, identifier: u16) -> Vec<u8> {
    let [high, low] = identifier.to_be_bytes();
    vec![kind, 0, 0, 0, high, low, 0, 1]
}

/// Returns the ICMP protocol of an address's family.
const fn own_icmp(address: IpAddr) -> u8 {
    if address.is_ipv4() { ICMP } else { ICMPV6 }
}

fn outbound(dice: &mut Dice, remotes: &[IpAddr]) -> Draft {
    let remote = dice.pick(remotes);
    let host = dice.host(remote);
    if dice.one_in(4) {
        let request = if remote.is_ipv4() { 8 } else { 128 };
        let body = icmp(request, dice.pick(&IDENTIFIERS));
        return Draft::new(host, remote, own_icmp(remote), body);
    }
    let mut draft = any_packet(dice, host, remote);
    if dice.one_in(4) {
        elaborate(dice, &mut draft);
    }
    draft
}

fn inbound(dice: &mut Dice, remotes: &[IpAddr], sent: &[Draft]) -> Vec<u8> {
    let remote = dice.pick(remotes);
    let host = dice.host(remote);
    let mut draft = match dice.below(16) {
        0..5 if !sent.is_empty() => answer(dice, remotes, sent),
        5 if !sent.is_empty() => {
            let mut draft = answer(dice, remotes, sent);
            draft.fragment = Some((dice.pick(&[1, 2, 3, 100, 0x1fff]), dice.one_in(2)));
            draft
        }
        6..9 => error(dice, remotes, sent),
        9 => essential_packet(dice, host, remote),
        10 if dice.one_in(2) => {
            let kind = dice.pick(&[0x0806, 0x0806, 0x88cc, 0x0842, 46, 0x8864, 0x86dd, 0x0800]);
            let body: Vec<u8> = (0..46).map(|_| dice.byte()).collect();
            return tagged(dice, kind, &body);
        }
        _ => any_packet(dice, remote, host),
    };
    if dice.one_in(3) {
        elaborate(dice, &mut draft);
    }
    let mut frame = framed(dice, &draft.bytes());
    if dice.one_in(5) {
        damage(dice, &mut frame, SHORTEST_RECEIVED);
    }
    frame
}

fn any_packet(dice: &mut Dice, source: IpAddr, destination: IpAddr) -> Draft {
    let ports = (dice.pick(&PORTS), dice.pick(&PORTS));
    let (protocol, mut body) = match dice.below(16) {
        0..6 => (TCP, tcp(ports.0, ports.1, dice.pick(&FLAGS))),
        6..10 => (UDP, udp(ports.0, ports.1)),
        10 | 11 => (SCTP, sctp(ports.0, ports.1)),
        12 | 13 => {
            let kinds = [
                0, 1, 2, 3, 4, 5, 8, 11, 12, 13, 128, 129, 130, 132, 133, 134, 135, 136, 137, 138,
                139, 143, 255,
            ];
            let protocol = dice.pick(&[own_icmp(source), own_icmp(source), ICMP, ICMPV6]);
            (protocol, icmp(dice.pick(&kinds), dice.pick(&IDENTIFIERS)))
        }
        _ => {
            // Includes the numbers of IPv6 extension headers, which are ordinary protocols in IPv4.
            let protocols = [
                IGMP,
                47,
                ESP,
                59,
                HOP_BY_HOP,
                ROUTING,
                FRAGMENT,
                AUTHENTICATION,
                DESTINATION,
            ];
            (dice.pick(&protocols), vec![1; 8])
        }
    };
    let more = if dice.one_in(64) {
        JUMBO
    } else {
        dice.pick(&[0, 0, 1, 30])
    };
    body.resize(body.len() + more, 0xa5);
    let mut draft = Draft::new(source, destination, protocol, body);
    draft.hops = dice.pick(&[64, 255, 254, 1]);
    draft
}

/// Generates an answer to a sent packet, sometimes with a wrong field.
fn answer(dice: &mut Dice, remotes: &[IpAddr], sent: &[Draft]) -> Draft {
    let sent = &sent[dice.below(sent.len())];
    let (mut from, mut to) = (sent.number(2), sent.number(0));
    let mut draft = Draft::new(sent.destination, sent.source, sent.protocol, Vec::new());
    let mut identifier = sent.number(4);
    match dice.below(12) {
        0 => from = dice.pick(&PORTS),
        1 => {
            to = dice.pick(&PORTS);
            identifier = dice.pick(&IDENTIFIERS);
        }
        2 => {
            draft.source = dice.pick(remotes);
            draft.destination = dice.host(draft.source);
        }
        3 => draft.destination = dice.host(draft.source),
        4 => draft.protocol = dice.pick(&[TCP, UDP, SCTP, ICMP, ICMPV6]),
        _ => {}
    }
    draft.body = match draft.protocol {
        TCP => tcp(from, to, dice.pick(&FLAGS)),
        UDP => udp(from, to),
        SCTP => sctp(from, to),
        ICMP => icmp(dice.pick(&[0, 0, 0, 8, 13]), identifier),
        ICMPV6 => icmp(dice.pick(&[129, 129, 129, 128, 0]), identifier),
        _ => vec![1; 8],
    };
    draft
}

/// Generates an ICMP error that quotes a sent packet, or a packet that a service could have sent.
fn error(dice: &mut Dice, remotes: &[IpAddr], sent: &[Draft]) -> Draft {
    let about = if sent.is_empty() || dice.one_in(2) {
        outbound(dice, remotes)
    } else {
        sent[dice.below(sent.len())].clone()
    };
    let mut about = about;
    if dice.one_in(8) {
        about.fragment = Some((100, false));
    }
    let mut quoted = about.bytes();
    let header = if about.source.is_ipv4() { 20 } else { 40 };
    let lengths = [
        header - 1,
        header,
        header + 7,
        header + 8,
        header + 16,
        500,
        500,
        500,
    ];
    quoted.truncate(dice.pick(&lengths));
    if dice.one_in(8) && !quoted.is_empty() {
        let position = dice.below(quoted.len());
        quoted[position] = dice.byte();
    }
    let routers: Vec<IpAddr> = remotes
        .iter()
        .copied()
        .filter(|remote| remote.is_ipv4() == about.source.is_ipv4())
        .chain([about.destination])
        .collect();
    let kinds: &[u8] = if about.source.is_ipv4() {
        &[3, 3, 11, 12, 4, 5]
    } else {
        &[1, 2, 2, 3, 4, 5]
    };
    let mut body = icmp(dice.pick(kinds), 0);
    body.extend(quoted);
    let host = if dice.one_in(8) {
        dice.host(about.source)
    } else {
        about.source
    };
    Draft::new(dice.pick(&routers), host, own_icmp(host), body)
}

/// Generates a packet that `[keep]` exempts, or a similar one: DHCP, group membership, neighbour discovery.
fn essential_packet(dice: &mut Dice, host: IpAddr, remote: IpAddr) -> Draft {
    let is_v4 = remote.is_ipv4();
    let mut draft = Draft::new(remote, host, IGMP, vec![0x11; 8]);
    match dice.below(3) {
        0 => {
            draft.protocol = UDP;
            let (server, client) = dice.pick(&[(67, 68), (547, 546), (67, 67), (68, 67)]);
            draft.body = udp(server, client);
        }
        1 if is_v4 => draft.hops = dice.pick(&[1, 1, 2, 64]),
        _ => {
            draft.protocol = ICMPV6;
            let kinds = [130, 131, 132, 133, 134, 135, 136, 137, 138, 143, 144];
            let kind = dice.pick(&kinds);
            draft.body = icmp(kind, 0);
            let valid = if (133..=137).contains(&kind) { 255 } else { 1 };
            draft.hops = dice.pick(&[valid, valid, valid, 254, 2]);
        }
    }
    if !is_v4 && dice.one_in(2) {
        let link_addresses: [IpAddr; 4] = [
            [0xfe80, 0, 0, 0, 0, 0, 0, 9].into(),
            [0xfebf, 0, 0, 0, 0, 0, 0, 9].into(),
            [0xfec0, 0, 0, 0, 0, 0, 0, 9].into(),
            [0; 8].into(),
        ];
        draft.source = dice.pick(&link_addresses);
        draft.destination = dice.pick(&link_addresses);
    }
    draft
}

/// Adds options, extension headers or fragmentation.
fn elaborate(dice: &mut Dice, draft: &mut Draft) {
    draft.options = dice.pick(&[0, 0, 1, 5, 10]);
    let count = dice.pick(&[0, 0, 1, 1, 2, 3, 8, 9]);
    let kinds = [HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION];
    draft.extensions = (0..count).map(|_| dice.pick(&kinds)).collect();
    if dice.one_in(3) && draft.fragment.is_none() {
        let offset = dice.pick(&[0, 0, 1, 2, 3, 100]);
        draft.fragment = Some((offset, dice.one_in(2)));
    }
}

/// Writes a packet to a frame, sometimes with VLAN tags and padding.
fn framed(dice: &mut Dice, packet: &[u8]) -> Vec<u8> {
    let kind = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    let mut frame = tagged(dice, kind, packet);
    if dice.one_in(4) {
        frame.resize(frame.len() + dice.below(20), dice.byte());
    }
    frame
}

fn tagged(dice: &mut Dice, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    for _ in 0..dice.pick(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 2, 3]) {
        let tag: u16 = dice.pick(&[0x8100, 0x88a8]);
        frame.extend(tag.to_be_bytes());
        frame.extend([dice.byte(), dice.byte()]);
    }
    frame.extend(kind.to_be_bytes());
    frame.extend(payload);
    frame
}

const ORDINARY: usize = 1500;
/// A length in bytes that exceeds the linear part (first buffer) of a frame on machines with pages of 4 KiB.
const JUMBO: usize = 5000;
/// The minimum length in bytes of a received frame in a test run of the kernel: the Ethernet header.
const SHORTEST_RECEIVED: usize = 14;
/// The minimum length in bytes of a sent frame in a test run of the kernel: with the IP header of its Ethernet type.
const SHORTEST_SENT: usize = 14 + 40;

/// Changes, adds, removes and cuts bytes at random, and pads the frame with zeros to `shortest` bytes.
fn damage(dice: &mut Dice, frame: &mut Vec<u8>, shortest: usize) {
    // Damage could move headers behind the linear part of a longer frame, where they do not occur.
    frame.truncate(ORDINARY);
    for _ in 0..=dice.below(3) {
        // Usually in the headers.
        let end = frame.len().min(dice.pick(&[60, 60, 500]));
        let position = dice.below(end);
        match dice.below(8) {
            0..3 => frame[position] = dice.byte(),
            3 | 4 => frame[position] ^= 1 << dice.below(8),
            5 => frame.insert(position, dice.byte()),
            6 => {
                frame.remove(position);
            }
            _ => frame.truncate(position),
        }
        if frame.len() < shortest {
            frame.resize(shortest, 0);
        }
    }
}
