//! `mysql-grant`: an account for each prefix, since `MySQL` and `MariaDB` admit by user and host.
//!
//! Invariants: new accounts are locked, since they have no password; existing accounts keep their password and lock;
//! the only privilege is SELECT on one database; no account is dropped.

use ipnet::{Ipv4Net, Ipv6Net};

use super::{Export, ExportError, is_plain_word, lines};

/// The maximum length of a user's name in `MySQL`, in bytes; that of `MariaDB` is higher.
const LONGEST_USER: usize = 32;
/// The maximum length of a database's name in both servers, in bytes.
const LONGEST_DATABASE: usize = 64;
/// The length of an IPv6 prefix that can be the host of an account: only a single address can.
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
        "Load: mysql < FILE. Statements are independent; after an error, load the file again.
New accounts are locked. This prints the statements that set a password and unlock them:
  SELECT CONCAT('ALTER USER ', QUOTE(User), '@', QUOTE(Host), ' IDENTIFIED BY ''PASSWORD'' ACCOUNT UNLOCK;')
  FROM mysql.user WHERE User = '{user}';
The accounts have only SELECT; change that to the privileges that the vendor requires.
The last statement prints the statements that drop the user's accounts outside of this list."
    );
    let mut text = export.header("--", &usage.lines().collect::<Vec<_>>());
    let reason = " is omitted: the host of an account is an IPv4 prefix or one address";
    text += &lines(left_out, "-- ", reason);
    // In a grant, `_` matches any character.
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

/// Returns the hosts of the accounts for a prefix, with netmasks, since older servers read `/24` as a part of a name.
/// Servers ignore the netmask 0.0.0.0, so `0.0.0.0/0` becomes two halves.
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
