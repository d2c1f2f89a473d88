//! Which paths of a configuration must be trusted: those that decide which commands run and which secrets and
//! certificates are used, as root. Their content is not examined.

use std::path::Path;

use super::{Finding, Problem, Untrusted, examine};
use crate::config::{Config, secrets};
use crate::policy::Origin;

/// Something that users other than root could change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// The description, with the remedy.
    pub message: String,
    /// Whether the configuration must not be used: they could change a command, a secret, or a file of a
    /// user who is not the one behind `sudo`.
    pub is_fatal: bool,
}

/// Returns the concerns about a configuration's file, where it has one, and about the files that it names. A path that
/// leads nowhere is no concern: using it fails, with its own error.
pub fn concerns(file: Option<&Path>, text: &str, config: &Config) -> Vec<Concern> {
    let mut concerns = Vec::new();
    let mut add = |path: &Path, is_sensitive: bool| match examine(path) {
        Ok(findings) => {
            let is_fatal = |finding: &Finding| {
                is_sensitive || !matches!(finding.problem, Problem::SudoUser(_))
            };
            // One is enough to act on, and a fatal one matters more.
            let worst = findings
                .iter()
                .find(|finding| is_fatal(finding))
                .or(findings.first());
            concerns.extend(worst.map(|finding| {
                Concern {
                    message: Untrusted {
                        path: path.to_owned(),
                        finding: finding.clone(),
                    }
                    .to_string(),
                    is_fatal: is_fatal(finding),
                }
            }));
        }
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)
            ) => {}
        // Each use of a command, a token or a certificate examines it again, so the filter starts without.
        Err(error) => concerns.push(Concern {
            message: format!(
                "{}: its owner cannot be examined: {error}; it is not used until it can be",
                path.display()
            ),
            is_fatal: Some(path) == file,
        }),
    };
    if let Some(file) = file {
        add(file, !config.hook.is_empty() || !secrets(text).is_empty());
    }
    if let Some(program) = config.hook.command.first() {
        add(Path::new(program), true);
    }
    if let Some(authorities) = &config.hook.ca_file {
        add(authorities, true);
    }
    for source in &config.policy.sources {
        if let Origin::Http(http) = &source.origin {
            for path in [&http.bearer_file, &http.ca_file].into_iter().flatten() {
                add(path, true);
            }
        }
    }
    concerns
}
