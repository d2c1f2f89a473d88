//! Installs the two build dependencies of eBPF programs that a Rust toolchain lacks: the source of `core`, and
//! bpf-linker.
//!
//! Silent and instant when nothing is missing. Does not know the versions of the compiler and of LLVM:
//! rust-toolchain.toml names the first, the compiler reports the second. Changes only the toolchain and `target`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, iter};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// The version of bpf-linker to install.
const BPF_LINKER: &str = "0.13.0";

/// Installs the missing build tools, and returns the compiler for which they are installed.
pub(crate) fn run() -> Result<Compiler> {
    let compiler = Compiler::pinned()?;
    compiler.ensure_rust_src()?;
    BpfLinker::new(&compiler)?.ensure()?;
    Ok(compiler)
}

/// The compiler that rust-toolchain.toml pins.
pub(crate) struct Compiler {
    sysroot: PathBuf,
    /// The output of `rustc -vV`.
    version: String,
}

impl Compiler {
    fn pinned() -> Result<Self> {
        let sysroot = cargo::stdout(cargo::command("rustc").args(["--print", "sysroot"]))?;
        let version = cargo::stdout(cargo::command("rustc").arg("-vV"))?;
        Ok(Self {
            sysroot: sysroot.trim_end().into(),
            version,
        })
    }

    /// Returns the compiler's host target, such as `x86_64-unknown-linux-gnu`.
    pub(crate) fn host(&self) -> Result<&str> {
        version_field(&self.version, "host").context("`rustc -vV` prints no `host:` line, so the target of this machine is unknown; check that the `rustc` in PATH is a Rust compiler")
    }

    fn ensure_rust_src(&self) -> Result<()> {
        if self
            .sysroot
            .join("lib/rustlib/src/rust/library/core")
            .exists()
        {
            return Ok(());
        }
        let channel = channel(include_str!("../../rust-toolchain.toml")).context(
            "rust-toolchain.toml has no `channel`, the version of the compiler; restore the file",
        )?;
        eprintln!(
            "xtask: installing rust-src, to build `core` for the eBPF programs (takes seconds)"
        );
        let mut rustup = cargo::command("rustup");
        rustup.args(["component", "add", "rust-src", "--toolchain", channel]);
        let added = cargo::status(&mut rustup).with_context(|| {
            format!(
                "the compiler in {} has no rust-src, and rustup cannot add it (install rustup, or the compiler's source package)",
                self.sysroot.display()
            )
        })?;
        if !added.success() {
            bail!(
                "rustup could not install rust-src (see its message above): run `rustup component \
                 add rust-src --toolchain {channel}` with internet access"
            );
        }
        Ok(())
    }
}

/// bpf-linker, linked against the compiler's own LLVM: a linker with an older LLVM cannot read the compiler's bitcode,
/// and the compiler's LLVM is on every machine.
struct BpfLinker {
    folder: PathBuf,
    llvm_major: String,
    llvm_library: PathBuf,
}

impl BpfLinker {
    fn new(compiler: &Compiler) -> Result<Self> {
        let folder = cargo::target_dir()?.join("tools");
        let llvm_major = llvm_major(&compiler.version)
            .context(
                "`rustc -vV` prints no LLVM version: bpf-linker needs a compiler that uses LLVM; install the compiler with rustup",
            )?
            .to_owned();
        let libraries = compiler.sysroot.join("lib");
        let names = fs::read_dir(&libraries)
            .with_context(|| format!("cannot list {}", libraries.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let llvm_library = llvm_library(names, &llvm_major)
            .map(|name| libraries.join(name))
            .with_context(|| {
                format!(
                    "no libLLVM.so.{llvm_major}.* in {}: this compiler does not ship its LLVM as a \
                     shared library; install the compiler with rustup",
                    libraries.display()
                )
            })?;
        Ok(Self {
            folder,
            llvm_major,
            llvm_library,
        })
    }

    fn ensure(&self) -> Result<()> {
        if self.is_current() {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create {}", self.folder.display()))?;
        // A concurrent xtask waits here, and then finds the linker installed.
        let lock = File::create(self.folder.join(".lock"))
            .with_context(|| format!("cannot create a lock file in {}", self.folder.display()))?;
        lock.lock().context("cannot lock target/tools")?;
        if self.is_current() {
            Ok(())
        } else {
            self.install()
        }
    }

    fn is_current(&self) -> bool {
        self.folder.join("bin/bpf-linker").exists()
            && fs::read_to_string(self.stamp()).is_ok_and(|stamp| stamp == self.description())
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("bpf-linker.stamp")
    }

    /// Returns the properties that identify an installation of bpf-linker. They include the folder, because the linker
    /// finds LLVM by that path.
    fn description(&self) -> String {
        format!(
            "bpf-linker {BPF_LINKER}\nlinked against {}\nby way of {}\n",
            self.llvm_library.display(),
            self.folder.display()
        )
    }

    fn install(&self) -> Result<()> {
        // ring and bpf-linker need `cc` even where rustc uses another linker.
        if !cargo::is_on_path("cc") {
            bail!("there is no C compiler (`cc`): run `apt-get install gcc libc6-dev`");
        }
        eprintln!(
            "xtask: building bpf-linker {BPF_LINKER} in {} against the compiler's LLVM {} (once; \
             takes half a minute on two cores)",
            self.folder.display(),
            self.llvm_major
        );
        remove(&self.stamp())?;
        self.link_llvm()?;

        let build = self.folder.join("build");
        let mut command = cargo::command("cargo");
        command
            .args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER,
                "--locked",
                "--force",
            ])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{}", self.llvm_major))
            .arg("--root")
            .arg(&self.folder)
            // A separate target folder: the cargo that started xtask may hold the lock of the default one.
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", self.llvm_prefix())
            // Halves the CPU time of this build. LLVM, which does the work of linking, is optimised in any case.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "false");
        // The caller's build settings are for the product and must not affect this tool.
        for name in [
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        // Otherwise cargo warns that the folder is not in PATH.
        command.env("PATH", path_with(&self.folder.join("bin"))?);

        if !cargo::status(&mut command)?.success() {
            bail!(
                "cannot build bpf-linker (see cargo's messages above): the build needs about 300 MB \
                 in {} and internet access; then run this command again",
                self.folder.display()
            );
        }
        remove(&build)?;
        fs::write(self.stamp(), self.description())
            .context("cannot record the installed version of bpf-linker, so the next build installs it again")
    }

    /// Creates symlinks to LLVM's library: `libLLVM.so` for the build, and its own name for the dynamic linker.
    ///
    /// Development files of zlib and LLVM are not needed: the library contains its dependencies.
    fn link_llvm(&self) -> Result<()> {
        let lib = self.llvm_prefix().join("lib");
        remove(&lib)?;
        fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
        let own_name = self.llvm_library.file_name().expect("a path with a name");
        for name in ["libLLVM.so".as_ref(), own_name] {
            symlink(&self.llvm_library, lib.join(name))
                .with_context(|| format!("cannot create a symlink in {}", lib.display()))?;
        }
        Ok(())
    }

    fn llvm_prefix(&self) -> PathBuf {
        self.folder.join("llvm")
    }
}

fn path_with(first: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(iter::once(first.to_owned()).chain(env::split_paths(&path))).context(
        "the workspace's path contains a colon, which PATH cannot contain (move the workspace)",
    )
}

/// Removes a file or a folder, if it exists.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Returns the compiler's channel from the text of rust-toolchain.toml; `None` if the text has no line `channel = …`.
fn channel(toolchain: &str) -> Option<&str> {
    let line = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))?;
    Some(line.trim_matches('"'))
}

/// Returns the value of the field `name` in the output of `rustc -vV`; `None` if the output lacks the field.
fn version_field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn llvm_major(version: &str) -> Option<&str> {
    version_field(version, "LLVM version")?.split('.').next()
}

/// Returns the name of LLVM's shared library among `names`, the files in the compiler's `lib` folder; `None` if the
/// folder has no library of the version `major`. A linker script in that folder has a similar name, and does not match.
fn llvm_library(names: impl Iterator<Item = String>, major: &str) -> Option<String> {
    let prefix = format!("libLLVM.so.{major}.");
    names.into_iter().find(|name| name.starts_with(&prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_version_is_parsed() {
        let table = [
            (
                "rustc 1.95.0\nhost: x\nrelease: 1.95.0\nLLVM version: 22.1.2",
                Some("22"),
            ),
            ("rustc 1.75.0\nLLVM version: 17.0.6\n", Some("17")),
            ("rustc 1.95.0\nhost: x\n", None),
            ("", None),
        ];
        for (version, expected) in table {
            assert_eq!(llvm_major(version), expected, "{version}");
        }
    }

    #[test]
    fn llvm_library_excludes_linker_scripts_and_other_versions() {
        let script = "libLLVM-22-rust-1.95.0-stable.so";
        let library = "libLLVM.so.22.1-rust-1.95.0-stable";
        let table: [(&[&str], &str, Option<&str>); 4] = [
            (
                &[script, library, "librustc_driver-6108.so"],
                "22",
                Some(library),
            ),
            (&[script, library], "23", None),
            (&[library], "2", None),
            (&[], "22", None),
        ];
        for (names, major, expected) in table {
            let names_in_folder = names.iter().map(ToString::to_string);
            assert_eq!(
                llvm_library(names_in_folder, major).as_deref(),
                expected,
                "{names:?}"
            );
        }
    }

    #[test]
    fn pinned_channel_is_parsed() {
        let table = [
            ("[toolchain]\nchannel = \"1.95.0\"\n", Some("1.95.0")),
            ("# channel = \"no\"\n[toolchain]\n", None),
        ];
        for (toolchain, expected) in table {
            assert_eq!(channel(toolchain), expected, "{toolchain}");
        }
        assert!(channel(include_str!("../../rust-toolchain.toml")).is_some());
    }
}
