//! IP protocols by number and by name: `"ip/112"`, `"ip/vrrp"`, `"vrrp"`.
//!
//! The names are a table here rather than `/etc/protocols`, so that a configuration has the same meaning on all hosts.
//! Names are case-insensitive.

/// The names and numbers of IP protocols, sorted by number: IANA's names in lower case, and those of `/etc/protocols`
/// and other tools.
const NAMES: [(&str, u8); 80] = [
    ("hopopt", 0),
    ("icmp", 1),
    ("igmp", 2),
    ("ggp", 3),
    ("ipencap", 4),
    ("ip-encap", 4),
    ("ipv4", 4),
    ("st", 5),
    ("tcp", 6),
    ("egp", 8),
    ("igp", 9),
    ("igrp", 9),
    ("pup", 12),
    ("udp", 17),
    ("hmp", 20),
    ("xns-idp", 22),
    ("rdp", 27),
    ("iso-tp4", 29),
    ("dccp", 33),
    ("xtp", 36),
    ("ddp", 37),
    ("idpr-cmtp", 38),
    ("ipv6", 41),
    ("ipv6-route", 43),
    ("ipv6-frag", 44),
    ("idrp", 45),
    ("rsvp", 46),
    ("gre", 47),
    ("esp", 50),
    ("ipsec-esp", 50),
    ("ah", 51),
    ("ipsec-ah", 51),
    ("skip", 57),
    ("ipv6-icmp", 58),
    ("icmpv6", 58),
    ("icmp6", 58),
    ("ipv6-nonxt", 59),
    ("ipv6-opts", 60),
    ("rspf", 73),
    ("cphb", 73),
    ("vmtp", 81),
    ("eigrp", 88),
    ("ospf", 89),
    ("ospfigp", 89),
    ("ax.25", 93),
    ("ipip", 94),
    ("etherip", 97),
    ("encap", 98),
    ("pim", 103),
    ("ipcomp", 108),
    ("snp", 109),
    ("ipx-in-ip", 111),
    ("vrrp", 112),
    ("carp", 112),
    ("pgm", 113),
    ("l2tp", 115),
    ("ddx", 116),
    ("stp", 118),
    ("srp", 119),
    ("uti", 120),
    ("smp", 121),
    ("ptp", 123),
    ("isis", 124),
    ("fire", 125),
    ("crtp", 126),
    ("crudp", 127),
    ("sps", 130),
    ("pipe", 131),
    ("sctp", 132),
    ("fc", 133),
    ("rsvp-e2e-ignore", 134),
    ("mobility-header", 135),
    ("udplite", 136),
    ("mpls-in-ip", 137),
    ("manet", 138),
    ("hip", 139),
    ("shim6", 140),
    ("wesp", 141),
    ("rohc", 142),
    ("ethernet", 143),
];

/// Returns the number of the IP protocol named `name` (case-insensitive), or `None` for an unknown name.
pub(super) fn named(name: &str) -> Option<u8> {
    let mut names = NAMES.iter();
    let found = names.find(|(known, _)| known.eq_ignore_ascii_case(name));
    found.map(|(_, number)| *number)
}

/// Parses the number or the name of an IP protocol. The error is text for the user that says what to write instead.
pub(super) fn parse(text: &str) -> Result<u8, String> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let known = if is_number {
        text.parse().ok()
    } else {
        named(text)
    };
    known.ok_or_else(|| {
        let near = if is_number { None } else { nearest(text) };
        let instead = near.map_or_else(
            || "write its number from 0 to 255, such as \"ip/112\", or its name, such as \"ip/vrrp\"".to_owned(),
            |near| format!("did you mean \"ip/{near}\"?"),
        );
        format!("{text:?} is not an IP protocol; {instead}")
    })
}

/// Returns the known protocol name that is most similar to `name`, or `None` if none is similar enough to suggest it.
pub(super) fn nearest(name: &str) -> Option<&'static str> {
    /// The Jaro-Winkler similarity (0 to 1) from which a name counts as a misspelling of a known one.
    const ALIKE: f64 = 0.8;
    let name = name.to_ascii_lowercase();
    let likeness = |known: &str| strsim::jaro_winkler(&name, known);
    let names = NAMES.iter().map(|(known, _)| *known);
    let best = names.max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(best) > ALIKE).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_in_order() {
        assert!(NAMES.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        for (name, number) in NAMES {
            assert_eq!(named(name), Some(number), "{name}");
            assert_eq!(named(&name.to_ascii_uppercase()), Some(number), "{name}");
            assert_eq!(name, name.to_ascii_lowercase());
        }
    }

    #[test]
    fn numbers_and_names() {
        for (text, number) in [
            ("0", 0),
            ("112", 112),
            ("255", 255),
            ("vrrp", 112),
            ("VRRP", 112),
            ("OSPFIGP", 89),
            ("IPv6-ICMP", 58),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        let invalid = [
            "256",
            "99999999999",
            "-1",
            "+7",
            "",
            "47-50",
            "vrpp",
            "ospf2",
        ];
        let errors = invalid.map(|text| parse(text).expect_err(text));
        expect_test::expect![[r#"
            "256" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "99999999999" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "-1" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "+7" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "47-50" is not an IP protocol; write its number from 0 to 255, such as "ip/112", or its name, such as "ip/vrrp"
            "vrpp" is not an IP protocol; did you mean "ip/vrrp"?
            "ospf2" is not an IP protocol; did you mean "ip/ospf"?"#]].assert_eq(&errors.join("\n"));
    }
}
