//! Hints for messages: the known names, the nearest name, counts with their noun, and limits to raise. Pure.

use std::fmt::Display;

/// The Jaro-Winkler similarity (0 to 1) from which a known name is suggested instead of a misspelled one.
const ALIKE: f64 = 0.8;

/// Returns `items` as a clause for a message: "there is a", "there are a, b" or "there are none".
pub fn there_are<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match &items[..] {
        [] => "there are none".to_owned(),
        [one] => format!("there is {one}"),
        all => format!("there are {}", all.join(", ")),
    }
}

/// Returns a count with its noun, which is given in the singular: "1 prefix", "2 prefixes", "0 entries".
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 {
        return format!("1 {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) => format!("{count} {stem}ies"),
        None if noun.ends_with(['s', 'x']) => format!("{count} {noun}es"),
        None => format!("{count} {noun}s"),
    }
}

/// Returns the name in `known` that is most similar to `name`, or `None` if none is similar enough.
pub fn nearest<'n>(name: &str, known: &[&'n str]) -> Option<&'n str> {
    let near = |known: &&'n str| strsim::jaro_winkler(name, known);
    let best = known
        .iter()
        .copied()
        .max_by(|a, b| near(a).total_cmp(&near(b)))?;
    (near(&best) > ALIKE).then_some(best)
}

/// Returns a suggestion such as "; did you mean \"github\"?" for `githb`, or "" if no name in `known` is similar
/// enough.
pub fn did_you_mean(name: &str, known: &[&str]) -> String {
    nearest(name, known).map_or_else(String::new, |near| format!("; did you mean {near:?}?"))
}

/// Returns advice about `name`, which is no interface of this host, or `None` if the name shows no known mistake.
pub fn interface(name: &str) -> Option<String> {
    if let Some((own, _)) = name.split_once('@') {
        return Some(format!(
            "write {own:?}: the part after @ in the output of `ip link` is the peer, not a part of the name"
        ));
    }
    if name.contains(['*', '?', '[', ']']) {
        return Some(
            "interface names are not patterns: write the name of each interface".to_owned(),
        );
    }
    let lower = name.to_ascii_lowercase();
    ["all", "any", "default"]
        .contains(&&*lower)
        .then(|| "no keyword selects every interface: write the name of each interface".to_owned())
}

/// Returns advice if the message `error` shows that the process reached its limit of open files, else `None`.
pub fn limit(error: &str) -> Option<&'static str> {
    let is_of_files = ["os error 24", "EMFILE", "Too many open files"];
    is_of_files.iter().any(|sign| error.contains(sign)).then_some(
        "the limit of open files is too low; raise it: LimitNOFILE=4096 in the unit, or `ulimit -n 4096`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(there_are(["lab"]), "there is lab");
        assert_eq!(there_are(["a", "b"]), "there are a, b");
        assert_eq!(there_are::<&str>([]), "there are none");
    }

    #[test]
    fn counts_have_the_form_of_their_noun() {
        for (count, noun, expected) in [
            (0, "source", "0 sources"),
            (1, "source", "1 source"),
            (1, "prefix", "1 prefix"),
            (2, "prefix", "2 prefixes"),
            (1, "entry", "1 entry"),
            (3, "entry", "3 entries"),
        ] {
            assert_eq!(counted(count, noun), expected);
        }
    }

    #[test]
    fn names_that_are_no_interfaces() {
        for (name, expected) in [
            ("vi@if2", Some("write \"vi\"")),
            ("vi*", Some("patterns")),
            ("eth[01]", Some("patterns")),
            ("all", Some("keyword")),
            ("eth0", None),
            ("alley", None),
        ] {
            let hint = interface(name);
            match (&hint, expected) {
                (Some(hint), Some(expected)) => assert!(hint.contains(expected), "{name}: {hint}"),
                (hint, expected) => assert_eq!(hint.as_deref(), expected, "{name}"),
            }
        }
    }

    #[test]
    fn a_limit_of_files_is_recognised() {
        let error =
            anyhow::Error::from(std::io::Error::from_raw_os_error(24)).context("cannot pin");
        assert!(limit(&format!("{error:#}")).is_some());
        assert_eq!(limit("permission denied (os error 13)"), None);
    }
}
