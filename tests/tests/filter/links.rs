//! Interfaces as the kernel reports them: changes, and membership in bridges.

use allowlist_dataplane::interface::Links;
use allowlist_tests::lab::{Ended, rename};
use anyhow::ensure;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::*;

fn ip_link(site: &Testbed, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = site.host.command("ip")?;
    command.arg("link").args(arguments);
    let ended = Ended::of(command)?;
    ensure!(ended.code == Some(0), "{ended:?}");
    Ok(())
}

#[test]
fn each_change_of_an_interface_is_reported() -> anyhow::Result<()> {
    require_root!();
    let site = Testbed::new()?;
    let runtime = Runtime::new()?;
    let mut links = site.host.run(|| {
        let _inside = runtime.enter();
        Links::listen()
    })?;
    let mut told = |wait| runtime.block_on(async { timeout(wait, links.changed()).await.is_ok() });
    let steps: [(&str, &dyn Fn() -> anyhow::Result<()>); 5] = [
        ("added", &|| {
            ip_link(
                &site,
                &["add", "new", "type", "veth", "peer", "name", "end"],
            )
        }),
        ("set up", &|| ip_link(&site, &["set", "new", "up"])),
        ("renamed while down", &|| {
            ip_link(&site, &["set", "new", "down"])?;
            rename(&site.host, "new", "newer")
        }),
        ("in a bridge", &|| {
            ip_link(&site, &["add", "bridge", "type", "bridge"])?;
            ip_link(&site, &["set", "newer", "master", "bridge"])
        }),
        ("removed", &|| ip_link(&site, &["delete", "newer"])),
    ];
    for (what, change) in steps {
        while told(NEVER) {} // of what was before
        change()?;
        assert!(told(SOON), "{what}");
    }
    Ok(())
}
