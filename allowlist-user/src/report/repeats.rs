//! Sums equal judged calls: the first is shown at once, and those of the following minute as one number.
//!
//! A program that is refused tries again, over both families and under each name of an address, so one cause has many
//! calls. Does no output, and gets the time as an argument.

use std::collections::BTreeMap;
use std::time::Duration;

use allowlist_common::abi::EgressEvent;
use allowlist_dataplane::kernel_clock;

use super::Caller;

/// The time for which equal calls are summed.
const PERIOD: Duration = Duration::from_mins(1);
/// The maximum number of calls that are compared with later ones. With more, equal calls are shown one by one.
const MAX_CALLS: usize = 4096;

/// The properties in which equal calls agree: all but the time, the process, and the ids of the tables.
type Key = (u64, u32, [u8; 16], [u64; 2], [u16; 2], [u8; 4]);

const fn key(event: &EgressEvent) -> Key {
    (
        event.cgroup,
        event.user,
        event.command,
        event.destination,
        [event.protocol, event.port],
        [event.call, event.reason, event.verdict, event.observe],
    )
}

/// Calls that were shown, with the number of equal ones since then.
#[derive(Debug, Default)]
pub struct Repeats {
    calls: BTreeMap<Key, Counted>,
}

#[derive(Debug)]
struct Counted {
    /// The time from which on equal calls are summed.
    since: Duration,
    more: u64,
    last: EgressEvent,
    caller: Caller,
}

/// A number of calls that are equal to one that was shown.
#[derive(Debug, PartialEq, Eq)]
pub struct SeenRepeats {
    /// The last of the calls.
    pub last: EgressEvent,
    /// The unit and the user of the program.
    pub caller: Caller,
    /// The number of calls.
    pub more: u64,
    /// Whether the calls are those of a whole minute.
    pub is_minute: bool,
}

impl Repeats {
    /// Adds a call at the time `now`. Returns whether to show it; if not, it is in a later sum.
    pub fn is_first(&mut self, event: EgressEvent, caller: &Caller, now: Duration) -> bool {
        if let Some(counted) = self.calls.get_mut(&key(&event))
            && (counted.more > 0 || now < counted.since + PERIOD)
        {
            counted.more += 1;
            counted.last = event;
            return false;
        }
        if self.calls.len() >= MAX_CALLS {
            self.calls
                .retain(|_, counted| counted.more > 0 || now < counted.since + PERIOD);
        }
        if self.calls.len() < MAX_CALLS {
            let counted = Counted {
                since: now,
                more: 0,
                last: event,
                caller: caller.clone(),
            };
            self.calls.insert(key(&event), counted);
        }
        true
    }

    /// Returns the time at which the next sum is due; `None` if no call is summed.
    pub fn next_due(&self) -> Option<Duration> {
        let summed = self.calls.values().filter(|counted| counted.more > 0);
        summed.map(|counted| counted.since + PERIOD).min()
    }

    /// Returns the sums that are due at the time `now`, in the order of their last calls. Equal calls after that are
    /// summed for another minute.
    pub fn due(&mut self, now: Duration) -> Vec<SeenRepeats> {
        let mut due = Vec::new();
        for counted in self.calls.values_mut() {
            if counted.more > 0 && now >= counted.since + PERIOD {
                due.push(counted.sum(true));
                counted.since = now;
            }
        }
        sorted(due)
    }

    /// Returns the sums that are not due yet, in the order of their last calls, and forgets all calls.
    pub fn rest(&mut self) -> Vec<SeenRepeats> {
        let summed = std::mem::take(&mut self.calls).into_values();
        sorted(
            summed
                .filter(|counted| counted.more > 0)
                .map(|mut counted| counted.sum(false))
                .collect(),
        )
    }
}

impl Counted {
    fn sum(&mut self, is_minute: bool) -> SeenRepeats {
        SeenRepeats {
            last: self.last,
            caller: self.caller.clone(),
            more: std::mem::take(&mut self.more),
            is_minute,
        }
    }
}

fn sorted(mut sums: Vec<SeenRepeats>) -> Vec<SeenRepeats> {
    sums.sort_by_key(|sum| sum.last.time);
    sums
}

/// Waits until a time of the kernel's clock; forever without a time.
pub async fn reached(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time.saturating_sub(kernel_clock())).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVENT: EgressEvent = EgressEvent {
        cgroup: 7,
        port: 443,
        protocol: 6,
        verdict: 1,
        ..EgressEvent::EMPTY
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn add(repeats: &mut Repeats, event: EgressEvent, seconds: u64) -> bool {
        let event = EgressEvent {
            time: at(seconds).as_nanos() as u64,
            process: seconds as u32,
            ..event
        };
        repeats.is_first(event, &Caller::default(), at(seconds))
    }

    #[test]
    fn equal_calls_are_summed_by_minute() {
        let mut repeats = Repeats::default();
        assert!(add(&mut repeats, EVENT, 100));
        assert_eq!(repeats.next_due(), None);
        for seconds in 101..111 {
            assert!(!add(&mut repeats, EVENT, seconds));
        }
        assert_eq!(repeats.next_due(), Some(at(160)));
        assert_eq!(repeats.due(at(159)), []);
        let due = repeats.due(at(160));
        assert_eq!(due.len(), 1);
        assert_eq!(
            (due[0].more, due[0].last.process, due[0].is_minute),
            (10, 110, true)
        );
        // The next minute begins with the sum.
        assert_eq!(repeats.next_due(), None);
        assert!(!add(&mut repeats, EVENT, 219));
        assert_eq!(repeats.due(at(220))[0].more, 1);
        // After a minute without an equal call, one is shown again.
        assert!(add(&mut repeats, EVENT, 281));
        assert!(!add(&mut repeats, EVENT, 282));
        let rest = repeats.rest();
        assert_eq!(rest.len(), 1);
        assert_eq!((rest[0].more, rest[0].is_minute), (1, false));
        assert!(add(&mut repeats, EVENT, 283));
    }

    #[test]
    fn other_calls_are_not_equal() {
        let mut repeats = Repeats::default();
        let others = [
            EVENT,
            EgressEvent { cgroup: 8, ..EVENT },
            EgressEvent { user: 8, ..EVENT },
            EgressEvent {
                command: *b"other\0\0\0\0\0\0\0\0\0\0\0",
                ..EVENT
            },
            EgressEvent {
                destination: [0, 8],
                ..EVENT
            },
            EgressEvent { port: 80, ..EVENT },
            EgressEvent {
                protocol: 17,
                ..EVENT
            },
            EgressEvent { call: 1, ..EVENT },
            EgressEvent { reason: 6, ..EVENT },
            EgressEvent {
                verdict: 0,
                ..EVENT
            },
            EgressEvent {
                observe: 1,
                ..EVENT
            },
        ];
        for event in others {
            assert!(add(&mut repeats, event, 1), "{event:?}");
        }
        for event in others {
            assert!(!add(&mut repeats, event, 2), "{event:?}");
        }
    }

    #[test]
    fn the_number_of_calls_is_bounded() {
        let mut repeats = Repeats::default();
        let event = |number: u64| EgressEvent {
            cgroup: number,
            ..EVENT
        };
        for number in 0..MAX_CALLS as u64 {
            assert!(add(&mut repeats, event(number), 1));
        }
        for _ in 0..2 {
            assert!(add(&mut repeats, event(MAX_CALLS as u64), 2));
        }
        assert!(!add(&mut repeats, event(0), 3));
        // A call whose minute is over gives way.
        assert!(add(&mut repeats, event(MAX_CALLS as u64), 62));
        assert!(!add(&mut repeats, event(MAX_CALLS as u64), 63));
        assert_eq!(repeats.calls.len(), 2);
    }
}
