//! Rules that are limited to cgroups: they apply to programs in the cgroup and below, and to no others.

use allowlist_tests::lab::{Cgroup, Testbed, eventually};
use allowlist_tests::require_root;

use super::*;

/// Returns two rules: one for the cgroup `unit` on port 443, and one for all programs on port 53.
fn rules(unit: &Cgroup) -> String {
    format!(
        "
[egress.rules.unit]
to = [\"partner\"]
ports = [\"udp/443\"]
units = [\"{}\"]

[egress.rules.all]
to = [\"partner\"]
ports = [\"udp/53\"]

[sources.partner]
prefixes = [\"198.51.100.2/32\", \"2001:db8:1::2/128\"]
",
        unit.below_root().display()
    )
}

const CALLS: [(&str, &str, u16); 4] = [
    ("udp_send", "198.51.100.2", 443),
    ("udp_send", "2001:db8:1::2", 443),
    ("udp_send", "198.51.100.2", 53),
    ("udp_send", "198.51.100.2", 80),
];
const OF_UNIT: [&str; 4] = ["ok", "ok", "ok", "EPERM"];
const OF_OTHERS: [&str; 4] = ["EPERM", "EPERM", "ok", "EPERM"];

#[test]
fn a_rule_applies_to_its_unit_and_below() -> anyhow::Result<()> {
    require_root!();
    let (testbed, root) = (Testbed::new()?, Cgroup::new()?);
    let unit = root.child("unit")?;
    let (below, other) = (unit.child("below")?, root.child("other")?);
    let _daemon = start(&testbed, &root, &rules(&unit))?;
    for (cgroup, expected) in [
        (&unit, OF_UNIT),
        (&below, OF_UNIT),
        (&other, OF_OTHERS),
        (&root, OF_OTHERS),
    ] {
        let results = call(&testbed.host, cgroup, &CALLS)?;
        assert_eq!(results, expected, "{}", cgroup.below_root().display());
    }
    let status = testbed.json("status")?;
    let rules = &status["egress"]["rules"];
    assert_eq!(
        (&rules["unit"]["passed"], &rules["all"]["passed"]),
        (&4.into(), &4.into())
    );
    Ok(())
}

#[test]
fn a_unit_may_appear_later() -> anyhow::Result<()> {
    require_root!();
    let (testbed, root) = (Testbed::new()?, Cgroup::new()?);
    let unit = root.child("unit")?;
    let rules = rules(&unit);
    drop(unit);
    let _daemon = start(&testbed, &root, &rules)?;
    let unit = root.child("unit")?;
    eventually(|| Ok(call(&testbed.host, &unit, &CALLS)? == OF_UNIT))?;
    // A cgroup with the same path is another one for the kernel.
    drop(unit);
    let unit = root.child("unit")?;
    eventually(|| Ok(call(&testbed.host, &unit, &CALLS)? == OF_UNIT))?;
    Ok(())
}
