//! Runs other programs in the workspace folder, and parses cargo's messages for the files that a build produced.

use std::env;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{self, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// Returns the workspace folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Returns cargo's target folder, derived from the path of this executable.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot find the path of the xtask executable")?;
    let target = xtask.ancestors().nth(2).context(
        "the xtask executable is not in cargo's target folder; start it with `cargo xtask`",
    )?;
    Ok(target.to_owned())
}

/// Returns a command for `program` in the workspace folder, without the variables that cargo sets for xtask.
///
/// Build scripts watch such variables (ring's watches `CARGO_PKG_NAME`): if they were inherited, a build by xtask and
/// a build by hand would invalidate each other.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    // rust-toolchain.toml selects the compiler, also under `cargo +nightly xtask`.
    command.env_remove("RUSTUP_TOOLCHAIN");
    // A relative path is relative to the caller's folder, not to the workspace folder.
    if let Some(target) = env::var_os("CARGO_TARGET_DIR")
        && let Ok(target) = path::absolute(target)
    {
        command.env("CARGO_TARGET_DIR", target);
    }
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&*name);
        }
    }
    command
}

/// Runs a command to its end, with inherited standard streams.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| cannot_start(command))
}

/// Runs a command to its end, copies its standard output to that of xtask, and passes each line to `read`.
pub(crate) fn each_line(command: &mut Command, mut read: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(command))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut line = Vec::new();
    while lines
        .read_until(b'\n', &mut line)
        .with_context(|| format!("cannot read the output of `{}`", name(command)))?
        > 0
    {
        // The tests continue after a reader such as `head` has closed the pipe.
        let _ = io::stdout().write_all(&line);
        // A test may print bytes that are not UTF-8.
        read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    child
        .wait()
        .with_context(|| format!("cannot read the exit status of `{}`", name(command)))
}

/// Runs a command that must succeed, and returns its standard output.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", name(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("the output of `{}` is not UTF-8 text", name(command)))
}

/// Reports whether `program` is in a folder of `PATH`.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The files that a build produced.
#[derive(Default)]
pub(crate) struct Built {
    executables: Vec<String>,
    /// The folders that build scripts wrote to.
    out_dirs: Vec<String>,
}

impl Built {
    /// Returns the path of the executable `name`.
    pub(crate) fn executable(&self, name: &str) -> Result<&str> {
        self.executables
            .iter()
            .find(|path| Path::new(path).file_name().is_some_and(|file| file == name))
            .map(String::as_str)
            .with_context(|| format!("cargo built no executable `{name}`"))
    }

    /// Returns the path of the test program `name`; cargo appends a hash to the file name.
    pub(crate) fn test(&self, name: &str) -> Result<&str> {
        self.executables
            .iter()
            .find(|path| {
                let file = Path::new(path).file_name().unwrap_or_default();
                file.to_string_lossy()
                    .rsplit_once('-')
                    .is_some_and(|(stem, hash)| {
                        stem == name && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
                    })
            })
            .map(String::as_str)
            .with_context(|| format!("cargo built no test program `{name}`"))
    }

    /// Returns the path of the file `name` in the output folder of a build script.
    pub(crate) fn generated(&self, name: &str) -> Result<PathBuf> {
        self.out_dirs
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("no build script wrote the file `{name}`"))
    }

    /// Parses one line of `cargo build --message-format=json`.
    fn read(&mut self, message: &str) {
        self.executables.extend(string_field(message, "executable"));
        self.out_dirs.extend(string_field(message, "out_dir"));
    }
}

/// Runs `cargo build` with `args`; cargo's diagnostics go to standard error.
pub(crate) fn build(args: &[&str]) -> Result<Built> {
    build_with(args, &[])
}

/// Runs `cargo build` as [`build`] does, with additional environment variables.
pub(crate) fn build_with(args: &[&str], variables: &[(&str, &str)]) -> Result<Built> {
    let mut command = command("cargo");
    command
        .args(["build", "--message-format=json-render-diagnostics"])
        .args(args)
        .envs(variables.iter().copied());
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(&command))?;

    let mut built = Built::default();
    for message in BufReader::new(child.stdout.take().expect("stdout is a pipe")).lines() {
        built.read(&message.context("cannot read cargo's messages")?);
    }
    let status = child.wait().context("cannot read cargo's exit status")?;
    if !status.success() {
        bail!("the build failed; see cargo's messages above");
    }
    Ok(built)
}

/// Returns the value of a string field in a line of JSON.
///
/// Not a JSON parser: xtask reads only two fields of cargo's messages. Quotes inside JSON strings are escaped, so the
/// pattern matches keys only; a path that contains a quote or a backslash is not supported.
fn string_field(json: &str, key: &str) -> Option<String> {
    let (_, rest) = json.split_once(&format!("\"{key}\":\""))?;
    let (value, _) = rest.split_once('"')?;
    Some(value.to_owned())
}

fn name(command: &Command) -> String {
    command.get_program().to_string_lossy().into_owned()
}

fn cannot_start(command: &Command) -> String {
    format!("cannot start `{}`", name(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_files_are_parsed_from_cargo_messages() {
        let mut built = Built::default();
        for message in [
            r#"{"reason":"compiler-artifact","target":{"name":"log"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/allowlist-demo","fresh":true}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/allowlist","fresh":true}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/deps/demo-0123456789abcdef"}"#,
            r#"{"reason":"build-script-executed","env":[],"out_dir":"/w/target/debug/build/a-1/out"}"#,
            r#"{"reason":"compiler-message","message":{"rendered":"the \"executable\":\"/no\""}}"#,
        ] {
            built.read(message);
        }
        assert_eq!(
            built.executable("allowlist").unwrap(),
            "/w/target/debug/allowlist"
        );
        assert_eq!(
            built.executable("allowlist-demo").unwrap(),
            "/w/target/debug/allowlist-demo"
        );
        assert_eq!(
            built.test("demo").unwrap(),
            "/w/target/debug/deps/demo-0123456789abcdef"
        );
        assert!(built.test("allowlist").is_err()); // `demo` is not a hash
        assert_eq!(built.out_dirs, ["/w/target/debug/build/a-1/out"]);
        assert!(built.executable("no").is_err());
    }
}
