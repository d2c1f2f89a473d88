//! Hand-made frames with the expected verdict, reason and counters.
//!
//! A [`Group`] is a table of rows under one configuration. Each decision of `judge` is in a group
//! on both of its sides. Uses neither the kernel nor the host: `check` runs the frames on both.

use allowlist_common::verdict::{Reason, Verdict};

mod answers;
mod basic;
mod big;
mod build;
mod errors;
mod headers;
mod keep;
mod services;

pub(crate) use build::{
    VENDOR, echo, host, icmp, icmp_of, ip, packet, ported, tcp, udp, with_options,
};

/// Frames under one configuration.
pub(crate) struct Group {
    /// The name.
    pub(crate) name: String,
    /// The configuration file.
    pub(crate) config: String,
    /// The frames that the host sent before.
    pub(crate) sent: Vec<Vec<u8>>,
    /// The frames that arrive.
    pub(crate) rows: Vec<Row>,
}

/// One frame that arrives.
pub(crate) struct Row {
    /// The case.
    pub(crate) description: String,
    /// The bytes.
    pub(crate) frame: Vec<u8>,
    /// The expected decision.
    pub(crate) end: Expected,
}

/// The expected decision and counters of a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// `None` is the default verdict.
    pub(crate) verdict: Option<Verdict>,
    pub(crate) reason: Reason,
    /// The counted sources, in order, separated by spaces.
    pub(crate) sources: &'static str,
    /// The counted services, in order, separated by spaces.
    pub(crate) services: &'static str,
    /// Whether the decision depends on the end of the frame.
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

/// Passes, without a source or a service.
const fn pass(reason: Reason) -> Expected {
    Expected::new(Verdict::Pass, reason)
}

/// Drops, without a source or a service.
const fn drop(reason: Reason) -> Expected {
    Expected::new(Verdict::Drop, reason)
}

/// Passes, because the services allow the sources; no services if the packet has no port.
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

/// Dropped, independent of the rest of the frame.
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

    /// Returns the group with frames that the host sent before.
    fn after(self, sent: Vec<Vec<u8>>) -> Self {
        Self { sent, ..self }
    }
}

/// The policy of most groups.
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

/// The sources of that policy.
pub(crate) const SOURCES: &str = r#"
    [sources.vendor]
    prefixes = ["192.0.2.0/28", "2001:db8:1::/64"]
    [sources.office]
    prefixes = ["203.0.113.0/24", "2001:db8:7::/48"]
"#;

/// Returns `settings` followed by the policy and the sources.
pub(crate) fn config(settings: &str) -> String {
    [settings, POLICY, SOURCES].concat()
}

/// Returns all groups.
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

/// Returns the frames under the basic policy, with each default verdict and mode.
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
