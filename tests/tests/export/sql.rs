//! `MariaDB`: a server with the accounts of the export, and the addresses that it admits.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use allowlist_tests::lab::Program;
use allowlist_user::export::Format;
use anyhow::ensure;

use crate::{AFTER, BEFORE, EVERYBODY, Machine, require_programs, visitors};

const PORT: u16 = 3306;
const SOON: Duration = Duration::from_mins(3);

/// Starts a server that has only the account of root. It ends when it is dropped.
fn start(machine: &Machine) -> anyhow::Result<Program> {
    // The minimum size of log files, since all files are in memory.
    let options = "--no-defaults --user=root --datadir=FOLDER/data --skip-name-resolve --innodb-log-file-size=4M";
    machine.run(&format!(
        "mariadb-install-db {options} --auth-root-authentication-method=normal --skip-test-db"
    ))?;
    let serve =
        format!("mariadbd {options} --socket=FOLDER/socket --pid-file=FOLDER/pid --port={PORT}");
    let server = Program::start(machine.command(&serve)?)?;
    server.wait_for_line("ready for connections", SOON)?;
    Ok(server)
}

fn query(machine: &Machine, sql: &str) -> anyhow::Result<Vec<String>> {
    let client = "mariadb --no-defaults --user=root --socket=socket --batch --skip-column-names";
    let printed = machine.type_in(&format!("{client} <<'END'\n{sql}\nEND"))?;
    Ok(printed.lines().map(str::to_owned).collect())
}

/// Returns the addresses that the server greets. It refuses others, since their host is not allowed.
fn greeted(machine: &Machine) -> anyhow::Result<BTreeSet<IpAddr>> {
    let answers = visitors::answers(&machine.namespace, PORT, "")?;
    ensure!(answers.len() == visitors::everybody().len(), "{answers:?}");
    let mut greeted = BTreeSet::new();
    for (visitor, answer) in answers {
        if !answer.contains("is not allowed to connect") {
            ensure!(answer.contains("MariaDB"), "{answer}");
            greeted.insert(visitor);
        }
    }
    Ok(greeted)
}

/// Returns the addresses of `texts` that are admitted: for IPv6 only single addresses.
fn listed(texts: &[&str]) -> BTreeSet<IpAddr> {
    let is_host = |text: &&str| !text.contains(':') || text.ends_with("/128");
    let hosts: Vec<_> = texts.iter().copied().filter(is_host).collect();
    visitors::listed(&hosts)
}

#[test]
fn mariadb_loads_the_export() -> anyhow::Result<()> {
    require_programs!(
        "mariadbd" from "mariadb-server-core",
        "mariadb" from "mariadb-client-core"
    );
    let machine = Machine::new()?;
    let _server = start(&machine)?;
    let client = "mariadb --no-defaults --user=root --socket=socket --batch --skip-column-names";
    let load = |texts: &[&str]| {
        machine.write(Format::MysqlGrant, texts)?;
        let printed = machine.type_in(&format!("{client} < FILE"))?;
        ensure!(
            !machine.folder().join("mine").exists(),
            "a comment was executed"
        );
        Ok(printed)
    };
    assert_eq!(greeted(&machine)?, BTreeSet::new());

    assert_eq!(load(BEFORE)?, "");
    assert_eq!(greeted(&machine)?, listed(BEFORE));
    let account = "'reader'@'192.0.2.0/255.255.255.0'";
    let locked = || -> anyhow::Result<bool> {
        let shown = query(&machine, &format!("SHOW CREATE USER {account};"))?;
        Ok(shown[0].ends_with(" ACCOUNT LOCK"))
    };
    assert!(locked()?, "the account has no password yet");

    // The comments contain the statements that unlock the accounts.
    let text = std::fs::read_to_string(machine.scratch.file("FILE"))?;
    let hint: String = text
        .lines()
        .filter_map(|line| line.strip_prefix("--   "))
        .collect::<Vec<_>>()
        .join("\n");
    let opening = query(&machine, &hint)?;
    assert_eq!(opening.len(), 3, "{opening:?}");
    query(&machine, &opening.join("\n"))?;
    assert!(!locked()?);

    // A second load changes neither password nor lock.
    let shown = format!("SHOW CREATE USER {account}; SHOW GRANTS FOR {account};");
    let before = query(&machine, &shown)?;
    assert_eq!(load(BEFORE)?, "");
    assert_eq!(query(&machine, &shown)?, before);
    // `_` is escaped; the output doubles the backslash.
    assert_eq!(
        before[2],
        "GRANT SELECT ON `db\\\\_1`.* TO `reader`@`192.0.2.0/255.255.255.0`"
    );

    // The load prints SQL that drops the accounts of removed prefixes.
    let printed = load(AFTER)?;
    let all: Vec<_> = BEFORE.iter().chain(AFTER).copied().collect();
    assert_eq!(greeted(&machine)?, listed(&all));
    assert_eq!(printed.lines().count(), 3, "{printed}");
    query(&machine, &printed)?;
    assert_eq!(greeted(&machine)?, listed(AFTER));

    let printed = load(EVERYBODY)?;
    query(&machine, &printed)?;
    let v4: BTreeSet<_> = visitors::everybody()
        .into_iter()
        .filter(IpAddr::is_ipv4)
        .collect();
    assert_eq!(greeted(&machine)?, v4);

    // The load reports an account that admits all hosts.
    query(&machine, "CREATE USER 'reader'@'%' ACCOUNT LOCK;")?;
    assert_eq!(load(EVERYBODY)?, "DROP USER 'reader'@'%';\n");
    Ok(())
}
