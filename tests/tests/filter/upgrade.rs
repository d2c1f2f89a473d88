//! An upgrade from a real older build, under traffic: its eBPF object filters, and the program of today takes over.
//!
//! `fixtures/upgrade` has the object and the state directory of that build, and its README how they were made.

use std::fs;
use std::io::Read as _;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};

use allowlist_common::abi::{METADATA, VERSION};
use allowlist_dataplane::interface::look_up;
use allowlist_dataplane::{AttachModeRequest, Build, Dataplane};
use allowlist_lists::state::StateDir;
use allowlist_policy::compile::{IdTable, compile};
use allowlist_policy::{Feed, Origin, Snapshot as Lists};
use allowlist_tests::lab::{Ended, Snapshot, WallClock};
use allowlist_user::config::Config;
use allowlist_user::journal::PolicyHistory;
use anyhow::ensure;
use aya::maps::Array;
use expect_test::expect_file;
use flate2::read::GzDecoder;
use jiff::Timestamp;
use nix::mount::{MsFlags, mount};

use super::lifecycle::xdp_program;
use super::*;

/// The directory of the older program's files, whose paths the state contains.
const FOLDER: &str = "/mnt/allowlist";
/// The older program's file with the names of ids.
const RECORD: &str = "record.v2.json";
/// The flow tracker's name in the older object.
const OLDER_TRACKER: &str = "allowlist_sent";
/// The time between the end of the older program and the start of this one, in seconds. One added prefix expires in it.
const PAUSE: i64 = 3600;
/// The peer's port that the host queries.
const QUERIED: u16 = 53;

/// A host with the files of the older program, and the time by the clock of its next program.
struct Older {
    testbed: Testbed,
    clock: WallClock,
    config: PathBuf,
}

impl Older {
    fn new() -> anyhow::Result<Self> {
        let testbed = Testbed::new()?;
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/upgrade");
        // In the private mount namespace of the testbed.
        let (kind, none) = (Some("tmpfs"), None::<&str>);
        mount(kind, "/mnt", kind, MsFlags::empty(), Some("mode=0700"))?;
        mount(none, "/mnt", none, MsFlags::MS_PRIVATE, none)?;
        fs::create_dir(FOLDER)?;
        copy(&fixture, Path::new(FOLDER))?;
        fs::create_dir(testbed.scratch.file("state"))?;
        copy(&fixture.join("state"), &testbed.scratch.file("state"))?;

        let clock = WallClock::new(&testbed.scratch)?;
        let log = allowlist_user::event_log::read(&testbed.scratch.file("state"))?;
        let end = log.operations.last().context("no entry in the log")?.time;
        clock.set(end.as_second() + PAUSE - Timestamp::now().as_second())?;
        Ok(Self {
            testbed,
            clock,
            config: Path::new(FOLDER).join("allowlist.toml"),
        })
    }

    /// Loads, publishes and attaches the older object, with the policy of the older state and without a daemon.
    fn filter(&self) -> anyhow::Result<()> {
        let state_dir = self.testbed.scratch.file("state");
        let config = Config::load(&self.config)?;
        let history = PolicyHistory::load_readonly(&state_dir)?;
        let additions = history.additions();
        let policy = additions.with(&config.policy);
        let state = StateDir::find(&state_dir)?.context("no state")?;
        let mut lists = Lists::new();
        for source in &policy.sources {
            let feed = match &source.origin {
                Origin::Prefixes(prefixes) => Some(Feed::new(prefixes.clone(), Timestamp::now())),
                Origin::Added => None,
                _ => state.load(source)?,
            };
            lists.extend(feed.map(|feed| (source.name.clone(), feed.into())));
        }
        for service in additions.services() {
            let feed = additions.feed(service).context("no added prefix")?;
            lists.insert(allowlist_user::additions::source_name(service), feed.into());
        }
        let record: Value = serde_json::from_slice(&fs::read(state_dir.join(RECORD))?)?;
        let ids: IdTable = serde_json::from_value(record["names"].clone())?;
        let tables = compile(&policy, &lists, config.max_prefixes, &ids)?;
        ensure!(tables.ids == ids, "{:?}", tables.ids);
        let newest = history.newest().context("no policy")?;
        let mode = newest.change.mode.context("no mode")?;

        let mut object = Vec::new();
        let compressed = fs::read(Path::new(FOLDER).join("allowlist-ebpf.gz"))?;
        GzDecoder::new(&*compressed).read_to_end(&mut object)?;
        let object: &[u8] = object.leak();
        let build = Build {
            object,
            ..Build::CURRENT
        };
        let runtime = tokio::runtime::Runtime::new()?;
        self.testbed.host.run(|| {
            let facts = runtime.block_on(look_up("eth0"))?;
            let pins = self.testbed.scratch.pin_dir();
            let mut dataplane = Dataplane::open_build(build, pins, Some(config.max_flows))?;
            dataplane.prepare_tracking()?;
            dataplane.enable_tracking(&facts)?;
            while u64::from(dataplane.generation()) < record["generation"].as_u64().unwrap_or(0) {
                dataplane.publish(&tables, mode, &config.rules, &config.interfaces, &[])?;
            }
            dataplane.attach(&facts, AttachModeRequest::Native, false)?;
            dataplane.arm()?;
            anyhow::Ok(())
        })?;
        // The older program had a checksum of the names in the kernel, and the names on disk.
        let pins = self.testbed.scratch.pin_dir().join(format!("v{VERSION}"));
        fs::remove_file(pins.join(METADATA))?;
        let mut names: Array<_, u64> = aya::EbpfLoader::new()
            .load(object)?
            .take_map("NAMES")
            .context("no map of names")?
            .try_into()?;
        names.set(0, ids.checksum(), 0)?;
        names.pin(pins.join("NAMES"))?;
        Ok(())
    }

    /// Starts the program of today.
    fn start(&self) -> anyhow::Result<Program> {
        let mut command =
            self.testbed
                .command(&["run", "--config", &self.config.display().to_string()])?;
        self.clock.show(&mut command);
        let program = Program::start(command)?;
        program.wait_for_line("ready", SOON)?;
        Ok(program)
    }

    /// Runs a command of the program of today.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<Ended> {
        let mut command = self.testbed.command(arguments)?;
        self.clock.show(&mut command);
        Ended::of(command)
    }

    fn json(&self, arguments: &[&str]) -> anyhow::Result<Value> {
        let ended = self.run(&[arguments, &["--json"]].concat())?;
        serde_json::from_str(&ended.stdout).with_context(|| format!("{ended:?}"))
    }

    fn program(&self) -> anyhow::Result<u32> {
        xdp_program(&self.testbed, "eth0")?.context("no program is attached")
    }

    fn tracker(&self) -> anyhow::Result<Vec<String>> {
        use aya::programs::SchedClassifier;
        use aya::programs::tc::TcAttachType;
        let query = || SchedClassifier::query_tcx("eth0", TcAttachType::Egress);
        let (_, programs) = self.testbed.host.run(query)?;
        let name = |program: &aya::programs::ProgramInfo| Some(program.name_as_str()?.to_owned());
        Ok(programs.iter().filter_map(name).collect())
    }
}

/// Copies the files of a directory, without directories in it.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// A query of the host to the peer, whose answers pass only by the flow table.
struct Query {
    client: UdpSocket,
    server: UdpSocket,
}

impl Query {
    /// Sends a query, and answers it.
    fn new(testbed: &Testbed) -> anyhow::Result<Self> {
        let server = testbed
            .peer
            .run(|| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, QUERIED)))?;
        let client = testbed.host.run(|| -> std::io::Result<UdpSocket> {
            let client = UdpSocket::bind("198.51.100.1:0")?;
            client.connect(("198.51.100.2", QUERIED))?;
            Ok(client)
        })?;
        server.set_read_timeout(Some(SOON))?;
        client.set_read_timeout(Some(SOON))?;
        client.send(b"query")?;
        server.recv_from(&mut [0; 16])?;
        let query = Self { client, server };
        query.answer()?;
        Ok(query)
    }

    /// Sends another answer, and requires that it passes.
    fn answer(&self) -> anyhow::Result<()> {
        self.server.send_to(b"answer", self.client.local_addr()?)?;
        let answered = self.client.recv(&mut [0; 16]);
        answered.context("the answer was dropped").map(drop)
    }
}

#[test]
fn the_older_program_is_replaced_under_traffic() -> anyhow::Result<()> {
    require_root!();
    let older = Older::new()?;
    let testbed = &older.testbed;
    older.filter()?;
    let before = older.program()?;
    ensure!(older.tracker()? == [OLDER_TRACKER], "{:?}", older.tracker());

    let friends = [
        &FRIENDS[..],
        &["198.18.0.7", "198.18.7.7", "198.19.1.7", "198.19.2.7"],
    ]
    .concat();
    let strangers = [&STRANGERS[..], &["198.18.50.7", "198.19.4.7", "198.19.5.7"]].concat();
    let sources = [&friends[..], &strangers].concat();
    let mut reports = Snapshot::new();
    let mut daemon = None;
    let streamed = Streamed::during(testbed, &sources, || {
        let query = Query::new(testbed)?;
        ensure!(older.program()? == before, "the program changed");
        let started = older.start()?;
        ensure!(older.program()? != before, "the program is the older one");
        ensure!(
            older.tracker()? == ["allowlist_track"],
            "{:?}",
            older.tracker()
        );
        query.answer()?;
        eventually(|| Ok(older.json(&["sources"])?["sources"]["partners"]["state"] == "refused"))?;
        for arguments in [
            &["list", "--json"][..],
            &["list", "--added", "--json"],
            &["rollback", "--list", "--json"],
            &["history", "--json"],
            &["log", "--json"],
        ] {
            let ended = older.run(arguments)?;
            reports.ended(&arguments.join(" "), &ended, Some(&testbed.scratch));
        }
        daemon = Some(started);
        Ok(())
    })?;
    streamed.check(&friends, &strangers);

    // Counters contain the packets of both programs.
    let counted = || -> anyhow::Result<[Value; 5]> {
        let status = older.json(&["status"])?;
        let counters = &status["counters"]["eth0"];
        let passed = |name: &str| status["sources"][name]["passed_packets"].clone();
        Ok([
            passed("friends"),
            passed("partners"),
            passed("added.web"),
            counters["pass"]["allowed"].clone(),
            counters["drop"]["not-allowed"].clone(),
        ])
    };
    let rounds = streamed.rounds;
    let expected = [2, 2, 2, friends.len() as u64, strangers.len() as u64].map(|one| one * rounds);
    eventually(|| Ok(counted()? == expected))
        .with_context(|| format!("{:?}, not {expected:?}", counted()))?;
    let status = older.json(&["status"])?;
    for (key, value) in [
        ("mode", json!("enforce")),
        ("filtering", json!(true)),
        ("as_configured", json!(true)),
        ("generation", json!(11)),
    ] {
        ensure!(status[key] == value, "{key}: {status}");
    }
    ensure!(status["daemon"]["policy"] == 9, "{status}");
    // The files of the older program are migrated, and the names are in the kernel.
    let files = fs::read_dir(testbed.scratch.file("state"))?;
    let mut files: Vec<_> = files
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<anyhow::Result<_>>()?;
    files.sort();
    let expected = [
        "events.v1.jsonl",
        "events.v1.old.jsonl",
        "journal.v2.jsonl",
        "partners.json",
        "redaction.key",
    ];
    ensure!(files == expected, "{files:?}");
    let partners = fs::read_to_string(testbed.scratch.file("state/partners.json"))?;
    ensure!(partners.starts_with("5 "), "{partners}");
    let pins = fs::read_dir(testbed.scratch.pin_dir().join(format!("v{VERSION}")))?;
    for pin in pins {
        ensure!(pin?.file_name() != "NAMES", "the older map is pinned");
    }
    // The prefix whose time to live ended between the two programs.
    assert!(!gets_through(testbed, "198.19.3.7")?);
    reports.check(&expect_file!["snapshots/upgrade.txt"]);

    drop(daemon);
    let detached = older.run(&["detach"])?;
    ensure!(detached.code == Some(0), "{detached:?}");
    assert!(gets_through(testbed, STRANGERS[0])?);
    assert_eq!(xdp_program(testbed, "eth0")?, None);
    assert_eq!(older.tracker()?, [""; 0]);
    assert!(!testbed.scratch.pin_dir().exists());
    Ok(())
}
