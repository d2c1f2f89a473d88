//! The XDP mode that the operator requests for an interface.

use serde::Serialize;

/// The XDP mode that the operator requests: `attach_mode = "…"`. [`XdpMode`](crate::XdpMode) is the mode that the
/// kernel uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachModeRequest {
    /// Native if the driver supports it, else generic with a warning.
    #[default]
    Auto,
    /// In the driver, before the kernel's network stack.
    Native,
    /// In the network stack: slower, works on every interface.
    Generic,
    /// On the network card.
    Offload,
}
