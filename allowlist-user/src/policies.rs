//! The last policies on disk: what each configuration said and what was added by command since, so that one
//! can be gone back to.
//!
//! Invariants: a policy is on disk whole, with its checksum, or not at all; numbers only grow; of each is
//! known what leads back to the one before it. Knows neither the kernel nor whether a policy is a good one.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::additions::Edit;
use crate::state::{StateDir, StateError};

/// So many are kept.
pub const KEPT: usize = 20;
/// No source's file can have such a name, since a source's name has no dot.
const PREFIX: &str = "policy.v1.";
const POINTER: &str = "policy.v1.held-back";

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its number.
    pub number: u64,
    /// When it came in force.
    pub time: Timestamp,
    /// Who made it.
    pub by: String,
    /// What made it, in words.
    pub what: String,
    /// The configuration.
    pub written: Written,
    /// What leads back to the additions of the policy before, in order.
    pub undo: Vec<Edit>,
}

/// A configuration as somebody wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    /// Its file; none if it was typed.
    pub file: Option<PathBuf>,
    /// What it says.
    pub text: String,
    /// Interfaces that were typed, and stand for those of the text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
}

impl Written {
    /// What tells it from others.
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(self.text.as_bytes())
    }
}

/// A file whose last change was taken back: what it says does not count until it says something else, or
/// somebody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldBack {
    /// Of what the file says.
    pub checksum: u32,
    /// The policy that is in force instead.
    pub policy: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    crc32: u32,
    policy: Kept,
}

/// All that are kept.
#[derive(Debug)]
pub struct Policies {
    kept: Vec<Kept>,
    held_back: Option<HeldBack>,
}

impl Policies {
    /// Reads them; what cannot be read is left out and said.
    pub fn open(state: &StateDir) -> Result<(Self, Vec<StateError>), StateError> {
        let folder = state.path();
        let io = |cause| StateError::Io {
            path: folder.to_owned(),
            cause,
        };
        let (mut kept, mut problems) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(folder).map_err(io)? {
            let path = entry.map_err(io)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let number = name.strip_prefix(PREFIX);
            if number.is_none_or(|number| !number.bytes().all(|byte| byte.is_ascii_digit())) {
                continue;
            }
            match read(&path) {
                Ok(policy) => kept.push(policy),
                Err(error) => problems.push(error),
            }
        }
        kept.sort_by_key(|policy: &Kept| policy.number);
        let held_back = match fs::read(folder.join(POINTER)) {
            Ok(bytes) => serde_json::from_slice(&bytes).ok(),
            Err(_) => None,
        };
        Ok((Self { kept, held_back }, problems))
    }

    /// The oldest first.
    pub fn all(&self) -> &[Kept] {
        &self.kept
    }

    /// The one in force.
    pub fn newest(&self) -> Option<&Kept> {
        self.kept.last()
    }

    /// By number.
    pub fn get(&self, number: u64) -> Option<&Kept> {
        self.kept.iter().find(|policy| policy.number == number)
    }

    /// What leads from the newest back to the additions of policy `number`.
    pub fn back_to(&self, number: u64) -> Vec<Edit> {
        let later = self.kept.iter().rev().take_while(|one| one.number > number);
        later.flat_map(|policy| policy.undo.clone()).collect()
    }

    /// The number of the next one.
    pub fn next_number(&self) -> u64 {
        self.newest().map_or(1, |policy| policy.number + 1)
    }

    /// Keeps one more, and lets go of the oldest where there are too many.
    pub fn keep(&mut self, state: &StateDir, policy: Kept) -> Result<(), StateError> {
        let json = serde_json::to_vec(&policy).expect("strings and numbers are JSON");
        let stored = Stored {
            crc32: crc32fast::hash(&json),
            policy,
        };
        let bytes = serde_json::to_vec(&stored).expect("strings and numbers are JSON");
        state.write(&file(stored.policy.number), &bytes)?;
        self.kept.push(stored.policy);
        while self.kept.len() > KEPT {
            let oldest = self.kept.remove(0);
            // One that stays is read again, and goes with the next.
            let _ = fs::remove_file(state.path().join(file(oldest.number)));
        }
        Ok(())
    }

    /// The file whose last change was taken back.
    pub fn held_back(&self) -> Option<HeldBack> {
        self.held_back
    }

    /// Says so, or takes it back.
    pub fn hold_back(
        &mut self,
        state: &StateDir,
        held_back: Option<HeldBack>,
    ) -> Result<(), StateError> {
        if self.held_back == held_back {
            return Ok(());
        }
        let path = state.path().join(POINTER);
        match held_back {
            Some(held_back) => {
                let bytes = serde_json::to_vec(&held_back).expect("numbers are JSON");
                state.write(POINTER, &bytes)?;
            }
            None => match fs::remove_file(&path) {
                Err(cause) if cause.kind() != ErrorKind::NotFound => {
                    return Err(StateError::Io { path, cause });
                }
                _ => {}
            },
        }
        self.held_back = held_back;
        Ok(())
    }
}

fn file(number: u64) -> String {
    format!("{PREFIX}{number}")
}

fn read(path: &Path) -> Result<Kept, StateError> {
    let bytes = fs::read(path).map_err(|cause| StateError::Io {
        path: path.to_owned(),
        cause,
    })?;
    let damaged = |problem: String| StateError::Damaged {
        path: path.to_owned(),
        problem,
        kept: None,
    };
    let stored: Stored =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let json = serde_json::to_vec(&stored.policy).expect("strings and numbers are JSON");
    if crc32fast::hash(&json) != stored.crc32 {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    Ok(stored.policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(number: u64) -> Kept {
        Kept {
            number,
            time: Timestamp::UNIX_EPOCH,
            by: "root".to_owned(),
            what: "reload".to_owned(),
            written: Written {
                file: None,
                text: format!("# {number}"),
                interfaces: Vec::new(),
            },
            undo: vec![Edit::Remove {
                prefix: format!("192.0.2.{number}/32").parse().expect("a prefix"),
                service: "web".to_owned(),
            }],
        }
    }

    #[test]
    fn the_last_are_kept() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let (mut policies, _) = Policies::open(&state).expect("is readable");
        assert_eq!(policies.next_number(), 1);
        for number in 1..=25 {
            policies.keep(&state, policy(number)).expect("is written");
        }
        let held_back = Some(HeldBack {
            checksum: 7,
            policy: 24,
        });
        policies.hold_back(&state, held_back).expect("is written");
        let (read, problems) = Policies::open(&state).expect("is readable");
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(read.all(), policies.all());
        assert_eq!((read.all().len(), read.all()[0].number), (KEPT, 6));
        assert_eq!(read.held_back(), held_back);
        assert_eq!(read.next_number(), 26);
        let back: Vec<_> = read.back_to(22).iter().map(Edit::prefix).collect();
        let expected = [25, 24, 23].map(|number| policy(number).undo[0].prefix());
        assert_eq!(back, expected);
        policies.hold_back(&state, None).expect("is removed");
        assert_eq!(
            Policies::open(&state).expect("is readable").0.held_back(),
            None
        );
    }

    #[test]
    fn a_damaged_one_is_said_and_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let state = StateDir::open(folder.path()).expect("a state directory");
        let (mut policies, _) = Policies::open(&state).expect("is readable");
        for number in 1..=3 {
            policies.keep(&state, policy(number)).expect("is written");
        }
        let path = folder.path().join(file(2));
        let text = fs::read_to_string(&path).expect("is there");
        fs::write(&path, text.replace("# 2", "# 3")).expect("is written");
        let (read, problems) = Policies::open(&state).expect("is readable");
        let numbers: Vec<_> = read.all().iter().map(|policy| policy.number).collect();
        assert_eq!(numbers, [1, 3]);
        let problem = problems[0].to_string();
        assert!(problem.contains("policy.v1.2: is damaged"), "{problem}");
    }
}
