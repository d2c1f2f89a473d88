//! The egress policy's part of the demo: two programs, each in a cgroup of its own, resolve a name by a local name server
//! and connect to it. A rule allows the one, and the kernel refuses the other.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use allowlist_dataplane::cgroup_mount_point;
use allowlist_tests::lab::{Cgroup, Ended, Namespace, add_addresses};
use allowlist_tests::name_server::{NameServer, Reply};
use anyhow::{Context, ensure};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use serde::{Deserialize, Serialize};

use super::topology::INTERFACE;

/// The name that both programs resolve.
const NAME: &str = "events.pagerduty.com";
/// Its address in the demo's internet, from the range for documentation.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const PORT: u16 = 443;
/// The programs, by the cgroup in which each runs, with the expected result.
const PROGRAMS: [(&str, &str); 2] = [("alerts", CONNECTED), ("batch", "EPERM")];
const CONNECTED: &str = "connected";
/// The time for an answer of the name server, which is on the same machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The cgroups of the programs, and the servers that they use.
pub(crate) struct Programs {
    /// The cgroups; the policy is attached to the last one, which contains the others. Children are removed first.
    cgroups: Vec<Cgroup>,
    names: NameServer,
    _server: TcpListener,
}

/// The result of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Attempt {
    /// The name of the program's cgroup.
    #[serde(default)]
    pub(crate) unit: String,
    /// The name that it resolved.
    pub(crate) name: String,
    /// The address that the name server answered.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    /// "connected", or the name of the error.
    pub(crate) result: String,
}

impl Programs {
    /// Creates the cgroups and the servers; `None` if this machine has no cgroup v2, on which the egress policy depends.
    pub(crate) fn new(host: &Namespace, internet: &Namespace) -> anyhow::Result<Option<Self>> {
        if cgroup_mount_point().is_err() {
            return Ok(None);
        }
        add_addresses(internet, INTERFACE, &[ADDRESS.into()])?;
        let server = internet.run(|| TcpListener::bind((ADDRESS, PORT)))?;
        let record = format!("{NAME} 60 A {ADDRESS}");
        let names = host.run(|| NameServer::start([(NAME, Reply::records([&*record]))]))?;
        let root = Cgroup::new()?;
        let mut cgroups = Vec::new();
        for (unit, _) in PROGRAMS {
            cgroups.push(root.child(unit)?);
        }
        cgroups.push(root);
        Ok(Some(Self {
            cgroups,
            names,
            _server: server,
        }))
    }

    /// Returns the egress policy of the demo as configuration.
    pub(crate) fn configuration(&self) -> String {
        let path = |place: usize| self.cgroups[place].below_root().display();
        let server = self.names.address();
        format!(
            r#"
[egress]
default = "refuse"
resolvers = ["{server}"]
cgroups = ["{}"]

[egress.rules.alerts]
to = ["pagerduty-events"]
ports = ["tcp/{PORT}"]
units = ["{}"]

[sources.pagerduty-events]
names = ["{NAME}"]
resolvers = ["{server}"]
allow_special_use = true # the address in the demo is one for documentation
"#,
            path(self.cgroups.len() - 1),
            path(0)
        )
    }

    /// Runs the programs one after the other, and returns the result of each.
    pub(crate) fn run(&self, host: &Namespace) -> anyhow::Result<Vec<Attempt>> {
        let run = |((unit, _), cgroup): (&(&str, &str), &Cgroup)| {
            let mut command = host.command(std::env::current_exe()?)?;
            command.args(["--connect-by", &self.names.address().to_string()]);
            cgroup.hold(&mut command)?;
            let ended = Ended::of(command)?;
            ensure!(
                ended.code == Some(0),
                "the program in the cgroup {unit} failed: {}",
                ended.stderr
            );
            let attempt: Attempt = serde_json::from_str(&ended.stdout)?;
            anyhow::Ok(Attempt {
                unit: (*unit).to_owned(),
                ..attempt
            })
        };
        PROGRAMS.iter().zip(&self.cgroups).map(run).collect()
    }
}

/// Returns a line for each program whose result is not the expected one.
pub(crate) fn disagreements(attempts: &[Attempt]) -> Vec<String> {
    let expected = PROGRAMS.iter().zip(attempts);
    expected
        .filter(|((_, expected), attempt)| attempt.result != *expected)
        .map(|((unit, expected), attempt)| {
            format!(
                "the program in the cgroup {unit}: expected {expected}, but its result was {}",
                attempt.result
            )
        })
        .collect()
}

/// The work of each program: resolves the name by the server, connects at once, and prints the result as JSON.
pub(crate) fn connect_by(server: SocketAddr) -> anyhow::Result<()> {
    let address = resolve(server).with_context(|| format!("cannot resolve {NAME} by {server}"))?;
    let result = match TcpStream::connect((address, PORT)) {
        Ok(_) => CONNECTED.to_owned(),
        Err(error) => name_of(&error),
    };
    let attempt = Attempt {
        unit: String::new(),
        name: NAME.to_owned(),
        address,
        port: PORT,
        result,
    };
    println!("{}", serde_json::to_string(&attempt)?);
    Ok(())
}

fn resolve(server: SocketAddr) -> anyhow::Result<IpAddr> {
    let mut query = Message::new(4660, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(NAME)?, RecordType::A));
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(server)?;
    socket.send(&query.to_vec()?)?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    let answer = Message::from_vec(&buffer[..length])?;
    let address = answer.answers.iter().find_map(|record| match &record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        _ => None,
    });
    address.context("the answer has no address")
}

/// Returns the name of a system error, such as `EPERM`.
fn name_of(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| format!("{:?}", nix::errno::Errno::from_raw(number)),
    )
}
