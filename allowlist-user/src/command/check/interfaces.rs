//! The configured interfaces, for `check`: their faults, and the expected result of attaching the filter to each.

use allowlist_dataplane::driver;
use allowlist_dataplane::interface;
use allowlist_dataplane::netlink::index_of;
use allowlist_policy::error_code::{CodedError, ErrorCode};
use allowlist_policy::hints;

use crate::config::Config;
use crate::report::ExpectedAttach;

/// The result of checking the configured interfaces.
#[derive(Default)]
pub(super) struct Interfaces {
    /// The expected result of attaching to each interface that is present.
    pub(super) attach: Vec<ExpectedAttach>,
    pub(super) warnings: Vec<String>,
    pub(super) notes: Vec<String>,
    /// The reasons why a start would fail.
    pub(super) failures: Vec<CodedError>,
}

impl Interfaces {
    pub(super) async fn read(config: &Config) -> Self {
        let mut found = Self::default();
        if let Err(error) = interface::require_distinct(&config.interfaces) {
            found.failures.push(error.into());
        }
        for name in &config.interfaces {
            found.read_one(config, name).await;
        }
        found
    }

    async fn read_one(&mut self, config: &Config, name: &str) {
        if name == interface::LOOPBACK {
            self.failures.push(CodedError::new(
                ErrorCode::UnsupportedInterface,
                interface::loopback(name),
            ));
            return;
        }
        if index_of(name).is_none() {
            let hint = hints::interface(name).map_or_else(String::new, |hint| format!("; {hint}"));
            self.warnings.push(format!(
                "this host has no interface {name} now; it is filtered once it appears{hint}"
            ));
            return;
        }
        let facts = match interface::look_up(name).await {
            Ok(facts) => facts,
            Err(error) => {
                self.failures.push(error.into());
                return;
            }
        };
        let membership = interface::membership(name).await;
        self.warnings
            .extend(membership.and_then(|found| found.warning(&config.interfaces)));
        match driver::read(&facts).await {
            Ok(driver) => {
                let expected = ExpectedAttach::new(driver, config.attach);
                self.warnings.extend(expected.warning());
                self.notes.extend(expected.notes());
                self.attach.push(expected);
            }
            Err(error) => self.warnings.push(format!(
                "{name}: the attach mode is not known before the start: {error:#}"
            )),
        }
    }
}
