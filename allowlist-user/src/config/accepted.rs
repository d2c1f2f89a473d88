//! The forms in which a configuration accepts names and units observed in the kernel, for proposals of rules.

use allowlist_policy::UnitPlace;

use super::egress::{check_unit, is_transient};
use super::sources::check_host;

/// Returns a host name in lower case, without a final dot. The error is text for the user that states the remedy.
pub fn parse_host_name(text: &str) -> Result<String, String> {
    check_host(text)
}

/// Returns the unit by which a rule can name the programs of a cgroup, given as a path below the root of cgroup v2: the
/// service, if only slices are around it; else the innermost slice, or other permanent cgroup, that contains them.
/// Returns `None` if only the root contains them.
///
/// Scopes get a new cgroup, and often a new name, with each start; and the kernel programs accept no name of a service
/// inside another cgroup than a slice, where every user can give it to a cgroup.
pub fn unit_of_cgroup(path: &str) -> Option<String> {
    let components: Vec<_> = path.split('/').filter(|one| !one.is_empty()).collect();
    let outermost = components
        .iter()
        .find(|one| one.strip_suffix(".slice").is_none());
    if let Some(service) = outermost
        && service.strip_suffix(".service").is_some()
        && UnitPlace::of(service).text() == *service
        && check_unit(service).is_ok()
    {
        return Some((*service).to_owned());
    }
    let components = components.into_iter();
    let mut permanent: Vec<_> = components.take_while(|one| !is_transient(one)).collect();
    while let Some(last) = permanent.last() {
        let path = format!("/{}", permanent.join("/"));
        let slice = last.strip_suffix(".slice").map(|_| (*last).to_owned());
        let slice = slice.filter(|slice| UnitPlace::of(slice).text() == path);
        for unit in slice.into_iter().chain([path]) {
            if check_unit(&unit).is_ok() {
                return Some(unit);
            }
        }
        permanent.pop();
    }
    None
}

/// Returns whether a source can list a name.
pub fn is_host_name(name: &str) -> bool {
    check_host(name.strip_prefix("*.").unwrap_or(name))
        .is_ok_and(|accepted| name.ends_with(&accepted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_cgroups() {
        for (path, unit) in [
            ("alerts.slice/alertd.service", Some("alertd.service")),
            ("a.slice/a-b.slice/x@1.service", Some("x@1.service")),
            ("a.slice/x.service/payload/y.service", Some("x.service")),
            ("alertd.service", Some("alertd.service")),
            ("a.slice/a-b.slice/x.scope/payload", Some("a-b.slice")),
            ("a.slice/x.scope/y.service", Some("a.slice")),
            ("a.slice/agents/y.service", Some("/a.slice/agents")),
            ("a.slice/a b.service", Some("a.slice")),
            ("other.slice/a-b.slice", Some("/other.slice/a-b.slice")),
            ("machine/agent", Some("/machine/agent")),
            ("init.scope", None),
            ("/", None),
        ] {
            assert_eq!(unit_of_cgroup(path).as_deref(), unit, "{path}");
        }
    }

    #[test]
    fn names_of_hosts() {
        assert!(is_host_name("events.example.com") && is_host_name("*.example.com"));
        assert!(!is_host_name("a..example.com") && !is_host_name("a.example.com."));
    }
}
