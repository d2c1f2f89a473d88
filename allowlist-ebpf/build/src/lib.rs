//! Builds a package of eBPF programs in a separate cargo invocation: for another target, with another profile, and with
//! `core` built from source. Used by the build script of the crate that embeds the object.
//!
//! Installs nothing: if a tool is missing, the error names the command that installs it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya_build::{Package, Toolchain};

/// Builds `package` in the workspace's `folder`, and writes the object to the build script's `OUT_DIR`, under the
/// package's name.
///
/// Must be the build script's only action: it modifies environment variables, which requires a single thread.
pub fn main(package: &str, folder: &str) {
    if let Err(error) = build(package, folder) {
        println!("cargo::error={error:#}");
    }
}

fn build(package: &str, folder: &str) -> Result<()> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .context(
            "the crate of the eBPF object is not in a cargo workspace; build it in the repository",
        )?;
    let tools = tools(workspace)
        .context("bpf-linker is missing: run `cargo xtask build` once to install it")?;
    // aya-build watches only the eBPF crate.
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
        // Allows `-Z build-std=core`, which the target needs, with the pinned stable compiler.
        ("RUSTC_BOOTSTRAP", "1"),
        // aya-build repeats cargo's output as warnings; errors appear in quiet mode too.
        ("CARGO_TERM_QUIET", "true"),
        // With the workspace's thin LTO, core's memcpy remains a global function, which the verifier checks without
        // its callers' bounds. A profile cannot set LTO for one package.
        ("CARGO_PROFILE_RELEASE_LTO", "fat"),
        // A caller's CARGO_INCREMENTAL=1 splits the programs into more codegen units, whose stack accesses the
        // verifier of Linux 6.18 refuses as misaligned.
        ("CARGO_INCREMENTAL", "0"),
    ]);

    let toolchain = include_str!("../../../rust-toolchain.toml");
    let channel = toolchain
        .lines()
        .find_map(|line| line.strip_prefix("channel = "))
        .context(
            "rust-toolchain.toml has no `channel`, the version of the compiler; restore the file",
        )?;
    let ebpf = workspace.join(folder);
    let package = Package {
        name: package,
        root_dir: ebpf.to_str().with_context(|| {
            format!(
                "the path {} is not UTF-8; move the workspace to a folder whose path is",
                ebpf.display()
            )
        })?,
        ..Package::default()
    };
    let channel = channel.trim_matches('"');
    aya_build::build_ebpf([package], Toolchain::Custom(channel)).context(
        "cannot build the eBPF object (see the warnings above; if rust-src is missing, run `cargo \
         xtask build` once to install it)",
    )
}

/// Returns the folder of bpf-linker: in this build's target folder, or else in the workspace's; `None` if it is in
/// neither.
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
    env::join_paths(std::iter::once(first).chain(env::split_paths(&path)))
        .context("cannot add the folder of bpf-linker to PATH; move the workspace to a path without colons")?
        .into_string()
        .map_err(|path| {
            anyhow::anyhow!(
                "the environment variable PATH is not UTF-8: {}; remove the folder that is not",
                path.display()
            )
        })
}

/// Sets environment variables of this process, which aya-build passes on to cargo; it has no parameter for them.
#[expect(
    unsafe_code,
    reason = "setting a variable is unsafe where threads may read it"
)]
fn set_environment(variables: &[(&str, &str)]) {
    for (name, value) in variables {
        // SAFETY: this process has one thread; aya-build starts its threads later.
        unsafe { env::set_var(name, value) };
    }
}
