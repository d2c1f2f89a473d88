//! Names as keys of a longest-prefix-match trie: the text of a name backwards, so that a wildcard is a prefix of the
//! names below it.

/// The maximum length of the text of a name in bytes (RFC 1035, 2.3.4: 255 bytes with the first label's length and the
/// empty label).
pub const NAME_BYTES: u32 = 253;

/// The size of the data of a key in bytes, the most that the kernel permits.
const DATA: usize = 256;

/// A key of the trie of listed names: the slot, and then the text of a name backwards in lower case.
///
/// The key of an exact name ends with a byte 0, which no text contains. So a name's key has the key of a wildcard as its
/// prefix exactly if the name is below it.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct NameKey {
    /// The number of significant bits in `data`.
    pub bits: u32,
    /// The slot, the text of the name backwards, and zeros.
    pub data: [u8; DATA],
}

/// The names that a name in the configuration covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WildcardKey {
    /// The name itself.
    Exact,
    /// All names below the name, and not the name itself.
    Below,
}

impl NameKey {
    /// Returns the key for a name in lower case, without a final dot, in the tables of a slot; `None` if the name is
    /// empty or too long.
    pub fn new(slot: u8, name: &str, kind: WildcardKey) -> Option<Self> {
        let length = name.len();
        // One byte less for a wildcard, whose text begins with a dot.
        if length == 0 || length >= NAME_BYTES as usize + usize::from(kind == WildcardKey::Exact) {
            return None;
        }
        let mut data = [0; DATA];
        data[0] = slot;
        for (place, byte) in name.bytes().rev().enumerate() {
            data[1 + place] = byte;
        }
        data[1 + length] = match kind {
            WildcardKey::Exact => 0,
            WildcardKey::Below => b'.',
        };
        Some(Self {
            bits: bits(length as u32),
            data,
        })
    }

    /// Returns the slot in whose tables the name is listed.
    pub const fn slot(&self) -> u8 {
        self.data[0]
    }
}

/// Returns the number of significant bits of the key of a name with a text of `length` bytes.
#[inline(always)]
const fn bits(length: u32) -> u32 {
    (1 + length + 1) * u8::BITS
}

/// A question that a program sent to a resolver: an entry of [`crate::abi::QUERIES`], and of [`crate::abi::ANSWERED`]
/// if no rule lists its name.
///
/// VERIFIER: the text is written in place, from a loop of the helper `bpf_loop`, so indexes are masked.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Noted {
    /// The key of the name in the trie of listed names.
    pub key: NameKey,
    /// The length of the name's text in the lower 16 bits, and the type of the question in the upper ones.
    rest: u32,
    /// The listed name that the question's name matched: an index into [`crate::abi::NameGrants`]; 0 if it matched none.
    pub name: u32,
    /// The kind of the listed name: [`crate::abi::ListedName::kind`].
    pub kind: u32,
    /// A hash of the name (FNV-1a of 32 bits), which distinguishes the names of an address.
    pub hash: u32,
}

impl Noted {
    /// A question without a name.
    pub const EMPTY: Self = Self {
        key: NameKey {
            bits: 0,
            data: [0; DATA],
        },
        rest: 0,
        name: 0,
        kind: 0,
        hash: 0x811c_9dc5,
    };

    /// Sets the length of the name's text, and with it the key's length.
    #[inline(always)]
    pub(super) const fn set_length(&mut self, length: u32) {
        self.rest = self.rest & 0xffff_0000 | length;
        self.key.bits = bits(length);
    }

    /// Sets the slot in whose tables the name is looked up.
    #[inline(always)]
    pub const fn set_slot(&mut self, slot: u8) {
        self.key.data[0] = slot;
    }

    /// Returns the length of the name's text in bytes.
    #[inline(always)]
    pub const fn length(&self) -> u32 {
        self.rest & 0xff
    }

    /// Sets the type of the question.
    #[inline(always)]
    pub(super) const fn set_kind(&mut self, kind: u16) {
        self.rest = self.rest & 0xffff | (kind as u32) << 16;
    }

    /// Returns the type of the question: [`super::A`] or [`super::AAAA`].
    #[inline(always)]
    pub const fn kind(&self) -> u16 {
        (self.rest >> 16) as u16
    }

    /// Returns the place in the key of a byte of the text. The first byte is the last one of the key's text.
    #[inline(always)]
    const fn place(&self, index: u32) -> usize {
        ((self.length().wrapping_sub(index)) & 0xff) as usize
    }

    /// Sets the byte of the text at an index below the length.
    #[inline(always)]
    pub(super) const fn set_byte(&mut self, index: u32, byte: u8) {
        let place = self.place(index);
        self.key.data[place] = byte;
        self.hash = (self.hash ^ byte as u32).wrapping_mul(0x0100_0193);
    }

    /// Returns the byte of the text at an index below the length.
    #[inline(always)]
    pub const fn byte(&self, index: u32) -> u8 {
        self.key.data[self.place(index)]
    }

    /// Returns the characters of the name.
    #[cfg(feature = "aya")]
    pub fn text(&self) -> impl Iterator<Item = char> + '_ {
        (0..self.length()).map(|index| char::from(self.byte(index)))
    }
}
