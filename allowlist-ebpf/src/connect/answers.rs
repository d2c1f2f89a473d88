//! Learns the addresses of listed names: notes the queries that programs send to resolvers, and stores the addresses of
//! the answers before the program that sent the query can read them. For proposals of rules, other names are noted too;
//! their addresses go to a map of their own, which allows nothing.
//!
//! An answer is believed if it comes from a resolver to the socket of a noted query, with the id and the question of
//! the query; one answer is believed per query. `allowlist_common::dns` reads the messages.

use core::ffi::c_void;

use allowlist_common::abi::{
    AnswerCount, Learned, LearnedNames, ListedName, NAME_QUOTA, NAMES_OF_ADDRESS, QueryKey,
    WILDCARD_QUOTA,
};
use allowlist_common::dns::{self, Header, Kind, Message, NameKey, Noted, Repeat, Sink, Step};
use allowlist_common::egress::{address_key, is_closed, learned, unmapped};
use allowlist_common::packet::Address;
use allowlist_common::ranges::opaque;
use allowlist_ebpf::clock;
use allowlist_ebpf::control::control;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_loop, bpf_skb_cgroup_id};
use aya_ebpf::macros::cgroup_skb;

use aya_ebpf::programs::SkBuffContext;

use crate::count::{self, increment};
use crate::maps::{
    ASKERS, LEARNED, LEARNED_BELOW, LISTED_NAMES, NAME_STATES, QUERIES, Resolvers, resolvers,
};
use crate::seen;
use crate::udp::{self, Datagram, Remote};

/// The return value that lets a packet continue. This program drops no packet.
const PASS: i32 = 1;
/// The flag of a map update that fails if the key exists.
const NO_EXIST: u64 = 1;
const NANOSECONDS_PER_SECOND: u64 = 1_000_000_000;
/// The value of an entry that is filled after it was added; static, since it is too large for the stack.
static NO_QUESTION: Noted = Noted::EMPTY;

/// The payload of a packet as a DNS message.
struct Payload<'a> {
    ctx: &'a SkBuffContext,
    start: u32,
}

impl Message for Payload<'_> {
    #[inline(always)]
    fn u8_at(&self, offset: u32) -> Option<u8> {
        self.ctx.load((self.start + offset) as usize).ok()
    }

    #[inline(always)]
    fn u16_at(&self, offset: u32) -> Option<u16> {
        let value: u16 = self.ctx.load((self.start + offset) as usize).ok()?;
        Some(u16::from_be(value))
    }

    #[inline(always)]
    fn u32_at(&self, offset: u32) -> Option<u32> {
        let value: u32 = self.ctx.load((self.start + offset) as usize).ok()?;
        Some(u32::from_be(value))
    }

    #[inline(always)]
    fn u64_at(&self, offset: u32) -> Option<u64> {
        let value: u64 = self.ctx.load((self.start + offset) as usize).ok()?;
        Some(u64::from_be(value))
    }
}

/// The kernel's loop.
///
/// VERIFIER: a loop over the bytes of a name or over records, with a call of a helper in each iteration, would be walked
/// once per iteration and path; the verifier checks the function of `bpf_loop` (Linux 5.17) only until its state repeats.
struct Loop;

impl Repeat for Loop {
    #[inline(always)]
    fn repeat<S: Step>(limit: u32, state: &mut S) {
        extern "C" fn step<S: Step>(index: u32, state: *mut S) -> i64 {
            // SAFETY: the kernel passes the pointer that `repeat` gave it, which is valid during the call.
            let continues = unsafe { (*state).step(index) };
            // VERIFIER: the result must be 0 or 1, and the compiler emits no such bound for a boolean in memory.
            i64::from(opaque(u32::from(!continues)) & 1)
        }
        let step: extern "C" fn(u32, *mut S) -> i64 = step::<S>;
        // SAFETY: the function has the signature that the helper requires, and the state outlives the call.
        unsafe {
            bpf_loop(
                limit,
                step as *mut c_void,
                core::ptr::from_mut(state).cast(),
                0,
            );
        }
    }
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the macro passes the context by value"
)]
#[cgroup_skb]
pub fn allow_query(ctx: SkBuffContext) -> i32 {
    let _ = note(&ctx);
    PASS
}

/// Returns the key of a query or of its answer.
#[inline(always)]
fn key(ctx: &SkBuffContext, resolver: &Datagram, id: u32) -> QueryKey {
    QueryKey {
        // SAFETY: the context is this program's.
        socket: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) },
        resolver: resolver.address,
        port_and_id: u64::from(resolver.port) << 16 | u64::from(id),
    }
}

/// Notes a query to a resolver for a listed name, or for any name if those are learnt for proposals; the result has no
/// meaning.
#[inline(always)]
#[expect(
    clippy::needless_borrows_for_generic_args,
    reason = "a copy of the value would not fit on the stack"
)]
fn note(ctx: &SkBuffContext) -> Option<()> {
    let datagram = udp::read(ctx, Remote::Destination)?;
    let word = control()?.bits();
    if !word.has_egress() {
        return None;
    }
    let resolvers = resolvers(word)?;
    if !resolvers.has(&datagram) {
        return None;
    }
    let message = Payload {
        ctx,
        start: datagram.payload,
    };
    let header = dns::header(&message)?;
    let key = key(ctx, &datagram, header.id);
    if header.kind != Kind::Query || ASKERS.get_ptr(key.socket).is_none() {
        return None;
    }
    // The question is written into the entry itself: a program on this hook can be preempted by another one on the same
    // CPU, so that memory of the CPU would not be this packet's alone, and the stack is too small.
    QUERIES.insert(key, &NO_QUESTION, 0).ok()?;
    let noted = QUERIES.get_ptr_mut(key)?;
    // SAFETY: an entry for this socket and id, which no program reads before the answer.
    let noted = unsafe { &mut *noted };
    let is_read = read_question(&message, noted).is_some();
    let listed = if is_read {
        noted.set_slot(word.slot() as u8);
        let key: *const NameKey = &raw const noted.key;
        // SAFETY: both types are a length of 4 bytes and the data, and the entry is valid here.
        LISTED_NAMES.get(unsafe { &*key.cast::<Key<_>>() })
    } else {
        None
    };
    match listed {
        Some(listed) => {
            noted.name = listed.id;
            noted.kind = listed.kind;
            count::answers(AnswerCount::Queries);
        }
        None if is_read && word.egress_learns() => {}
        None => {
            let _ = QUERIES.remove(key);
        }
    }
    Some(())
}

#[inline(always)]
fn read_question(message: &Payload<'_>, noted: &mut Noted) -> Option<()> {
    dns::read_question::<_, Loop>(message, noted)
}

/// Reads an answer of a resolver; the result has no meaning.
#[inline(always)]
pub(crate) fn read(ctx: &SkBuffContext, datagram: &Datagram, resolvers: Resolvers) -> Option<()> {
    let message = Payload {
        ctx,
        start: datagram.payload,
    };
    let header = dns::header(&message)?;
    let key = key(ctx, datagram, header.id);
    let noted = QUERIES.get_ptr(key)?;
    // SAFETY: the entry does not change after it was noted; the kernel keeps it while the program runs.
    let noted = unsafe { &*noted };
    // SAFETY: the context is this program's.
    let cgroup = unsafe { bpf_skb_cgroup_id(ctx.skb.skb) };
    read_noted(&message, &header, noted, cgroup, resolvers);
    let _ = QUERIES.remove(key);
    Some(())
}

#[inline(always)]
fn read_noted(
    message: &Payload<'_>,
    header: &Header,
    noted: &Noted,
    cgroup: u64,
    resolvers: Resolvers,
) {
    let now = clock::nanoseconds();
    match header.kind {
        Kind::Answer => {}
        Kind::Truncated if noted.name == 0 => return,
        Kind::Truncated => {
            count::answers(AnswerCount::Truncated);
            if let Some(state) = NAME_STATES.get_ptr_mut(noted.name) {
                // SAFETY: the program changes one word, which userspace reads.
                unsafe { (&raw mut (*state).truncated).write_volatile(now) };
            }
            return;
        }
        Kind::Query | Kind::Error => return,
    }
    let mut store = Store {
        noted,
        cgroup,
        now,
        linger: resolvers.linger(),
    };
    let read = dns::read_answer::<_, Loop, _>(message, header, noted, &mut store);
    if noted.name != 0 {
        count::answers(match read {
            Some(()) => AnswerCount::Answers,
            None => AnswerCount::Malformed,
        });
    }
}

/// Stores the addresses of an answer.
struct Store<'a> {
    /// The question, with the listed name that it matched.
    noted: &'a Noted,
    /// The cgroup of the socket that sent the query.
    cgroup: u64,
    now: u64,
    /// The time for which an address is valid at least, in nanoseconds.
    linger: u64,
}

impl Sink for Store<'_> {
    #[inline(always)]
    fn take(&mut self, address: Address, ttl: u32) {
        let key = address_key(learned(address));
        if self.noted.name == 0 {
            seen::answered(&key, self.cgroup, self.noted);
        } else {
            count::answers(store(&key, ttl, self));
        }
    }
}

/// Stores an address, given as a key, with its time to live; returns the count under which this falls.
///
/// VERIFIER: a separate function, so that the paths through it are not multiplied by those of its caller.
#[inline(never)]
fn store(address: &[u64; 2], ttl: u32, to: &Store<'_>) -> AnswerCount {
    let (name, kind) = (to.noted.name, to.noted.kind);
    if kind & ListedName::SPECIAL == 0 && is_closed(&unmapped(Address::V6(*address))) {
        return AnswerCount::Closed;
    }
    let ttl = u64::from(ttl) * NANOSECONDS_PER_SECOND;
    let until = to.now + if ttl > to.linger { ttl } else { to.linger };
    let entry = Learned::new(name, until);
    let is_below = kind & ListedName::BELOW != 0;
    if let Some(names) = find(is_below, address) {
        return merge(names, entry, to.now);
    }
    let quota = if is_below { WILDCARD_QUOTA } else { NAME_QUOTA };
    if !is_within_quota(entry.id(), quota, to.now, to.linger) {
        return AnswerCount::OverQuota;
    }
    let mut names = LearnedNames::default();
    names.entries[0] = entry.0;
    let added = if is_below {
        LEARNED_BELOW.insert(address, names, NO_EXIST)
    } else {
        LEARNED.insert(address, names, NO_EXIST)
    };
    if added.is_ok() {
        return AnswerCount::Addresses;
    }
    // Another CPU has added the address, or there is no memory.
    match find(is_below, address) {
        Some(names) => merge(names, entry, to.now),
        None => AnswerCount::OverQuota,
    }
}

#[inline(always)]
fn find(is_below: bool, address: &[u64; 2]) -> Option<*mut LearnedNames> {
    if is_below {
        LEARNED_BELOW.get_ptr_mut(address)
    } else {
        LEARNED.get_ptr_mut(address)
    }
}

/// Adds an entry to those of an address, or extends the time of the name's present entry.
#[inline(never)]
fn merge(names: *mut LearnedNames, entry: Learned, now: u64) -> AnswerCount {
    for place in 0..NAMES_OF_ADDRESS {
        // SAFETY: the kernel keeps the entry while the program runs.
        let word = unsafe { &raw mut (*names).entries[place] };
        // SAFETY: as above; other programs store to the word atomically.
        let present = Learned(unsafe { word.read_volatile() });
        if present.id() == entry.id() {
            if entry.until() > present.until() {
                // SAFETY: as above.
                unsafe { word.write_volatile(entry.0) };
            }
            return AnswerCount::Addresses;
        }
    }
    for place in 0..NAMES_OF_ADDRESS {
        // SAFETY: as above.
        let word = unsafe { &raw mut (*names).entries[place] };
        // SAFETY: as above.
        let present = Learned(unsafe { word.read_volatile() });
        if present.until() <= now && count::replace(word, present.0, entry.0) {
            return AnswerCount::Addresses;
        }
    }
    AnswerCount::Crowded
}

/// Counts a new address of a name; returns false if the name's quota is used up.
#[inline(always)]
fn is_within_quota(name: u32, quota: u64, now: u64, linger: u64) -> bool {
    let Some(state) = NAME_STATES.get_ptr_mut(name) else {
        return false;
    };
    // SAFETY: the kernel keeps the value; all programs change it by atomic additions and single stores.
    unsafe {
        let since = &raw mut (*state).since;
        let learned = &raw mut (*state).count;
        if now - since.read_volatile() > linger {
            since.write_volatile(now);
            learned.write_volatile(0);
        }
        if learned.read_volatile() >= quota {
            return false;
        }
        increment(&mut *learned);
    }
    true
}
