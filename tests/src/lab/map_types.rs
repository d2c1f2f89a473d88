//! The BTF types of a map's values, by which `bpftool map dump` prints them.

use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use aya::Endianness;
use aya_obj::btf::{Btf, BtfKind};
use aya_obj::generated::{bpf_attr, bpf_btf_info, bpf_cmd, bpf_map_info};

/// The BTF of a map, and the id of its value type.
pub struct MapTypes {
    btf: Btf,
    value: u32,
}

impl MapTypes {
    /// Reads the types of a map from the kernel; `None` for a map without BTF.
    ///
    /// # Errors
    /// Fails if the kernel refuses to return the BTF.
    pub fn of(map: BorrowedFd<'_>) -> Result<Option<Self>> {
        let mut info = zeroed_info();
        read_info(map, &mut info).context("cannot read a map's info")?;
        if info.btf_id == 0 {
            return Ok(None);
        }
        let btf = open_btf(info.btf_id).context("cannot open a map's BTF")?;
        let mut bytes = vec![0_u8; 1 << 22];
        let mut about = bpf_btf_info {
            btf: bytes.as_mut_ptr() as u64,
            btf_size: bytes.len() as u32,
            id: 0,
            name: 0,
            name_len: 0,
            kernel_btf: 0,
        };
        read_info(btf.as_fd(), &mut about).context("cannot read BTF")?;
        bytes.truncate(about.btf_size as usize);
        Ok(Some(Self {
            btf: Btf::parse(&bytes, Endianness::default())?,
            value: info.btf_value_type_id,
        }))
    }

    /// Returns whether the type of the values is the struct or integer with this name.
    pub fn values_are(&self, name: &str) -> bool {
        [BtfKind::Struct, BtfKind::Int].into_iter().any(|kind| {
            let id = self.btf.id_by_type_name_kind(name, kind);
            id.is_ok_and(|id| id == self.value)
        })
    }
}

fn open_btf(id: u32) -> io::Result<OwnedFd> {
    let mut attributes = zeroed_attributes();
    attributes.__bindgen_anon_6.__bindgen_anon_1.btf_id = id;
    let descriptor = bpf(bpf_cmd::BPF_BTF_GET_FD_BY_ID, &mut attributes)?;
    #[expect(unsafe_code, reason = "takes ownership of a descriptor")]
    // SAFETY: the command returned a new descriptor, which has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

fn read_info<Info>(object: BorrowedFd<'_>, info: &mut Info) -> io::Result<()> {
    let mut attributes = zeroed_attributes();
    attributes.info.bpf_fd = object.as_raw_fd().cast_unsigned();
    attributes.info.info_len = size_of::<Info>() as u32;
    attributes.info.info = std::ptr::from_mut(info) as u64;
    bpf(bpf_cmd::BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(())
}

#[expect(unsafe_code, reason = "a structure of integers")]
fn zeroed_info() -> bpf_map_info {
    // SAFETY: a structure of integers, for which all zeros are valid.
    unsafe { zeroed() }
}

#[expect(unsafe_code, reason = "a union of structures of integers")]
fn zeroed_attributes() -> bpf_attr {
    // SAFETY: a union of structures of integers, for which all zeros are valid.
    unsafe { zeroed() }
}

#[expect(unsafe_code, reason = "a system call")]
fn bpf(command: bpf_cmd, attributes: &mut bpf_attr) -> io::Result<i32> {
    // SAFETY: the callers in this file set the attributes of the command; pointers in them have room for the size that
    // they state.
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
