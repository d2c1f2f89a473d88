//! What filters a flood: each with two namespaces, a list of prefixes in force, and a count of what it dropped.
//!
//! Another subject is another entry of [`all`]. Firewalls that others wrote are in `firewalls`.

use std::mem::ManuallyDrop;

use allowlist_common::verdict::{Reason, Verdict};
use allowlist_tests::lab::{Program, Testbed};
use allowlist_user::dataplane::View;
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::programs::{Xdp, XdpMode};

use super::{FLOOR, OURS, PORT, firewalls};
use crate::programs;
use crate::record::{Record, thousands};
use crate::traffic::List;

type Count = Box<dyn Fn(&Testbed) -> Result<u64>>;

/// See the module.
pub(super) struct Subject {
    pub(super) name: &'static str,
    count: Count,
    /// What filters only while it runs, or would stop when it is dropped.
    _process: Option<Program>,
    pub(super) site: Testbed,
}

impl Subject {
    pub(super) fn new(name: &'static str, site: Testbed, count: Count) -> Self {
        Self {
            name,
            count,
            _process: None,
            site,
        }
    }

    /// Packets that it dropped so far, as it counts them itself.
    pub(super) fn dropped(&self) -> Result<u64> {
        (self.count)(&self.site)
    }
}

/// All that can run here; what cannot is noted.
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
                "{} is left out above {} prefixes: it takes no more",
                firewall.name,
                thousands(firewall.most)
            )),
            None => subjects.push((firewall.make)(firewall.name, list).context(firewall.name)?),
        }
    }
    Ok(subjects)
}

/// One of the benchmark's own programs, native on the host's interface.
fn in_xdp(name: &'static str, program: &str, list: &List) -> Result<Subject> {
    let site = Testbed::new()?;
    let mut object = programs::load(&[programs::trie_room(list)])?;
    if program == "drop_trie" {
        programs::fill_trie(&mut object, list)?;
    }
    attach(&site, &mut object, program).with_context(|| format!("cannot attach {program}"))?;
    // Its interface goes with the namespaces; its prefixes are not freed while something is measured.
    let object = ManuallyDrop::new(object);
    let count: Count = Box::new(move |_| Ok(programs::tally(&object)?.dropped));
    Ok(Subject::new(name, site, count))
}

fn attach(site: &Testbed, object: &mut Ebpf, program: &str) -> Result<()> {
    let program: &mut Xdp = object
        .program_mut(program)
        .context("no such program")?
        .try_into()?;
    site.host.run(|| program.attach("eth0", XdpMode::Driver))?;
    Ok(())
}

/// The filter as it ships: its daemon as a process, with the list as a file.
fn allowlist(list: &List) -> Result<Subject> {
    let site = Testbed::new()?;
    site.scratch.write("list.txt", lines(list))?;
    let config = site.scratch.write(
        "allowlist.toml",
        format!(
            "interfaces = ['eth0']\ndefault = 'drop'\nattach_mode = 'native'\n\
             [services.flooded]\nports = ['udp/{PORT}']\nallow = ['list']\n\
             [sources.list]\nfile = 'list.txt'\n"
        ),
    )?;
    let process = site.filter(&["--config", &config.display().to_string()])?;
    let count: Count = Box::new(|site| {
        let view = View::open(site.scratch.pin_dir())?;
        let counters = view.counters()?;
        let counters = counters.get("eth0").context("eth0 is not filtered")?;
        let drops = Reason::ALL.map(|reason| counters.get(Verdict::Drop, reason));
        Ok(drops.iter().sum())
    });
    Ok(Subject {
        _process: Some(process),
        ..Subject::new(OURS, site, count)
    })
}

/// A list as text, a prefix a line.
pub(super) fn lines(list: &List) -> String {
    let mut text = String::new();
    for prefix in &list.prefixes {
        text += &format!("{}\n", prefix.net(list.family));
    }
    text
}
