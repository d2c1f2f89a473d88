//! Reads the offsets of struct fields from the running kernel's type information (BTF), which differ between versions
//! and configurations of the kernel.
//!
//! The format is in the kernel's `Documentation/bpf/btf.rst`. aya-obj reads it too, but does not publish the fields of
//! types.

use std::fs;
use std::path::Path;

use crate::error::{Context as _, Error, Result};

/// The file with the types of the running kernel.
pub(super) const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// The types of a kernel.
pub(super) struct KernelTypes {
    bytes: Vec<u8>,
    /// The offsets of the first and after the last type, and of the first name.
    types: usize,
    types_end: usize,
    names: usize,
}

const STRUCT: u32 = 4;

impl KernelTypes {
    /// Reads the types of the running kernel.
    ///
    /// # Errors
    /// Fails if the kernel was built without `CONFIG_DEBUG_INFO_BTF`.
    pub(super) fn read() -> Result<Self> {
        let bytes = fs::read(Path::new(KERNEL_TYPES))
            .with_context(|| format!("cannot read the types of the kernel at {KERNEL_TYPES}"))?;
        Self::parse(bytes).ok_or_else(|| {
            Error::message(format!(
                "the types of the kernel at {KERNEL_TYPES} have an unknown form"
            ))
        })
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        const MAGIC: u32 = 0xeb9f;
        if word(&bytes, 0)? & 0xffff != MAGIC {
            return None;
        }
        let header = word(&bytes, 4)? as usize;
        let place = |field| Some(header + word(&bytes, field)? as usize);
        let types = place(8)?;
        let (types_end, names) = (types + word(&bytes, 12)? as usize, place(16)?);
        Some(Self {
            bytes,
            types,
            types_end,
            names,
        })
    }

    /// Returns the offset in bytes of a field in a struct; `None` if there is no such field, or if it is a bit field.
    ///
    /// The fields of unnamed structs and unions inside are not searched.
    pub(super) fn offset(&self, structure: &str, field: &str) -> Option<u32> {
        const TYPE: usize = 12;
        const MEMBER: usize = 12;
        let mut place = self.types;
        while place < self.types_end {
            let info = word(&self.bytes, place + 4)?;
            let (kind, count) = (info >> 24 & 0x1f, (info & 0xffff) as usize);
            if kind == STRUCT && self.is_name(place, structure) {
                let mut members = (0..count).map(|member| place + TYPE + member * MEMBER);
                let member = members.find(|member| self.is_name(*member, field));
                if let Some(member) = member {
                    let bits = word(&self.bytes, member + 8)?;
                    let has_bit_fields = info >> 31 != 0;
                    let is_bit_field = has_bit_fields && bits >> 24 != 0 || bits % 8 != 0;
                    return (!is_bit_field).then_some((bits & 0xff_ffff) / 8);
                }
            }
            place += TYPE + rest(kind, count)?;
        }
        None
    }

    /// Returns whether the type or member at `place`, which begins with the offset of its name, has the name `name`.
    fn is_name(&self, place: usize, name: &str) -> bool {
        let offset = word(&self.bytes, place).map_or(0, |offset| offset as usize);
        let found = self.bytes.get(self.names + offset..).unwrap_or_default();
        found
            .strip_prefix(name.as_bytes())
            .is_some_and(|rest| rest.first() == Some(&0))
    }
}

/// Returns the number of bytes after the common part of a type with `count` members; `None` for an unknown kind.
fn rest(kind: u32, count: usize) -> Option<usize> {
    Some(match kind {
        // INT, VAR and DECL_TAG.
        1 | 14 | 17 => 4,
        // ARRAY.
        3 => 12,
        // STRUCT, UNION, DATASEC and ENUM64.
        STRUCT | 5 | 15 | 19 => 12 * count,
        // ENUM and FUNC_PROTO.
        6 | 13 => 8 * count,
        // PTR, FWD, TYPEDEF, VOLATILE, CONST, RESTRICT, FUNC, FLOAT and TYPE_TAG.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

fn word(bytes: &[u8], place: usize) -> Option<u32> {
    let word = bytes.get(place..place.checked_add(4)?)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::mem::offset_of;

    use allowlist_common::abi::ServiceTable;

    use super::*;
    use crate::btf;

    #[test]
    fn offsets_of_fields() {
        let types = KernelTypes::parse(btf::generations(1 << 20).bytes).expect("valid BTF");
        let offset = |structure, field| types.offset(structure, field);
        assert_eq!(offset("ServiceTable", "tcp"), Some(0));
        let udp = offset_of!(ServiceTable, udp) as u32;
        assert_eq!(offset("ServiceTable", "udp"), Some(udp));
        assert_eq!(offset("Generation", "tables"), Some(0));
        assert_eq!(offset("ServiceTable", "ud"), None);
        assert_eq!(offset("Service", "udp"), None);
    }

    #[test]
    fn damaged_types_are_refused() {
        let bytes = btf::generations(1 << 20).bytes;
        for length in 0..bytes.len() {
            if let Some(types) = KernelTypes::parse(bytes[..length].to_vec()) {
                let _ = types.offset("Generation", "no such field");
            }
        }
        assert!(KernelTypes::parse(vec![0; 100]).is_none());
    }

    #[test]
    fn the_running_kernel_has_the_fields_of_cgroups() {
        let Ok(types) = KernelTypes::read() else {
            return; // a kernel without BTF
        };
        for (_, structure, field) in allowlist_common::abi::UNIT_OFFSETS {
            assert!(
                types.offset(structure, field).is_some(),
                "{structure}.{field}"
            );
        }
    }
}
