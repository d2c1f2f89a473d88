//! The question of `allowlist explain --to`: may a program of this host connect to a destination? Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use allowlist_policy::explain::{Target, Typed};

use crate::config::{check_unit, parse_host_name};

/// A question about the calls of this host's programs to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallQuestion {
    /// The destination.
    pub to: Destination,
    /// The target at the destination; `None` for all targets.
    pub target: Option<Target>,
    /// The unit of the program, or the path of its cgroup, as in rules; `None` for a program in no unit that a rule names.
    pub unit: Option<String>,
}

/// The destination of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// An address, as the network sees it.
    Address {
        /// The address.
        address: IpAddr,
        /// The IPv4-mapped form that the user gave; `None` if the user gave the address itself.
        mapped: Option<Ipv6Addr>,
    },
    /// A name in lower case, without a final dot.
    Name(String),
}

impl CallQuestion {
    /// Returns the question with these parts. The error is text for the user that states the remedy.
    pub fn new(
        to: Destination,
        target: Option<Target>,
        unit: Option<String>,
    ) -> Result<Self, String> {
        if let Some(target) = target
            && !matches!(target, Target::Tcp(_) | Target::Udp(_) | Target::Icmp)
        {
            return Err(format!(
                "calls to {target} pass, because the egress policy judges TCP, UDP and ICMP only; use a target such as tcp/443, udp/53 or icmp"
            ));
        }
        // The root is no unit: its programs are in none.
        if let Some(unit) = unit.as_ref().filter(|unit| *unit != "/") {
            check_unit(unit)?;
        }
        Ok(Self { to, target, unit })
    }

    /// Returns the path and query of the API request that sends this question to the daemon.
    pub fn query(&self) -> String {
        const PATH: &str = "explain?";
        let mut query = url::form_urlencoded::Serializer::for_suffix(PATH.to_owned(), PATH.len());
        query.append_pair("to", &self.to.given());
        query.extend_pairs(self.target.map(|target| ("port", target.to_string())));
        query.extend_pairs(self.unit.as_ref().map(|unit| ("unit", unit)));
        query.finish()
    }
}

impl Destination {
    /// Returns the destination as the user gave it.
    fn given(&self) -> String {
        match self {
            Self::Address {
                mapped: Some(mapped),
                ..
            } => mapped.to_string(),
            other => other.to_string(),
        }
    }

    /// Returns the name; `None` for an address.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address { .. } => None,
        }
    }
}

impl FromStr for Destination {
    type Err = String;

    /// Parses an address or a host name. The error is text for the user that states the remedy.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse::<Typed>() {
            Ok(typed) => Ok(Self::Address {
                address: typed.address,
                mapped: typed.instead_of,
            }),
            Err(error) if text.contains(['/', ':', '%', '[']) => Err(error),
            Err(_) if text.starts_with("*.") => Err(format!(
                "{text:?} is a wildcard; write one of the names below it, such as \"a{}\"",
                &text[1..]
            )),
            Err(_)
                if text
                    .bytes()
                    .all(|byte| byte.is_ascii_digit() || byte == b'.') =>
            {
                Err(format!(
                    "{text:?} is not an address; write one such as \"203.0.113.9\", or a name"
                ))
            }
            Err(_) => parse_host_name(text).map(Self::Name),
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { address, .. } => address.fmt(out),
            Self::Name(name) => out.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn destinations() {
        for (text, expected) in [
            ("203.0.113.9", "203.0.113.9"),
            ("::ffff:203.0.113.9", "203.0.113.9"),
            ("[2001:DB8::9]", "2001:db8::9"),
            ("fe80::1%eth0", "fe80::1"),
            ("Events.Example.COM.", "events.example.com"),
        ] {
            let to: Destination = text.parse().expect(text);
            assert_eq!(to.to_string(), expected, "{text}");
            assert_eq!(to.given().parse(), Ok(to), "{text}");
        }
        let errors = [
            "203.0.113.0/24",
            "203.0.113.9:443",
            "203.0.113.256",
            "*.example.com",
            "localhost",
            "https://example.com",
            "ex ample.com",
            "",
        ]
        .map(|text| text.parse::<Destination>().expect_err(text));
        expect![[r#"
            "203.0.113.0/24" is a prefix; use one address, such as "203.0.113.0"
            "203.0.113.9:443" has a port; write "203.0.113.9", and use --port for the destination port
            "203.0.113.256" is not an address; write one such as "203.0.113.9", or a name
            "*.example.com" is a wildcard; write one of the names below it, such as "a.example.com"
            "localhost" is not a full host name; write one such as "egress.example.com"
            "https://example.com" is not an address; write one such as "203.0.113.9" or "2001:db8::9"
            "ex ample.com" is not a full host name; write one such as "egress.example.com"
            "" is not an address; write one such as "203.0.113.9", or a name"#]].assert_eq(&errors.join("\n"));
    }

    #[test]
    fn questions() {
        let to = || "a.example.com".parse().expect("a name");
        let question = |target: Option<&str>, unit: Option<&str>| {
            let target = target.map(|text| text.parse().expect("a target"));
            CallQuestion::new(to(), target, unit.map(str::to_owned))
        };
        let asked = question(Some("udp/443"), Some("/a.slice/x y&z.service"));
        assert_eq!(
            asked.map(|asked| asked.query()),
            Ok(
                "explain?to=a.example.com&port=udp%2F443&unit=%2Fa.slice%2Fx+y%26z.service"
                    .to_owned()
            )
        );
        assert_eq!(
            question(None, Some("/")).map(|asked| asked.query()),
            Ok("explain?to=a.example.com&unit=%2F".to_owned())
        );
        let errors = [
            question(Some("sctp/443"), None),
            question(Some("ip/47"), None),
            question(None, Some("alertd")),
            question(None, Some("alertd.timer")),
        ];
        let errors = errors.map(|asked| asked.expect_err("it is invalid"));
        expect![[r#"
            calls to sctp/443 pass, because the egress policy judges TCP, UDP and ICMP only; use a target such as tcp/443, udp/53 or icmp
            calls to ip/47 pass, because the egress policy judges TCP, UDP and ICMP only; use a target such as tcp/443, udp/53 or icmp
            "alertd" is not the full name of a unit; write its type too, such as "alertd.service"
            "alertd.timer" is a timer unit, which has no programs; write the unit of the programs, such as "alertd.service""#]].assert_eq(&errors.join("\n"));
    }
}
