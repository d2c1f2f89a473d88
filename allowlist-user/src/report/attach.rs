//! The predicted attachment of each interface, for `check`. Pure.

use allowlist_dataplane::AttachModeRequest;
use allowlist_dataplane::driver::{Driver, Obstacle, Prediction};
use serde_json::{Value, json};

use super::{Table, table};

/// An interface with the expected result of attaching the filter to it.
pub struct ExpectedAttach {
    driver: Driver,
    wanted: AttachModeRequest,
    prediction: Prediction,
}

impl ExpectedAttach {
    /// Predicts the result of attaching the filter through `driver` in the configured mode `wanted`.
    pub fn new(driver: Driver, wanted: AttachModeRequest) -> Self {
        Self {
            prediction: driver.predict(wanted),
            driver,
            wanted,
        }
    }

    /// Returns a warning if the attach is expected to fail, or to fall back to generic mode for a reason that has a
    /// remedy; otherwise `None`.
    pub fn warning(&self) -> Option<String> {
        let name = &self.driver.interface;
        match &self.prediction {
            Prediction::FallsBack(obstacle) => {
                let remedy = obstacle.remedy(name)?;
                Some(format!("{}; {remedy}", self.falls_back(obstacle)))
            }
            Prediction::Fails(obstacle) => {
                let mut text = format!("{name}: the attach will fail: {obstacle}");
                if let Some(remedy) = obstacle.remedy(name) {
                    text += &format!("; {remedy}");
                }
                let is_of_mode = !matches!(
                    obstacle,
                    Obstacle::FilteredMaster(_) | Obstacle::OtherProgram { .. }
                );
                if is_of_mode {
                    text += "; attach_mode = \"auto\" would fall back to generic mode";
                }
                Some(text)
            }
            _ => None,
        }
    }

    /// Returns notes about the attachment that need no change.
    pub fn notes(&self) -> Vec<String> {
        let name = &self.driver.interface;
        let mut notes = Vec::new();
        match &self.prediction {
            Prediction::FallsBack(obstacle) if obstacle.remedy(name).is_none() => {
                notes.push(self.falls_back(obstacle));
            }
            Prediction::DriverDecides(undecided) => notes.push(format!(
                "{name}: the attach mode is not known before the start: {undecided}"
            )),
            _ => {}
        }
        let may_reset = matches!(
            self.prediction,
            Prediction::AttachesAfterReset | Prediction::DriverDecides(_)
        );
        if may_reset && self.driver.resets() {
            let driver = self.driver.name.as_deref().unwrap_or_default();
            notes.push(format!(
                "{name}: the driver {driver} restarts the link for a native program, so traffic stops for a moment when the filter is attached or detached"
            ));
        }
        notes
    }

    fn falls_back(&self, obstacle: &Obstacle) -> String {
        format!(
            "{}: the filter will run in generic mode, in the network stack, which is slower: {obstacle}",
            self.driver.interface
        )
    }

    fn words(&self) -> String {
        let outcome = self.prediction.outcome();
        match &self.prediction {
            Prediction::Attached(_) => format!("{outcome}, attached now"),
            _ => outcome.to_string(),
        }
    }

    /// Returns the interface and the expected result of attaching to it, as JSON.
    pub(super) fn json(&self) -> Value {
        let obstacle = self.prediction.obstacle();
        let reason = match &self.prediction {
            Prediction::DriverDecides(undecided) => Some(undecided.to_string()),
            _ => obstacle.map(ToString::to_string),
        };
        let name = &self.driver.interface;
        json!({
            "interface": name,
            "driver": self.driver.name,
            "wanted": self.wanted,
            "outcome": self.prediction.outcome(),
            "attached": matches!(self.prediction, Prediction::Attached(_)),
            "reason": reason,
            "remedy": obstacle.and_then(|obstacle| obstacle.remedy(name)),
        })
    }
}

/// Returns the table of expected results, a row for each interface; `None` without interfaces.
pub(super) fn attach_table(expected: &[ExpectedAttach]) -> Option<Table> {
    if expected.is_empty() {
        return None;
    }
    let mut rows = table(&["interface", "driver", "attach mode"], &[]);
    for one in expected {
        let driver = one.driver.name.as_deref().unwrap_or("-");
        rows.add_row([&*one.driver.interface, driver, &one.words()]);
    }
    Some(rows)
}
