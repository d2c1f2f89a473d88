//! What `check` warns of, that only a host or the lists can tell.

use allowlist_tests::lab::bridge;

use super::*;

#[track_caller]
fn said(ended: &Ended) -> Vec<&str> {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let lines = ended.stdout.lines();
    let is_said = |line: &&str| line.starts_with("warning: ") || line.starts_with("note: ");
    let of_here = format!("warning: there is no interface {HERE} on this host now");
    lines
        .filter(is_said)
        .filter(|line| *line != of_here)
        .collect()
}

/// An interface that is there or not, on the machine that the tests run on.
const HERE: &str = "eth0";
const WEB: &str = "[services.web]\nports = ['tcp/443']\nallow = ['office']\n[sources.office]\nprefixes = ['203.0.113.0/24']\n";

#[test]
fn check_tells_who_reaches_ssh() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (keys, expected) in [
        (
            "",
            "note: SSH is open to everybody: no service covers tcp/22, and default = \"pass\";",
        ),
        (
            "default = 'drop'",
            "warning: SSH is closed: default = \"drop\", and no service covers tcp/22; add [services.ssh] with",
        ),
    ] {
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{HERE}']\n{keys}\n{WEB}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        let [line] = said(&ended)[..] else {
            panic!("{ended:?}");
        };
        assert!(line.starts_with(expected), "{line}");
        let ended = home.run(&["check", "--json", "--config", "allowlist.toml"])?;
        assert!(ended.stderr.contains(expected), "{ended:?}");
        parsed(&ended);
        let ssh = WEB.replace("'tcp/443'", "'tcp/443', 'tcp/22'");
        home.write(
            "allowlist.toml",
            &format!("interfaces = ['{HERE}']\n{keys}\n{ssh}"),
        )?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        assert_eq!(said(&ended), [""; 0], "{keys}");
    }
    // Whoever types a few options for a try knows what they leave out.
    let ended = home.run(&[&["check", "--iface", HERE], &SMALL[..]].concat())?;
    assert_eq!(said(&ended), [""; 0]);
    Ok(())
}

#[test]
fn check_tells_of_lists_that_hold_everybody() -> anyhow::Result<()> {
    let home = Home::new()?;
    home.write("all.txt", "0.0.0.0/1\n128.0.0.0/1\n")?;
    home.write(
        "allowlist.toml",
        &format!("interfaces = ['{HERE}']\n[services.web]\nports = ['tcp/22']\nallow = ['all']\n[sources.all]\nfile = 'all.txt'\nmin_prefix_len = {{ v4 = 0, v6 = 0 }}\n"),
    )?;
    let ended = home.run(&["check", "--config", "allowlist.toml"])?;
    let expected =
        "warning: services.web is open to everyone: the list of sources.all covers 0.0.0.0/0";
    assert_eq!(said(&ended), [expected]);
    Ok(())
}

/// Of a bond's members the unit tests tell: not every kernel that tests run on has bonds.
#[test]
fn check_tells_of_a_port_of_a_bridge() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    bridge(&site.host, "br0", &["eth0"])?;
    for (filtered, expected) in [
        ("eth0", &["warning: eth0 is a port of the bridge br0: "][..]),
        ("br0", &[]),
    ] {
        let ssh = WEB.replace("443", "22");
        let config = format!("interfaces = ['{filtered}']\n{ssh}");
        let config = site.scratch.write("allowlist.toml", config)?;
        let ended = site.run(&["check", "--config", &config.display().to_string()])?;
        let said = said(&ended);
        assert_eq!(said.len(), expected.len(), "{filtered}: {said:?}");
        for (line, expected) in said.iter().zip(expected) {
            assert!(line.starts_with(expected), "{filtered}: {line}");
        }
    }
    Ok(())
}

#[test]
fn check_notes_which_fragments_services_drop() -> anyhow::Result<()> {
    let home = Home::new()?;
    for (ports, is_noted) in [("'tcp/22', 'udp/53'", true), ("'tcp/22', 'gre'", false)] {
        let web = WEB.replace("'tcp/443'", ports);
        home.write("allowlist.toml", &format!("interfaces = ['{HERE}']\n{web}"))?;
        let ended = home.run(&["check", "--config", "allowlist.toml"])?;
        let said = said(&ended);
        assert_eq!(said.len(), usize::from(is_noted), "{ports}: {said:?}");
        assert!(
            said.iter()
                .all(|line| line.starts_with("note: large datagrams")),
            "{said:?}"
        );
    }
    Ok(())
}

/// In the file and by option, and in every command that takes either.
#[test]
fn loopback_is_refused() -> anyhow::Result<()> {
    require_root!();
    let site = Site::new()?;
    let named = format!("interfaces = ['eth0', 'lo']\n{WEB}");
    let named = site.scratch.write("named.toml", named)?;
    let named = named.display().to_string();
    let open = site.scratch.write("open.toml", WEB)?.display().to_string();
    for arguments in [
        &["--config", &*named][..],
        &["--config", &*open, "--iface", "lo"],
        &[&["--iface", "lo"], &SMALL[..]].concat(),
    ] {
        for command in ["check", "run"] {
            let ended = site.run(&[&[command], arguments].concat())?;
            let expected = &["lo is the loopback interface", "leave it out"];
            check_error(&ended, 1, expected);
        }
    }
    Ok(())
}
