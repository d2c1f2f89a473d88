//! A wall clock that one process sees, and a test sets: the machine's own is nobody's to touch, and no
//! namespace has one.
//!
//! A few lines of C stand before the C library's `clock_gettime` in that process. Timers and everything else
//! that goes by other clocks go on as they are. Needs the C compiler that building the program needs.

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

/// A clock that shows the true time until it is set.
pub struct WallClock {
    library: PathBuf,
    offset: PathBuf,
}

impl WallClock {
    /// In a scratch's files.
    pub fn new(scratch: &Scratch) -> anyhow::Result<Self> {
        let source = scratch.write("clock.c", SOURCE)?;
        let library = scratch.file("clock.so");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .status()
            .context("there is no C compiler `cc`")?;
        ensure!(status.success(), "cc: {status}");
        let offset = scratch.write("clock.offset", "0")?;
        Ok(Self { library, offset })
    }

    /// Lets a program that is yet to start see this clock.
    pub fn show(&self, program: &mut Command) {
        program
            .env("LD_PRELOAD", &self.library)
            .env("WALL_CLOCK_OFFSET", &self.offset);
    }

    /// Sets it so many seconds from the true time.
    pub fn set(&self, offset: i64) -> anyhow::Result<()> {
        // Whole at once: the program looks at any moment.
        let new = self.offset.with_extension("new");
        fs::write(&new, offset.to_string())?;
        Ok(fs::rename(new, &self.offset)?)
    }
}
