//! Builds a package of eBPF programs, by a cargo of its own: another target, another profile, and a
//! `core` built from source. For the build script of the crate that carries the object.
//!
//! Installs nothing: where the tools are missing it names the command that gets them.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// Leaves the object of `package`, which is in this `folder` of the workspace, in the build script's
/// `OUT_DIR`, under the package's name. It is all that a build script does: it starts no thread before.
pub fn main(package: &str, folder: &str) {
    if let Err(error) = build(package, folder) {
        println!("cargo::error={error:#}");
    }
}

fn build(package: &str, folder: &str) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context("no workspace around this crate")?;
    let tools = tools(workspace)
        .context("bpf-linker is missing: run `cargo xtask build` once, which gets it")?;
    // aya-build watches the eBPF crate alone.
    for input in [
        "allowlist-common",
        "Cargo.lock",
        "Cargo.toml",
        "rust-toolchain.toml",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    println!(
        "cargo::rerun-if-changed={}",
        tools.join("bpf-linker").display()
    );

    set_environment(&[
        ("PATH", &path_with(tools)?),
        // The pinned stable compiler takes `-Z build-std=core`, which the target needs.
        ("RUSTC_BOOTSTRAP", "1"),
        // aya-build repeats what this cargo says as warnings; errors come through all the same.
        ("CARGO_TERM_QUIET", "true"),
        // After the workspace's thin LTO, core's memcpy stays a global function, which the verifier
        // checks apart from its callers' bounds. A profile cannot set this for one package.
        ("CARGO_PROFILE_RELEASE_LTO", "fat"),
        // A caller's CARGO_INCREMENTAL=1 splits the programs into more codegen units, whose stack accesses the
        // verifier of Linux 6.18 refuses as misaligned.
        ("CARGO_INCREMENTAL", "0"),
    ]);

    let toolchain = include_str!("../../../rust-toolchain.toml");
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .context("rust-toolchain.toml names no channel")?;
    let ebpf = workspace.join(folder);
    let package = Package {
        name: package,
        root_dir: ebpf.to_str().context("the workspace's path is not UTF-8")?,
        ..Package::default()
    };
    let channel = channel.trim_matches('"');
    aya_build::build_ebpf([package], Toolchain::Custom(channel)).context(
        "the eBPF object was not built: the warnings say why (if it is rust-src that is missing, \
         `cargo xtask build` gets it)",
    )
}

/// The folder of bpf-linker: in the target folder that this build writes to, else the workspace's.
fn tools(workspace: &Path) -> Option<PathBuf> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR")?);
    let workspaces_target = workspace.join("target");
    out_dir
        .ancestors()
        .chain([workspaces_target.as_path()])
        .map(|target| target.join("tools/bin"))
        .find(|folder| folder.join("bpf-linker").exists())
}

fn path_with(first: PathBuf) -> Result<String> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(std::iter::once(first).chain(env::split_paths(&path)))?
        .into_string()
        .map_err(|path| anyhow::anyhow!("PATH is not UTF-8: {}", path.display()))
}

/// aya-build passes on this process's environment, and offers no other way in.
#[expect(
    unsafe_code,
    reason = "setting a variable is unsafe where threads may read it"
)]
fn set_environment(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        // SAFETY: this process has one thread until aya-build starts its own, later.
        unsafe { env::set_var(name, value) };
    }
}
