//! Other programs, started as a person would start them in the workspace's folder, and what cargo
//! says about the files that it built.

use std::env;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{self, Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask is a folder of the workspace")
}

/// Where cargo put this program, and so everything else: `target`, unless somebody moved it.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("cannot tell where xtask runs from")?;
    let target = xtask
        .ancestors()
        .nth(2)
        .context("xtask runs from outside a target folder")?;
    Ok(target.to_owned())
}

/// `program` in the workspace's folder, without what the outer cargo set for xtask alone.
///
/// Build scripts watch such variables (ring's watches `CARGO_PKG_NAME`): left in, a build by xtask
/// and a build by hand would each undo the other's.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root());
    // Without it, rust-toolchain.toml decides: `cargo +nightly xtask` builds what `cargo xtask` does.
    command.env_remove("RUSTUP_TOOLCHAIN");
    // A relative folder is meant from where the caller stands, not from the workspace's folder.
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

/// Runs to the end, with this program's own input and output.
pub(crate) fn status(command: &mut Command) -> Result<ExitStatus> {
    command.status().with_context(|| cannot_start(command))
}

/// Runs to the end; prints its standard output as it comes, and shows each line of it to `read`.
pub(crate) fn each_line(command: &mut Command, mut read: impl FnMut(&str)) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| cannot_start(command))?;
    let mut lines = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 {
        // Whoever reads along may have seen enough; the tests go on.
        let _ = io::stdout().write_all(&line);
        // What a test prints need not be UTF-8.
        read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    Ok(child.wait()?)
}

/// What a program that must succeed prints.
pub(crate) fn stdout(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", name(command), output.status);
    }
    String::from_utf8(output.stdout)
        .with_context(|| format!("`{}` printed something that is not UTF-8", name(command)))
}

/// Whether `program` is in a folder of `PATH`.
pub(crate) fn is_on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// The files that a build made.
#[derive(Default)]
pub(crate) struct Built {
    executables: Vec<String>,
    /// The folders that build scripts wrote to.
    out_dirs: Vec<String>,
}

impl Built {
    /// The path of an executable, by its name.
    pub(crate) fn executable(&self, name: &str) -> Result<&str> {
        self.executables
            .iter()
            .find(|path| Path::new(path).file_name().is_some_and(|file| file == name))
            .map(String::as_str)
            .with_context(|| format!("cargo built no executable `{name}`"))
    }

    /// The path of a test program, by its name, to which cargo adds a hash.
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

    /// A file that a build script left for its crate, by its name.
    pub(crate) fn generated(&self, name: &str) -> Result<PathBuf> {
        self.out_dirs
            .iter()
            .map(|folder| Path::new(folder).join(name))
            .find(|path| path.exists())
            .with_context(|| format!("no build script made `{name}`"))
    }

    /// Takes one line of `cargo build --message-format=json`.
    fn read(&mut self, message: &str) {
        self.executables.extend(string_field(message, "executable"));
        self.out_dirs.extend(string_field(message, "out_dir"));
    }
}

/// `cargo build` with these arguments. Whatever cargo has to say goes to standard error.
pub(crate) fn build(args: &[&str]) -> Result<Built> {
    build_with(args, &[])
}

/// The same, with these variables.
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
    if !child.wait()?.success() {
        bail!("the build failed; cargo's messages above say where");
    }
    Ok(built)
}

/// The value of a string field in a line of JSON.
///
/// Two fields of a known program do not call for a parser. A quote inside a string is written `\"`,
/// so that nothing but a key matches; a path with a quote or a backslash in it is not understood.
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
    fn what_cargo_built_is_found_in_its_messages() {
        let mut built = Built::default();
        for message in [
            r#"{"reason":"compiler-artifact","target":{"name":"log"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/allowlist-demo","fresh":true}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/allowlist","fresh":true}"#,
            r#"{"reason":"compiler-artifact","executable":"/w/target/debug/deps/demo-0123456789abcdef"}"#,
            r#"{"reason":"build-script-executed","env":[],"out_dir":"/w/target/debug/build/a-1/out"}"#,
            r#"{"reason":"compiler-message","message":{"rendered":"say \"executable\":\"/no\""}}"#,
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
        assert!(built.test("allowlist").is_err()); // `demo` is no hash
        assert_eq!(built.out_dirs, ["/w/target/debug/build/a-1/out"]);
        assert!(built.executable("no").is_err());
    }
}
