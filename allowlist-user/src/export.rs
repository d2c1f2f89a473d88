//! Exports lists as the input of other firewalls, for machines on which this program does not run.
//!
//! Invariants: an export admits exactly the listed addresses; if a format cannot express a prefix, a comment names the
//! prefix. Foreign text occurs only in comments and JSON strings, and a comment stays on its line. An empty list is an
//! error, since it would lock everyone out. Does not know files, the network or the clock.

mod cloud;
mod kernel;
mod lists;
mod sql;
#[cfg(test)]
mod tests;

use std::fmt;

use allowlist_policy::error_code::ErrorCode;
use allowlist_policy::hints::counted;
use allowlist_policy::text::on_one_line;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use jiff::Timestamp;
use thiserror::Error;

/// The maximum length of an `iptables` chain's name, in bytes; `ipset` accepts names three bytes longer, for `-v4`.
const LONGEST_IN_KERNEL: usize = 28;
/// The maximum length in bytes of a name in other formats than `iptables` and `ipset`, so that identifiers with the
/// name stay within the tools' limits.
const LONGEST: usize = 128;

/// The prefixes of one source, for an export.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// The name of the source; unique in an export.
    pub source: &'a str,
    /// The origin of the list for display, without credentials.
    pub origin: &'a str,
    /// The active prefixes of the source, in any order; sources may overlap.
    pub prefixes: &'a [IpNet],
}

/// The options of an export.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// The name of the sets, tables, chains and variables in the export.
    pub name: &'a str,
    /// The time of the export, for the header.
    pub at: Timestamp,
    /// The TCP port that `aws-security-group` opens, and that the examples in other formats use.
    pub port: u16,
    /// The user of the accounts that `mysql-grant` creates; that format requires it.
    pub user: Option<&'a str>,
    /// The database that the accounts of `mysql-grant` may read; that format requires it.
    pub database: Option<&'a str>,
}

impl<'a> Options<'a> {
    /// The default TCP port, for [`Options::port`].
    pub const PORT: u16 = 443;

    /// Returns options with this name and time, and defaults for all other fields.
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

/// The format of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text with one prefix per line.
    Plain,
    /// A JSON object with the prefixes of each source.
    Json,
    /// Sets for nftables, loaded with `nft`.
    Nft,
    /// Sets for `ipset restore`.
    Ipset,
    /// A chain for `iptables-restore` and `ip6tables-restore`.
    Iptables,
    /// `allow` and `deny` directives of nginx.
    Nginx,
    /// A pattern file for `HAProxy`.
    Haproxy,
    /// A file for `--ip-permissions` of the AWS command line.
    AwsSecurityGroup,
    /// Local values for Terraform, in HCL.
    Terraform,
    /// SQL that creates accounts in `MySQL` and `MariaDB`.
    MysqlGrant,
}

impl Format {
    /// All formats, in the order in which the help shows them.
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

    /// Returns the name of the format on the command line.
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

    /// Returns the description of the format, one line of the help.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Plain => "One prefix per line; a source reads it with `file = \"…\"`",
            Self::Json => "One object with the prefixes of each source, and all prefixes merged",
            Self::Nft => "Two sets in their own table, for `nft -f FILE`",
            Self::Ipset => "Two sets, for `ipset restore -file FILE`",
            Self::Iptables => {
                "A chain, for `iptables-restore --noflush FILE` and `ip6tables-restore --noflush FILE`"
            }
            Self::Nginx => "Rules to `include` in an http, server, location or stream block",
            Self::Haproxy => "Patterns, for `acl allowed src -f FILE`",
            Self::AwsSecurityGroup => {
                "For `aws ec2 authorize-security-group-ingress --ip-permissions file://FILE`"
            }
            Self::Terraform => "A .tf file with a local value for each family",
            Self::MysqlGrant => {
                "SQL that creates an account for each IPv4 prefix, for `mysql < FILE`"
            }
        }
    }

    /// Returns the maximum length of a name in this format, in bytes.
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

/// Returns the export of `lists` in `format`.
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

/// The error of an export. The message contains the remedy.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExportError {
    /// The lists contain no prefix.
    #[error(
        "{name} has no prefix to export, and an empty list would lock everyone out of a firewall; check its sources \
         with `allowlist fetch`"
    )]
    Empty {
        /// The name of the export.
        name: String,
    },
    /// The name is not valid in the format.
    #[error(
        "{name:?} is not a valid name in the format {format}: use up to {longest} letters, digits, `-` and `_`, \
         and start with a letter, such as \"allowlist\""
    )]
    Name {
        /// The format of the export.
        format: Format,
        /// The invalid name.
        name: String,
        /// The maximum length of a name in the format, in bytes.
        longest: usize,
    },
    /// The name is that of a built-in chain or target of iptables.
    #[error(
        "{chain} is a built-in chain or target of iptables, whose rules the export would replace; use another name, \
         such as \"allowlist\""
    )]
    ReservedChain {
        /// The name of the built-in chain or target.
        chain: String,
    },
    /// The list has more prefixes of a family than a security group has rules.
    #[error(
        "{count} {family} prefixes do not fit into a security group, which has up to {limit} rules; export fewer \
         sources, or run allowlist on the servers"
    )]
    TooManyRules {
        /// The number of prefixes of the family.
        count: usize,
        /// The name of the family: "IPv4" or "IPv6".
        family: &'static str,
        /// The maximum number of rules of a security group.
        limit: usize,
    },
    /// The format `mysql-grant` lacks the user or the database.
    #[error("mysql-grant requires a {what}; set --{what} to the {what} that the vendor requires")]
    NoAccount {
        /// The missing option: "user" or "database".
        what: &'static str,
    },
    /// The name of the user or database needs quotes, or is too long.
    #[error(
        "{text:?} is not a valid {what} for mysql-grant: use up to {longest} letters, digits, `-` and `_`"
    )]
    Account {
        /// The invalid option: "user" or "database".
        what: &'static str,
        /// The invalid name.
        text: String,
        /// The maximum length of the name, in bytes.
        longest: usize,
    },
    /// No prefix of the list can be the host of an account.
    #[error(
        "{name} has only IPv6 prefixes ({count}), but the host of a MySQL account is an IPv4 prefix or one address; \
         filter IPv6 on the database server"
    )]
    NoHost {
        /// The name of the export.
        name: String,
        /// The number of IPv6 prefixes.
        count: usize,
    },
}

impl ExportError {
    /// Returns the code of the error.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Empty { .. } => ErrorCode::ListEmpty,
            Self::TooManyRules { .. } | Self::NoHost { .. } => ErrorCode::Refused,
            Self::Name { .. }
            | Self::ReservedChain { .. }
            | Self::NoAccount { .. }
            | Self::Account { .. } => ErrorCode::InvalidRequest,
        }
    }
}

/// The lists and options of an export, with the merged prefixes that most formats write.
struct Export<'a> {
    options: &'a Options<'a>,
    lists: &'a [Listed<'a>],
    /// The merged IPv4 prefixes: sorted, disjoint and as few as possible.
    v4: Vec<Ipv4Net>,
    /// The merged IPv6 prefixes: sorted, disjoint and as few as possible.
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

    /// Returns the merged prefixes of both families, IPv4 first.
    fn merged(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self.v4.iter().copied().map(IpNet::V4);
        v4.chain(self.v6.iter().copied().map(IpNet::V6))
    }

    /// Returns the time of the export as text, to the second.
    fn at(&self) -> String {
        self.options.at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }

    /// Returns comment lines for the top of an export: the content, the sources and `usage`. Each line begins with
    /// `mark`.
    fn header(&self, mark: &str, usage: &[&str]) -> String {
        let mut text = format!(
            "{mark} {}: {} IPv4 and {} IPv6 prefixes after merging, exported {}\n",
            self.options.name,
            self.v4.len(),
            self.v6.len(),
            self.at()
        );
        for list in self.lists {
            text += &format!(
                "{mark} source {}: {}, from {}\n",
                on_one_line(list.source),
                counted(list.prefixes.len(), "prefix"),
                on_one_line(list.origin)
            );
        }
        for line in usage {
            text += &format!("{mark} {line}\n");
        }
        text
    }
}

/// Requires a name that is valid in this format. The name becomes an identifier of the target tool, and each tool has
/// its own separators.
fn check_name(format: Format, name: &str) -> Result<(), ExportError> {
    let longest = format.longest_name();
    let has_valid_start = name.starts_with(|first: char| first.is_ascii_alphabetic());
    if has_valid_start && is_plain_word(name, longest) {
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

/// Returns a line for each item, with the text `before` and `after` it.
fn lines<T: fmt::Display>(items: impl IntoIterator<Item = T>, before: &str, after: &str) -> String {
    let mut text = String::new();
    for item in items {
        text += &format!("{before}{item}{after}\n");
    }
    text
}
