//! System calls that aya does not offer: arrays of maps and their entries, pins opened read-only, and the maps of a
//! program.

use std::ffi::{CString, c_long};
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The use of a descriptor of a pinned object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// To read maps, which is all that a BPF file system that is mounted read-only allows.
    ReadOnly,
    /// To write to maps too, and for links and programs.
    ReadWrite,
}

/// The attributes of `BPF_OBJ_PIN` and `BPF_OBJ_GET`, from the kernel's `union bpf_attr`.
#[repr(C)]
struct PinnedObject {
    path: u64,
    descriptor: u32,
    flags: u32,
}

/// The attributes of `BPF_OBJ_GET_INFO_BY_FD`, from the kernel's `union bpf_attr`.
#[repr(C)]
struct InfoByDescriptor {
    descriptor: u32,
    length: u32,
    info: u64,
}

/// The start of the kernel's `struct bpf_prog_info`. The kernel fills in as much as there is room for.
#[derive(Default)]
#[repr(C)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    /// Its tag, the lengths and places of its instructions, and when it was loaded by whom.
    others: [u32; 11],
    maps: u32,
    map_ids: u64,
}

/// The attributes of `BPF_PROG_QUERY`, from the kernel's `union bpf_attr`.
#[derive(Default)]
#[repr(C)]
struct ProgramQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

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

/// The attributes of `BPF_MAP_LOOKUP_ELEM`, `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A map to create.
#[derive(Clone, Copy)]
pub(super) enum NewMap<'a> {
    /// An array of values of so many words, which can be mapped into memory.
    Values {
        /// 8 bytes each.
        words: usize,
        /// How many values.
        entries: u32,
    },
    /// An array of words that can be mapped into memory; arrays of different lengths can be in the same slot.
    Words {
        /// 8 bytes each.
        words: usize,
    },
    /// An array of maps.
    ArrayOf {
        /// A map of the same type and flags.
        inner: BorrowedFd<'a>,
        /// How many.
        entries: u32,
    },
}

pub(super) fn bpf_map_create(new: NewMap<'_>) -> io::Result<OwnedFd> {
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
    // SAFETY: the attributes are those of this command, and hold no pointer; the result is a new descriptor without
    // another owner.
    unsafe {
        let descriptor = bpf(BPF_MAP_CREATE, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::E2BIG)
}

/// Stores a map in an array of maps.
pub(super) fn set_inner_map(
    array: BorrowedFd<'_>,
    place: u32,
    map: BorrowedFd<'_>,
) -> io::Result<()> {
    const BPF_MAP_UPDATE_ELEM: c_long = 2;
    let descriptor = map.as_raw_fd();
    element(
        BPF_MAP_UPDATE_ELEM,
        array,
        &place,
        (&raw const descriptor) as u64,
    )
}

/// Returns the id of the map at an index of an array of maps, if any.
pub(super) fn inner_map_id(array: BorrowedFd<'_>, place: u32) -> io::Result<Option<u32>> {
    const BPF_MAP_LOOKUP_ELEM: c_long = 1;
    let mut id = 0_u32;
    match element(BPF_MAP_LOOKUP_ELEM, array, &place, (&raw mut id) as u64) {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The attributes of `BPF_MAP_LOOKUP_BATCH`, from the kernel's `union bpf_attr`.
#[repr(C)]
struct Batch {
    from: u64,
    reached: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Reads one value of an array whose values are so many words.
pub(super) fn read_value(array: BorrowedFd<'_>, place: u32, words: usize) -> io::Result<Vec<u64>> {
    const BPF_MAP_LOOKUP_ELEM: c_long = 1;
    let mut value = vec![0_u64; words];
    element(
        BPF_MAP_LOOKUP_ELEM,
        array,
        &place,
        value.as_mut_ptr() as u64,
    )?;
    Ok(value)
}

/// Reads an array of so many words.
pub(super) fn read_words(array: BorrowedFd<'_>, words: usize) -> io::Result<Vec<u64>> {
    const BPF_MAP_LOOKUP_BATCH: c_long = 24;
    let mut values = vec![0_u64; words];
    let mut keys = vec![0_u32; words];
    let mut reached = 0_u32;
    let mut batch = Batch {
        from: 0,
        reached: (&raw mut reached) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: u32::try_from(words).map_err(|_| too_large())?,
        map: array.as_raw_fd().cast_unsigned(),
        element_flags: 0,
        flags: 0,
    };
    #[expect(
        unsafe_code,
        reason = "a system call that writes to `keys` and `values`"
    )]
    // SAFETY: the attributes are those of this command; it writes at most `count` keys of 4 bytes and values of 8, for
    // which there is room, and 4 bytes of how far it came.
    let done = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut batch) };
    match done {
        // That there are no more.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(values),
    }
}

/// Removes the map at an index of an array of maps, if any.
pub(super) fn clear_inner_map(array: BorrowedFd<'_>, place: u32) -> io::Result<()> {
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
    // SAFETY: the attributes are the ones that these commands take; the kernel reads 4 bytes of the key and, if the command has a
    // value, reads or writes as many of that as the map's values have, which live until it has returned.
    unsafe {
        bpf(command, &mut attributes)?;
    }
    Ok(())
}

/// Opens a pinned object.
///
/// # Errors
/// As the kernel reports them: `ENOENT` where nothing is pinned, `EROFS` for writing to a file system that is
/// read-only, `EMFILE` where this process has no descriptor left.
pub(super) fn open_pinned(path: &Path, access: Access) -> io::Result<OwnedFd> {
    const BPF_OBJ_GET: c_long = 7;
    const BPF_F_RDONLY: u32 = 1 << 3;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinnedObject {
        path: path.as_ptr() as u64,
        descriptor: 0,
        flags: match access {
            Access::ReadOnly => BPF_F_RDONLY,
            Access::ReadWrite => 0,
        },
    };
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the attributes are those of this command, and `path` lives until it has returned;
    // the result is a new descriptor that has no other owner.
    unsafe {
        let descriptor = bpf(BPF_OBJ_GET, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Pins an open object at an unused path.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    const BPF_OBJ_PIN: c_long = 6;
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinnedObject {
        path: path.as_ptr() as u64,
        descriptor: object.as_raw_fd().cast_unsigned(),
        flags: 0,
    };
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes are those of this command, and `path` lives until it has returned.
    unsafe {
        bpf(BPF_OBJ_PIN, &mut attributes)?;
    }
    Ok(())
}

/// Reads the kernel's information about an open object into `info`.
pub(super) fn read_info<Info: Default>(object: BorrowedFd<'_>) -> io::Result<Info> {
    let mut info = Info::default();
    read_info_into(object, &mut info)?;
    Ok(info)
}

fn read_info_into<Info>(object: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    const BPF_OBJ_GET_INFO_BY_FD: c_long = 15;
    let mut attributes = InfoByDescriptor {
        descriptor: object.as_raw_fd().cast_unsigned(),
        length: size_of::<Info>() as u32,
        info: (&raw mut *info) as u64,
    };
    #[expect(unsafe_code, reason = "a system call that writes to `info`")]
    // SAFETY: the attributes are those of this command; it writes at most `length` bytes to `info`, which callers in
    // this module's siblings make of integers, so that any bytes are valid.
    unsafe {
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    }
    Ok(())
}

/// The id of a loaded program, and the ids of the maps that it uses.
pub(super) fn program_maps(program: BorrowedFd<'_>) -> io::Result<(u32, Vec<u32>)> {
    const ROOM: u32 = 64;
    let mut ids = vec![0_u32; ROOM as usize];
    let mut info = ProgramInfo {
        maps: ROOM,
        map_ids: ids.as_mut_ptr() as u64,
        ..ProgramInfo::default()
    };
    read_info_into(program, &mut info)?;
    ids.truncate(info.maps as usize);
    Ok((info.id, ids))
}

/// The ids of the programs on an interface's tcx egress, in the order in which they run.
///
/// # Errors
/// `EINVAL` on a kernel without tcx, which came with Linux 6.6.
pub(super) fn tcx_egress_chain(interface: u32) -> io::Result<Vec<u32>> {
    const BPF_PROG_QUERY: c_long = 16;
    const BPF_TCX_EGRESS: u32 = 47;
    const ROOM: u32 = 64; // the kernel has room for as many
    let mut ids = vec![0_u32; ROOM as usize];
    let mut attributes = ProgramQuery {
        target: interface,
        attach_type: BPF_TCX_EGRESS,
        programs: ids.as_mut_ptr() as u64,
        count: ROOM,
        ..ProgramQuery::default()
    };
    #[expect(unsafe_code, reason = "a system call that writes to `ids`")]
    // SAFETY: the attributes are those of this command; it writes at most `count` ids, for which there is room.
    unsafe {
        bpf(BPF_PROG_QUERY, &mut attributes)?;
    }
    ids.truncate(attributes.count as usize);
    Ok(ids)
}

/// # Safety
/// `Attributes` must be the type of `command`, and every pointer in it valid for the command.
#[expect(unsafe_code, reason = "a system call")]
pub(super) unsafe fn bpf<Attributes>(
    command: c_long,
    attributes: &mut Attributes,
) -> io::Result<i32> {
    // SAFETY: the caller keeps the contract above; the kernel reads `size_of::<Attributes>()` bytes of them.
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
