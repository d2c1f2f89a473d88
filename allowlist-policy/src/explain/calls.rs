//! The verdicts for hypothetical calls of this host's programs, by the tables of an egress policy: those of the kernel, or
//! compiled ones. Pure.
//!
//! `allowlist_common::egress` decides, as in the kernel. Properties that a hypothetical call lacks count as absent: the
//! call is not the daemon's, and its socket is not bound to a port and has received nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use allowlist_common::abi::{
    ControlBits, EgressSettings, Grant, NameGrant, ServiceId, ServiceTable, UnitRow,
};
use allowlist_common::egress::units::MAX_LEVELS;
use allowlist_common::egress::{
    Call, CoveringRules, EgressDecision, EgressReason, EgressTables, Request, address_key, decide,
    is_closed, unmapped,
};
use allowlist_common::packet::{Address, ICMP, ICMPV6, TCP, UDP};
use allowlist_common::volatile::VolatileRef;

use super::Target;
use super::reach::{Row, Span, call_rows};
use crate::policy::name_in_slices;

/// The destination of a call for which no table has an entry: it stands for the addresses of a name that are not known.
/// It is reserved for documentation (RFC 5737), so it is neither local nor in a closed range.
const UNKNOWN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

/// The names for which resolvers answered each address ([`address_key`]), as the ids of the names in the order of the
/// kernel's lookup; only those that are valid now.
pub type LearnedIds = BTreeMap<[u64; 2], Vec<u32>>;

/// The rows of units in the tables of an egress policy, by the texts that the kernel looks cgroups up by: a path below the
/// root of cgroup v2, or a name.
pub type UnitRowsByText = BTreeMap<String, UnitRow>;

/// The rows of a calling program's units in the tables of an egress policy, as the kernel finds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerRows {
    /// The row of the innermost of the caller's cgroups that a rule names by its path; 0, the row of all other programs,
    /// if there is none.
    by_path: usize,
    /// The row of a unit inside it that a rule names by name; `None` if there is none.
    by_name: Option<usize>,
}

impl CallerRows {
    /// Returns the rows of a program in the cgroup with this path below the root of cgroup v2.
    pub fn of_path(path: &str, units: &UnitRowsByText) -> Self {
        let mut rows = Self::default();
        let mut cgroup = String::new();
        let components = path.split('/').filter(|component| !component.is_empty());
        for component in components.take(MAX_LEVELS as usize) {
            cgroup.push('/');
            cgroup.push_str(component);
            let by_name = || units.get(name_in_slices(Path::new(&cgroup))?);
            if let Some(row) = units.get(&cgroup) {
                // It includes the rules for the units around it.
                rows = Self {
                    by_path: row.row(),
                    by_name: None,
                };
            } else if let Some(row) = by_name() {
                rows.by_name = Some(row.row());
            }
        }
        rows
    }

    /// Returns the rows of a program in the unit with this name, in slices that no rule names.
    pub fn of_name(name: &str, units: &UnitRowsByText) -> Self {
        Self {
            by_path: 0,
            by_name: units.get(name).map(|row| row.row()),
        }
    }
}

/// The tables of an egress policy for one calling program; `grant` looks up a destination in the table of prefixes.
#[derive(Clone, Copy)]
pub struct CallTables<'t, G> {
    /// The control word.
    pub control: ControlBits,
    /// The sets of rules that cover each port, with a row for each unit.
    pub services: &'t ServiceTable,
    /// The rows of the caller's units.
    pub rows: CallerRows,
    /// The exempt endpoints.
    pub settings: &'t EgressSettings,
    /// The rules that allow the addresses of each name, by the id of the name.
    pub names: &'t [NameGrant],
    /// The names for which resolvers answered each address.
    pub learned: &'t LearnedIds,
    /// The addresses of this host, as [`address_key`] returns them.
    pub own: &'t BTreeSet<[u64; 2]>,
    /// Returns the rules that allow a destination by a prefix.
    pub grant: G,
}

/// The targets of calls for which a decision is wanted, in ranges of ports within which all decisions on one address are
/// equal.
#[derive(Clone, Debug)]
pub struct Targets(Vec<Span>);

impl<G: Fn(&Address) -> Option<Grant>> CallTables<'_, G> {
    /// Returns one target, or else all to which calls are judged.
    ///
    /// A decision depends on the port by the rules that cover it, and by the exempt endpoints, whose ports are ranges of
    /// their own.
    pub fn targets(&self, target: Option<Target>) -> Targets {
        if let Some(target) = target {
            return Targets(vec![Span::of(target)]);
        }
        let endpoints = self.settings.endpoints.iter();
        let endpoints = endpoints.take(self.settings.count as usize);
        let exempt: BTreeSet<u16> = endpoints.map(|endpoint| endpoint.rest as u16).collect();
        let mut spans: Vec<Span> = Vec::new();
        for (protocol, target) in [(TCP, Target::Tcp as fn(u16) -> Target), (UDP, Target::Udp)] {
            let mut before = None;
            for port in 0..=u16::MAX {
                let rules = self.rules_of_port(protocol, port);
                let of_port = (!exempt.contains(&port)).then_some(rules);
                let next = Span::of(target(port));
                let longer = spans.last().and_then(|span| span.joined(next));
                match longer.filter(|_| of_port.is_some() && of_port == before) {
                    Some(longer) => {
                        spans.pop();
                        spans.push(longer);
                    }
                    None => spans.push(next),
                }
                before = of_port;
            }
        }
        spans.push(Span::of(Target::Icmp));
        Targets(spans)
    }

    /// Returns the decisions on the calls to targets at an address. Empty for a target to which no call is judged.
    pub fn reach(&self, address: IpAddr, targets: &Targets) -> Vec<Row<EgressDecision>> {
        rows_by(self, address, targets)
    }

    /// Returns the decisions on the calls to an address of which only the name is known, once a resolver has answered it
    /// for the name with the id `name`; 0 for a name that no rule lists. `everything` has the rules that allow every
    /// address by a prefix.
    pub fn reach_unknown(
        &self,
        name: u32,
        everything: Option<Grant>,
        targets: &Targets,
    ) -> Vec<Row<EgressDecision>> {
        let tables = Unknown {
            tables: self,
            name,
            everything,
        };
        rows_by(&tables, UNKNOWN, targets)
    }
}

fn rows_by(
    tables: &impl EgressTables,
    address: IpAddr,
    targets: &Targets,
) -> Vec<Row<EgressDecision>> {
    let decided = targets.0.iter().filter_map(|span| {
        let request = span.first().call(address)?;
        Some((*span, decide(&request, tables)))
    });
    call_rows(decided)
}

impl<G: Fn(&Address) -> Option<Grant>> EgressTables for CallTables<'_, G> {
    fn control(&self) -> ControlBits {
        self.control
    }

    fn is_own(&self, address: &Address) -> bool {
        self.own.contains(&address_key(*address))
    }

    fn is_daemon(&self) -> bool {
        false
    }

    fn exempt_endpoint(&self, address: &Address, protocol: u8, port: u16) -> Option<EgressReason> {
        let settings = VolatileRef::from_ref(self.settings);
        settings.exempt_endpoint(address_key(*address), protocol, port)
    }

    fn has_received_from(&self, _address: &Address, _port: u16) -> bool {
        false
    }

    fn rules_of_port(&self, protocol: u8, port: u16) -> CoveringRules {
        self.covering(|services, row| services.port_service(row, protocol, port))
    }

    fn rules_of_protocol(&self, protocol: u8) -> CoveringRules {
        self.covering(|services, row| services.protocol_service(row, protocol))
    }

    fn rule_counter_id(&self, rules: ServiceId) -> u32 {
        self.services.volatile().counter_id(rules)
    }

    fn grant(&self, destination: &Address) -> Option<Grant> {
        (self.grant)(destination)
    }

    fn learned_name(&self, destination: &Address, rules: u64) -> u32 {
        if self.settings.linger == 0 {
            return 0;
        }
        let ids = self.learned.get(&address_key(*destination));
        let is_closed = is_closed(&unmapped(*destination));
        let mut allowed = ids.into_iter().flatten().filter(|id| {
            let grant = self.names.get(**id as usize).copied().unwrap_or_default();
            let services = if is_closed {
                grant.special
            } else {
                grant.services
            };
            services & rules != 0
        });
        allowed.next().copied().unwrap_or(0)
    }
}

impl<G> CallTables<'_, G> {
    /// Returns the union of what `look_up` returns for the rows of the caller's units.
    fn covering(
        &self,
        look_up: impl Fn(VolatileRef<'_, ServiceTable>, usize) -> ServiceId,
    ) -> CoveringRules {
        let services = self.services.volatile();
        let by_name = self.rows.by_name.map(|row| look_up(services, row));
        CoveringRules {
            by_path: look_up(services, self.rows.by_path),
            by_name: by_name.unwrap_or(0),
        }
    }
}

/// The tables for an address of which only the name is known.
struct Unknown<'t, T> {
    tables: &'t T,
    /// The id of the name; 0 if no rule lists it.
    name: u32,
    /// The rules that allow every address by a prefix; `None` if there is no such prefix.
    everything: Option<Grant>,
}

impl<G: Fn(&Address) -> Option<Grant>> EgressTables for Unknown<'_, CallTables<'_, G>> {
    fn control(&self) -> ControlBits {
        self.tables.control()
    }

    fn is_own(&self, _address: &Address) -> bool {
        false
    }

    fn is_daemon(&self) -> bool {
        false
    }

    fn exempt_endpoint(
        &self,
        _address: &Address,
        _protocol: u8,
        _port: u16,
    ) -> Option<EgressReason> {
        None
    }

    fn has_received_from(&self, _address: &Address, _port: u16) -> bool {
        false
    }

    fn rules_of_port(&self, protocol: u8, port: u16) -> CoveringRules {
        self.tables.rules_of_port(protocol, port)
    }

    fn rules_of_protocol(&self, protocol: u8) -> CoveringRules {
        self.tables.rules_of_protocol(protocol)
    }

    fn rule_counter_id(&self, rules: ServiceId) -> u32 {
        self.tables.rule_counter_id(rules)
    }

    fn grant(&self, _destination: &Address) -> Option<Grant> {
        self.everything
    }

    fn learned_name(&self, _destination: &Address, rules: u64) -> u32 {
        let grant = self.tables.names.get(self.name as usize);
        let is_allowed = grant.is_some_and(|grant| grant.services & rules != 0);
        if is_allowed { self.name } else { 0 }
    }
}

impl Target {
    /// Returns a call to this target at an address, as of an ordinary client; `None` if calls to the target are not
    /// judged.
    pub fn call(self, destination: IpAddr) -> Option<Request> {
        let (call, protocol, port) = match self {
            Self::Tcp(port) => (Call::Connect, TCP, port),
            Self::Udp(port) => (Call::Send, UDP, port),
            Self::Icmp if destination.is_ipv4() => (Call::Probe, ICMP, 0),
            Self::Icmp => (Call::Probe, ICMPV6, 0),
            Self::Sctp(_) | Self::Protocol(_) | Self::Other => return None,
        };
        Some(Request {
            call,
            destination: destination.into(),
            protocol: protocol.into(),
            port,
            local_port: 0,
        })
    }
}

#[cfg(test)]
mod tests;
