//! The XDP mode that the operator requests for interfaces.

use serde::Serialize;

/// The XDP mode that the operator requests by `attach_mode = "…"`. [`XdpMode`](crate::XdpMode) is the mode in which the
/// kernel runs the program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachModeRequest {
    /// Native mode if the driver supports it, else generic mode with a warning.
    #[default]
    Auto,
    /// Only native mode: in the driver, before the kernel's network stack.
    Native,
    /// Only generic mode: in the kernel's network stack, which works on every interface, but is slower.
    Generic,
    /// Only offload mode: on the network card.
    Offload,
}
