//! The identity of a slot's interface and attached objects, which the self-check compares with the kernel.

/// The maximum number of map ids in an [`Identity`].
pub const MAPS_OF_PROGRAM: usize = 32;

/// The interface of a slot at the time of the attach, and the attached objects.
///
/// Includes the network namespace, because an interface index is unique only within its namespace.
#[cfg_attr(feature = "aya", derive(bytemuck::Pod, bytemuck::Zeroable))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Identity {
    /// The cookie of the interface's network namespace, unique until the host reboots; 0 if unknown.
    pub namespace: u64,
    /// The inode number of that namespace, as `lsns` prints it. The kernel reuses it after the namespace is gone.
    pub namespace_inode: u32,
    /// The id of the XDP program in the slot's link; 0 if none is attached.
    pub program: u32,
    /// The id of the flow tracker in the slot's tcx link; 0 if none is attached.
    pub tracker: u32,
    /// Always 0.
    pub padding: u32,
    /// The interface's name before its last rename, zero-padded; empty if it was never renamed.
    pub former_name: [u8; 16],
    /// The ids of the XDP program's maps, in the order of [`super::PINNED`]; 0 for a map that it does not use.
    pub maps: [u32; MAPS_OF_PROGRAM],
}
