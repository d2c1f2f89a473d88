//! Prefixes as the input of other firewalls, for machines that this program does not run on.
//!
//! Invariants: what is written admits exactly the addresses that are listed, never one more; where a
//! target cannot say a prefix, the text tells which it left out. The only foreign text is in comments and
//! in JSON strings, and a comment stays on its line. An empty list is never written: it would lock
//! everybody out. Knows no file, no network and no clock.

mod cloud;
mod kernel;
mod lists;
mod sql;
#[cfg(test)]
mod tests;

use std::fmt;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use thiserror::Error;

use crate::text::on_one_line;

/// `iptables` takes chains of so many characters. `ipset` takes three more, for `-v4`.
const LONGEST_IN_KERNEL: usize = 28;
/// Everywhere else, so that what a name is put in stays within its own limits.
const LONGEST: usize = 128;

/// One source's prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Its name in the configuration; no two of an export have the same.
    pub source: &'a str,
    /// Where they come from, in words and without credentials.
    pub origin: &'a str,
    /// Those in force, in any order; sources may repeat each other's.
    pub prefixes: &'a [IpNet],
}

/// What is not in the lists.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// What sets, tables, chains and variables are called.
    pub name: &'a str,
    /// When this is written.
    pub at: Timestamp,
    /// The TCP port that `aws-security-group` opens, and that the others' examples speak of.
    pub port: u16,
    /// Whose accounts `mysql-grant` makes. It has no default: nobody but the operator knows.
    pub user: Option<&'a str>,
    /// The database that these accounts may read; has no default either.
    pub database: Option<&'a str>,
}

impl<'a> Options<'a> {
    /// `port`, unless another is given.
    pub const PORT: u16 = 443;

    /// With defaults for all but the name and the time.
    pub fn new(name: &'a str, at: Timestamp) -> Self {
        Self {
            name,
            at,
            port: Self::PORT,
            user: None,
            database: None,
        }
    }
}

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A prefix a line.
    Plain,
    /// One object.
    Json,
    /// nftables.
    Nft,
    /// IP sets.
    Ipset,
    /// A chain for `iptables-restore` and `ip6tables-restore`.
    Iptables,
    /// nginx's `allow` and `deny`.
    Nginx,
    /// A pattern file for `HAProxy`.
    Haproxy,
    /// The AWS command line's `--ip-permissions`.
    AwsSecurityGroup,
    /// Local values in HCL.
    Terraform,
    /// Accounts of `MySQL` and `MariaDB`.
    MysqlGrant,
}

impl Format {
    /// In the order in which help shows them.
    pub const ALL: [Self; 10] = [
        Self::Plain,
        Self::Json,
        Self::Nft,
        Self::Ipset,
        Self::Iptables,
        Self::Nginx,
        Self::Haproxy,
        Self::AwsSecurityGroup,
        Self::Terraform,
        Self::MysqlGrant,
    ];

    /// As typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Json => "json",
            Self::Nft => "nft",
            Self::Ipset => "ipset",
            Self::Iptables => "iptables",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::AwsSecurityGroup => "aws-security-group",
            Self::Terraform => "terraform",
            Self::MysqlGrant => "mysql-grant",
        }
    }

    /// What to do with it, in a line.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Plain => "A prefix a line; a source takes it as `file = \"…\"`",
            Self::Json => "One object: each source's prefixes, and all of them merged",
            Self::Nft => "Two sets in a table of their own, for `nft -f FILE`",
            Self::Ipset => "Two sets, for `ipset restore -file FILE`",
            Self::Iptables => {
                "A chain, for `iptables-restore --noflush FILE` and `ip6tables-restore --noflush FILE`"
            }
            Self::Nginx => "Rules to `include` in an http, server, location or stream block",
            Self::Haproxy => "Patterns, for `acl allowed src -f FILE`",
            Self::AwsSecurityGroup => {
                "For `aws ec2 authorize-security-group-ingress --ip-permissions file://FILE`"
            }
            Self::Terraform => "A .tf file with two local values, a list of prefixes each",
            Self::MysqlGrant => {
                "SQL that makes an account for each IPv4 prefix, for `mysql < FILE`"
            }
        }
    }

    /// The longest name that it takes.
    fn longest_name(self) -> usize {
        match self {
            Self::Ipset | Self::Iptables => LONGEST_IN_KERNEL,
            _ => LONGEST,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The text that `format` asks for.
pub fn export(format: Format, options: &Options, lists: &[Listed]) -> Result<String, ExportError> {
    check_name(format, options.name)?;
    let export = Export::new(options, lists)?;
    Ok(match format {
        Format::Plain => lists::plain(&export),
        Format::Json => lists::json(&export),
        Format::Nft => kernel::nft(&export),
        Format::Ipset => kernel::ipset(&export),
        Format::Iptables => kernel::iptables(&export)?,
        Format::Nginx => lists::nginx(&export),
        Format::Haproxy => lists::haproxy(&export),
        Format::AwsSecurityGroup => cloud::aws_security_group(&export)?,
        Format::Terraform => cloud::terraform(&export),
        Format::MysqlGrant => sql::mysql_grant(&export)?,
    })
}

/// Why nothing was written. Says what would be right.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// Nobody is listed.
    #[error(
        "{name} has no prefix to export, and a firewall that takes an empty list lets nobody in; see \
         `allowlist fetch` for what its sources hold"
    )]
    Empty {
        /// The export's name.
        name: String,
    },
    /// The name would be read as something else than a name.
    #[error(
        "{name:?} cannot be a name in the format {format}: write at most {longest} letters, digits, `-` and \
         `_`, a letter first, such as \"allowlist\""
    )]
    Name {
        /// The format.
        format: Format,
        /// What was given.
        name: String,
        /// As many characters as the format takes.
        longest: usize,
    },
    /// The chain is there already and is not this program's to replace.
    #[error(
        "{chain} is a word of iptables' own, and its rules would be lost; write another name, such as \
         \"allowlist\""
    )]
    ReservedChain {
        /// The chain.
        chain: String,
    },
    /// More rules than any security group has.
    #[error(
        "{count} {family} prefixes do not fit into a security group, which has at most {limit} rules; export \
         fewer sources, or put the filter on the host"
    )]
    TooManyRules {
        /// As many as there are.
        count: usize,
        /// "IPv4" or "IPv6".
        family: &'static str,
        /// As many as fit.
        limit: usize,
    },
    /// An account has a user and reads a database.
    #[error(
        "mysql-grant makes accounts, and no {what} is given; name the one that the vendor asks for"
    )]
    NoAccount {
        /// "user" or "database".
        what: &'static str,
    },
    /// A user or database that would have to be quoted, or is too long.
    #[error(
        "{text:?} cannot be the {what} of mysql-grant: write at most {longest} letters, digits, `-` and `_`"
    )]
    Account {
        /// "user" or "database".
        what: &'static str,
        /// What was given.
        text: String,
        /// As many characters as it may have.
        longest: usize,
    },
    /// Nothing that an account could be made for.
    #[error(
        "{name} has IPv6 prefixes alone, {count} of them, and the host of a MySQL account is an IPv4 prefix \
         or one address; filter IPv6 on the host"
    )]
    NoHost {
        /// The export's name.
        name: String,
        /// As many as there are.
        count: usize,
    },
}

/// What every format starts from.
struct Export<'a> {
    options: &'a Options<'a>,
    lists: &'a [Listed<'a>],
    /// Sorted and disjoint, as few as possible.
    v4: Vec<Ipv4Net>,
    /// The same for IPv6.
    v6: Vec<Ipv6Net>,
}

impl<'a> Export<'a> {
    fn new(options: &'a Options, lists: &'a [Listed]) -> Result<Self, ExportError> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in lists.iter().flat_map(|list| list.prefixes) {
            match prefix {
                IpNet::V4(prefix) => v4.push(*prefix),
                IpNet::V6(prefix) => v6.push(*prefix),
            }
        }
        if v4.is_empty() && v6.is_empty() {
            return Err(ExportError::Empty {
                name: options.name.to_owned(),
            });
        }
        Ok(Self {
            options,
            lists,
            v4: Ipv4Net::aggregate(&v4),
            v6: Ipv6Net::aggregate(&v6),
        })
    }

    /// All that is in force, merged, IPv4 first.
    fn merged(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.iter().copied().map(IpNet::V4);
        v4.chain(self.v6.iter().copied().map(IpNet::V6))
    }

    /// When this is written, to the second.
    fn at(&self) -> String {
        self.options.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Comment lines that begin with `mark`: what this is, where it comes from, and how to use it.
    fn header(&self, mark: &str, usage: &[&str]) -> String {
        let mut text = format!(
            "{mark} {}: {} IPv4 and {} IPv6 prefixes when merged, written {}\n",
            self.options.name,
            self.v4.len(),
            self.v6.len(),
            self.at()
        );
        for list in self.lists {
            text += &format!(
                "{mark} source {}: {} prefixes, from {}\n",
                on_one_line(list.source),
                list.prefixes.len(),
                on_one_line(list.origin)
            );
        }
        for line in usage {
            text += &format!("{mark} {line}\n");
        }
        text
    }
}

/// A name goes where a tool expects a word, and each tool has other characters that end one.
fn check_name(format: Format, name: &str) -> Result<(), ExportError> {
    let longest = format.longest_name();
    let begins_well = name.starts_with(|first: char| first.is_ascii_alphabetic());
    if begins_well && is_plain_word(name, longest) {
        return Ok(());
    }
    Err(ExportError::Name {
        format,
        name: name.to_owned(),
        longest,
    })
}

fn is_plain_word(text: &str, longest: usize) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    !text.is_empty() && text.len() <= longest && text.bytes().all(is_plain)
}

/// One item a line, between the same words.
fn lines<T: fmt::Display>(items: impl IntoIterator<Item = T>, before: &str, after: &str) -> String {
    let mut text = String::new();
    for item in items {
        text += &format!("{before}{item}{after}\n");
    }
    text
}
