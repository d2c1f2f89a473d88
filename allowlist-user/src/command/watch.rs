//! `allowlist watch`: prints dropped packets, or the calls that the egress policy refuses, until Ctrl-C.

use std::io::Write as _;

use allowlist_common::abi::EgressEvent;
use allowlist_dataplane::{self as dataplane, EgressWatch, Seen, SeenCall, View, WantedCalls};
use allowlist_policy::text::{on_one_line, printable_json};
use anyhow::Result;
use jiff::Timestamp;
use log::{info, warn};

use crate::cli::{Paths, Watch};
use crate::daemon::Signals;
use crate::generation_meta::GenerationMeta;
use crate::report::{self, CallNames, Caller, Epoch, Repeats, SeenRepeats, Users};

/// Prints dropped packets.
pub(super) async fn packets(paths: &Paths, options: &Watch) -> Result<()> {
    let mut signals = Signals::listen()?;
    let mut watch = dataplane::Watch::open(&paths.pin_dir)?;
    let view = View::open(&paths.pin_dir)?;
    let mut observes = view.control()?.observe;
    if observes {
        info!("{}", shown_in(observes));
    }
    let epoch = Epoch::new(Timestamp::now(), dataplane::kernel_clock());
    let mut left = options.count;
    while left != Some(0) {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            () = signals.end() => break,
        };
        // A change of the mode changes the meaning of the next lines.
        if let Ok(control) = view.control()
            && control.observe != observes
        {
            observes = control.observe;
            info!("{}", shown_in(observes));
        }
        let is_printed = if options.json {
            print_json(&report::seen_json(&seen, epoch))
        } else {
            print_text(&report::seen_text(&seen, epoch))
        };
        if !is_printed {
            break;
        }
        match seen {
            Seen::Detached => break,
            Seen::Drop(..) => left = left.map(|left| left - 1),
            Seen::Suppressed(_) => {}
        }
    }
    Ok(())
}

fn shown_in(observe: bool) -> &'static str {
    if observe {
        "observe mode: the packets shown pass; enforce mode would drop them"
    } else {
        "enforce mode: the packets shown are dropped"
    }
}

/// Prints the calls that the egress policy refuses, or would refuse in enforce mode; with `--all`, every judged call.
///
/// As text, equal calls are printed once and then summed. In JSON, every call is printed.
pub(super) async fn calls(paths: &Paths, options: &Watch) -> Result<()> {
    let mut signals = Signals::listen()?;
    let wanted = if options.all {
        WantedCalls::All
    } else {
        WantedCalls::Refused
    };
    let mut watch = EgressWatch::open(&paths.pin_dir, wanted)?;
    let mut printer = Printer {
        view: View::open(&paths.pin_dir)?,
        epoch: Epoch::new(Timestamp::now(), dataplane::kernel_clock()),
        names: CallNames::default(),
        generation: 0,
        users: Users::default(),
        repeats: Repeats::default(),
        is_json: options.json,
    };
    if let Some(counted) = printer.view.egress(0, 0, 0)?
        && counted.cgroups == 0
    {
        warn!("the egress policy is attached to no cgroup, so no call is judged");
    }
    let mut left = options.count;
    let mut hidden: u64 = 0;
    let mut is_open = true;
    while is_open && left != Some(0) {
        let seen = tokio::select! {
            seen = watch.next() => seen?,
            () = report::reached(printer.repeats.next_due()) => {
                is_open = printer.print_due();
                continue;
            }
            () = signals.end() => break,
        };
        is_open = match seen {
            SeenCall::Call(event, _) if event.is_probe() && !options.probes => {
                hidden += 1;
                true
            }
            SeenCall::Call(event, unit) => {
                left = left.map(|left| left - 1);
                printer.print_call(event, unit)
            }
            SeenCall::Suppressed(more) => printer.print(
                || report::suppressed_calls_text(more),
                || serde_json::json!({ "suppressed": more }),
            ),
            SeenCall::Detached => {
                printer.print_rest();
                printer.print(
                    || "the egress policy was removed or detached; if it is attached again, start `allowlist watch --egress` again".to_owned(),
                    || serde_json::json!({ "detached": true }),
                );
                break;
            }
        };
    }
    printer.print_rest();
    if hidden > 0 {
        info!(
            "connects of UDP sockets that were not shown: {hidden}; by these, programs sort the addresses of a name; --probes shows them"
        );
    }
    Ok(())
}

/// Prints judged calls, with the names of their rules and sources.
struct Printer {
    view: View,
    epoch: Epoch,
    names: CallNames,
    /// The generation to which `names` belong.
    generation: u32,
    users: Users,
    repeats: Repeats,
    is_json: bool,
}

impl Printer {
    /// Prints a call, or only counts it if an equal one was just printed. Returns false if the output is closed.
    fn print_call(&mut self, event: EgressEvent, unit: Option<String>) -> bool {
        self.refresh_names();
        let user = self.users.get(event.user);
        let caller = Caller { unit, user };
        if self.is_json {
            return print_json(&report::call_json(&event, &caller, &self.names, self.epoch));
        }
        if !self.print_due() {
            return false;
        }
        let text = report::call_text(&event, &caller, &self.names, self.epoch);
        let now = dataplane::kernel_clock();
        !self.repeats.is_first(event, &caller, now) || print_text(&text)
    }

    /// Prints the sums that are due. Returns false if the output is closed.
    fn print_due(&mut self) -> bool {
        let due = self.repeats.due(dataplane::kernel_clock());
        self.print_sums(&due)
    }

    /// Prints the sums that are not due yet, at the end.
    fn print_rest(&mut self) {
        let rest = self.repeats.rest();
        self.print_sums(&rest);
    }

    fn print_sums(&self, sums: &[SeenRepeats]) -> bool {
        sums.iter()
            .all(|sum| print_text(&report::repeats_text(sum, self.epoch)))
    }

    fn print(
        &self,
        text: impl FnOnce() -> String,
        json: impl FnOnce() -> serde_json::Value,
    ) -> bool {
        if self.is_json {
            print_json(&json())
        } else {
            print_text(&text())
        }
    }

    /// Reads the names of rules and sources again after a publish.
    fn refresh_names(&mut self) {
        let generation = self.view.control().map_or(0, |control| control.generation);
        if generation == self.generation {
            return;
        }
        if let Ok(Some(meta)) = GenerationMeta::read(&self.view) {
            self.names = CallNames::new(meta.egress_ids);
            self.generation = generation;
        }
    }
}

/// Prints one line of text. Returns false if the reader has closed the pipe.
fn print_text(text: &str) -> bool {
    writeln!(std::io::stdout(), "{}", on_one_line(text)).is_ok()
}

/// Prints a JSON document on one line. Returns false if the reader has closed the pipe.
fn print_json(document: &serde_json::Value) -> bool {
    let line = document.to_string();
    writeln!(std::io::stdout(), "{}", printable_json(&line)).is_ok()
}
