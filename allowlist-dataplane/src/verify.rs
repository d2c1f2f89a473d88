//! Loads the programs for the verifier of this kernel, with maps of their own, without attaching or pinning them.

use crate::error::{Context as _, Result};
use allowlist_common::abi;
use aya::EbpfLoader;
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use serde::Serialize;

use super::OBJECT;
use super::pins::require_privileges;

/// A program that the kernel has taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Its name.
    pub program: &'static str,
    /// Its instructions, after the verifier removed what cannot be reached.
    pub instructions: u32,
    /// How many the verifier walked, all paths together; `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// Bytes of memory that the kernel keeps for it.
    pub memory_bytes: u32,
}

/// Loads every program as `run` does, and drops it again.
pub fn verify(trace: bool) -> Result<Vec<Verified>> {
    require_privileges()?;
    let slot = 0_u32;
    let trace = u8::from(trace);
    let mut object = EbpfLoader::new()
        .override_global(abi::GLOBAL_INTERFACE, &slot, true)
        .override_global(abi::GLOBAL_TRACE, &trace, true)
        .load(OBJECT)
        .context("cannot create the kernel maps")?;
    let refused = |name| format!("the kernel rejected {name} (verifier log follows)");
    let mut verified = Vec::new();
    for (name, program) in object.programs_mut() {
        if name == abi::PROGRAM {
            let xdp: &mut Xdp = program.try_into()?;
            xdp.load().with_context(|| refused(abi::PROGRAM))?;
            verified.push(numbers(abi::PROGRAM, &xdp.info()?)?);
        } else if name == abi::TRACKER_PROGRAM {
            let classifier: &mut SchedClassifier = program.try_into()?;
            classifier
                .load()
                .with_context(|| refused(abi::TRACKER_PROGRAM))?;
            verified.push(numbers(abi::TRACKER_PROGRAM, &classifier.info()?)?);
        }
    }
    verified.sort_by_key(|one| one.program);
    Ok(verified)
}

fn numbers(program: &'static str, info: &ProgramInfo) -> Result<Verified> {
    const BYTES_PER_INSTRUCTION: u32 = 8;
    Ok(Verified {
        program,
        instructions: info.size_translated().unwrap_or(0) / BYTES_PER_INSTRUCTION,
        verified_instructions: info.verified_instruction_count(),
        memory_bytes: info.memory_locked()?,
    })
}
