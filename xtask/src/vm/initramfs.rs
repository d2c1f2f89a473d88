//! The whole file system of the machine that is booted: an archive in the format that the kernel
//! unpacks into memory at boot (cpio, `newc`), with programs and the libraries that they ask for.
//!
//! Written here because few machines have the program `cpio`. It holds regular files and the folders
//! above them, all root's, and no times, so that the same files make the same archive.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// Starts each entry.
const MAGIC: &str = "070701";
/// The name of the entry that ends the archive.
const TRAILER: &str = "TRAILER!!!";
const FOLDER: u32 = 0o040_755;
/// Everything may be started: most of it has to, and nobody else is there.
const FILE: u32 = 0o100_755;

/// Takes files, gives the archive.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    /// The number of entries, which is the last one's inode.
    entries: u32,
    /// What must not be there twice.
    paths: BTreeSet<PathBuf>,
}

impl Archive {
    /// A program at a path, with its libraries at theirs.
    pub(crate) fn program(&mut self, path: &str, program: &Path) -> Result<()> {
        let contents = fs::read(program).with_context(|| cannot_read(program))?;
        self.file(Path::new(path), &contents)?;
        for library in libraries(program)? {
            let contents = fs::read(&library).with_context(|| cannot_read(&library))?;
            self.file(&library, &contents)?;
        }
        Ok(())
    }

    /// A file at an absolute path, and the folders above it. The first one at a path stays.
    pub(crate) fn file(&mut self, path: &Path, contents: &[u8]) -> Result<()> {
        let path = path.strip_prefix("/").context("a path from the root")?;
        let mut above: Vec<_> = path.ancestors().skip(1).collect();
        above.pop(); // the root itself, which is there
        for folder in above.into_iter().rev() {
            self.entry(folder, FOLDER, &[])?;
        }
        self.entry(path, FILE, contents)
    }

    /// The archive, at its end.
    pub(crate) fn finish(mut self) -> Result<Vec<u8>> {
        self.entry(Path::new(TRAILER), 0, &[])?;
        Ok(self.bytes)
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) -> Result<()> {
        if !self.paths.insert(path.to_owned()) {
            return Ok(());
        }
        let name = path.as_os_str().as_encoded_bytes();
        let size = u32::try_from(contents.len())
            .with_context(|| format!("{} is too large for the archive", path.display()))?;
        let name_size = u32::try_from(name.len() + 1).context("a path of more than 4 GiB")?;
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

    /// Headers and contents start at multiples of 4.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The shared libraries of a program and what loads them, where the program would find them here.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = cargo::stdout(cargo::command("ldd").arg(program))?;
    let found = read_libraries(&said);
    ensure!(
        !said.contains("not found"),
        "{} misses libraries:\n{said}",
        program.display()
    );
    Ok(found)
}

/// The paths in what `ldd` prints: `name => path (address)`, or `path (address)` of what loads them.
fn read_libraries(said: &str) -> Vec<PathBuf> {
    said.lines()
        .filter_map(|line| {
            let line = line.split_once(" => ").map_or(line, |(_, path)| path);
            let (path, _) = line.trim().split_once(" (")?;
            // The kernel's own page (`linux-vdso.so.1`) is no file.
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

    /// Name, mode and contents of each entry, by the format's description rather than by the writer.
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
            let (end, name) = name.split_last().expect("at least its end");
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
    fn an_archive_holds_files_below_their_folders_once_and_ends() {
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
    fn an_entry_is_as_the_format_has_it() {
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
    fn libraries_are_the_files_that_ldd_names() {
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
        for (said, expected) in table {
            let expected: Vec<_> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(read_libraries(said), expected, "{said}");
        }
    }
}
