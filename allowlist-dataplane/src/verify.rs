//! Loads the programs to check that this kernel's verifier accepts them, with separate maps, and without attaching or
//! pinning anything.

use allowlist_common::abi;
use aya::EbpfLoader;
use aya::programs::{ProgramInfo, SchedClassifier, Xdp};
use serde::Serialize;

use super::pins::require_privileges;
use super::{OBJECT, egress, own_process};
use crate::error::{Context as _, Result};

/// The properties of a program that the kernel's verifier accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// The name of the program.
    pub program: &'static str,
    /// The number of the program's instructions, after the verifier removed unreachable ones.
    pub instructions: u32,
    /// The number of instructions that the verifier processed on all paths; `None` before Linux 5.16.
    pub verified_instructions: Option<u32>,
    /// The kernel memory that the program occupies, in bytes.
    pub memory_bytes: u32,
}

/// Loads and unloads all programs, and returns their properties. `trace` loads them with the trace on.
pub fn verify(trace: bool) -> Result<Vec<Verified>> {
    require_privileges()?;
    let slot = 0_u32;
    let trace = u8::from(trace);
    let mut object = EbpfLoader::new()
        .override_global(abi::GLOBAL_INTERFACE, &slot, true)
        .override_global(abi::GLOBAL_TRACE, &trace, true)
        .load(OBJECT)
        .context("cannot create the kernel maps")?;
    let refused = |name| {
        format!(
            "the kernel rejected the program {name}; report this with the verifier log, which follows"
        )
    };
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
    let (egress, own_process) = (egress::load_unpinned()?, own_process::load()?);
    for (name, program) in egress.programs().chain(own_process.programs()) {
        let units = abi::UNIT_PROGRAMS.map(|(name, _)| name);
        let names = abi::CONNECT_PROGRAMS
            .into_iter()
            .chain([
                abi::RECEIVE_PROGRAM,
                abi::QUERY_PROGRAM,
                abi::PROCESS_ID_PROGRAM,
            ])
            .chain(units);
        if let Some(name) = names.into_iter().find(|one| *one == name) {
            verified.push(numbers(name, &program.info()?)?);
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
