//! Judged calls of programs, one line each, as text or JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use allowlist_common::abi::EgressEvent;
use allowlist_common::egress::{Call, EgressReason, transport, unmapped};
use allowlist_common::packet::{Address, SCTP, TCP, UDP};
use allowlist_common::verdict::Verdict;
use allowlist_policy::compile::IdTable;
use nix::unistd::{Uid, User};
use serde_json::{Value, json};

use super::egress::word;
use super::event::{Epoch, protocol};
use super::repeats::SeenRepeats;

/// The names of the rules and sources behind the ids in events of judged calls.
#[derive(Debug, Default)]
pub struct CallNames(IdTable);

impl CallNames {
    /// Returns the names in the tables of the egress policy's ids.
    pub const fn new(ids: IdTable) -> Self {
        Self(ids)
    }

    /// Returns the names of the rules that cover the port of a call.
    fn rules(&self, event: &EgressEvent) -> BTreeSet<&str> {
        let sets = event.rules.into_iter();
        let names = sets.filter_map(|id| self.0.services.get(usize::from(id)));
        names.flatten().map(String::as_str).collect()
    }

    /// Returns the names of the sources that list the destination of an allowed call.
    fn sources(&self, event: &EgressEvent) -> &[String] {
        let names = self.0.matches.get(event.match_id as usize);
        names.map_or(&[], Vec::as_slice)
    }
}

/// The names of the unit and the user of a calling program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The path of the program's cgroup below the root of cgroup v2; `None` if the cgroup is gone.
    pub unit: Option<String>,
    /// The name of the user on this host; `None` if the user has none.
    pub user: Option<String>,
}

/// The maximum number of users whose names are kept.
const MAX_USERS: usize = 4096;

/// The names of users by their ids. Each is looked up once, since a lookup may be a request to a directory server.
#[derive(Debug, Default)]
pub struct Users(BTreeMap<u32, Option<String>>);

impl Users {
    /// Returns the name of a user on this host; `None` if the user has none.
    pub fn get(&mut self, id: u32) -> Option<String> {
        if self.0.len() >= MAX_USERS {
            self.0.clear();
        }
        let look_up = || Some(User::from_uid(Uid::from_raw(id)).ok()??.name);
        self.0.entry(id).or_insert_with(look_up).clone()
    }
}

/// Returns a call as text of one line, without a line break.
pub fn call_text(event: &EgressEvent, caller: &Caller, names: &CallNames, epoch: Epoch) -> String {
    let program = format!("{}[{}]", command(event), event.process);
    let why = why(event, names);
    format!("{}: {why}", line(event, &program, caller, epoch))
}

/// Returns a sum of equal calls as text of one line, without a line break.
pub fn repeats_text(sum: &SeenRepeats, epoch: Epoch) -> String {
    let program = command(&sum.last);
    let line = line(&sum.last, &program, &sum.caller, epoch);
    let period = if sum.is_minute {
        " in the last minute"
    } else {
        ""
    };
    format!("{line}: {} more{period}", sum.more)
}

/// Returns the line about calls without an event.
pub fn suppressed_calls_text(more: u64) -> String {
    format!("{more} more calls are not shown, since the rate of this output is limited")
}

/// Returns a call as JSON.
pub fn call_json(event: &EgressEvent, caller: &Caller, names: &CallNames, epoch: Epoch) -> Value {
    let call = Call::ALL.get(usize::from(event.call));
    let verdict = if event.is_refused() {
        Verdict::Drop
    } else {
        Verdict::Pass
    };
    json!({
        "time": epoch.time(event.time),
        "program": command(event),
        "process": event.process,
        "unit": caller.unit,
        "cgroup": event.cgroup,
        "user": caller.user,
        "user_id": event.user,
        "destination": destination(event),
        "destination_port": has_port(event).then_some(event.port),
        "protocol": protocol(wire_protocol(event)),
        "call": call.map(|call| call.name()),
        "verdict": word(verdict),
        "mode": if event.observe == 0 { "enforce" } else { "observe" },
        "reason": reason(event).map_or("unknown", EgressReason::name),
        "rules": names.rules(event),
        "sources": names.sources(event),
    })
}

/// Returns the time, verdict, program and destination of a call; `program` is the display form of the program.
fn line(event: &EgressEvent, program: &str, caller: &Caller, epoch: Epoch) -> String {
    let verb = match (event.is_refused(), event.observe) {
        (false, _) => "passed",
        (true, 0) => "refused",
        (true, _) => "would refuse",
    };
    let unit = caller.unit.clone();
    let unit = unit.unwrap_or_else(|| format!("cgroup {} (gone)", event.cgroup));
    let user = caller.user.clone();
    let user = user.unwrap_or_else(|| event.user.to_string());
    let mut protocol = protocol(wire_protocol(event));
    if has_port(event) {
        protocol += &format!("/{}", event.port);
    }
    let probe = if event.is_probe() { " (probe)" } else { "" };
    format!(
        "{:.3} {verb} {program} {unit} user {user} -> {} {protocol}{probe}",
        epoch.time(event.time),
        destination(event),
    )
}

/// Returns the reason for the verdict on a call, for people.
fn why(event: &EgressEvent, names: &CallNames) -> String {
    let rules: Vec<&str> = names.rules(event).into_iter().collect();
    let reason = reason(event);
    let no_rule = match rules.as_slice() {
        [] => "no rule covers the port".to_owned(),
        [rule] => format!("rule {rule} does not list the address"),
        rules => format!("rules {} do not list the address", rules.join(", ")),
    };
    match reason {
        Some(EgressReason::Default) if event.is_refused() => no_rule,
        Some(EgressReason::ClosedRange) => format!("{no_rule} (closed range)"),
        Some(EgressReason::Allowed) => {
            format!("allowed by source {}", names.sources(event).join(", "))
        }
        reason => reason.map_or("unknown", EgressReason::name).to_owned(),
    }
}

fn reason(event: &EgressEvent) -> Option<EgressReason> {
    EgressReason::ALL.get(usize::from(event.reason)).copied()
}

/// Returns the command name of the program, without the zeros behind it.
fn command(event: &EgressEvent) -> String {
    let bytes = event.command.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(bytes.unwrap_or_default()).into_owned()
}

fn destination(event: &EgressEvent) -> IpAddr {
    unmapped(Address::V6(event.destination)).into()
}

/// Returns the protocol on the wire, by which rules cover the call.
fn wire_protocol(event: &EgressEvent) -> u8 {
    transport(event.protocol.into())
}

fn has_port(event: &EgressEvent) -> bool {
    matches!(wire_protocol(event), TCP | UDP | SCTP)
}

#[cfg(test)]
mod tests {
    use allowlist_common::egress::{MPTCP, UDP_LITE, address_key};
    use allowlist_common::packet::ICMP;
    use jiff::Timestamp;
    use std::time::Duration;

    use super::*;

    const EPOCH: fn() -> Epoch = || Epoch::new(Timestamp::UNIX_EPOCH, Duration::ZERO);

    fn names() -> CallNames {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        CallNames::new(IdTable {
            matches: vec![names(&[]), names(&["mirror"])],
            services: vec![names(&[]), names(&["updates"]), names(&["a", "b"])],
            ..IdTable::default()
        })
    }

    fn event(destination: &str) -> EgressEvent {
        let destination: IpAddr = destination.parse().expect("an address");
        EgressEvent {
            time: 1_234_567_890,
            cgroup: 4242,
            destination: address_key(destination.into()),
            process: 812,
            user: 0,
            command: *b"alertd\0\0\0\0\0\0\0\0\0\0",
            port: 443,
            protocol: TCP.into(),
            reason: EgressReason::Default as u8,
            verdict: 1,
            ..EgressEvent::EMPTY
        }
    }

    #[track_caller]
    fn check(event: &EgressEvent, text: &str, json: &Value) {
        let caller = Caller {
            unit: Some("alerts.slice/alertd.service".to_owned()),
            user: (event.user == 0).then(|| "root".to_owned()),
        };
        let found = call_text(event, &caller, &names(), EPOCH());
        assert_eq!(found, text);
        let found = call_json(event, &caller, &names(), EPOCH());
        for (key, value) in json.as_object().expect("an object") {
            assert_eq!(&found[key], value, "{key} of {found}");
        }
    }

    #[test]
    fn each_kind_of_call_has_its_line() {
        check(
            &event("203.0.113.9"),
            "1970-01-01T00:00:01.234Z refused alertd[812] alerts.slice/alertd.service user root -> 203.0.113.9 tcp/443: no rule covers the port",
            &json!({
                "time": "1970-01-01T00:00:01.234Z", "program": "alertd", "process": 812,
                "unit": "alerts.slice/alertd.service", "cgroup": 4242, "user": "root", "user_id": 0,
                "destination": "203.0.113.9", "destination_port": 443, "protocol": "tcp", "call": "connect",
                "verdict": "refuse", "mode": "enforce", "reason": "default", "rules": [], "sources": [],
            }),
        );
        check(
            &EgressEvent {
                rules: [1, 0],
                observe: 1,
                protocol: MPTCP as u16,
                user: 4_000_000_000,
                ..event("2001:db8::9")
            },
            "1970-01-01T00:00:01.234Z would refuse alertd[812] alerts.slice/alertd.service user 4000000000 -> 2001:db8::9 tcp/443: rule updates does not list the address",
            &json!({"mode": "observe", "user": null, "user_id": 4_000_000_000_u32, "protocol": "tcp", "rules": ["updates"]}),
        );
        check(
            &EgressEvent {
                rules: [2, 1],
                call: Call::Probe as u8,
                protocol: UDP_LITE as u16,
                reason: EgressReason::ClosedRange as u8,
                ..event("10.0.0.1")
            },
            "1970-01-01T00:00:01.234Z refused alertd[812] alerts.slice/alertd.service user root -> 10.0.0.1 udp/443 (probe): rules a, b, updates do not list the address (closed range)",
            &json!({"call": "probe", "protocol": "udp", "reason": "closed-range", "rules": ["a", "b", "updates"]}),
        );
        check(
            &EgressEvent {
                rules: [1, 0],
                match_id: 1,
                verdict: 0,
                reason: EgressReason::Allowed as u8,
                ..event("198.51.100.7")
            },
            "1970-01-01T00:00:01.234Z passed alertd[812] alerts.slice/alertd.service user root -> 198.51.100.7 tcp/443: allowed by source mirror",
            &json!({"verdict": "pass", "reason": "allowed", "rules": ["updates"], "sources": ["mirror"]}),
        );
        check(
            &EgressEvent {
                protocol: ICMP.into(),
                verdict: 0,
                ..event("198.51.100.7")
            },
            "1970-01-01T00:00:01.234Z passed alertd[812] alerts.slice/alertd.service user root -> 198.51.100.7 icmp: default",
            &json!({"destination_port": null, "protocol": "icmp", "reason": "default"}),
        );
    }

    #[test]
    fn sums_have_no_process() {
        let sum = |is_minute| SeenRepeats {
            last: event("203.0.113.9"),
            caller: Caller::default(),
            more: 12,
            is_minute,
        };
        let line = "1970-01-01T00:00:01.234Z refused alertd cgroup 4242 (gone) user 0 -> 203.0.113.9 tcp/443: 12 more";
        assert_eq!(repeats_text(&sum(false), EPOCH()), line);
        let minute = format!("{line} in the last minute");
        assert_eq!(repeats_text(&sum(true), EPOCH()), minute);
    }
}
