//! Formats for filters in front of a host: `aws-security-group` and `terraform`.

use serde_json::{Value, json};

use super::{Export, ExportError, lines};

/// The maximum number of rules per family and security group that AWS grants; the default quota is 60.
const MOST_RULES: usize = 1000;

pub(super) fn aws_security_group(export: &Export) -> Result<String, ExportError> {
    for (family, count) in [("IPv4", export.v4.len()), ("IPv6", export.v6.len())] {
        if count > MOST_RULES {
            return Err(ExportError::TooManyRules {
                count,
                family,
                limit: MOST_RULES,
            });
        }
    }
    // AWS accepts all characters that names and times consist of.
    let description = format!("{} as of {}", export.options.name, export.at());
    let port = export.options.port;
    let mut permission = json!({ "IpProtocol": "tcp", "FromPort": port, "ToPort": port });
    let ranges = |prefixes: Vec<String>, key: &str| -> Value {
        prefixes
            .into_iter()
            .map(|prefix| json!({ key: prefix, "Description": description }))
            .collect()
    };
    if !export.v4.is_empty() {
        permission["IpRanges"] = ranges(texts(&export.v4), "CidrIp");
    }
    if !export.v6.is_empty() {
        permission["Ipv6Ranges"] = ranges(texts(&export.v6), "CidrIpv6");
    }
    Ok(format!("{:#}\n", json!([permission])))
}

pub(super) fn terraform(export: &Export) -> String {
    // A hyphen in a name would be a minus in expressions.
    let name = export.options.name.replace('-', "_");
    let usage = format!("Use: local.{name}_ipv4 and local.{name}_ipv6, each a list of strings");
    export.header("#", &[&usage])
        + "locals {\n"
        + &list(&format!("{name}_ipv4"), &texts(&export.v4))
        + &list(&format!("{name}_ipv6"), &texts(&export.v6))
        + "}\n"
}

fn list(name: &str, prefixes: &[String]) -> String {
    if prefixes.is_empty() {
        return format!("  {name} = []\n");
    }
    format!("  {name} = [\n{}  ]\n", lines(prefixes, "    \"", "\","))
}

fn texts(prefixes: &[impl ToString]) -> Vec<String> {
    prefixes.iter().map(ToString::to_string).collect()
}
