//! `mysql-grant`: an account for each prefix, since `MySQL` and `MariaDB` admit by user and host.
//!
//! Invariants: an account is made locked, as it has no password yet, and one that is there keeps its
//! password and its lock; no privilege but SELECT on the one database is granted; nothing is dropped.

use ipnet::{Ipv4Net, Ipv6Net};

use super::{Export, ExportError, is_plain_word, lines};

/// `MySQL`'s limit for users; `MariaDB`'s is higher.
const LONGEST_USER: usize = 32;
/// Both servers' limit for databases.
const LONGEST_DATABASE: usize = 64;
/// A host of an IPv6 account is one address.
const WHOLE_V6: u8 = 128;

pub(super) fn mysql_grant(export: &Export) -> Result<String, ExportError> {
    let user = word("user", export.options.user, LONGEST_USER)?;
    let database = word("database", export.options.database, LONGEST_DATABASE)?;
    let (single, left_out): (Vec<&Ipv6Net>, Vec<_>) =
        (export.v6.iter()).partition(|prefix| prefix.prefix_len() == WHOLE_V6);
    let v4 = export.v4.iter().flat_map(|prefix| hosts(*prefix));
    let hosts: Vec<String> = v4
        .chain(single.iter().map(|prefix| prefix.addr().to_string()))
        .collect();
    if hosts.is_empty() {
        return Err(ExportError::NoHost {
            name: export.options.name.to_owned(),
            count: left_out.len(),
        });
    }

    let usage = format!(
        "Load: mysql < FILE. Each statement counts on its own; after an error, load it again.
New accounts are locked. This prints what gives each a password and opens it:
  SELECT CONCAT('ALTER USER ', QUOTE(User), '@', QUOTE(Host), ' IDENTIFIED BY ''PASSWORD'' ACCOUNT UNLOCK;')
  FROM mysql.user WHERE User = '{user}';
SELECT is all that is granted: change it to what the vendor asks for.
The last statement prints what drops the user's other accounts, which are not in this list."
    );
    let mut text = export.header("--", &usage.lines().collect::<Vec<_>>());
    let why = " is not admitted: the host of an account is an IPv4 prefix or one address";
    text += &lines(left_out, "-- ", why);
    // In a grant, `_` stands for any character.
    let database = database.replace('_', "\\_");
    for host in &hosts {
        text += &format!(
            "CREATE USER IF NOT EXISTS '{user}'@'{host}' ACCOUNT LOCK;
GRANT SELECT ON `{database}`.* TO '{user}'@'{host}';\n"
        );
    }
    let listed = hosts.join("',\n'");
    Ok(text
        + &format!(
            "SELECT CONCAT('DROP USER ', QUOTE(User), '@', QUOTE(Host), ';') AS not_in_this_list
FROM mysql.user WHERE User = '{user}' AND Host NOT IN (\n'{listed}');\n"
        ))
}

fn word<'a>(
    what: &'static str,
    text: Option<&'a str>,
    longest: usize,
) -> Result<&'a str, ExportError> {
    let text = text.ok_or(ExportError::NoAccount { what })?;
    if is_plain_word(text, longest) {
        return Ok(text);
    }
    Err(ExportError::Account {
        what,
        text: text.to_owned(),
        longest,
    })
}

/// Netmasks, since a server that knows no prefix length takes `/24` for a part of a name. One of 0.0.0.0 is
/// taken for no netmask at all, so everything is two halves.
fn hosts(prefix: Ipv4Net) -> impl Iterator<Item = String> {
    let length = prefix.prefix_len().max(1);
    let parts = prefix.subnets(length).expect("not shorter than the prefix");
    parts.map(|part| {
        if part.prefix_len() == part.max_prefix_len() {
            part.addr().to_string()
        } else {
            format!("{}/{}", part.addr(), part.netmask())
        }
    })
}
