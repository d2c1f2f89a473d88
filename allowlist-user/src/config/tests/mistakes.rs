//! Mistakes in each table of the configuration. The snapshots hold the place and the text of each error.

use expect_test::expect_file;

use super::check_mistakes;

#[test]
fn mistakes_at_the_top() {
    let cases = [
        "mode = \"monitor\"",
        "default = true",
        "attach_mode = \"skb\"",
        "lookup = \"hash\"",
        "interface = [\"eth0\"]",
        "zzz = 1",
        "interfaces = \"eth0\"",
        "interfaces = [\"eth0\", \"\"]",
        "interfaces = [\"eth0\", \"eth0\"]",
        "interfaces = [\"sixteen-bytes-xx\"]",
        "max_prefixes = 0",
        "max_prefixes = 4_000_001",
        "max_prefixes = -1",
        "max_flows = 100",
        "return_traffic = \"all\"",
        "keep = true",
        "[keep]\narp = \"no\"",
        "[keep]\nicmp_error = false",
        "mode = ",
        "mode = \"enforce\"\nmode = \"observe\"",
        // Errors do not repeat values, which may be secret.
        "[sources.a]\nheaders = { Authorization = Bearer hush }",
        "[sources.a]\nheaders = { A = \"hush\", A = \"hush\" }",
        "[sources.a]\nurl = https://me:hush@example.com/",
        "[on_change]\ncommand = [\"curl\", \"-H\" \"X-Key: hush\"]",
    ];
    check_mistakes(
        cases.map(str::to_owned),
        &expect_file!["snapshots/mistakes-top.txt"],
    );
}

#[test]
fn mistakes_in_a_service() {
    let cases = [
        "allow = [\"office\"]",
        "ports = []\nallow = [\"office\"]",
        "ports = [\"tcp/22\"]",
        "ports = [\"tcp/22\"]\nallow = []",
        "ports = [\"tcp/22\"]\nallow = [\"ofice\"]",
        "ports = [\"tcp/22\"]\nallow = [\"vpn\"]",
        "ports = [\"tcp/22\"]\nallow = [\"office\"]\nport = 1",
        "ports = [\"tcp/22\"]\ninterfaces = []\nallow = [\"office\"]",
        "ports = [\"tcp/22\"]\ninterfaces = [\"eth0/1\"]\nallow = [\"office\"]",
        "ports = [22]\nallow = [\"office\"]",
        "ports = [\"22\"]\nallow = [\"office\"]",
        "ports = [\"dccp/22\"]\nallow = [\"office\"]",
        "ports = [\"tcp/0\"]\nallow = [\"office\"]",
        "ports = [\"tcp/+22\"]\nallow = [\"office\"]",
        "ports = [\"tcp/90-80\"]\nallow = [\"office\"]",
    ];
    let office = "[sources.office]\nprefixes = [\"203.0.113.0/24\"]";
    check_mistakes(
        cases.map(|text| format!("[services.ssh]\n{text}\n{office}")),
        &expect_file!["snapshots/mistakes-services.txt"],
    );
}

#[test]
fn mistakes_in_a_source() {
    let cases = [
        "",
        "file = \"a\"\nprefixes = [\"192.0.2.1\"]",
        "url = \"https://example.com/\"\nfile = \"a\"",
        "prefixes = []",
        "prefixes = [\"192.0.2.0/24\",\n \"203.0.113.9/24\"]",
        "prefixes = [\"::ffff:192.0.2.1\"]",
        "prefixes = [\"example.com\"]",
        "prefixes = [\"192.0.2.1\"]\nevery = \"1h\"",
        "file = \"\"",
        "url = \"https://example.com/\"",
        "url = \"https://example.com/\"\nformat = \"yaml\"",
        "url = \"http://me:hush@example.com/\"\nformat = \"json\"",
        "url = \"ftp://example.com/\"\nformat = \"json\"",
        "url = \"example.com/list\"\nformat = \"json\"",
        "url = \"https://example.com/\"\nformat = \"json\"\nregions = [\"EU\"]",
        "provider = \"pagerduty-webhook-us\"",
        "provider = \"pagerduty-webhooks\"",
        "provider = \"acme\"",
        "provider = \"pagerduty-webhooks-us\"\nregions = [\"EU\"]",
        "provider = \"freshchat\"\nregions = [\"EU\", \"JP\"]",
        "provider = \"freshchat\"\nregions = []",
        "provider = \"freshchat\"\nurl = \"https://example.com/\"",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-sources.txt"],
    );
}

#[test]
fn mistakes_in_an_option_of_a_source() {
    let cases = [
        "file = \"a\"\nevery = \"often\"",
        "file = \"a\"\nevery = \"0s\"",
        "provider = \"pagerduty-webhooks-us\"\ntimeout = \"1h\"",
        "provider = \"pagerduty-webhooks-us\"\nmax_size = \"1GB\"",
        "provider = \"pagerduty-webhooks-us\"\nmax_size = 67_108_865",
        "provider = 1",
    ];
    check_mistakes(
        cases.map(|text| format!("[sources.x]\n{text}")),
        &expect_file!["snapshots/mistakes-options.txt"],
    );
}
