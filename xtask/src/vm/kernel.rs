//! The kernel to boot: Debian 12's cloud kernel, which is small and has BTF.
//!
//! Downloaded once with the host's apt and unpacked in `target/vm`. Installs nothing, needs no root, and knows no
//! server: apt's configuration does.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use super::Missing;
use crate::cargo;

/// The start of the name of a kernel package of Debian 12; the kernel's ABI number and [`SUFFIX`] follow.
const PREFIX: &str = "linux-image-6.1.0-";
const SUFFIX: &str = "-cloud-amd64-unsigned";

/// Returns the path of the kernel image below `folder`, after downloading the kernel if necessary.
pub(crate) fn ensure(folder: &Path) -> Result<PathBuf> {
    match unpacked(folder)? {
        Some(image) => Ok(image),
        None => fetch(folder),
    }
}

/// Returns the image of the newest kernel that is unpacked in `folder`, or `None` if none is.
fn unpacked(folder: &Path) -> Result<Option<PathBuf>> {
    let names = fs::read_dir(folder)
        .with_context(|| format!("cannot list {}", folder.display()))?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect::<Vec<_>>()
        .join("\n");
    newest(&names)
        .map(|package| image(&folder.join(package)))
        .transpose()
}

fn fetch(folder: &Path) -> Result<PathBuf> {
    for (program, package) in [
        ("apt-get", "apt"),
        ("apt-cache", "apt"),
        ("dpkg-deb", "dpkg"),
    ] {
        if !cargo::is_on_path(program) {
            bail!(Missing(format!(
                "cannot download Debian's kernel, because `{program}` (Debian's package {package}) is not \
                 installed; install it, or unpack a package {PREFIX}NUMBER{SUFFIX} of Debian 12 in the \
                 folder {}/{PREFIX}NUMBER{SUFFIX}",
                folder.display()
            )));
        }
    }
    // Renamed to the package's name once it is complete.
    let download = folder.join("download");
    if download.exists() {
        fs::remove_dir_all(&download).with_context(|| {
            format!(
                "cannot remove the incomplete download {}",
                download.display()
            )
        })?;
    }
    fs::create_dir_all(&download)
        .with_context(|| format!("cannot create {}", download.display()))?;

    let package = match download_newest(&download)? {
        Some(package) => package,
        // The package lists may be missing, or name a version that the server has removed.
        None if geteuid().is_root() => {
            eprintln!(
                "xtask: apt cannot download the kernel's package: updating the package lists"
            );
            cargo::status(cargo::command("apt-get").args(["--quiet", "--quiet", "update"]))?;
            download_newest(&download)?.ok_or_else(unobtainable)?
        }
        None => bail!(unobtainable()),
    };
    let archive = fs::read_dir(&download)
        .with_context(|| format!("cannot list {}", download.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| {
            format!(
                "apt-get reported success, but downloaded no package to {}",
                download.display()
            )
        })?;
    let tree = download.join("tree");
    let mut unpack = cargo::command("dpkg-deb");
    if !cargo::status(unpack.arg("-x").arg(archive).arg(&tree))?.success() {
        bail!("dpkg-deb could not unpack {package}; see its message above");
    }
    let place = folder.join(&package);
    fs::rename(&tree, &place)
        .with_context(|| format!("cannot move the kernel to {}", place.display()))?;
    fs::remove_dir_all(&download)
        .with_context(|| format!("cannot remove the download {}", download.display()))?;
    image(&place)
}

/// Downloads the newest package that apt knows, and returns its name; `None` if there is none or the download fails.
fn download_newest(folder: &Path) -> Result<Option<String>> {
    let known = cargo::stdout(cargo::command("apt-cache").args(["pkgnames", PREFIX]))?;
    let Some(package) = newest(&known) else {
        return Ok(None);
    };
    eprintln!(
        "xtask: downloading the kernel {package} to {} (once; about 30 MB)",
        folder.parent().unwrap_or(folder).display()
    );
    let mut download = cargo::command("apt-get");
    download
        .args(["--quiet", "--quiet", "download", package])
        .current_dir(folder);
    let done = cargo::status(&mut download)?.success();
    Ok(done.then(|| package.to_owned()))
}

fn unobtainable() -> Missing {
    Missing(format!(
        "apt cannot download {PREFIX}*{SUFFIX} (see its message above): run `apt-get update` as \
         root; the package sources must include Debian 12"
    ))
}

/// Returns the package with the highest ABI number among `names`, one per line; `None` if no line names a kernel
/// package.
fn newest(names: &str) -> Option<&str> {
    let number = |name: &str| -> Option<u32> {
        name.strip_prefix(PREFIX)?
            .strip_suffix(SUFFIX)?
            .parse()
            .ok()
    };
    names
        .lines()
        .filter_map(|name| Some((number(name)?, name)))
        .max()
        .map(|(_, name)| name)
}

/// Returns the path of the image in an unpacked package.
fn image(package: &Path) -> Result<PathBuf> {
    let boot = package.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .with_context(|| {
            format!(
                "{} has no kernel image (boot/vmlinuz-*): remove the folder, so that the next run downloads the kernel again",
                package.display()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newest_package_has_the_highest_abi_number() {
        let table = [
            ("", None),
            ("linux-image-6.1.0-9-cloud-amd64\n", None),
            ("linux-image-6.1.0-x-cloud-amd64-unsigned\n", None),
            ("linux-image-6.12.1-1-cloud-amd64-unsigned\n", None),
            (
                "linux-image-6.1.0-9-cloud-amd64-unsigned\n\
                 linux-image-6.1.0-56-cloud-amd64-dbg\n\
                 linux-image-6.1.0-10-cloud-amd64-unsigned\n\
                 linux-image-6.1.0-56-amd64-unsigned\n\
                 linux-image-6.1.0-56-rt-amd64-unsigned\n",
                Some("linux-image-6.1.0-10-cloud-amd64-unsigned"),
            ),
        ];
        for (names, expected) in table {
            assert_eq!(newest(names), expected, "{names}");
        }
    }
}
