//! The machine's root file system: an initramfs (cpio `newc` archive) of programs and their shared libraries.
//!
//! Written here because few machines have the program `cpio`. Contains regular files and their parent folders, all
//! owned by root and without timestamps, so that the same files make the same archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// The first bytes of each entry of a cpio archive in the format `newc`.
const MAGIC: &str = "070701";
/// The name of the entry that ends the archive.
const TRAILER: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_755;
/// The mode of each file in the archive: executable, since most files are programs or libraries.
const FILE: u32 = 0o100_755;

/// A cpio archive (initramfs) that is being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    /// The number of entries, which is also the last entry's inode.
    entries: u32,
    /// The paths of all entries, which must be unique.
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// Adds a program at `path`, and its shared libraries at their own paths.
    pub(crate) fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        let contents = fs::read(program).with_context(|| cannot_read(program))?;
        self.file(Path::new(path), &contents)?;
        for library in libraries(program)? {
            let contents = fs::read(&library).with_context(|| cannot_read(&library))?;
            self.file(&library, &contents)?;
        }
        Ok(())
    }

    /// Adds a file at an absolute path, with its parent folders. If the path exists already, the first file remains.
    pub(crate) fn file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        let path = path
            .strip_prefix("/")
            .context("the path of a file for the initramfs archive is not absolute")?;
        let mut parents: Vec<_> = path.ancestors().skip(1).collect();
        parents.pop(); // the root exists
        for folder in parents.into_iter().rev() {
            self.entry(folder, FOLDER, &[])?;
        }
        self.entry(path, FILE, contents)
    }

    /// Ends the archive and returns its bytes.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new(TRAILER), 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        let name = path.as_os_str().as_encoded_bytes();
        let size = u32::try_from(contents.len()).with_context(|| {
            format!(
                "{} is too large for the initramfs archive, whose files are smaller than 4 GiB",
                path.display()
            )
        })?;
        let name_size = u32::try_from(name.len() + 1)
            .context("a path in the initramfs archive is longer than 4 GiB")?;
        self.entries += 1;
        let header = [
            self.entries, // inode
            mode,
            0, // user
            0, // group
            1, // links
            0, // time
            size,
            0, // device: major
            0, // minor
            0, // device that the entry is: major
            0, // minor
            name_size,
            0, // no checksum in this format
        ];
        self.bytes.extend(MAGIC.as_bytes());
        for field in header {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name);
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
        Ok(())
    }

    /// Pads the archive to a multiple of 4 bytes, at which headers and contents start.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// Returns the paths of a program's shared libraries and of its dynamic linker on this machine.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = cargo::stdout(cargo::command("ldd").arg(program))?;
    let libraries = parse_ldd(&output);
    ensure!(
        !output.contains("not found"),
        "shared libraries of {} are missing:\n{output}",
        program.display()
    );
    Ok(libraries)
}

/// Parses the output of `ldd`: `name => path (address)`, or `path (address)` for the dynamic linker.
fn parse_ldd(output: &str) -> Vec<PathBuf> {
    output
        .lines()
        .filter_map(|line| {
            let line = line.split_once(" => ").map_or(line, |(_, path)| path);
            let (path, _) = line.trim().split_once(" (")?;
            // The vDSO (`linux-vdso.so.1`) is not a file.
            path.starts_with('/').then(|| path.into())
        })
        .collect()
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read {}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns name, mode and contents of each entry; written from the format's specification, not from the writer.
    fn entries(archive: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut entries = Vec::new();
        let mut at = 0;
        while at < archive.len() {
            let header = str::from_utf8(&archive[at..at + 110]).expect("a header is text");
            assert_eq!(&header[..6], "070701");
            let field = |number: usize| {
                let start = 6 + 8 * number;
                u32::from_str_radix(&header[start..start + 8], 16).expect("hexadecimal")
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = &archive[at + 110..at + 110 + name_size];
            let (end, name) = name.split_last().expect("a terminator");
            assert_eq!(*end, 0);
            let contents = (at + 110 + name_size).next_multiple_of(4);
            entries.push((
                String::from_utf8(name.to_vec()).expect("our own names"),
                field(1),
                archive[contents..contents + size].to_vec(),
            ));
            at = (contents + size).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn archives_contain_each_path_once_after_its_parents() {
        let mut archive = Archive::default();
        for (path, contents) in [
            ("/init", "12345"),
            ("/lib/x/a.so", "a"),
            ("/lib/b.so", ""),
            ("/lib/x/a.so", "again"),
        ] {
            archive.file(path.as_ref(), contents.as_bytes()).unwrap();
        }
        assert!(archive.file("relative".as_ref(), b"").is_err());
        let expected = [
            ("init", FILE, "12345"),
            ("lib", FOLDER, ""),
            ("lib/x", FOLDER, ""),
            ("lib/x/a.so", FILE, "a"),
            ("lib/b.so", FILE, ""),
            (TRAILER, 0, ""),
        ];
        let archive = archive.finish().unwrap();
        assert_eq!(archive.len() % 4, 0);
        let found = entries(&archive);
        let found: Vec<_> = found
            .iter()
            .map(|(name, mode, contents)| (name.as_str(), *mode, str::from_utf8(contents).unwrap()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn entries_have_the_cpio_newc_layout() {
        let mut archive = Archive::default();
        archive.file("/init".as_ref(), b"hi").unwrap();
        let expected = "070701\
             00000001000081ed000000000000000000000001000000000000000200000000000000000000000000000000\
             0000000500000000init\0\0hi\0\0";
        let archive = archive.finish().unwrap();
        assert_eq!(
            str::from_utf8(&archive[..expected.len()]).unwrap(),
            expected
        );
    }

    #[test]
    fn ldd_output_is_parsed() {
        let table: [(&str, &[&str]); 3] = [
            (
                "\tlinux-vdso.so.1 (0x00007f95)\n\
                 \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f96)\n\
                 \t/lib64/ld-linux-x86-64.so.2 (0x00007f97)\n",
                &[
                    "/lib/x86_64-linux-gnu/libc.so.6",
                    "/lib64/ld-linux-x86-64.so.2",
                ],
            ),
            ("\tlibc.so.6 => not found\n", &[]),
            ("\tstatically linked\n", &[]),
        ];
        for (output, expected) in table {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(parse_ldd(output), expected, "{output}");
        }
    }
}
