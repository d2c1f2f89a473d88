//! The interface and the objects that were attached in a slot, to be compared with the kernel's.

/// The most pinned maps whose ids an [`Identity`] has room for.
pub const MAPS_OF_PROGRAM: usize = 32;

/// The interface of a slot as it was attached to, and the objects that were attached.
///
/// An interface index is unique within one network namespace only, so the namespace belongs to the identity of an
/// interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Identity {
    /// The cookie of the network namespace that the interface was in, unique until the host reboots; 0 is unknown.
    pub namespace: u64,
    /// The number of that namespace's inode, as `lsns` prints it. It is used again after the namespace is gone.
    pub namespace_inode: u32,
    /// The id of the XDP program that was put into the slot's link; 0 if nothing is attached by this slot.
    pub program: u32,
    /// The id of the flow tracker that was put into the slot's tcx link; 0 if none was.
    pub tracker: u32,
    /// Always 0.
    pub padding: u32,
    /// The name that the interface had before a rename; zero-padded, empty if it was never renamed.
    pub former_name: [u8; 16],
    /// The ids of the maps that the XDP program uses, in the order of [`super::PINNED`]; 0 for a map that it does
    /// not use.
    pub maps: [u32; MAPS_OF_PROGRAM],
}
