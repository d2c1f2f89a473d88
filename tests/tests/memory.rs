//! The memory of the program: a list that would need too much is refused before it is read, and the daemon stays within the
//! limit of its unit.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use allowlist_lists::feed::{self, FeedError};
use allowlist_policy::{Format, Select};
use allowlist_tests::lab::{Program, Testbed};
use allowlist_tests::{require_root, skip};
use anyhow::ensure;
use jiff::civil::Date;
use nix::sys::signal::Signal;

const UNIT: &str = include_str!("../../dist/allowlist.service");
const TODAY: Date = Date::constant(2026, 11, 29);
/// Long enough for a machine that is busy building.
const SOON: Duration = Duration::from_mins(5);

thread_local! {
    /// The bytes that this thread has allocated and not freed, and their maximum.
    static ALLOCATED: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

struct Counting;

fn count(bytes: isize) {
    // A thread that ends has no counters.
    let _ = ALLOCATED.try_with(|allocated| {
        let (now, most) = allocated.get();
        let now = now + bytes;
        allocated.set((now, most.max(now)));
    });
}

// SAFETY: each call is passed to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the caller's guarantees are passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Parses a list, and returns the maximum of allocated memory in MiB, and whether the list was refused for that.
fn peak(format: &Format, text: &str) -> (isize, bool) {
    let before = ALLOCATED.get().0;
    ALLOCATED.set((before, before));
    let list = feed::parse(format, text.as_bytes(), TODAY);
    let (_, most) = ALLOCATED.get();
    let is_refused = matches!(list, Err(FeedError::TooMuchMemory));
    ((most - before) >> 20, is_refused)
}

fn objects(count: usize) -> String {
    format!("[{}{{}}]", r#"{"a":1},"#.repeat(count))
}

/// Lists of all forms: an accepted list needs about the limit at most, and a refused one almost no memory.
#[test]
fn json_takes_memory_within_its_limit() {
    let select = |text: &str| Format::Json(vec![Select::new(text).expect("a JSONPath")].into());
    let format = select("$.none");
    let mut refused = 0;
    for exponent in [12, 16, 18, 20] {
        let many = 1 << exponent;
        for text in [
            objects(many),
            format!("[{}0]", "0,".repeat(many)),
            format!("[{}0]", "[],".repeat(many)),
            format!("[{}0]", "[0],".repeat(many)),
            format!("[{}0]", "\"192.0.2.1\",".repeat(many)),
            format!("[{}0]", "{\"a\":{\"b\":[1,2,3]}},".repeat(many / 4)),
            format!(
                "{{{}\"z\":0}}",
                (0..many / 2).fold(String::new(), |text, n| text + &format!("\"{n:x}\":0,"))
            ),
        ] {
            let (mib, is_refused) = peak(&format, &text);
            let most = if is_refused { 0 } else { 64 + 16 };
            let shape: String = text.chars().take(20).collect();
            assert!(
                mib <= most,
                "{many} of {shape}: {mib} MiB, refused {is_refused}"
            );
            refused += usize::from(is_refused);
        }
    }
    assert!(refused > 3, "{refused}");
}

/// A memory cgroup of version 1 or 2.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Option<Self> {
        let name = format!("allowlist-test-{}", std::process::id());
        for (root, file) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ] {
            let group = Self(PathBuf::from(root).join(&name));
            if fs::create_dir(&group.0).is_ok()
                && fs::write(group.0.join(file), limit.to_string()).is_ok()
            {
                return Some(group);
            }
        }
        None
    }

    /// Returns the peak memory use of the cgroup.
    fn peak(&self) -> Option<u64> {
        let files = ["memory.max_usage_in_bytes", "memory.peak"];
        let text = files
            .iter()
            .find_map(|file| fs::read_to_string(self.0.join(file)).ok());
        text?.trim().parse().ok()
    }

    /// Makes a command start in the cgroup.
    fn add(&self, mut command: Command) -> anyhow::Result<Command> {
        let mut members = fs::File::options()
            .write(true)
            .open(self.0.join("cgroup.procs"))?;
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(move || members.write_all(b"0"));
        }
        Ok(command)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns `MemoryMax=` of the unit in bytes.
fn limit() -> u64 {
    let line = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("MemoryMax="));
    let mib = line
        .and_then(|line| line.strip_suffix('M'))
        .expect("a limit in MiB");
    mib.parse::<u64>().expect("a number") << 20
}

/// Lists of 4 MB in each format that have to be refused: the daemon continues, the last-good lists stay active, also after a
/// restart.
#[test]
fn the_daemon_stays_within_the_limit_of_its_unit() -> anyhow::Result<()> {
    require_root!();
    let Some(group) = Group::new(limit()) else {
        skip!("cannot create a memory cgroup");
    };
    let testbed = Testbed::new()?;
    let formats = [
        ("json", "format = 'json'\nselect = ['$[*].a']"),
        ("jsonl", "format = 'jsonl'\nselect = ['$..a']"),
        ("csv", "format = 'csv'\ncolumn = 0"),
        ("text", "format = 'text'"),
    ];
    let mut config =
        "interfaces = ['eth0']\nat_start = 'drop'\n[services.web]\nports = ['udp/443']\n\
                      allow = ['json', 'jsonl', 'csv', 'text']\n"
            .to_owned();
    for (name, format) in formats {
        config += &format!("[sources.{name}]\nfile = '{name}'\n{format}\n");
        let good = match name {
            "json" => "[{\"a\":\"203.0.113.7\"}]".to_owned(),
            "jsonl" => "{\"a\":\"203.0.113.7\"}".to_owned(),
            _ => "203.0.113.7\n".to_owned(),
        };
        testbed.scratch.write(name, good)?;
    }
    let path = testbed.scratch.write("allowlist.toml", config)?;
    let path = path.display().to_string();
    let start = || -> anyhow::Result<Program> {
        let command = group.add(testbed.command(&["run", "--config", &path])?)?;
        let run = Program::start(command)?;
        run.wait_for_line("ready", SOON)?;
        Ok(run)
    };
    let mut daemon = start()?;
    let failed = |run: &Program| -> anyhow::Result<()> {
        for (name, _) in formats {
            run.wait_for_line(&format!(": source {name}: "), SOON)?;
            let sources = testbed.json("sources")?;
            ensure!(
                sources["sources"][name]["prefixes"] == 1,
                "{name}: {sources}"
            );
        }
        Ok(())
    };
    let bytes = 4 << 20;
    testbed.scratch.write("json", objects(bytes / 8))?;
    testbed
        .scratch
        .write("jsonl", "{\"b\":{}}\n".repeat(bytes / 9))?;
    testbed.scratch.write("csv", "\"x\",".repeat(bytes / 4))?;
    let addresses =
        (0..bytes / 14).map(|n| format!("10.{}.{}.{}\n", (n >> 16) & 255, (n >> 8) & 255, n & 255));
    testbed
        .scratch
        .write("text", addresses.collect::<String>())?;
    failed(&daemon)?;
    daemon.stop(Signal::SIGKILL, SOON)?;
    daemon = start()?;
    failed(&daemon)?;
    daemon.stop(Signal::SIGTERM, SOON)?;
    eprintln!(
        "at most {:?} MiB of {}",
        group.peak().map(|peak| peak >> 20),
        limit() >> 20
    );
    Ok(())
}
