//! Random sequences of operations, crashes, expiries and restarts, compared with a model after each step.
//!
//! Invariants: the kernel has the model's state; the answer to an operation lists changes if and only if the state has
//! changed; a refused operation changes nothing.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestRunner};

use super::api::ask;
use super::*;
use model::{Model, OBSERVES};

mod model;

/// The variants of the configuration: the first one, another list of friends, observe mode, and a comment.
fn text(variant: usize) -> String {
    let listed = "[services.feed]\nports = ['udp/444']\nallow = ['listed']\n\
                  [sources.listed]\nfile = 'listed.txt'\ngrace = '0s'\n";
    match variant {
        1 => CONFIG.replace("203.0.113.0/24", "198.18.0.0/24") + listed,
        2 => format!("mode = 'observe'\n{CONFIG}{listed}"),
        3 => format!("# a comment\n{CONFIG}{listed}"),
        _ => format!("{CONFIG}{listed}"),
    }
}

const SERVICES: [&str; 2] = ["ssh", "web"];

/// One step of a sequence.
#[derive(Clone, Debug)]
enum Operation {
    /// Adds a prefix, if `confirms` as a change that must be confirmed.
    Add {
        prefix: u8,
        service: u8,
        confirms: bool,
    },
    /// Adds a prefix for a second, and waits until it has expired.
    AddForAWhile { prefix: u8, service: u8 },
    /// Removes an added prefix from all services.
    Remove { prefix: u8 },
    /// Sets the mode.
    Mode { observes: bool, confirms: bool },
    /// Writes the configuration file.
    Edit(usize),
    /// Reloads the configuration file.
    Reload { confirms: bool },
    /// Rolls back to the policy that is this number of policies before the one before the newest.
    Rollback(usize),
    /// Confirms the pending change.
    Confirm,
    /// Writes a list and refreshes it.
    Refresh(u8),
    /// Kills the daemon and starts another, if `kills`. A pending change misses its deadline, with `down` while no
    /// daemon runs; with `kills` alone, it stays pending.
    Miss { kills: bool, down: bool },
}

fn operation() -> impl Strategy<Value = Operation> {
    let (prefix, service) = (0_u8..4, 0_u8..2);
    let is_confirmed = || prop::bool::weighted(0.3);
    prop_oneof![
        3 => (prefix.clone(), service.clone(), is_confirmed())
            .prop_map(|(prefix, service, confirms)| Operation::Add { prefix, service, confirms }),
        1 => (prefix.clone(), service)
            .prop_map(|(prefix, service)| Operation::AddForAWhile { prefix, service }),
        2 => prefix.prop_map(|prefix| Operation::Remove { prefix }),
        4 => (any::<bool>(), is_confirmed())
            .prop_map(|(observes, confirms)| Operation::Mode { observes, confirms }),
        4 => (0..OBSERVES.len()).prop_map(Operation::Edit),
        5 => is_confirmed().prop_map(|confirms| Operation::Reload { confirms }),
        2 => (0_usize..3).prop_map(Operation::Rollback),
        1 => Just(Operation::Confirm),
        1 => (0_u8..2).prop_map(Operation::Refresh),
        3 => (any::<bool>(), any::<bool>())
            .prop_map(|(kills, down)| Operation::Miss { kills, down }),
    ]
}

/// The state of the filter that reports show.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Observed {
    observes: bool,
    /// Whether a command has set a mode other than the configured one.
    is_by_command: bool,
    policy: u64,
    /// The prefixes that reach each service.
    prefixes: BTreeSet<(String, String)>,
}

fn added(prefix: u8) -> String {
    format!("192.0.2.{prefix}/32")
}

fn listed(list: u8) -> Vec<String> {
    (0..8)
        .map(|host| format!("192.88.{}.{host}/32", if host == 7 { list } else { 9 }))
        .collect()
}

/// Returns the state that the model and the list in the file require.
fn expected(model: &Model, list: u8) -> Observed {
    let policy = model.active();
    let friends = if policy.config == 1 {
        "198.18.0.0/24"
    } else {
        "203.0.113.0/24"
    };
    let own = [
        (friends, "web"),
        ("2001:db8:7::/48", "web"),
        ("198.51.100.2/32", "ssh"),
    ];
    let own = own.map(|(prefix, service)| (prefix.to_owned(), service.to_owned()));
    let commands = policy.added.iter();
    let commands = commands
        .map(|(prefix, service)| (added(*prefix), SERVICES[usize::from(*service)].to_owned()));
    let feed = listed(list).into_iter().map(|one| (one, "feed".to_owned()));
    Observed {
        observes: policy.observes(),
        is_by_command: policy.observes() != OBSERVES[policy.config],
        policy: model.number() as u64,
        prefixes: own.into_iter().chain(commands).chain(feed).collect(),
    }
}

/// Reads the state of the filter from the reports.
fn observed(host: &Host) -> anyhow::Result<Observed> {
    let status = host.testbed.json("status")?;
    let list = host.testbed.json("list")?;
    let mut prefixes = BTreeSet::new();
    for row in list["prefixes"].as_array().context("rows")? {
        for service in row["services"].as_array().context("services")? {
            let [prefix, service] = [&row["prefix"], service].map(|text| text.as_str());
            let pair = prefix.zip(service).context("texts")?;
            prefixes.insert((pair.0.to_owned(), pair.1.to_owned()));
        }
    }
    let daemon = &status["daemon"];
    Ok(Observed {
        observes: status["mode"] == "observe",
        is_by_command: status["mode"] != daemon["configured_mode"],
        policy: daemon["policy"].as_u64().context("a policy")?,
        prefixes,
    })
}

/// Sends a request. Returns the lines of its changes, or `None` if it was refused.
fn request(
    host: &Host,
    name: &str,
    mut body: Value,
    confirms: bool,
) -> anyhow::Result<Option<Vec<Value>>> {
    if confirms {
        body["confirm_within_seconds"] = json!(86_400);
    }
    let answer = ask(host, "POST", &format!("/v1/{name}"), "", &body.to_string())?;
    if answer.status != 200 {
        return Ok(None);
    }
    let changes = answer.json()["changes"].as_array().cloned();
    Ok(Some(changes.context("changes")?))
}

/// Does an operation on the host. Returns the lines of its changes; `None` if the operation was refused, or has no answer.
fn perform(
    host: &mut Host,
    operation: &Operation,
    model: &Model,
) -> anyhow::Result<Option<Vec<Value>>> {
    let entry = |prefix: u8, service: u8| json!({"prefix": added(prefix), "service": SERVICES[usize::from(service)]});
    match *operation {
        Operation::Add {
            prefix,
            service,
            confirms,
        } => request(
            host,
            "add",
            json!({"entries": [entry(prefix, service)]}),
            confirms,
        ),
        Operation::AddForAWhile { prefix, service } => {
            let mut entry = entry(prefix, service);
            entry["ttl_seconds"] = json!(1);
            let done = request(host, "add", json!({"entries": [entry]}), false)?;
            if done.is_some() {
                eventually(|| {
                    let document = host.done(&["list", "--added", "--json"]);
                    let document: Value = serde_json::from_str(&document)?;
                    let rows = document["added"].as_array().context("an array")?;
                    Ok(!rows.iter().any(|row| {
                        row["prefix"] == entry["prefix"] && row["service"] == entry["service"]
                    }))
                })?;
            }
            Ok(done.map(|_| Vec::new()))
        }
        Operation::Remove { prefix } => request(
            host,
            "remove",
            json!({"entries": [{"prefix": added(prefix)}]}),
            false,
        ),
        Operation::Mode { observes, confirms } => {
            let mode = if observes { "observe" } else { "enforce" };
            request(host, "mode", json!({ "mode": mode }), confirms)
        }
        Operation::Edit(variant) => {
            host.write(&text(variant))?;
            Ok(None)
        }
        Operation::Reload { confirms } => request(host, "reload", json!({}), confirms),
        Operation::Rollback(back) => {
            let to = (model.number() - 1).checked_sub(back).filter(|to| *to > 0);
            // A number that no policy has.
            let to = to.unwrap_or(1000);
            request(host, "rollback", json!({ "to": to }), false)
        }
        Operation::Confirm => request(host, "confirm", json!({}), false),
        Operation::Refresh(list) => {
            host.testbed
                .scratch
                .write("listed.txt", listed(list).join("\n"))?;
            request(host, "refresh", json!({"source": "listed"}), false)
        }
        Operation::Miss { kills, down } => {
            if kills {
                host.kill()?;
            }
            let misses = model.is_pending() && (down || !kills);
            if misses {
                host.testbed.end_time_to_confirm()?;
            }
            if kills {
                host.start(&[])?;
            }
            Ok(None)
        }
    }
}

/// Plays a sequence on a new host and on the model.
fn play(operations: &[Operation]) -> anyhow::Result<()> {
    let mut host = Host::down(&text(0))?;
    let mut list = 0;
    host.testbed
        .scratch
        .write("listed.txt", listed(list).join("\n"))?;
    host.start(&[])?;
    let mut model = Model::started();
    eventually(|| Ok(observed(&host)? == expected(&model, list)))?;
    for (step, operation) in operations.iter().enumerate() {
        let before = expected(&model, list);
        let place = format!("step {step} of {operations:?}: {operation:?}");
        let done = perform(&mut host, operation, &model).with_context(|| place.clone())?;
        let is_answered = !matches!(operation, Operation::Edit(_) | Operation::Miss { .. });
        let is_done = model.apply(operation);
        if let Operation::Refresh(other) = operation {
            list = *other;
        }
        let after = expected(&model, list);
        if is_answered {
            ensure!(done.is_some() == is_done, "{place}: {done:?}");
        }
        // A daemon may first have to notice the missed deadline.
        eventually(|| Ok(observed(&host)? == after))
            .with_context(|| format!("{place}: expected {after:?}, found {:?}", observed(&host)))?;
        if let (Some(changes), false) = (done, matches!(operation, Operation::AddForAWhile { .. }))
        {
            let is_same = Observed {
                policy: after.policy,
                ..before
            } == after;
            ensure!(changes.is_empty() == is_same, "{place}: {changes:?}");
        }
    }
    Ok(())
}

#[test]
fn sequences_of_operations() {
    require_root!();
    let cases = if std::env::var_os("ALLOWLIST_LONG").is_some() {
        100
    } else {
        12
    };
    let config = Cases {
        failure_persistence: None,
        max_shrink_iters: 0, // a step that fails waits for its whole time limit
        ..Cases::with_cases(cases)
    };
    TestRunner::new(config)
        .run(&vec(operation(), 10..16), |operations| {
            play(&operations).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
