//! Hand-made frames, and how each must end: verdict, reason, and what is counted for whom.
//!
//! A [`Group`] is a table of rows under one configuration. Each decision of `judge` is in some group
//! on both of its sides. Knows neither the kernel nor the host: `check` asks both.

mod answers;
mod basic;
mod big;
mod build;
mod errors;
mod headers;
mod keep;
mod services;

use allowlist_common::verdict::{Reason, Verdict};

pub(crate) use build::{VENDOR, host, icmp, icmp_of, ip, packet, ported, tcp, udp, with_options};

/// Frames under one configuration.
pub(crate) struct Group {
    /// What is special about it.
    pub(crate) name: String,
    /// The configuration file.
    pub(crate) config: String,
    /// What the host sent before.
    pub(crate) sent: Vec<Vec<u8>>,
    /// What arrives.
    pub(crate) rows: Vec<Row>,
}

/// One frame that arrives.
pub(crate) struct Row {
    /// What is said of it.
    pub(crate) description: String,
    /// Its bytes.
    pub(crate) frame: Vec<u8>,
    /// How it ends.
    pub(crate) end: Expected,
}

/// How a frame ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// `None` is the default verdict.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) reason: Reason,
    /// The sources that it is counted for, in order, with blanks between.
    pub(crate) sources: &'static str,
    /// Likewise the services.
    pub(crate) services: &'static str,
    /// Whether it only ends so because the frame ends where it does.
    pub(crate) is_cut: bool,
}

impl Expected {
    const fn new(verdict: Verdict, reason: Reason) -> Self {
        Self {
            verdict: Some(verdict),
            reason,
            sources: "",
            services: "",
            is_cut: false,
        }
    }
}

/// Passes for a reason that is nobody's.
const fn pass(reason: Reason) -> Expected {
    Expected::new(Verdict::Pass, reason)
}

/// Likewise drops.
const fn drop(reason: Reason) -> Expected {
    Expected::new(Verdict::Drop, reason)
}

/// Passes, since the sources may reach the services; no services where no port can be seen.
const fn allowed(sources: &'static str, services: &'static str) -> Expected {
    Expected {
        sources,
        services,
        ..pass(Reason::Allowed)
    }
}

/// Dropped by the services.
const fn refused(services: &'static str) -> Expected {
    Expected {
        services,
        ..drop(Reason::NotAllowed)
    }
}

/// A fragment without ports that the services of its protocol drop.
const STRAY: Expected = drop(Reason::Fragment);

/// The default verdict decides.
const UNCOVERED: Expected = Expected {
    verdict: None,
    ..pass(Reason::Default)
};

const ANSWER: Expected = pass(Reason::Answer);

/// Dropped whatever follows in the frame.
const MALFORMED: Expected = drop(Reason::Malformed);

/// Malformed because the frame ends.
const CUT_SHORT: Expected = Expected {
    is_cut: true,
    ..MALFORMED
};

impl Group {
    fn new<D: Into<String>>(
        name: impl Into<String>,
        config: impl Into<String>,
        rows: Vec<(D, Vec<u8>, Expected)>,
    ) -> Self {
        let rows = rows.into_iter().map(|(description, frame, end)| Row {
            description: description.into(),
            frame,
            end,
        });
        Self {
            name: name.into(),
            config: config.into(),
            sent: Vec::new(),
            rows: rows.collect(),
        }
    }

    /// After the host sent these.
    fn after(self, sent: Vec<Vec<u8>>) -> Self {
        Self { sent, ..self }
    }
}

/// The policy that most frames are judged under.
pub(crate) const POLICY: &str = r#"
    [services.web]
    ports = ["tcp/443", "tcp/8443-8445"]
    allow = ["vendor", "office"]
    [services.dns]
    ports = ["udp/53"]
    allow = ["office"]
    [services.ping]
    ports = ["icmp"]
    allow = ["office"]
"#;

/// Who is who.
pub(crate) const SOURCES: &str = r#"
    [sources.vendor]
    prefixes = ["192.0.2.0/28", "2001:db8:1::/64"]
    [sources.office]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

/// `settings`, and then the policy and the sources.
pub(crate) fn config(settings: &str) -> String {
    [settings, POLICY, SOURCES].concat()
}

/// All groups.
pub(crate) fn groups() -> Vec<Group> {
    [
        basic_groups(),
        keep::groups(),
        services::groups(),
        answers::groups(),
        errors::groups(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The frames that need no other than the basic policy, under each default verdict and mode.
fn basic_groups() -> Vec<Group> {
    let settings = [
        ("default pass", ""),
        (
            "default drop",
            "default = \"drop\"\nreturn_traffic = \"off\"\n",
        ),
        (
            "observe",
            "mode = \"observe\"\ndefault = \"drop\"\nreturn_traffic = \"off\"\n",
        ),
    ];
    let group = |(name, settings)| {
        let mut group = Group::new(name, config(settings), basic::rows());
        group.rows.extend(Group::new("", "", headers::rows()).rows);
        group.rows.extend(Group::new("", "", big::rows()).rows);
        group
    };
    settings.into_iter().map(group).collect()
}
