//! Any bytes as a vendor's answer: refused with a reason, or taken as a list that keeps its promises.

use allowlist_user::feed::{FeedError, check_prefix, parse_json_array, parse_lines};
use ipnet::IpNet;

/// Reads the bytes as a list of each kind.
///
/// # Panics
/// Where a reason is missing, where a list that was taken is not as `feed` promises, or where the program
/// panics.
pub fn run(input: &[u8]) {
    for list in [parse_json_array(input), parse_lines(input)] {
        check(list);
    }
}

fn check(list: Result<Vec<IpNet>, FeedError>) {
    let prefixes = match list {
        Ok(prefixes) => prefixes,
        Err(error) => {
            assert_ne!(error.to_string(), "");
            return;
        }
    };
    assert!(!prefixes.is_empty());
    assert!(prefixes.is_sorted_by(|a, b| a < b), "{prefixes:?}");
    for prefix in &prefixes {
        let widest = if prefix.addr().is_ipv4() { 8 } else { 16 };
        assert!(prefix.prefix_len() >= widest, "{prefix}");
        assert_eq!(check_prefix(*prefix), Ok(*prefix));
    }
    let words: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(
        parse_lines(words.join("\n").as_bytes()),
        Ok(prefixes.clone())
    );
    let array = format!("[\"{}\"]", words.join("\", \""));
    assert_eq!(parse_json_array(array.as_bytes()), Ok(prefixes));
}
