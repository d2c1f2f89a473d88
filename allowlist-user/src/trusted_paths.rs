//! Checks the paths of a configuration that must be trusted: those that determine which commands run as root, and which
//! secrets and certificates are used. Does not examine the content of the files.

use std::path::Path;

use allowlist_files::trust::{Finding, Problem, Untrusted, examine};
use allowlist_policy::Origin;

use crate::config::{Config, secrets};

/// A path of the configuration that users other than root can change, or whose owner cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concern {
    /// The description of the problem, with the remedy.
    pub message: String,
    /// Whether the configuration must not be used. Two problems are no reason for this: only the user behind `sudo` can
    /// change the path, and it leads to no command, secret or certificate; or the owner of a file that the
    /// configuration names cannot be read at the moment.
    pub is_fatal: bool,
}

/// Returns the concerns about the configuration file, if there is one, and about the files that it names.
///
/// A path that does not exist is no concern: its use fails with an error of its own.
pub fn concerns(file: Option<&Path>, text: &str, config: &Config) -> Vec<Concern> {
    let mut concerns = Vec::new();
    let mut add = |path: &Path, is_sensitive: bool| match examine(path) {
        Ok(findings) => {
            let is_fatal = |finding: &Finding| {
                is_sensitive || !matches!(finding.problem, Problem::SudoUser(_))
            };
            // Reports one finding for each path, a fatal one if there is one.
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
        // Each use of a command, a token or a certificate examines its path again, so the filter can start.
        Err(error) => concerns.push(Concern {
            message: format!(
                "{}: cannot read its owner: {error}; the file is not used until this succeeds",
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
