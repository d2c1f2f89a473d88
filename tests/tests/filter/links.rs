//! The kernel's reports of changed interfaces.

use allowlist_dataplane::interface::Links;
use allowlist_tests::lab::{Ended, rename};
use anyhow::ensure;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::*;

fn ip_link(testbed: &Testbed, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = testbed.host.command("ip")?;
    command.arg("link").args(arguments);
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(())
}

#[test]
fn each_change_of_an_interface_is_reported() -> anyhow::Result<()> {
    require_root!();
    let testbed = Testbed::new()?;
    let runtime = Runtime::new()?;
    let mut links = testbed.host.run(|| {
        let _inside = runtime.enter();
        Links::listen()
    })?;
    let mut is_reported =
        |wait| runtime.block_on(async { timeout(wait, links.changed()).await.is_ok() });
    let steps: [(&str, &dyn Fn() -> anyhow::Result<()>); 5] = [
        ("added", &|| {
            ip_link(
                &testbed,
                &["add", "new", "type", "veth", "peer", "name", "end"],
            )
        }),
        ("set up", &|| ip_link(&testbed, &["set", "new", "up"])),
        ("renamed while down", &|| {
            ip_link(&testbed, &["set", "new", "down"])?;
            rename(&testbed.host, "new", "newer")
        }),
        ("in a bridge", &|| {
            ip_link(&testbed, &["add", "bridge", "type", "bridge"])?;
            ip_link(&testbed, &["set", "newer", "master", "bridge"])
        }),
        ("removed", &|| ip_link(&testbed, &["delete", "newer"])),
    ];
    for (step, change) in steps {
        while is_reported(NEVER) {} // reports of earlier steps
        change()?;
        assert!(is_reported(SOON), "{step}");
    }
    Ok(())
}
