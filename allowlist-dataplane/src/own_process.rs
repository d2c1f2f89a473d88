//! The id of this process in the initial PID namespace, as the programs of the egress policy see it.
//!
//! `getpid` returns the id in the PID namespace of this process, such as a container's, and the files in `/proc` have ids
//! of the namespace for which `/proc` was mounted. A kernel program sees the id in the initial namespace, so this process
//! runs a kernel program to get it.

use allowlist_common::abi::PROCESS_ID_PROGRAM;
use aya::programs::{RawTracePoint, RawTracePointRunOptions, TestRun as _};
use aya::{Ebpf, EbpfLoader};

use crate::error::{Context as _, Error, Result};

/// The object file of the program, embedded into this program.
const OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/allowlist-process"));

/// Returns the id of this process in the initial PID namespace.
pub(super) fn initial_id() -> Result<u32> {
    let mut object = load()?;
    let ran = program(&mut object)?.test_run(RawTracePointRunOptions::new());
    let ran = ran.with_context(|| format!("the kernel does not run {PROCESS_ID_PROGRAM}"))?;
    Ok(ran.return_value)
}

/// Loads the object file with its program into the kernel.
pub(super) fn load() -> Result<Ebpf> {
    let mut object = EbpfLoader::new()
        .load(OBJECT)
        .with_context(|| format!("cannot read the object file of {PROCESS_ID_PROGRAM}"))?;
    let loaded = program(&mut object)?.load();
    loaded.with_context(|| format!("the kernel rejected the program {PROCESS_ID_PROGRAM}"))?;
    Ok(object)
}

fn program(object: &mut Ebpf) -> Result<&mut RawTracePoint> {
    let program = object.program_mut(PROCESS_ID_PROGRAM).ok_or_else(|| {
        Error::message(format!(
            "the object file has no program {PROCESS_ID_PROGRAM}; reinstall allowlist"
        ))
    })?;
    Ok(program.try_into()?)
}
