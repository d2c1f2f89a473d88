//! A wall clock for one process that a test can set. Linux has no namespace for the wall clock, and the machine's clock
//! must stay unchanged.
//!
//! A small C library is preloaded that replaces `clock_gettime` of the C library. Timers and other clocks are not affected.
//! Needs the C compiler that the build of the program needs too.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, ensure};

use super::Scratch;

const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    const char *path = getenv("WALL_CLOCK_OFFSET");
    char text[32] = "";
    if (clock == CLOCK_REALTIME && path) {
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, text, sizeof text - 1) > 0)
                now->tv_sec += atoll(text);
            close(file);
        }
    }
    return result;
}
"#;

/// A wall clock with an offset from the machine's clock, initially 0.
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// Compiles the library in the files of a scratch directory.
    pub fn new(scratch: &Scratch) -> anyhow::Result<Self> {
        let source = scratch.write("clock.c", SOURCE)?;
        let library = scratch.file("clock.so");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status()
            .context("there is no C compiler `cc`")?;
        ensure!(status.success(), "the C compiler `cc` failed ({status})");
        let offset = scratch.write("clock.offset", "0")?;
        Ok(Self { library, offset })
    }

    /// Makes a program that is not started yet use this clock.
    pub fn show(&self, program: &mut Command) {
        program
            .env("LD_PRELOAD", &self.library)
            .env("WALL_CLOCK_OFFSET", &self.offset);
    }

    /// Sets the offset from the machine's clock in seconds.
    pub fn set(&self, offset: i64) -> anyhow::Result<()> {
        // Replaced atomically, because the program may read the file at any time.
        let new = self.offset.with_extension("new");
        fs::write(&new, offset.to_string())?;
        Ok(fs::rename(new, &self.offset)?)
    }
}
