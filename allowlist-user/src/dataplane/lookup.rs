//! The generation in force, asked as the kernel program asks it: one packet at a time, from the
//! pinned maps alone. Changes nothing, and needs no daemon.
//!
//! Invariant: all answers of one [`Lookup`] are of one generation, whatever is published meanwhile.

use std::cell::RefCell;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::thread;

use allowlist_common::abi::{self, Control, Grant, ServiceId, ServiceTable};
use allowlist_common::flow::{Flow, Tracked};
use allowlist_common::judge::{self, Decision};
use allowlist_common::packet::{Address, Contents, Packet, Quote};
use anyhow::{Context as _, Result, bail};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, MapData, MapError};
use ipnet::IpNet;

use super::view::{Entry, View, clock};

type Trie<K> = LpmTrie<MapData, K, Grant>;

/// How often a publish may come between before it is an error. Publishes are seconds apart.
const ATTEMPTS: usize = 10;

/// One generation's tables, held open: they stay what they are when the next one is published.
pub struct Lookup {
    control: Control,
    /// None before the first publish, when nothing can be let in.
    tables: Option<Tables>,
    flows: HashMap<MapData, Flow, Tracked>,
}

struct Tables {
    services: Box<ServiceTable>,
    v4: Trie<[u8; 4]>,
    v6: Trie<[u8; 16]>,
}

impl View {
    /// The generation in force, to ask what would become of packets.
    pub fn lookup(&self) -> Result<Lookup> {
        for _ in 0..ATTEMPTS {
            let control = self.control()?;
            let tables = if control.generation == 0 {
                None
            } else {
                Some(self.tables(control.slot)?)
            };
            // Else a publish may have put other maps into that slot while they were opened.
            if self.control()? == control {
                return Ok(Lookup {
                    control,
                    tables,
                    flows: self.pins.open_map(abi::FLOWS)?.try_into()?,
                });
            }
        }
        bail!("the tables change faster than they can be read; try again")
    }

    fn tables(&self, slot: u32) -> Result<Tables> {
        let services: ArrayOfMaps<_, Array<MapData, ServiceTable>> =
            self.pins.open_map(abi::SERVICES)?.try_into()?;
        let v4: ArrayOfMaps<_, Trie<[u8; 4]>> = self.pins.open_map(abi::SOURCES_V4)?.try_into()?;
        let v6: ArrayOfMaps<_, Trie<[u8; 16]>> = self.pins.open_map(abi::SOURCES_V6)?.try_into()?;
        Ok(Tables {
            services: boxed(&services.get(&slot, 0)?)?,
            v4: v4.get(&slot, 0)?,
            v6: v6.get(&slot, 0)?,
        })
    }
}

impl Lookup {
    /// Which generation it is, and how it is in force.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// What becomes of packets on the interface in a slot, one after the other.
    pub fn judge(
        &self,
        slot: u32,
        packets: impl IntoIterator<Item = Packet>,
    ) -> Result<Vec<Decision>> {
        let packets = packets.into_iter();
        let Some(tables) = &self.tables else {
            return Ok(packets.map(|_| Decision::INTERNAL_ERROR).collect());
        };
        let on_interface = OnInterface {
            lookup: self,
            tables,
            slot: (slot % abi::MAX_INTERFACES) as usize,
            last: RefCell::new(None),
            failed: RefCell::new(None),
        };
        let decisions = packets
            .map(|packet| judge::judge(&Ok(Contents::Ip(packet)), &on_interface))
            .collect();
        match on_interface.failed.into_inner() {
            Some(error) => Err(error).context("cannot look into the kernel's tables"),
            None => Ok(decisions),
        }
    }

    /// The prefixes that hold an address, the longest first.
    pub fn containing(&self, address: IpAddr) -> Result<Vec<Entry>> {
        let Some(tables) = &self.tables else {
            return Ok(Vec::new());
        };
        let mut entries = match address {
            IpAddr::V4(_) => containing(&tables.v4, address)?,
            IpAddr::V6(_) => containing(&tables.v6, address)?,
        };
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.prefix.prefix_len()));
        Ok(entries)
    }

    /// How many flows of this host with an address may be answered now.
    pub fn flows_with(&self, address: IpAddr) -> usize {
        let now = clock().as_secs() as u32;
        let alive = self.flows.iter().flatten().filter(|(flow, tracked)| {
            !flow.is_peer()
                && tracked.is_alive(now)
                && IpAddr::from(flow.remote_address()) == address
        });
        alive.count()
    }
}

/// Aya hands a value over on the stack, several times, and this one is larger than a thread of a runtime or of a
/// test has room for.
fn boxed(services: &Array<MapData, ServiceTable>) -> Result<Box<ServiceTable>> {
    const ROOM: usize = 64 * size_of::<ServiceTable>();
    thread::scope(|scope| {
        let reader = thread::Builder::new()
            .stack_size(ROOM)
            .spawn_scoped(scope, || services.get(&0, 0).map(Box::new))
            .context("cannot start a thread")?;
        let table = reader.join().unwrap_or_else(|panic| resume_unwind(panic));
        table.context("cannot read the services from the kernel")
    })
}

/// A trie finds the longest prefix alone, so for all of them it is walked.
fn containing<K>(trie: &Trie<K>, address: IpAddr) -> Result<Vec<Entry>>
where
    K: aya::Pod + Into<IpAddr>,
{
    let mut found = Vec::new();
    for entry in trie {
        let (key, grant) = entry?;
        let prefix = IpNet::new(key.data().into(), key.prefix_len() as u8)?;
        if prefix.contains(&address) {
            found.push(Entry { prefix, grant });
        }
    }
    Ok(found)
}

/// The tables as the copy of the program for one interface has them.
struct OnInterface<'l> {
    lookup: &'l Lookup,
    tables: &'l Tables,
    slot: usize,
    /// The source that was looked up last, and its grant: a system call less for each next packet.
    last: RefCell<Option<(Address, Option<Grant>)>>,
    /// The first look that failed. What was judged with it counts for nothing.
    failed: RefCell<Option<MapError>>,
}

impl OnInterface<'_> {
    /// Nothing where there is nothing; a failure is kept.
    fn found<T>(&self, looked_up: Result<T, MapError>) -> Option<T> {
        match looked_up {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(error) => {
                self.failed.borrow_mut().get_or_insert(error);
                None
            }
        }
    }
}

impl judge::Tables for OnInterface<'_> {
    fn control(&self) -> &Control {
        &self.lookup.control
    }

    fn service_of_port(&self, protocol: u8, port: u16) -> ServiceId {
        self.tables.services.of_port(self.slot, protocol, port)
    }

    fn service_of_protocol(&self, protocol: u8) -> ServiceId {
        self.tables.services.of_protocol(self.slot, protocol)
    }

    fn services_of_protocol(&self, protocol: u8) -> u64 {
        self.tables.services.any_of_protocol(self.slot, protocol)
    }

    fn counted(&self, service: ServiceId) -> u32 {
        self.tables.services.counted[usize::from(service)]
    }

    fn grant(&self, source: &Address) -> Option<Grant> {
        if let Some((address, grant)) = *self.last.borrow()
            && address == *source
        {
            return grant;
        }
        let grant = self.found(match IpAddr::from(*source) {
            IpAddr::V4(address) => self.tables.v4.get(&Key::new(32, address.octets()), 0),
            IpAddr::V6(address) => self.tables.v6.get(&Key::new(128, address.octets()), 0),
        });
        self.last.replace(Some((*source, grant)));
        grant
    }

    /// The program's cheap look, which spares it most of the next one. Here the next one is enough.
    fn sent_from(&self, _protocol: u8, _port: u16) -> bool {
        true
    }

    fn sent(&self, flow: &Flow) -> bool {
        let now = clock().as_secs() as u32;
        self.found(self.lookup.flows.get(flow, 0))
            .is_some_and(|tracked| tracked.is_alive(now))
    }

    /// There are no bytes that could quote anything.
    fn quoted(&self, _quote: Quote, _source: Address) -> Option<Flow> {
        None
    }
}
