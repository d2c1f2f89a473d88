//! Where the prefixes come from: each source's state, age, and when it is asked next.

use serde_json::Value;

use super::{Report, Status};

/// The part of a status that is about sources.
pub struct Sources(pub Status);

impl Report for Sources {
    fn text(&self) -> String {
        self.0.sources_text()
    }

    fn json(&self) -> Value {
        self.0.sources_json()
    }
}
