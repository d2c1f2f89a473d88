//! The kernel to boot: Debian 12's, for machines in a cloud, since it is small and describes its types.
//!
//! Fetched by the machine's own apt into `target/vm` and unpacked there, once: nothing is installed,
//! root is not needed, and no server is known here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use super::Missing;
use crate::cargo;

/// A package's name is this, the kernel's number within its version, and the other.
const PREFIX: &str = "linux-image-6.1.0-";
const SUFFIX: &str = "-cloud-amd64-unsigned";

/// The kernel's image below `folder`, fetched if there is none yet.
pub(crate) fn ensure(folder: &Path) -> Result<PathBuf> {
    match unpacked(folder)? {
        Some(image) => Ok(image),
        None => fetch(folder),
    }
}

/// The newest image that is there already.
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
                "there is no `{program}` to get Debian's kernel with: on Debian and its kin, run \
                 `apt-get install {package}`; elsewhere, unpack a package {PREFIX}*{SUFFIX} to the \
                 folder of its name in {}",
                folder.display()
            )));
        }
    }
    // In a folder of another name until it is whole.
    let download = folder.join("download");
    if download.exists() {
        fs::remove_dir_all(&download).context("cannot remove a download that was not finished")?;
    }
    fs::create_dir_all(&download)
        .with_context(|| format!("cannot create {}", download.display()))?;

    let package = match download_newest(&download)? {
        Some(package) => package,
        // The lists may be missing, or so old that what they name is gone.
        None if geteuid().is_root() => {
            eprintln!("xtask: apt cannot get the kernel's package: updating its lists");
            cargo::status(cargo::command("apt-get").args(["--quiet", "--quiet", "update"]))?;
            download_newest(&download)?.ok_or_else(unobtainable)?
        }
        None => bail!(unobtainable()),
    };
    let archive = fs::read_dir(&download)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded nothing, and did not say so")?;
    let tree = download.join("tree");
    let mut unpack = cargo::command("dpkg-deb");
    if !cargo::status(unpack.arg("-x").arg(archive).arg(&tree))?.success() {
        bail!("dpkg-deb could not unpack {package}; its message is above");
    }
    let place = folder.join(&package);
    fs::rename(&tree, &place)
        .with_context(|| format!("cannot move the kernel to {}", place.display()))?;
    fs::remove_dir_all(&download).context("cannot remove the download")?;
    image(&place)
}

/// Downloads the newest package that apt knows; none if that does not work.
fn download_newest(folder: &Path) -> Result<Option<String>> {
    let known = cargo::stdout(cargo::command("apt-cache").args(["pkgnames", PREFIX]))?;
    let Some(package) = newest(&known) else {
        return Ok(None);
    };
    eprintln!(
        "xtask: getting {package}, the kernel to boot, into {} (once; about 30 MB)",
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
        "apt cannot get any {PREFIX}*{SUFFIX} (what it says is above): run `apt-get update` as root; \
         the sources of packages must be Debian 12's"
    ))
}

/// The package with the highest number among lines that each hold a name.
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

/// The image in an unpacked package.
fn image(package: &Path) -> Result<PathBuf> {
    let boot = package.join("boot");
    fs::read_dir(&boot)
        .with_context(|| format!("cannot list {}", boot.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        })
        .with_context(|| format!("no kernel in {}: remove the folder", package.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_package_is_the_one_with_the_highest_number() {
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
