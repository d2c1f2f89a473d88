//! BTF (BPF Type Format) for maps that userspace creates, so that `bpftool map dump` prints the fields of their values.
//!
//! aya loads the BTF of the object file for all other maps. The type of the generation tables depends on the size of
//! their pool, so a larger map needs a type of its own. aya-obj builds no structs.
//!
//! The format is in the kernel's `Documentation/bpf/btf.rst`.

use std::mem::offset_of;

use allowlist_common::abi::{
    CLASSES, GenerationTables, InterfaceServices, MAX_INTERFACES, MAX_MATCHES, ServiceTable,
};
use allowlist_common::ranges::ROOT_BITS;

/// The BTF of one map, as the kernel loads it, and the ids of its key and value type.
pub(super) struct MapTypes {
    pub(super) bytes: Vec<u8>,
    pub(super) key: u32,
    pub(super) value: u32,
}

/// Returns the types of the map of generation tables with `words` words of 8 bytes per slot.
///
/// They have the names of the types in the object file, which describe the smallest pool.
pub(super) fn generations(words: usize) -> MapTypes {
    const PORTS: usize = 1 << 16;
    const IDS: usize = 1 << 8;
    let mut btf = Builder::default();
    let [byte, half, word] =
        [("u8", 1), ("u32", 4), ("u64", 8)].map(|(name, bytes)| btf.int(name, bytes));
    let mut array = |element, length| btf.array(element, half, length);
    let (ports, bytes, halves) = (array(byte, PORTS), array(byte, IDS), array(half, IDS));
    let (classes, reach) = (array(word, CLASSES), array(word, MAX_MATCHES as usize));
    let root = array(half, 1 << ROOT_BITS);
    let pool = array(
        word,
        words - size_of::<GenerationTables>() / size_of::<u64>(),
    );
    macro_rules! structure {
        ($name:ident { $($field:ident: $type:expr),* }) => {
            btf.structure(
                stringify!($name),
                size_of::<$name>(),
                &[$((stringify!($field), $type, offset_of!($name, $field))),*],
            )
        };
    }
    let row = structure!(InterfaceServices {
        effective: bytes,
        fragment_services: classes,
        shared: word
    });
    let rows = btf.array(row, half, MAX_INTERFACES as usize);
    let services = structure!(ServiceTable {
        tcp: ports,
        udp: ports,
        sctp: ports,
        protocol: bytes,
        interfaces: rows,
        counter_ids: halves
    });
    let tables = structure!(GenerationTables {
        services: services,
        reach: reach,
        v4: root,
        v6: root
    });
    let members = [
        ("tables", tables, 0),
        ("pool", pool, size_of::<GenerationTables>()),
    ];
    let value = btf.structure("Generation", words * size_of::<u64>(), &members);
    MapTypes {
        bytes: btf.encode(),
        key: half,
        value,
    }
}

/// Types and their names, in the encoding of BTF.
struct Builder {
    types: Vec<u8>,
    names: Vec<u8>,
    last_id: u32,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            types: Vec::new(),
            names: vec![0], // the name of anonymous types is at offset 0
            last_id: 0,
        }
    }
}

impl Builder {
    /// Adds an unsigned integer, and returns its id.
    fn int(&mut self, name: &str, bytes: u32) -> u32 {
        const INT: u32 = 1;
        let name = self.name(name);
        let bits = bytes * u8::BITS;
        self.add(&[name, INT << KIND_SHIFT, bytes, bits])
    }

    /// Adds an array of `length` elements, and returns its id; `element` and `index` are the type ids of element and
    /// index.
    fn array(&mut self, element: u32, index: u32, length: usize) -> u32 {
        const ARRAY: u32 = 3;
        self.add(&[0, ARRAY << KIND_SHIFT, 0, element, index, length as u32])
    }

    /// Adds a struct of a size in bytes, and returns its id. Each member has a name, a type and an offset in bytes.
    fn structure(&mut self, name: &str, size: usize, members: &[(&str, u32, usize)]) -> u32 {
        const STRUCT: u32 = 4;
        let name = self.name(name);
        let mut words = vec![
            name,
            STRUCT << KIND_SHIFT | members.len() as u32,
            size as u32,
        ];
        for (name, kind, offset) in members {
            words.extend([self.name(name), *kind, *offset as u32 * u8::BITS]);
        }
        self.add(&words)
    }

    fn name(&mut self, name: &str) -> u32 {
        let offset = self.names.len() as u32;
        self.names.extend(name.bytes().chain([0]));
        offset
    }

    fn add(&mut self, words: &[u32]) -> u32 {
        self.types
            .extend(words.iter().flat_map(|word| word.to_ne_bytes()));
        self.last_id += 1;
        self.last_id
    }

    /// Returns the header, the types and the names.
    fn encode(&self) -> Vec<u8> {
        const MAGIC: u16 = 0xeb9f;
        const VERSION: u8 = 1;
        const HEADER: u32 = 24;
        let (types, names) = (self.types.len() as u32, self.names.len() as u32);
        let mut bytes = MAGIC.to_ne_bytes().to_vec();
        bytes.extend([VERSION, 0]);
        // The offsets and sizes of both parts, from the end of the header.
        for number in [HEADER, 0, types, types, names] {
            bytes.extend(number.to_ne_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.names);
        bytes
    }
}

/// The position of a type's kind in its second word; the number of members is in the lowest bits.
const KIND_SHIFT: u32 = 24;

#[cfg(test)]
mod tests {
    use aya::Endianness;
    use aya_obj::btf::{Btf, BtfKind};

    use super::*;

    #[test]
    fn another_parser_reads_the_types() {
        let types = generations(1 << 20);
        let btf = Btf::parse(&types.bytes, Endianness::default()).expect("valid BTF");
        let id = |name: &str, kind| btf.id_by_type_name_kind(name, kind).expect("the type");
        assert_eq!(id("Generation", BtfKind::Struct), types.value);
        assert_eq!(id("u32", BtfKind::Int), types.key);
        assert!(id("ServiceTable", BtfKind::Struct) < id("GenerationTables", BtfKind::Struct));
        assert_eq!(btf.to_bytes(), types.bytes);
    }
}
