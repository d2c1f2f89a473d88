//! `MariaDB`: a server with these accounts, and whom it greets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use allowlist_tests::lab::Program;
use allowlist_user::export::Format;
use anyhow::ensure;

use crate::{AFTER, BEFORE, EVERYBODY, Machine, require_programs, visitors};

const PORT: u16 = 3306;
const SOON: Duration = Duration::from_mins(3);

/// A server with no account but root's, until it is dropped.
fn start(machine: &Machine) -> anyhow::Result<Program> {
    // The log files are as small as they may be: all of it is in memory.
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

/// Whom the server greets; to the others it says that their host is not allowed.
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

/// Of `texts`, those who may come: IPv6 by single addresses alone.
fn listed(texts: &[&str]) -> BTreeSet<IpAddr> {
    let is_host = |text: &&str| !text.contains(':') || text.ends_with("/128");
    let hosts: Vec<_> = texts.iter().copied().filter(is_host).collect();
    visitors::listed(&hosts)
}

#[test]
fn mariadb_takes_it() -> anyhow::Result<()> {
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
            "a comment was carried out"
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
    assert!(locked()?, "it has no password yet");

    // The comments tell how to open the accounts.
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

    // A second load leaves password and lock alone.
    let shown = format!("SHOW CREATE USER {account}; SHOW GRANTS FOR {account};");
    let before = query(&machine, &shown)?;
    assert_eq!(load(BEFORE)?, "");
    assert_eq!(query(&machine, &shown)?, before);
    // `_` is itself, and no wildcard: only a dump shows the backslash twice.
    assert_eq!(
        before[2],
        "GRANT SELECT ON `db\\\\_1`.* TO `reader`@`192.0.2.0/255.255.255.0`"
    );

    // Whom the vendor took off its list is told; the answer is SQL.
    let told = load(AFTER)?;
    let all: Vec<_> = BEFORE.iter().chain(AFTER).copied().collect();
    assert_eq!(greeted(&machine)?, listed(&all));
    assert_eq!(told.lines().count(), 3, "{told}");
    query(&machine, &told)?;
    assert_eq!(greeted(&machine)?, listed(AFTER));

    let told = load(EVERYBODY)?;
    query(&machine, &told)?;
    let v4: BTreeSet<_> = visitors::everybody()
        .into_iter()
        .filter(IpAddr::is_ipv4)
        .collect();
    assert_eq!(greeted(&machine)?, v4);

    // What lets everybody in besides is told.
    query(&machine, "CREATE USER 'reader'@'%' ACCOUNT LOCK;")?;
    assert_eq!(load(EVERYBODY)?, "DROP USER 'reader'@'%';\n");
    Ok(())
}
