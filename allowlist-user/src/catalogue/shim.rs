//! What the configuration calls until it reads a provider's table like any other source.

use url::Url;

use super::{List, Provider, Region};
use crate::policy::{Http, Origin, Source};

impl Provider {
    /// A source called `name` of these regions, or of all those that need not be named.
    pub fn source(&self, name: &str, regions: &[&Region]) -> Source {
        let origin = match &self.list {
            List::Fetched(source) => {
                let url = source.get("url").and_then(toml::Value::as_str);
                let url = Url::parse(url.unwrap_or("https://unsupported.invalid/"));
                Origin::Http(Http::new(url.expect("is a URL")))
            }
            List::BuiltIn => Origin::BuiltIn {
                prefixes: self.prefixes(regions),
                checked: self.checked.to_string().leak(),
            },
        };
        Source {
            provider: Some(self.name.clone()),
            warning: self.warning.clone(),
            ..Source::new(name, origin)
        }
    }
}
