//! System calls that aya does not offer: arrays of maps and their entries, read-only access to pins, the maps of a
//! program, detaching a link, and opening a cgroup by its id. The structures and constants are those of aya's bindings.

use std::ffi::CString;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use aya_obj::generated::bpf_attach_type::BPF_TCX_EGRESS;
use aya_obj::generated::bpf_map_type::{BPF_MAP_TYPE_ARRAY, BPF_MAP_TYPE_ARRAY_OF_MAPS};
use aya_obj::generated::{
    BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_RDONLY, bpf_attr, bpf_cmd, bpf_link_info, bpf_prog_info,
};

use super::btf::MapTypes;

/// The access with which a pinned object is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading maps. Works on a BPF file system that is mounted read-only, unlike [`Self::ReadWrite`].
    ReadOnly,
    /// Reading and writing maps. Links and programs can only be opened with this access.
    ReadWrite,
}

/// The type and size of a map to create.
#[derive(Clone, Copy)]
pub(super) enum NewMap<'a> {
    /// An array of `entries` values, which can be mapped into memory.
    Values {
        /// The size of a value, in words of 8 bytes.
        words: usize,
        /// The number of values.
        entries: u32,
        /// The types by which `bpftool` prints keys and values.
        types: Option<&'a MapTypes>,
    },
    /// An array of words, which can be mapped into memory. Arrays of different lengths can be stored in the same array
    /// of maps.
    Words {
        /// The number of words of 8 bytes.
        words: usize,
    },
    /// An array of maps.
    ArrayOf {
        /// A map with the type and flags that all inner maps must have.
        inner: BorrowedFd<'a>,
        /// The maximum number of inner maps.
        entries: u32,
    },
}

/// Creates a map. If the kernel refuses the types, the map has none: only `bpftool` uses them.
pub(super) fn bpf_map_create(new: NewMap<'_>) -> io::Result<OwnedFd> {
    const WORD: u32 = size_of::<u64>() as u32;
    let number = |words: usize| u32::try_from(words).map_err(|_| too_large());
    let (kind, value_size, max_entries, flags, inner) = match new {
        NewMap::Values { words, entries, .. } => {
            let bytes = number(words)?.checked_mul(WORD).ok_or_else(too_large)?;
            (BPF_MAP_TYPE_ARRAY, bytes, entries, BPF_F_MMAPABLE, 0)
        }
        NewMap::Words { words } => {
            let flags = BPF_F_MMAPABLE | BPF_F_INNER_MAP;
            (BPF_MAP_TYPE_ARRAY, WORD, number(words)?, flags, 0)
        }
        NewMap::ArrayOf { inner, entries } => {
            let inner = inner.as_raw_fd().cast_unsigned();
            (BPF_MAP_TYPE_ARRAY_OF_MAPS, 4, entries, 0, inner)
        }
    };
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_1.map_type = kind as u32;
    attributes.__bindgen_anon_1.key_size = 4;
    attributes.__bindgen_anon_1.value_size = value_size;
    attributes.__bindgen_anon_1.max_entries = max_entries;
    attributes.__bindgen_anon_1.map_flags = flags;
    attributes.__bindgen_anon_1.inner_map_fd = inner;
    let btf = match new {
        NewMap::Values {
            types: Some(types), ..
        } => load_btf(&types.bytes).ok().map(|btf| (btf, types)),
        _ => None,
    };
    if let Some((btf, types)) = &btf {
        attributes.__bindgen_anon_1.btf_fd = btf.as_raw_fd().cast_unsigned();
        attributes.__bindgen_anon_1.btf_key_type_id = types.key;
        attributes.__bindgen_anon_1.btf_value_type_id = types.value;
    }
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the attributes hold no pointer; the result is a new descriptor without another owner.
    unsafe {
        let descriptor = bpf(bpf_cmd::BPF_MAP_CREATE, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Loads BTF, and returns its descriptor. A map that is created with the BTF keeps it.
fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_7.btf = bytes.as_ptr() as u64;
    attributes.__bindgen_anon_7.btf_size = u32::try_from(bytes.len()).map_err(|_| too_large())?;
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the kernel reads `btf_size` bytes, which live until it has returned; the result is a new descriptor
    // without another owner.
    unsafe {
        let descriptor = bpf(bpf_cmd::BPF_BTF_LOAD, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

fn too_large() -> io::Error {
    io::Error::from_raw_os_error(libc::E2BIG)
}

/// Stores a map at an index of an array of maps. Returns after an RCU grace period.
pub(super) fn set_inner_map(
    array: BorrowedFd<'_>,
    place: u32,
    map: BorrowedFd<'_>,
) -> io::Result<()> {
    let descriptor = map.as_raw_fd();
    element(
        bpf_cmd::BPF_MAP_UPDATE_ELEM,
        array,
        &place,
        (&raw const descriptor) as u64,
    )
}

/// Returns the id of the map at the index `place` of an array of maps; `None` if there is none.
pub(super) fn inner_map_id(array: BorrowedFd<'_>, place: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    match element(
        bpf_cmd::BPF_MAP_LOOKUP_ELEM,
        array,
        &place,
        (&raw mut id) as u64,
    ) {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads the value at the index `place` of an array map; `words` is the size of a value in words of 8 bytes.
pub(super) fn read_value(array: BorrowedFd<'_>, place: u32, words: usize) -> io::Result<Vec<u64>> {
    let mut value = vec![0_u64; words];
    element(
        bpf_cmd::BPF_MAP_LOOKUP_ELEM,
        array,
        &place,
        value.as_mut_ptr() as u64,
    )?;
    Ok(value)
}

/// Reads an array map of `words` values of one word each.
pub(super) fn read_words(array: BorrowedFd<'_>, words: usize) -> io::Result<Vec<u64>> {
    let mut values = vec![0_u64; words];
    let mut keys = vec![0_u32; words];
    let mut reached = 0_u32;
    let mut attributes = no_attributes();
    attributes.batch.out_batch = (&raw mut reached) as u64;
    attributes.batch.keys = keys.as_mut_ptr() as u64;
    attributes.batch.values = values.as_mut_ptr() as u64;
    attributes.batch.count = u32::try_from(words).map_err(|_| too_large())?;
    attributes.batch.map_fd = array.as_raw_fd().cast_unsigned();
    #[expect(
        unsafe_code,
        reason = "a system call that writes to `keys` and `values`"
    )]
    // SAFETY: the attributes are those of this command; it writes at most `count` keys of 4 bytes and values of 8, for
    // which there is room, and 4 bytes of how far it came.
    let done = unsafe { bpf(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attributes) };
    match done {
        // That there are no more.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(values),
    }
}

/// Removes the map at the index `place` of an array of maps, if there is one.
pub(super) fn clear_inner_map(array: BorrowedFd<'_>, place: u32) -> io::Result<()> {
    match element(bpf_cmd::BPF_MAP_DELETE_ELEM, array, &place, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

fn element(command: bpf_cmd, array: BorrowedFd<'_>, place: &u32, value: u64) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_2.map_fd = array.as_raw_fd().cast_unsigned();
    attributes.__bindgen_anon_2.key = std::ptr::from_ref(place) as u64;
    attributes.__bindgen_anon_2.__bindgen_anon_1.value = value;
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes are the ones that these commands take; the kernel reads 4 bytes of the key and, if the command has a
    // value, reads or writes as many of that as the map's values have, which live until it has returned.
    unsafe {
        bpf(command, &mut attributes)?;
    }
    Ok(())
}

/// Opens a pinned object, and returns its descriptor.
///
/// # Errors
/// The kernel's error: `ENOENT` if nothing is pinned at the path, `EROFS` for writing on a file system that is mounted
/// read-only, `EMFILE` if this process has too many open descriptors.
pub(super) fn open_pinned(path: &Path, access: Access) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.file_flags = match access {
        Access::ReadOnly => BPF_F_RDONLY,
        Access::ReadWrite => 0,
    };
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: `path` lives until it has returned;
    // the result is a new descriptor that has no other owner.
    unsafe {
        let descriptor = bpf(bpf_cmd::BPF_OBJ_GET, &mut attributes)?;
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Pins an open object at an unused path.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = no_attributes();
    attributes.__bindgen_anon_4.pathname = path.as_ptr() as u64;
    attributes.__bindgen_anon_4.bpf_fd = object.as_raw_fd().cast_unsigned();
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: `path` lives until it has returned.
    unsafe {
        bpf(bpf_cmd::BPF_OBJ_PIN, &mut attributes)?;
    }
    Ok(())
}

/// Reads the kernel's information about an open object into `info`, some of whose fields the kernel reads first.
///
/// # Safety
/// `Info` must be the kernel's structure for this object, valid for any bytes. Each pointer in `info` must be valid for
/// writes of the size that `info` states for it.
#[expect(unsafe_code, reason = "a system call that writes to `info`")]
unsafe fn read_info<Info>(object: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.info.bpf_fd = object.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<Info>() as u32;
    attributes.info.info = (&raw mut *info) as u64;
    // SAFETY: it writes at most `info_len` bytes to `info`, and the caller keeps the contract above.
    unsafe { bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)? };
    Ok(())
}

/// Returns the id of a loaded program, and the ids of the maps that it uses.
pub(super) fn program_maps(program: BorrowedFd<'_>) -> io::Result<(u32, Vec<u32>)> {
    const ROOM: u32 = 64;
    let mut ids = vec![0_u32; ROOM as usize];
    #[expect(unsafe_code, reason = "a system call that writes to `info` and `ids`")]
    // SAFETY: the structure is of integers; the kernel writes at most `nr_map_ids` ids, for which there is room.
    let info = unsafe {
        let mut info: bpf_prog_info = zeroed();
        info.nr_map_ids = ROOM;
        info.map_ids = ids.as_mut_ptr() as u64;
        read_info(program, &mut info)?;
        info
    };
    ids.truncate(info.nr_map_ids as usize);
    Ok((info.id, ids))
}

/// Returns the id of the program in an XDP or tcx link, and the index of the link's interface, which is 0 once the
/// interface is gone.
pub(super) fn link_program_and_interface(link: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    #[expect(unsafe_code, reason = "a system call that writes to `info`")]
    // SAFETY: the structure is of integers, and holds no pointer for these kinds of links. The index is at the same
    // place for both.
    unsafe {
        let mut info: bpf_link_info = zeroed();
        read_info(link, &mut info)?;
        Ok((info.prog_id, info.__bindgen_anon_1.xdp.ifindex))
    }
}

/// Detaches a link from its interface at once. The link object remains.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.link_detach.link_fd = link.as_raw_fd().cast_unsigned();
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes hold no pointer.
    unsafe {
        bpf(bpf_cmd::BPF_LINK_DETACH, &mut attributes)?
    };
    Ok(())
}

/// Replaces the program in a link, by one atomic step for the hook.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.link_update.link_fd = link.as_raw_fd().cast_unsigned();
    attributes.link_update.__bindgen_anon_1.new_prog_fd = program.as_raw_fd().cast_unsigned();
    #[expect(unsafe_code, reason = "a system call")]
    // SAFETY: the attributes hold no pointer.
    unsafe {
        bpf(bpf_cmd::BPF_LINK_UPDATE, &mut attributes)?
    };
    Ok(())
}

/// Returns the id of the program in a link to a cgroup, and the id of the cgroup, which is 0 once the cgroup is gone.
pub(super) fn link_program_and_cgroup(link: BorrowedFd<'_>) -> io::Result<(u32, u64)> {
    #[expect(unsafe_code, reason = "a system call that writes to `info`")]
    // SAFETY: the structure is of integers, and holds no pointer for this kind of link.
    unsafe {
        let mut info: bpf_link_info = zeroed();
        read_info(link, &mut info)?;
        Ok((info.prog_id, info.__bindgen_anon_1.cgroup.cgroup_id))
    }
}

/// Opens the file of a kernfs file system, such as a cgroup, by its id; `root` is any open directory of the file system.
///
/// # Errors
/// `ESTALE` if no file has the id, and `EPERM` without the capability `CAP_DAC_READ_SEARCH`.
pub(super) fn open_by_id(root: BorrowedFd<'_>, id: u64) -> io::Result<OwnedFd> {
    /// The type of file handles that consist of the id of a kernfs file (`FILEID_KERNFS` of Linux's `exportfs.h`).
    const KERNFS: i32 = 0xfe;
    /// The kernel's `struct file_handle` with a handle of this type.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mut handle = Handle {
        bytes: size_of::<u64>() as u32,
        kind: KERNFS,
        id,
    };
    #[expect(unsafe_code, reason = "a system call that gives an open descriptor")]
    // SAFETY: the handle states its size, and lives until the call has returned; the result is a new descriptor without
    // another owner.
    unsafe {
        let descriptor = libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        );
        if descriptor < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(descriptor))
    }
}

/// Returns the ids of the programs on an interface's tcx egress, in the order in which they run.
///
/// # Errors
/// `EINVAL` on a kernel without tcx, which exists since Linux 6.6.
pub(super) fn tcx_egress_chain(interface: u32) -> io::Result<Vec<u32>> {
    const ROOM: u32 = 64; // the kernel has room for as many
    let mut ids = vec![0_u32; ROOM as usize];
    let mut attributes = no_attributes();
    attributes.query.__bindgen_anon_1.target_ifindex = interface;
    attributes.query.attach_type = BPF_TCX_EGRESS as u32;
    attributes.query.prog_ids = ids.as_mut_ptr() as u64;
    attributes.query.__bindgen_anon_2.count = ROOM;
    #[expect(unsafe_code, reason = "a system call that writes to `ids`")]
    // SAFETY: it writes at most `count` ids, for which there is room; the command fills in the count.
    let count = unsafe {
        bpf(bpf_cmd::BPF_PROG_QUERY, &mut attributes)?;
        attributes.query.__bindgen_anon_2.count
    };
    ids.truncate(count as usize);
    Ok(ids)
}

/// Returns attributes for a `bpf` call with all fields 0, the default of each field.
fn no_attributes() -> bpf_attr {
    #[expect(unsafe_code, reason = "a union of structures of integers")]
    // SAFETY: all its members are integers and arrays of integers, of which any bytes are valid.
    unsafe {
        zeroed()
    }
}

/// Calls `bpf(2)`, and returns its non-negative result.
///
/// # Safety
/// The attributes must be those of `command`, and every pointer in them valid for the command.
#[expect(unsafe_code, reason = "a system call")]
unsafe fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the caller keeps the contract above. A kernel that knows fewer attributes accepts the rest as 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            std::ptr::from_mut(attributes),
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result as i32)
}
