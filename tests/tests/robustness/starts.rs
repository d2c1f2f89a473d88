//! Starts with files, disks and servers that hang or fail: the filter is attached while a read still blocks.
//!
//! Each file and server is replaced in turn. The tests do not depend on time: a [`Hang`] never answers, a pipe has no
//! writer, and a server sends no data, so a filter that is attached has not waited.

use std::any::Any;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Instant;

use allowlist_tests::lab::{Hang, SlowFile};
use allowlist_tests::name_server::{NameServer, Reply};
use allowlist_tests::skip;
use allowlist_tests::vendor::{Answer, Vendor};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::*;

/// The files of the state directory after a start with these sources.
const STATE: [&str; 4] = [
    "events.v1.jsonl",
    "journal.v2.jsonl",
    "list.json",
    "vendor.json",
];

/// A testbed with stored lists, and servers that a test can silence.
struct Prepared {
    testbed: Testbed,
    config: String,
    vendor: Vendor,
    names: NameServer,
    /// The directory of the files that the configuration names.
    folder: PathBuf,
}

impl Prepared {
    fn new() -> anyhow::Result<Self> {
        let testbed = Testbed::new()?;
        let (vendor, names) = testbed.host.run(|| {
            let record = Reply::records(["hooks.example.com 60 A 198.18.0.9"]);
            let vendor = Vendor::start([("/list", Answer::json(r#"["198.18.0.1"]"#))])?;
            anyhow::Ok((vendor, NameServer::start([("hooks.example.com", record)])?))
        })?;
        let folder = testbed.scratch.file("named");
        fs::create_dir(&folder)?;
        fs::write(folder.join("list.txt"), friends_and(""))?;
        fs::write(folder.join("token"), "hush")?;
        let hook = folder.join("hook");
        fs::write(&hook, "#!/bin/sh\nexec sleep 20 > /dev/null 2>&1\n")?;
        fs::set_permissions(&hook, fs::Permissions::from_mode(0o700))?;
        let config = format!(
            "interfaces = ['eth0']\nat_start = 'drop'\n\
             [services.web]\nports = ['udp/443']\nallow = ['list', 'vendor', 'hooks', 'unknown']\n\
             [sources.list]\nfile = 'named/list.txt'\n\
             [sources.vendor]\nurl = '{url}'\nformat = 'json'\nbearer_file = 'named/token'\nallow_special_use = true\n\
             [sources.hooks]\nnames = ['hooks.example.com']\nresolvers = ['{resolver}']\nallow_special_use = true\n\
             [sources.unknown]\nnames = ['unknown.example.com']\n\
             [on_change]\ncommand = ['{hook}']\n",
            url = vendor.url("/list"),
            resolver = names.address(),
            hook = hook.display(),
        );
        let config = testbed.scratch.write("allowlist.toml", config)?;
        let prepared = Self {
            config: config.display().to_string(),
            testbed,
            vendor,
            names,
            folder,
        };
        // From now on each source has a list on disk.
        let mut filter = start(&prepared.testbed, &prepared.config)?;
        eventually(|| {
            let mut names = STATE.iter().chain(&["hooks.json"]);
            Ok(names.all(|name| prepared.state(name).exists()))
        })
        .with_context(|| filter.output())?;
        filter.stop(Signal::SIGTERM, SOON)?;
        Ok(prepared)
    }

    fn state(&self, name: &str) -> PathBuf {
        self.testbed.scratch.file("state").join(name)
    }

    /// Starts a detached filter while `replaced` exists, and returns after the daemon has attached it and has ended.
    fn check(&self, case: &str, replaced: impl Any) -> anyhow::Result<()> {
        let testbed = &self.testbed;
        let run = || -> anyhow::Result<()> {
            done(testbed, &["detach"]);
            let begun = Instant::now();
            let mut filter =
                Program::start(testbed.command(&["run", "--config", &self.config])?)?;
            filter.wait_for_line("eth0: attached", SOON)?;
            let elapsed = begun.elapsed();
            ensure!(
                !gets_through(testbed, STRANGERS[0])?,
                "a stranger's packet passed: {}",
                filter.output()
            );
            // By the stored list or the file.
            eventually(|| gets_through(testbed, FRIENDS[0])).with_context(|| filter.output())?;
            // The daemon ends although a read blocks.
            let ended = filter.stop(Signal::SIGTERM, SOON)?;
            ensure!(ended.success(), "{}", filter.output());
            eprintln!("{case}: attached after {elapsed:?}");
            Ok(())
        };
        let checked = run().with_context(|| case.to_owned());
        drop(replaced);
        checked
    }
}

/// Replaces a file until it is dropped.
struct Replaced {
    path: PathBuf,
    aside: PathBuf,
    _socket: Option<UnixListener>,
}

impl Replaced {
    fn new(path: &Path, how: &str) -> anyhow::Result<Self> {
        let aside = path.with_extension("aside");
        fs::rename(path, &aside)?;
        let mut socket = None;
        match how {
            "gone" => {}
            "pipe" => mkfifo(path, Mode::S_IRWXU)?,
            "socket" => socket = Some(UnixListener::bind(path)?),
            "folder" => fs::create_dir(path)?,
            "huge" => fs::File::create(path)?.set_len(1 << 40)?,
            "loop" => symlink(path, path)?,
            target => symlink(target, path)?,
        }
        Ok(Self {
            path: path.to_owned(),
            aside,
            _socket: socket,
        })
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path).or_else(|_| fs::remove_file(&self.path));
        let _ = fs::rename(&self.aside, &self.path);
    }
}

const HOWS: [&str; 8] = [
    "gone",
    "pipe",
    "socket",
    "folder",
    "huge",
    "loop",
    "/proc/kmsg",
    "/dev/zero",
];

#[test]
fn starts_with_unreadable_source_files() -> anyhow::Result<()> {
    require_root!();
    let prepared = Prepared::new()?;
    for name in ["list.txt", "token"] {
        let path = prepared.folder.join(name);
        for how in HOWS {
            let replaced = Replaced::new(&path, how)?;
            prepared.check(&format!("{name}: {how}"), replaced)?;
        }
    }
    Ok(())
}

#[test]
fn starts_with_unreadable_state_files() -> anyhow::Result<()> {
    require_root!();
    let prepared = Prepared::new()?;
    for how in HOWS {
        let replaced: Result<Vec<_>, _> = STATE
            .iter()
            .map(|name| Replaced::new(&prepared.state(name), how))
            .collect();
        prepared.check(&format!("the whole state: {how}"), replaced?)?;
    }
    Ok(())
}

/// Files that are read a byte at a time, and whose end no read reaches.
#[test]
fn starts_with_slow_files() -> anyhow::Result<()> {
    require_root!();
    if !Path::new("/dev/fuse").exists() {
        skip!("this machine has no FUSE");
    }
    let prepared = Prepared::new()?;
    let named = |name: &str| prepared.folder.join(name);
    let mut places = vec![named("list.txt"), named("token")];
    places.extend(STATE.map(|name| prepared.state(name)));
    for place in places.iter().filter(|place| place.exists()) {
        prepared.check(
            &format!("{} is slow", place.display()),
            SlowFile::over(place)?,
        )?;
    }
    Ok(())
}

/// The state directory itself is replaced.
#[test]
fn starts_with_a_replaced_state_directory() -> anyhow::Result<()> {
    require_root!();
    let prepared = Prepared::new()?;
    for how in ["pipe", "huge", "loop", "/dev/null"] {
        let replaced = Replaced::new(&prepared.testbed.scratch.file("state"), how)?;
        prepared.check(&format!("the state folder: {how}"), replaced)?;
    }
    Ok(())
}

/// File systems whose server hangs: all accesses block in the kernel.
#[test]
fn starts_with_hanging_file_systems() -> anyhow::Result<()> {
    require_root!();
    if !Path::new("/dev/fuse").exists() {
        skip!("this machine has no /dev/fuse");
    }
    let prepared = Prepared::new()?;
    let named = |name: &str| prepared.folder.join(name);
    let mut places = vec![
        named("list.txt"),
        named("token"),
        named("hook"),
        prepared.folder.clone(),
        prepared.testbed.scratch.file("state"),
        PathBuf::from("/etc/resolv.conf"),
    ];
    places.extend(STATE.map(|name| prepared.state(name)));
    for place in places.iter().filter(|place| place.exists()) {
        prepared.check(&format!("{} hangs", place.display()), Hang::over(place)?)?;
    }
    // File systems whose server has ended: all accesses fail.
    for place in &places[..5] {
        prepared.check(&format!("{} fails", place.display()), Hang::failing(place)?)?;
    }
    Ok(())
}

#[test]
fn starts_with_silent_and_endless_servers() -> anyhow::Result<()> {
    require_root!();
    let prepared = Prepared::new()?;
    prepared.vendor.answer("/list", Answer::Silence);
    prepared.names.reply("hooks.example.com", Reply::Silence);
    prepared.check("silent servers", ())?;
    // Slow, huge and invalid answers.
    for (how, answer) in [
        ("slow", Answer::Drip),
        ("endless", Answer::Endless),
        ("no HTTP", Answer::Noise),
    ] {
        prepared.vendor.answer("/list", answer);
        prepared.check(&format!("a server that is {how}"), ())?;
    }
    prepared.vendor.answer("/list", Answer::Silence);
    // Together with a file that hangs.
    let list = Replaced::new(&prepared.folder.join("list.txt"), "pipe")?;
    prepared.check("silent servers, and a pipe", list)
}

/// A file that hangs fails only its own source.
#[test]
fn a_file_that_hangs_fails_alone() -> anyhow::Result<()> {
    require_root!();
    if !Path::new("/dev/fuse").exists() {
        skip!("this machine has no /dev/fuse");
    }
    let (testbed, config) = prepared()?;
    let slow_list = testbed.scratch.write("hung.txt", "198.18.0.1\n")?;
    let with_hung = CONFIG
        .replace("['list']", "['list', 'hung']")
        .replace("interfaces", "at_start = 'drop'\ninterfaces")
        + "[sources.hung]\nfile = 'hung.txt'\n";
    fs::write(&config, with_hung)?;
    let hang = Hang::over(&slow_list)?;
    let filter = start(&testbed, &config)?;
    assert!(gets_through(&testbed, FRIENDS[0])?);
    // Other files are read when they are written, and commands work.
    testbed
        .scratch
        .write("list.txt", friends_and("198.19.0.1"))?;
    eventually(|| gets_through(&testbed, "198.19.0.1"))?;
    done(&testbed, &["add", "198.18.0.9", "--service", "web"]);
    let failure = || -> anyhow::Result<Value> {
        let sources = testbed.json("sources")?;
        Ok(sources["sources"]["hung"]["failure"].clone())
    };
    eventually(|| Ok(!failure()?.is_null())).with_context(|| filter.output())?;
    let failure = failure()?.to_string();
    assert!(
        failure.contains(&slow_list.display().to_string()) && failure.contains("10s"),
        "{failure}"
    );
    // The file is read when the file system answers.
    drop(hang);
    // A read that began before may still wait for its limit.
    eventually(|| Ok(testbed.run(&["refresh", "hung"])?.code == Some(0)))?;
    assert!(gets_through(&testbed, "198.18.0.1")?);
    Ok(())
}
