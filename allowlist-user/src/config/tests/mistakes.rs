//! Every mistake, by the table that it is made in, with its place and what would be right.

use super::check_wrong;

#[test]
fn names_what_is_wrong_at_the_top() {
    let cases = [
        (
            "mode = \"monitor\"",
            "1:8: mode: \"monitor\" is not known here; write \"enforce\" or \"observe\"",
        ),
        (
            "default = true",
            "1:11: default: is a boolean; it must be a string",
        ),
        (
            "attach_mode = \"skb\"",
            "1:15: attach_mode: \"skb\" is not known here; write \"auto\" or \"native\" or \"generic\" or \"offload\"",
        ),
        (
            "lookup = \"hash\"",
            "1:10: lookup: \"hash\" is not known here; write \"range-table\" or \"lpm-trie\"",
        ),
        (
            "interface = [\"eth0\"]",
            "1:1: interface: unknown key; did you mean `interfaces`?",
        ),
        (
            "zzz = 1",
            "1:1: zzz: unknown key; the keys here are interfaces, mode, default, return_traffic, keep, attach_mode, lookup, max_prefixes, max_flows, history_size, log_size, at_start, control_group, on_change, services, sources",
        ),
        (
            "interfaces = \"eth0\"",
            "1:14: interfaces: is a string; it must be an array",
        ),
        (
            "interfaces = [\"eth0\", \"\"]",
            "1:23: interfaces[1]: is empty; write an interface's name, such as \"eth0\"",
        ),
        (
            "interfaces = [\"eth0\", \"eth0\"]",
            "1:23: interfaces[1]: \"eth0\" is named twice; remove one",
        ),
        (
            "interfaces = [\"sixteen-bytes-xx\"]",
            "1:15: interfaces[0]: \"sixteen-bytes-xx\" cannot be an interface; the kernel's names have up to 15 bytes, without spaces, slashes and control characters",
        ),
        (
            "max_prefixes = 0",
            "1:16: max_prefixes: is out of range; write an integer from 1 to 4000000",
        ),
        (
            "max_prefixes = 4_000_001",
            "1:16: max_prefixes: is out of range; write an integer from 1 to 4000000",
        ),
        (
            "max_prefixes = -1",
            "1:16: max_prefixes: is out of range; write an integer from 1 to 4000000",
        ),
        (
            "max_flows = 100",
            "1:13: max_flows: is out of range; write an integer from 1024 to 16000000",
        ),
        (
            "return_traffic = \"all\"",
            "1:18: return_traffic: \"all\" is not known here; write \"track\" or \"established\" or \"off\"",
        ),
        ("keep = true", "1:8: keep: is a boolean; it must be a table"),
        (
            "[keep]\narp = \"no\"",
            "2:7: keep.arp: is a string; it must be true or false",
        ),
        (
            "[keep]\nicmp_error = false",
            "2:1: keep.icmp_error: unknown key; did you mean `icmp_errors`?",
        ),
        (
            "mode = ",
            "1:8: is not TOML: string values must be quoted, expected literal string",
        ),
        (
            "mode = \"enforce\"\nmode = \"observe\"",
            "2:1: is not TOML: duplicate key, at `mode`",
        ),
        // What may be secret is not repeated.
        (
            "[sources.a]\nheaders = { Authorization = Bearer hush }",
            "2:29: is not TOML: string values must be quoted, expected literal string",
        ),
        (
            "[sources.a]\nheaders = { A = \"hush\", A = \"hush\" }",
            "2:25: is not TOML: duplicate key",
        ),
        (
            "[sources.a]\nurl = https://me:hush@example.com/",
            "2:7: is not TOML: string values must be quoted, expected literal string",
        ),
        (
            "[on_change]\ncommand = [\"curl\", \"-H\" \"X-Key: hush\"]",
            "2:25: is not TOML: missing comma between array elements, expected `,`",
        ),
    ];
    for (text, expected) in cases {
        check_wrong(text, &format!("a.toml:{expected}"));
    }
}

#[test]
fn names_what_is_wrong_with_a_service() {
    let cases = [
        (
            "allow = [\"office\"]",
            "2:2: services.ssh: has no `ports`: it protects nothing; write what it covers, such as ports = [\"tcp/443\"]",
        ),
        (
            "ports = []\nallow = [\"office\"]",
            "2:9: services.ssh.ports: is empty: it protects nothing; write what it covers, such as ports = [\"tcp/443\"]",
        ),
        (
            "ports = [\"tcp/22\"]",
            "2:2: services.ssh: has no `allow`: nobody could reach it; name its sources, such as allow = [\"office\"], or remove it",
        ),
        (
            "ports = [\"tcp/22\"]\nallow = []",
            "3:9: services.ssh.allow: is empty: nobody could reach it; name its sources, such as allow = [\"office\"], or remove it",
        ),
        (
            "ports = [\"tcp/22\"]\nallow = [\"ofice\"]",
            "3:10: services.ssh.allow[0]: there is no source \"ofice\"; did you mean \"office\"?",
        ),
        (
            "ports = [\"tcp/22\"]\nallow = [\"vpn\"]",
            "3:10: services.ssh.allow[0]: there is no source \"vpn\"; add a [sources.vpn] table",
        ),
        (
            "ports = [\"tcp/22\"]\nallow = [\"office\"]\nport = 1",
            "4:1: services.ssh.port: unknown key; did you mean `ports`?",
        ),
        (
            "ports = [\"tcp/22\"]\ninterfaces = []\nallow = [\"office\"]",
            "3:14: services.ssh.interfaces: is empty: the service would be nowhere; name interfaces, or leave the key out for all",
        ),
        (
            "ports = [\"tcp/22\"]\ninterfaces = [\"eth0/1\"]\nallow = [\"office\"]",
            "3:15: services.ssh.interfaces[0]: \"eth0/1\" cannot be an interface; the kernel's names have up to 15 bytes, without spaces, slashes and control characters",
        ),
        (
            "ports = [22]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: is an integer; it must be a string",
        ),
        (
            "ports = [\"22\"]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: \"22\" is not a port; write \"tcp/443\", \"udp/5000-5010\", \"sctp/3868\", \"icmp\", \"ip/112\" (an IP protocol) or \"any\"",
        ),
        (
            "ports = [\"dccp/22\"]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: \"dccp/22\" is not a port; write \"tcp/443\", \"udp/5000-5010\", \"sctp/3868\", \"icmp\", \"ip/112\" (an IP protocol) or \"any\"",
        ),
        (
            "ports = [\"tcp/0\"]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: \"0\" in \"tcp/0\" is not a port number; write one from 1 to 65535",
        ),
        (
            "ports = [\"tcp/+22\"]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: \"+22\" in \"tcp/+22\" is not a port number; write one from 1 to 65535",
        ),
        (
            "ports = [\"tcp/90-80\"]\nallow = [\"office\"]",
            "2:10: services.ssh.ports[0]: \"tcp/90-80\" runs backwards; write \"tcp/80-90\"",
        ),
    ];
    for (text, expected) in cases {
        let text = format!("{text}\n[sources.office]\nprefixes = [\"203.0.113.0/24\"]");
        let expected = expected.replacen("2:2: ", "1:11: ", 1);
        check_wrong(
            &format!("[services.ssh]\n{text}"),
            &format!("a.toml:{expected}"),
        );
    }
}

#[test]
fn names_what_is_wrong_with_a_source() {
    let cases = [
        (
            "",
            "1:10: sources.x: has no origin; add `provider`, `url`, `names`, `file` or `prefixes`",
        ),
        (
            "file = \"a\"\nprefixes = [\"192.0.2.1\"]",
            "1:10: sources.x: has `file` and `prefixes`, and one origin is possible; make each a source",
        ),
        (
            "url = \"https://example.com/\"\nfile = \"a\"",
            "1:10: sources.x: has `file` and `url`, and one origin is possible; make each a source",
        ),
        (
            "prefixes = []",
            "2:12: sources.x.prefixes: is empty; write a prefix such as \"203.0.113.0/24\"",
        ),
        (
            "prefixes = [\"192.0.2.0/24\",\n \"203.0.113.9/24\"]",
            "3:2: sources.x.prefixes[1]: \"203.0.113.9/24\" has host bits set; write \"203.0.113.0/24\" for the network or \"203.0.113.9/32\" for the one address",
        ),
        (
            "prefixes = [\"::ffff:192.0.2.1\"]",
            "2:13: sources.x.prefixes[0]: \"::ffff:192.0.2.1/128\" is IPv4 written as IPv6, which no packet carries; write \"192.0.2.1/32\"",
        ),
        (
            "prefixes = [\"example.com\"]",
            "2:13: sources.x.prefixes[0]: \"example.com\" is not a prefix; write one such as \"203.0.113.0/24\", \"2001:db8::/32\" or \"203.0.113.9\"",
        ),
        (
            "prefixes = [\"192.0.2.1\"]\nevery = \"1h\"",
            "3:9: sources.x.every: makes no sense for a list of prefixes; remove it",
        ),
        (
            "file = \"\"",
            "2:8: sources.x.file: is empty; write the path of a file",
        ),
        (
            "url = \"https://example.com/\"",
            "1:10: sources.x: has a `url` and no `format`; add format = \"json\", \"jsonl\", \"text\", \"csv\", \"xml\", \"html\" or \"markdown\"",
        ),
        (
            "url = \"https://example.com/\"\nformat = \"yaml\"",
            "3:10: sources.x.format: \"yaml\" is not known here; write \"json\" or \"jsonl\" or \"text\" or \"csv\" or \"xml\" or \"html\" or \"markdown\"",
        ),
        (
            "url = \"http://me:hush@example.com/\"\nformat = \"json\"",
            "2:7: sources.x.url: would be fetched unprotected; write https:// (http:// is for loopback only, or with allow_plain_http = true)",
        ),
        (
            "url = \"ftp://example.com/\"\nformat = \"json\"",
            "2:7: sources.x.url: has the scheme \"ftp\"; write https://",
        ),
        (
            "url = \"example.com/list\"\nformat = \"json\"",
            "2:7: sources.x.url: is not a URL: relative URL without a base; write one such as \"https://example.com/list.json\"",
        ),
        (
            "url = \"https://example.com/\"\nformat = \"json\"\nregions = [\"EU\"]",
            "4:11: sources.x.regions: makes no sense for a list that is fetched; remove it",
        ),
        (
            "provider = \"pagerduty-webhook-us\"",
            "2:12: sources.x.provider: there is no provider \"pagerduty-webhook-us\"; did you mean \"pagerduty-webhooks-us\"?",
        ),
        (
            "provider = \"pagerduty-webhooks\"",
            "2:12: sources.x.provider: there is no provider \"pagerduty-webhooks\"; did you mean \"pagerduty-webhooks-eu\" or \"pagerduty-webhooks-legacy\" or \"pagerduty-webhooks-us\"?",
        ),
        (
            "provider = \"acme\"",
            "2:12: sources.x.provider: there is no provider \"acme\"; `allowlist providers` lists those there are",
        ),
        (
            "provider = \"pagerduty-webhooks-us\"\nregions = [\"EU\"]",
            "3:11: sources.x.regions: makes no sense for pagerduty-webhooks-us, which has no regions; remove it",
        ),
        (
            "provider = \"freshchat\"\nregions = [\"EU\", \"JP\"]",
            "3:18: sources.x.regions[1]: there is no region \"JP\"; freshchat has US, EU, IN, AU",
        ),
        (
            "provider = \"freshchat\"\nregions = []",
            "3:11: sources.x.regions: is empty: freshchat has US, EU, IN, AU; remove the key to take the usual ones",
        ),
        (
            "provider = \"freshchat\"\nurl = \"https://example.com/\"",
            "3:7: sources.x.url: makes no sense for freshchat, which is a list that is compiled in; remove it",
        ),
    ];
    for (text, expected) in cases {
        check_wrong(
            &format!("[sources.x]\n{text}"),
            &format!("a.toml:{expected}"),
        );
    }
}

#[test]
fn names_what_is_wrong_with_an_option_of_a_source() {
    let cases = [
        (
            "file = \"a\"\nevery = \"often\"",
            "3:9: sources.x.every: \"often\" is not a duration; write one such as \"30s\", \"15m\" or \"1h\"",
        ),
        (
            "file = \"a\"\nevery = \"0s\"",
            "3:9: sources.x.every: \"0s\" is out of range; write 1s to 30days",
        ),
        (
            "provider = \"pagerduty-webhooks-us\"\ntimeout = \"1h\"",
            "3:11: sources.x.timeout: \"1h\" is out of range; write 100ms to 10m",
        ),
        (
            "provider = \"pagerduty-webhooks-us\"\nmax_size = \"1GB\"",
            "3:12: sources.x.max_size: is not a size; write bytes, or \"512KiB\" or \"4MiB\", up to \"64MiB\"",
        ),
        (
            "provider = \"pagerduty-webhooks-us\"\nmax_size = 67_108_865",
            "3:12: sources.x.max_size: is not a size; write bytes, or \"512KiB\" or \"4MiB\", up to \"64MiB\"",
        ),
        (
            "provider = 1",
            "2:12: sources.x.provider: is an integer; it must be a string",
        ),
    ];
    for (text, expected) in cases {
        check_wrong(
            &format!("[sources.x]\n{text}"),
            &format!("a.toml:{expected}"),
        );
    }
}
