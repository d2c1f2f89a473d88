//! System calls that aya does not offer: arrays of maps of one's own, and an empty place in one.

use std::ffi::c_long;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// The attributes of `BPF_MAP_CREATE`, from the kernel's `union bpf_attr`.
#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
}

/// The attributes of `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`, likewise.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map to be made.
#[derive(Clone, Copy)]
pub(super) enum NewMap<'a> {
    /// An array of values of so many words, which can be mapped into memory.
    Values {
        /// 8 bytes each.
        words: usize,
        /// How many values.
        entries: u32,
    },
    /// An array of words, likewise; in the same slot there may be one of another length.
    Words {
        /// 8 bytes each.
        words: usize,
    },
    /// An array of maps that are like this one.
    ArrayOf {
        /// What they are like.
        inner: BorrowedFd<'a>,
        /// How many.
        entries: u32,
    },
}

pub(super) fn make_map(new: NewMap<'_>) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: c_long = 0;
    const ARRAY: u32 = 2;
    const ARRAY_OF_MAPS: u32 = 12;
    const MMAPABLE: u32 = 1 << 10;
    const INNER_MAP: u32 = 1 << 12;
    const WORD: u32 = size_of::<u64>() as u32;
    let number = |words: usize| u32::try_from(words).map_err(|_| too_large());
    let (kind, value_size, max_entries, flags, inner) = match new {
        NewMap::Values { words, entries } => {
            let bytes = number(words)?.checked_mul(WORD).ok_or_else(too_large)?;
            (ARRAY, bytes, entries, MMAPABLE, 0)
        }
        NewMap::Words { words } => (ARRAY, WORD, number(words)?, MMAPABLE | INNER_MAP, 0),
        NewMap::ArrayOf { inner, entries } => {
            let inner = inner.as_raw_fd().cast_unsigned();
            (ARRAY_OF_MAPS, 4, entries, 0, inner)
        }
    };
    let mut attributes = MapCreate {
        kind,
        key_size: 4,
        value_size,
        max_entries,
        flags,
        inner,
    };
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the attributes are those of this command, and hold no pointer; what it returns is a new
    // descriptor that nobody else has.
    unsafe {
        let descriptor = bpf(BPF_MAP_CREATE, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::E2BIG)
}

/// Puts a map into an array of maps.
pub(super) fn store_map(array: BorrowedFd<'_>, place: u32, map: BorrowedFd<'_>) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: c_long = 2;
    let descriptor = map.as_raw_fd();
    element(
        BPF_MAP_UPDATE_ELEM,
        array,
        &place,
        (&raw const descriptor) as u64,
    )
}

/// The id of the map that is in a place of an array of maps, if one is.
pub(super) fn place_of(array: BorrowedFd<'_>, place: u32) -> io::Result<Option<u32>> {
    const BPF_MAP_LOOKUP_ELEM: c_long = 1;
    let mut id = 0_u32;
    match element(BPF_MAP_LOOKUP_ELEM, array, &place, (&raw mut id) as u64) {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Empties a place of an array of maps. That it is empty already is fine.
pub(super) fn empty_place(array: BorrowedFd<'_>, place: u32) -> io::Result<()> {
    const BPF_MAP_DELETE_ELEM: c_long = 3;
    match element(BPF_MAP_DELETE_ELEM, array, &place, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn element(command: c_long, array: BorrowedFd<'_>, place: &u32, value: u64) -> io::Result<()> {
    let mut attributes = Element {
        map: array.as_raw_fd().cast_unsigned(),
        padding: 0,
        key: std::ptr::from_ref(place) as u64,
        value,
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes are those of these commands; the kernel reads 4 bytes of the key and, if the
    // command has a value, reads or writes 4 of that, which live until it has returned.
    unsafe {
        bpf(command, &mut attributes)?;
    }
    Ok(())
}

/// # Safety
/// `Attributes` must be what `command` takes, and every pointer in it valid for what it does.
#[expect(unsafe_code, reason = "a system call")]
pub(super) unsafe fn bpf<Attributes>(
    command: c_long,
    attributes: &mut Attributes,
) -> io::Result<i32> {
    // SAFETY: the caller's promise; the kernel reads `size_of::<Attributes>()` bytes of them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<Attributes>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
