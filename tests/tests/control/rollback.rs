//! Earlier policies, put in force again.

use super::*;

#[test]
fn a_policy_comes_back_whole() -> anyhow::Result<()> {
    require_root!();
    let mut host = Host::new()?;
    let first = host.in_force()?;
    host.refused(&["rollback"], 1, &["there is no policy before this one"]);
    host.done(&["add", STRANGERS[0], "--service", "web"]); // 2
    host.done(&["mode", "observe"]); // 3
    let third = host.in_force()?;
    host.write(&format!("default = 'drop'\n{CONFIG}"))?;
    host.done(&["reload"]); // 4
    host.done(&["remove", STRANGERS[0]]); // 5
    let fifth = host.in_force()?;
    let list = host.done(&["rollback", "--list"]);
    assert!(
        list.contains("in force: remove 192.0.2.66/32 at web"),
        "{list}"
    );
    host.done(&["rollback", "3"]);
    assert_eq!(host.in_force()?, third);
    host.done(&["rollback"]);
    assert_eq!(host.in_force()?, fifth);
    host.done(&["rollback", "1"]);
    assert_eq!(host.in_force()?, first);
    host.refused(
        &["rollback", "99"],
        1,
        &["there is no policy 99 to go back to; there are 1, 2"],
    );
    host.refused(&["rollback", "8"], 1, &["policy 8 is in force already"]);

    // The file says what was gone back from: that does not count, until it says something else.
    host.kill()?;
    host.start(&[])?;
    assert_eq!(host.in_force()?, first);
    host.done(&["reload"]);
    assert_eq!(host.site.json("status")?["default"], "drop");
    host.done(&["rollback"]);
    assert_eq!(host.in_force()?, first);
    host.write(&format!("# mended\ndefault = 'drop'\n{CONFIG}"))?;
    host.kill()?;
    host.start(&[])?;
    assert_eq!(host.site.json("status")?["default"], "drop");
    Ok(())
}

#[test]
fn the_last_twenty_are_kept() -> anyhow::Result<()> {
    require_root!();
    let host = Host::new()?;
    for number in 1..=25 {
        host.done(&["add", &format!("192.0.2.{number}"), "--service", "web"]);
    }
    let document: Value = serde_json::from_str(&host.done(&["rollback", "--list", "--json"]))?;
    let policies = document["policies"].as_array().context("an array")?;
    assert!(policies.len() >= 20, "{document}");
    let oldest = policies.last().context("there are some")?["policy"]
        .as_u64()
        .context("a number")?;
    host.done(&["rollback", &oldest.to_string()]);
    assert_eq!(added(&host)?.len() as u64, oldest - 1);
    host.refused(
        &["rollback", "1"],
        1,
        &["there is no policy 1 to go back to"],
    );
    Ok(())
}
