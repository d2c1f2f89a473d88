//! Gets the two things that building an eBPF program asks for and a Rust toolchain does not bring:
//! the source of `core`, and a linker.
//!
//! Silent and instant when there is nothing to do. It knows no version of the compiler or of LLVM:
//! rust-toolchain.toml names the one, the compiler the other. Nothing outside the toolchain and
//! `target` changes.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::{env, iter};

use anyhow::{Context, Result, bail};

use crate::cargo;

/// The release of bpf-linker that links eBPF programs.
const BPF_LINKER: &str = "0.13.0";

/// Gets what is missing, for the compiler that it returns.
pub(crate) fn run() -> Result<Compiler> {
    let compiler = Compiler::pinned()?;
    compiler.ensure_rust_src()?;
    BpfLinker::new(&compiler)?.ensure()?;
    Ok(compiler)
}

/// The compiler that rust-toolchain.toml pins.
pub(crate) struct Compiler {
    sysroot: PathBuf,
    /// What `rustc -vV` prints.
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

    /// The machine that it runs on and compiles for, such as `x86_64-unknown-linux-gnu`.
    pub(crate) fn host(&self) -> Result<&str> {
        version_field(&self.version, "host").context("`rustc -vV` names no host")
    }

    fn ensure_rust_src(&self) -> Result<()> {
        if self
            .sysroot
            .join("lib/rustlib/src/rust/library/core")
            .exists()
        {
            return Ok(());
        }
        let channel = channel(include_str!("../../rust-toolchain.toml"))
            .context("rust-toolchain.toml names no channel")?;
        eprintln!("xtask: getting rust-src, which the eBPF side's `core` is built from (seconds)");
        let mut rustup = cargo::command("rustup");
        rustup.args(["component", "add", "rust-src", "--toolchain", channel]);
        let added = cargo::status(&mut rustup).with_context(|| {
            format!(
                "this compiler ({}) has no rust-src: install its source package, or use rustup",
                self.sysroot.display()
            )
        })?;
        if !added.success() {
            bail!(
                "rustup could not add rust-src: see its message above, then run `rustup component \
                 add rust-src --toolchain {channel}` where the internet can be reached"
            );
        }
        Ok(())
    }
}

/// bpf-linker, linked against the compiler's own LLVM: a linker older than the compiler cannot read
/// its bitcode, and the compiler's is the one LLVM that every machine has.
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
                "`rustc -vV` names no LLVM version: bpf-linker needs a compiler that uses LLVM",
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
                    "no libLLVM.so.{llvm_major}.* in {}: this compiler does not bring its LLVM; \
                     install it by rustup",
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
        // A second xtask waits here, and then finds the work done.
        let lock = File::create(self.folder.join(".lock")).context("cannot make a lock file")?;
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

    /// What makes one installation differ from another. The folder is part of it, because the
    /// linker finds LLVM by that path.
    fn description(&self) -> String {
        format!(
            "bpf-linker {BPF_LINKER}\nlinked against {}\nby way of {}\n",
            self.llvm_library.display(),
            self.folder.display()
        )
    }

    fn install(&self) -> Result<()> {
        // ring and bpf-linker need it too; where rustc links by another program, nobody has asked yet.
        if !cargo::is_on_path("cc") {
            bail!("there is no C compiler (`cc`): run `apt-get install gcc libc6-dev`");
        }
        eprintln!(
            "xtask: building bpf-linker {BPF_LINKER}, which links eBPF programs, into {} against \
             the compiler's own LLVM {} (once; a minute or two on two cores)",
            self.folder.display(),
            self.llvm_major
        );
        remove(&self.stamp())?;
        self.offer_llvm()?;

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
            // A folder of its own: the cargo that may have started xtask holds the lock of the other.
            .arg("--target-dir")
            .arg(&build)
            .env("LLVM_PREFIX", self.llvm_prefix());
        // The linker is a tool: what the caller wants of the product must not change or break it.
        for name in [
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTC_WORKSPACE_WRAPPER",
            "RUSTC_WRAPPER",
            "RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        // Else cargo warns that nobody will find the linker.
        command.env("PATH", path_with(&self.folder.join("bin"))?);

        if !cargo::status(&mut command)?.success() {
            bail!(
                "bpf-linker could not be built; cargo's messages are above. It needs about 300 MB \
                 in {} and, once, the internet. Then run this command again",
                self.folder.display()
            );
        }
        remove(&build)?;
        fs::write(self.stamp(), self.description()).context("cannot note what was installed")
    }

    /// Links LLVM under the name that is asked for when building (`libLLVM.so`) and the one that is
    /// asked for when running (its own). Neither zlib's nor LLVM's development files are needed: the
    /// library brings what it uses.
    fn offer_llvm(&self) -> Result<()> {
        let lib = self.llvm_prefix().join("lib");
        remove(&lib)?;
        fs::create_dir_all(&lib).with_context(|| format!("cannot create {}", lib.display()))?;
        let own_name = self.llvm_library.file_name().expect("found by its name");
        for name in ["libLLVM.so".as_ref(), own_name] {
            symlink(&self.llvm_library, lib.join(name))
                .with_context(|| format!("cannot make a link in {}", lib.display()))?;
        }
        Ok(())
    }

    fn llvm_prefix(&self) -> PathBuf {
        self.folder.join("llvm")
    }
}

fn path_with(first: &Path) -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(iter::once(first.to_owned()).chain(env::split_paths(&path)))
        .context("the path of the workspace contains a colon, which PATH cannot hold: move it")
}

/// Removes a file or a folder that may not be there.
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

/// The compiler's version in rust-toolchain.toml.
fn channel(toolchain: &str) -> Option<&str> {
    let line = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))?;
    Some(line.trim_matches('"'))
}

/// The value behind `name:` in what `rustc -vV` prints.
fn version_field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

fn llvm_major(version: &str) -> Option<&str> {
    version_field(version, "LLVM version")?.split('.').next()
}

/// The library itself among the files beside it: a linker script that names it, rustc's own.
fn llvm_library(names: impl Iterator<Item = String>, major: &str) -> Option<String> {
    let prefix = format!("libLLVM.so.{major}.");
    names.into_iter().find(|name| name.starts_with(&prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_the_one_that_the_compiler_names() {
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
    fn the_library_is_neither_the_linker_script_nor_another_version() {
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
    fn the_pinned_channel_is_found() {
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
