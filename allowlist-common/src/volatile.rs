//! Loads from map values that userspace or another CPU stores to while a kernel program reads them.
//!
//! The compiler may assume that the target of a Rust reference does not change. It may then load a value twice (compare
//! the first, use the second), split a load into bytes, merge two loads into one that is not atomic, or move a load.
//! [`VolatileRef`] is a raw pointer instead: its only access is [`load`](VolatileRef::load), one volatile load of a
//! primitive integer, which compiles to one instruction of that width. The kernel programs read the tables only in this
//! way, and the host runs the same code on its own memory.
//!
//! # Consistency
//!
//! A value that takes more than one load is consistent for one reason from this list:
//!
//! - *Single words.* The control word, the deadline of events, each field of [`Fallback`], [`Marking`] and
//!   [`ForeignPort`], each time in [`PortsInUse`] and each root entry is an aligned integer of at most 64 bits, and is
//!   stored by one atomic store. A load returns the value before or after the store. No decision depends on the order
//!   of two such words, except as below.
//! - *Slots.* Userspace writes the tables of a slot with plain stores. It does so only after an RCU grace period in which
//!   no control word named the slot, so no running program reads them; it then stores the control word with release
//!   ordering. A program reaches the tables only by the slot number in the control word it loaded. That is an address
//!   dependency, and every CPU with a BPF JIT compiler orders dependent loads. So the programs need no barrier.
//! - *Changes in place.* Userspace appends a chunk to the unused part of the pool, sets [`reach`] of an unused match id,
//!   and then stores one root entry with release ordering. The old chunk remains until the slot is written again. The
//!   loads of root, chunk and `reach` form a chain of address dependencies, so a packet uses the whole old range or the
//!   whole new one. The result of a prefetch, which may load unused words, is discarded.
//! - *Fallback.* All fields are stored, and an RCU grace period passes, before a control word is pending. While it is,
//!   userspace stores single fields, each of which is valid with any value of the others.
//! - *Entries of hash tables and tries.* The kernel copies a value before the entry becomes visible, and does not change
//!   it afterwards.
//!
//! Values of per-CPU maps are not volatile: only the program on that CPU stores to them, and userspace only when it
//! resets counters.
//!
//! [`Fallback`]: crate::abi::Fallback
//! [`ForeignPort`]: crate::flow::ForeignPort
//! [`Marking`]: crate::flow::Marking
//! [`PortsInUse`]: crate::flow::PortsInUse
//! [`reach`]: crate::abi::GenerationTables::reach

use core::marker::PhantomData;

/// A reference to a value that may be stored to while it is read. Does not permit a plain load.
#[derive(Debug)]
pub struct VolatileRef<'m, T> {
    pointer: *const T,
    memory: PhantomData<&'m T>,
}

impl<T> Clone for VolatileRef<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for VolatileRef<'_, T> {}

mod sealed {
    pub trait Sealed {}
}

/// An integer that a CPU loads by one instruction. Every bit pattern is valid.
pub trait Word: Copy + sealed::Sealed {}

macro_rules! words {
    ($($word:ty)*) => {$(
        impl sealed::Sealed for $word {}
        impl Word for $word {}
    )*};
}

words!(u8 u16 u32 u64);

impl<'m, T> VolatileRef<'m, T> {
    /// Returns a reference to the value at `pointer`.
    ///
    /// # Safety
    /// For the lifetime `'m`, the pointer must be aligned, and valid for reads of a `T`. Other parties may store to the
    /// value at any time.
    #[inline(always)]
    #[expect(unsafe_code, reason = "the caller promises that the pointer is valid")]
    pub const unsafe fn new(pointer: *const T) -> Self {
        Self {
            pointer,
            memory: PhantomData,
        }
    }

    /// Returns a volatile reference to memory that does not change during `'m`, such as a copy of a map value.
    pub const fn from_ref(value: &'m T) -> Self {
        Self {
            pointer: core::ptr::from_ref(value),
            memory: PhantomData,
        }
    }

    /// Returns the pointer to the value.
    #[inline(always)]
    pub const fn pointer(self) -> *const T {
        self.pointer
    }
}

impl<T: Word> VolatileRef<'_, T> {
    /// Loads the value, by one instruction that is executed exactly once.
    #[inline(always)]
    #[must_use]
    #[expect(unsafe_code, reason = "a volatile load")]
    pub fn load(self) -> T {
        // SAFETY: the pointer is aligned and valid for reads, as `new` requires, and every bit pattern is valid.
        unsafe { self.pointer.read_volatile() }
    }
}

impl<'m, T, const N: usize> VolatileRef<'m, [T; N]> {
    /// Returns a reference to the element at an index.
    ///
    /// # Panics
    /// Panics if the index is out of bounds. In the kernel programs the compiler must be able to exclude that.
    #[inline(always)]
    #[expect(unsafe_code, reason = "a pointer to an element of the array")]
    pub const fn at(self, index: usize) -> VolatileRef<'m, T> {
        // SAFETY: the pointer is valid for reads of the array, and the index expression checks its bounds. No reference
        // to the array is created.
        unsafe { VolatileRef::new(&raw const (*self.pointer)[index]) }
    }
}

/// Returns a [`VolatileRef`] to a field of the value that another one refers to.
macro_rules! field {
    ($value:expr, $field:ident) => {{
        let pointer = $value.pointer();
        #[expect(unsafe_code, reason = "a pointer to a field of the value")]
        // SAFETY: `pointer` is valid for reads of the whole value. No reference to the value is created.
        let field = unsafe { $crate::volatile::VolatileRef::new(&raw const (*pointer).$field) };
        field
    }};
}

pub(crate) use field;

#[cfg(test)]
mod tests {
    extern crate std;

    use std::cell::Cell;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[repr(C)]
    struct Mixed {
        byte: u8,
        short: u16,
        words: [u64; 3],
    }

    #[test]
    fn fields_and_elements() {
        let mixed = Mixed {
            byte: 1,
            short: 2,
            words: [3, 4, 5],
        };
        let all = VolatileRef::from_ref(&mixed);
        assert_eq!(field!(all, byte).load(), 1);
        assert_eq!(field!(all, short).load(), 2);
        let words = field!(all, words);
        assert_eq!([0, 1, 2].map(|index| words.at(index).load()), [3, 4, 5]);
    }

    #[test]
    #[should_panic(expected = "index out of bounds")]
    fn an_index_is_checked() {
        let words = [1_u64, 2];
        let _ = VolatileRef::from_ref(&words).at(2);
    }

    /// A compiler that merged the loads would see the same value twice.
    #[test]
    fn each_load_reads_the_memory() {
        let word = Cell::new(1_u32);
        #[expect(unsafe_code, reason = "memory that changes between two loads")]
        // SAFETY: the cell lives longer than the reference, and this thread alone stores to it.
        let shared = unsafe { VolatileRef::new(word.as_ptr().cast_const()) };
        let first = shared.load();
        word.set(2);
        assert_eq!((first, shared.load()), (1, 2));
    }

    /// A load that was split, or merged with the next one, would return parts of two values.
    #[test]
    fn a_load_is_not_torn() {
        let word = AtomicU64::new(0);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 0..100_000_u64 {
                    let half = value & 0xffff_ffff;
                    word.store(half << 32 | half, Ordering::Release);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                #[expect(unsafe_code, reason = "memory that another thread stores to")]
                // SAFETY: the word lives longer than the reference; the other thread stores to it atomically.
                let value = unsafe { VolatileRef::new(word.as_ptr().cast_const()) }.load();
                assert_eq!(value >> 32, value & 0xffff_ffff);
            }
        });
    }
}
