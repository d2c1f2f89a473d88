//! Exports checked by the request model of AWS and by a parser of HCL, without a cloud.

use std::collections::BTreeSet;
use std::fs;

use allowlist_tests::lab::Ended;
use allowlist_tests::skip;
use allowlist_user::export::Format;
use anyhow::{Context, ensure};
use ipnet::IpNet;
use serde_json::Value;

use crate::{AFTER, BEFORE, EVERYBODY, Machine, NAME, exported, merged, require_programs};

/// Validates a request as the `aws` command does before it sends one.
const VALIDATE: &str = "
import json, sys
from botocore.session import get_session
from botocore.validate import validate_parameters
model = get_session().get_service_model('ec2').operation_model('AuthorizeSecurityGroupIngress')
for path in sys.argv[1:]:
    permissions = json.load(open(path))
    validate_parameters({'GroupId': 'sg-1', 'IpPermissions': permissions}, model.input_shape)
";

#[test]
fn aws_accepts_the_export() -> anyhow::Result<()> {
    // The full path, because only Debian's Python has Debian's packages.
    require_programs!("/usr/bin/python3" from "python3");
    let machine = Machine::new()?;
    fs::write(
        machine.folder().join("botocore_is_there"),
        "import botocore",
    )?;
    let python = |words: &str| Ended::of(machine.command(&format!("/usr/bin/python3 {words}"))?);
    if python("botocore_is_there")?.code != Some(0) {
        skip!("botocore is not installed: run `apt-get install python3-botocore`");
    }
    fs::write(machine.folder().join("validate"), VALIDATE)?;
    let mut words = String::from("validate");
    for (number, texts) in [BEFORE, AFTER, EVERYBODY, &BEFORE[4..]].iter().enumerate() {
        let text = exported(Format::AwsSecurityGroup, NAME, texts)?;
        let path = machine.scratch.write(&format!("aws-{number}"), &text)?;
        words += &format!(" {}", path.display());
        assert_eq!(aws_prefixes(&text)?, merged(texts));
    }
    let ended = python(&words)?;
    ensure!(ended.code == Some(0), "{ended:?}");

    // Negative check: an unknown key is refused.
    let wrong = exported(Format::AwsSecurityGroup, NAME, BEFORE)?.replace("CidrIpv6", "CidrIp6");
    machine.scratch.write("FILE", wrong)?;
    let ended = python("validate FILE")?;
    ensure!(ended.stderr.contains("CidrIp6"), "{ended:?}");
    Ok(())
}

/// Returns the prefixes of a request with one permission. Checks the characters of descriptions, which AWS documents but
/// its model does not contain.
fn aws_prefixes(text: &str) -> anyhow::Result<BTreeSet<IpNet>> {
    let document: Value = serde_json::from_str(text)?;
    let [permission] = &document.as_array().context("an array")?[..] else {
        anyhow::bail!("{document}");
    };
    let mut prefixes = BTreeSet::new();
    for (list, key) in [("IpRanges", "CidrIp"), ("Ipv6Ranges", "CidrIpv6")] {
        for range in permission[list].as_array().into_iter().flatten() {
            prefixes.insert(range[key].as_str().context("a string")?.parse()?);
            let description = range["Description"].as_str().context("a string")?;
            let is_allowed =
                |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
            ensure!(description.len() <= 255 && description.chars().all(is_allowed));
        }
    }
    Ok(prefixes)
}

#[test]
fn hcl_parsers_accept_the_export() -> anyhow::Result<()> {
    for texts in [BEFORE, AFTER, EVERYBODY, &BEFORE[4..]] {
        let text = exported(Format::Terraform, NAME, texts)?;
        let document: Value = hcl::from_str(&text).with_context(|| text.clone())?;
        let locals = document["locals"].as_object().context("a block")?;
        let names: Vec<_> = locals.keys().map(String::as_str).collect();
        assert_eq!(names, ["ven_dor_ipv4", "ven_dor_ipv6"], "{text}");
        let mut prefixes = BTreeSet::new();
        for (name, list) in locals {
            for item in list.as_array().context("a list")? {
                let prefix: IpNet = item.as_str().context("a string")?.parse()?;
                assert_eq!(prefix.addr().is_ipv4(), name.ends_with('4'), "{text}");
                prefixes.insert(prefix);
            }
        }
        assert_eq!(prefixes, merged(texts), "{text}");
    }
    Ok(())
}
