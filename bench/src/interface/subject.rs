//! The subjects of the flood: each has a testbed, an active list of prefixes, and a counter of dropped packets.
//!
//! A new subject is an entry in [`all`]. Firewalls of other projects are in `firewalls`.

use std::mem::ManuallyDrop;

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_dataplane::View;
use allowlist_tests::lab::{Program, Testbed};
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::{FLOOR, OURS, PORT, firewalls};
use crate::programs;
use crate::record::{Record, thousands};
use crate::traffic::List;

type Count = Box<dyn Fn(&Testbed) -> Result<u64>>;

/// A running firewall, in a testbed of its own.
pub(super) struct Subject {
    pub(super) name: &'static str,
    count: Count,
    /// The daemon of the shipped filter; dropping this value ends the process. `None` for other firewalls.
    _process: Option<Program>,
    pub(super) testbed: Testbed,
}

impl Subject {
    pub(super) fn new(name: &'static str, testbed: Testbed, count: Count) -> Self {
        Self {
            name,
            count,
            _process: None,
            testbed,
        }
    }

    /// Reads the subject's own counter of dropped packets.
    pub(super) fn dropped(&self) -> Result<u64> {
        (self.count)(&self.testbed)
    }
}

/// Creates all subjects that can run on this machine, and adds a note to `record` for each of the others.
pub(super) fn all(record: &mut Record, list: &List) -> Result<Vec<Subject>> {
    let mut subjects = vec![
        in_xdp(FLOOR, "drop_all", list)?,
        in_xdp("trie in XDP", "drop_trie", list)?,
        allowlist(list).context(OURS)?,
    ];
    for firewall in firewalls::ALL {
        match firewall.missing()? {
            Some(note) => record.note(note),
            None if list.prefixes.len() > firewall.most => record.note(format!(
                "the firewall {} is skipped for the list of {} prefixes, because it supports at most {}",
                firewall.name,
                thousands(list.prefixes.len()),
                thousands(firewall.most)
            )),
            None => subjects.push((firewall.make)(firewall.name, list).context(firewall.name)?),
        }
    }
    Ok(subjects)
}

/// Attaches one of the benchmark's programs to the host's interface in native mode.
fn in_xdp(name: &'static str, program: &str, list: &List) -> Result<Subject> {
    let testbed = Testbed::new()?;
    let mut object = programs::load(&[programs::trie_capacity(list)])?;
    if program == "drop_trie" {
        programs::fill_trie(&mut object, list)?;
    }
    attach(&testbed, &mut object, program).with_context(|| format!("cannot attach {program}"))?;
    // The program disappears with the namespace. Not dropped here, because freeing the prefixes occupies a CPU.
    let object = ManuallyDrop::new(object);
    let count: Count = Box::new(move |_| Ok(programs::tally(&object)?.dropped));
    Ok(Subject::new(name, testbed, count))
}

fn attach(testbed: &Testbed, object: &mut Ebpf, program: &str) -> Result<()> {
    let program: &mut Xdp = object
        .program_mut(program)
        .context("the benchmark's eBPF object has no such program")?
        .try_into()?;
    testbed
        .host
        .run(|| program.attach("eth0", XdpMode::Driver))?;
    Ok(())
}

/// Starts the shipped daemon, with the list in a file.
fn allowlist(list: &List) -> Result<Subject> {
    let testbed = Testbed::new()?;
    testbed.scratch.write("list.txt", lines(list))?;
    let config = testbed.scratch.write(
        "allowlist.toml",
        format!(
            "interfaces = ['eth0']\ndefault = 'drop'\nattach_mode = 'native'\n\
             [services.flooded]\nports = ['udp/{PORT}']\nallow = ['list']\n\
             [sources.list]\nfile = 'list.txt'\n"
        ),
    )?;
    let process = testbed.filter(&["--config", &config.display().to_string()])?;
    let count: Count = Box::new(|testbed| {
        let view = View::open(testbed.scratch.pin_dir())?;
        let counters = view.counters()?;
        let counters = counters
            .get("eth0")
            .context("the filter has no counters for eth0, so it is not attached there")?;
        let drops = Reason::ALL.map(|reason| counters.get(Verdict::Drop, reason));
        Ok(drops.iter().sum())
    });
    Ok(Subject {
        _process: Some(process),
        ..Subject::new(OURS, testbed, count)
    })
}

/// Returns a list as text, one prefix per line.
pub(super) fn lines(list: &List) -> String {
    let mut text = String::new();
    for prefix in &list.prefixes {
        text += &format!("{}\n", prefix.net(list.family));
    }
    text
}
