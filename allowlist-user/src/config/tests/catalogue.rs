//! Sources that name a provider of the catalogue.

use std::collections::BTreeMap;

use allowlist_lists::catalogue::{self, Provider};
use allowlist_lists::gate::notes;
use allowlist_policy::{Origin, Source};

use super::*;

/// Returns the parameters that an operator must set for a provider.
fn required(provider: &Provider) -> BTreeMap<String, String> {
    let required = provider.parameters().iter().filter(|p| p.default.is_none());
    required
        .map(|p| {
            let value = p.values.first().map_or("example", String::as_str);
            (p.name.clone(), value.to_owned())
        })
        .collect()
}

#[test]
fn providers_limit_their_addresses() {
    for provider in catalogue::all() {
        let name = &provider.name;
        let source = provided(name, provider, &[], &required(provider))
            .or_else(|_| {
                let region = provider.regions().first().expect("it needs one");
                provided(name, provider, &[region], &required(provider))
            })
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        if matches!(source.origin, Origin::BuiltIn { .. }) {
            continue;
        }
        let (max, usual) = (source.gate.max_addresses, allowlist_policy::Gate::default());
        let is_cloud = matches!(&**name, "aws" | "azure");
        let (v4, v6) = (usual.max_addresses.v4, usual.max_addresses.v6);
        assert!(max.v4 <= v4 || is_cloud, "{name}: {max:?}");
        assert!(max.v6 < v6, "{name}: {max:?}");
        // One prefix of the minimum length fits.
        assert!(max.v4 >> (32 - source.gate.min_prefix_len_v4) > 0, "{name}");
        assert!(
            max.v6 >> (128 - source.gate.min_prefix_len_v6) > 0,
            "{name}"
        );
        assert!(
            source.gate.min_prefix_len_v4 > usual.min_prefix_len_v4,
            "{name}"
        );
        assert!(
            source.gate.min_prefix_len_v6 > usual.min_prefix_len_v6,
            "{name}"
        );
        assert!(source.gate.notable_addresses.v4 > max.v4, "{name}");
    }
}

#[test]
fn a_list_of_the_size_in_the_catalogue_has_no_note() {
    let wide = ["32.0.0.0/6".parse().expect("a prefix")];
    assert_eq!(
        notes(&Source::new("own", Origin::Prefixes(wide.to_vec())), &wide).len(),
        1
    );
    let parameters = [("service".to_owned(), "AMAZON".to_owned())].into();
    let aws = provided(
        "aws",
        catalogue::find("aws").expect("is in the catalogue"),
        &[],
        &parameters,
    )
    .expect("is a source");
    assert_eq!(notes(&aws, &wide), [""; 0]);
}
