//! The contestants: a proxy with one setting each. Every setting is a row of `CONTESTANTS`; how it is written down for
//! its proxy, and how that is started, is here as well.
//!
//! What a setting has in numbers follows from the pool and the users of the run, by the rules that docs/demand.md
//! gives: a maximum is what a backend works on at a time, a wait in a queue is at most half of a user's patience, and
//! shedding aims at twice the time of one request.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tidegate_compare::process::{Ending, Process, find_program, output_of};
use tidegate_compare::{build, ports};

use crate::cli::Options;

/// Bound on the time from the start of a proxy until it listens.
const START_TIMEOUT: Duration = Duration::from_secs(10);
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(2);
/// What tidegate says of a window.
const TOLD: [&str; 3] = ["tidegate_connections_closed_total", "tidegate_pool_queue_", "tidegate_pool_shed_"];

const TIDEGATE_ARGUMENTS: &[&str] = &["run", "--announce", "--config"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// No proxy: at most what the users and the backends of this program can do.
    Direct,
    Tidegate(Control),
    Haproxy(Control),
}

/// What keeps the load away from the backends. Not each proxy has each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    Nothing,
    /// A maximum for each backend; who finds all full is turned away.
    Maxima,
    /// And a queue of half of the users' patience, with further lines of its table, and of a table for shedding.
    Queue {
        more: &'static str,
        shed: bool,
    },
    /// And a queue of five seconds, which is longer than the users' patience: a setting that many begin with.
    Long {
        more: &'static str,
        shed: bool,
    },
}

pub struct Contestant {
    pub name: &'static str,
    pub description: &'static str,
    /// Part of a quick run.
    pub is_quick: bool,
    kind: Kind,
}

const fn row(name: &'static str, is_quick: bool, kind: Kind, description: &'static str) -> Contestant {
    Contestant { name, description, is_quick, kind }
}

const fn queue(more: &'static str, shed: bool) -> Kind {
    Kind::Tidegate(Control::Queue { more, shed })
}

const fn long(more: &'static str, shed: bool) -> Kind {
    Kind::Tidegate(Control::Long { more, shed })
}

pub const CONTESTANTS: &[Contestant] = &[
    row(
        "direct-0.9",
        true,
        Kind::Direct,
        "no proxy, and users at 0.9 of the capacity: is the benchmark itself in the way?",
    ),
    row("tidegate-none", true, Kind::Tidegate(Control::Nothing), "no control"),
    row("tidegate-maxima", false, Kind::Tidegate(Control::Maxima), "backend_max_connections, no queue"),
    row("tidegate-queue", true, queue("", false), "and a queue, max_wait = half of the patience"),
    row("tidegate-shed", true, queue("", true), "and shed.queue_time = two requests' time"),
    row(
        "tidegate-adaptive",
        false,
        queue("order = \"adaptive\"\n", false),
        "queue with order = \"adaptive\", no shedding",
    ),
    row("tidegate-lifo", false, queue("order = \"lifo\"\n", false), "queue with order = \"lifo\", no shedding"),
    row("tidegate-5s", false, long("", false), "queue with max_wait = \"5s\": beyond the patience"),
    row("tidegate-5s-leave", false, long("client_fin = \"leave\"\n", false), "the same, client_fin = \"leave\""),
    row("tidegate-5s-shed", true, long("", true), "the same as tidegate-5s, with shedding"),
    row("haproxy-none", true, Kind::Haproxy(Control::Nothing), "no limits"),
    row(
        "haproxy-queue",
        true,
        Kind::Haproxy(Control::Queue { more: "", shed: false }),
        "maxconn, timeout queue half of the patience",
    ),
    row("haproxy-5s", false, Kind::Haproxy(Control::Long { more: "", shed: false }), "maxconn, timeout queue 5s"),
    row(
        "haproxy-5s-abort",
        true,
        Kind::Haproxy(Control::Long { more: "    option abortonclose\n", shed: false }),
        "the same with option abortonclose",
    ),
];

pub fn names() -> Vec<&'static str> {
    CONTESTANTS.iter().map(|contestant| contestant.name).collect()
}

/// The programs of the proxies: a path, or why there is none.
pub struct Programs {
    tidegate: Result<PathBuf, String>,
    haproxy: Result<PathBuf, String>,
}

impl Programs {
    /// Finds them. Builds tidegate if none was named.
    pub fn find(options: &Options) -> Self {
        let tidegate = options.tidegate.clone().map_or_else(build::tidegate, Ok);
        Self {
            tidegate: tidegate.map_err(|error| format!("{error:#}")),
            haproxy: find_program("haproxy").ok_or("no program haproxy; Debian: apt-get install haproxy".to_owned()),
        }
    }

    /// Their versions, in their own words.
    pub fn versions(&self) -> Vec<String> {
        let of = |path: &Result<PathBuf, String>, argument| {
            output_of(path.as_ref().ok()?, &[argument])?.lines().next().map(str::to_owned)
        };
        [of(&self.tidegate, "--version"), of(&self.haproxy, "-v")].into_iter().flatten().collect()
    }
}

/// Where a proxy listens, and for whom.
pub struct Setup<'a> {
    pub listen: SocketAddrV4,
    pub admin: SocketAddrV4,
    pub backends: &'a [SocketAddrV4],
    /// For files.
    pub directory: &'a Path,
}

/// A contestant that is up.
pub struct Running {
    process: Option<Process>,
    pub targets: Vec<SocketAddrV4>,
    admin: Option<SocketAddrV4>,
}

impl Running {
    pub fn pids(&self) -> Vec<i32> {
        self.process.as_ref().map(Process::tree).unwrap_or_default()
    }

    /// What a tidegate counted, from its start on: lines of its metrics.
    pub fn told(&self) -> Result<Vec<String>> {
        let Some(admin) = self.admin else { return Ok(Vec::new()) };
        let mut stream =
            TcpStream::connect_timeout(&admin.into(), SCRAPE_TIMEOUT).context("connecting to the admin endpoint")?;
        stream.set_read_timeout(Some(SCRAPE_TIMEOUT))?;
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("reading metrics")?;
        let wanted = |line: &&str| TOLD.iter().any(|family| line.starts_with(family));
        let plain = |line: &&str| !line.contains("_bucket{") && !line.ends_with(" 0");
        Ok(text.lines().filter(wanted).filter(plain).map(str::to_owned).collect())
    }
}

impl Contestant {
    /// Users a second, in units of the capacity.
    pub fn load(&self, options: &Options) -> f64 {
        if self.kind == Kind::Direct { 0.9 } else { options.load }
    }

    /// Starts it, and returns once it listens and nobody else does in its place.
    pub fn start(&self, programs: &Programs, options: &Options, setup: &Setup<'_>) -> Result<Running> {
        let (path, config, arguments) = match self.kind {
            Kind::Direct => {
                return Ok(Running { process: None, targets: setup.backends.to_vec(), admin: None });
            }
            Kind::Tidegate(control) => (&programs.tidegate, tidegate(control, options, setup), TIDEGATE_ARGUMENTS),
            // -db: one process in the foreground, no master.
            Kind::Haproxy(control) => (&programs.haproxy, haproxy(control, options, setup), &["-db", "-f"][..]),
        };
        let path = path.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
        let announces = matches!(self.kind, Kind::Tidegate(_));
        let process = launch(self.name, path, arguments, &config, &[setup.listen], setup.directory)?;
        Ok(Running { process: Some(process), targets: vec![setup.listen], admin: announces.then_some(setup.admin) })
    }
}

/// Starts a tidegate with this config, and returns once it answers at all these addresses.
pub fn start_tidegate(
    name: &str,
    programs: &Programs,
    config: &str,
    listen: &[SocketAddrV4],
    directory: &Path,
) -> Result<Process> {
    let path = programs.tidegate.as_ref().map_err(|reason| anyhow::anyhow!("{reason}"))?;
    launch(name, path, TIDEGATE_ARGUMENTS, config, listen, directory)
}

fn launch(
    name: &str,
    path: &Path,
    arguments: &[&str],
    config: &str,
    listen: &[SocketAddrV4],
    directory: &Path,
) -> Result<Process> {
    let file = directory.join(format!("{name}.conf"));
    fs::write(&file, config).with_context(|| format!("writing {}", file.display()))?;
    let mut command = vec![path.display().to_string()];
    command.extend(arguments.iter().map(|&argument| argument.to_owned()));
    command.push(file.display().to_string());
    listen.iter().try_for_each(|&address| ports::ensure_free(address))?;
    let mut process = Process::start(name, &command, Ending::Kill, directory)?;
    let announces = arguments == TIDEGATE_ARGUMENTS;
    process.wait_until("listening", START_TIMEOUT, |process| {
        let ready = !announces || process.output().contains("\"ready\":true");
        listen.iter().try_fold(ready, |all, &address| Ok(all && ports::listened_by(address, &process.tree())?))
    })?;
    for &address in listen {
        ask_once(address).with_context(|| format!("through {name}{}", process.last_words()))?;
    }
    Ok(process)
}

/// One request, answered or else an error.
fn ask_once(address: SocketAddrV4) -> Result<()> {
    use crate::backend::MESSAGE_BYTES;
    let mut stream = TcpStream::connect_timeout(&address.into(), START_TIMEOUT)?;
    stream.set_read_timeout(Some(START_TIMEOUT))?;
    stream.write_all(&[b'q'; MESSAGE_BYTES]).context("sending a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("waiting for an answer")?;
    if answer.len() != MESSAGE_BYTES {
        bail!("an answer of {} bytes", answer.len());
    }
    Ok(())
}

fn half_patience(options: &Options) -> u64 {
    options.patience / 2
}

fn tidegate(control: Control, options: &Options, setup: &Setup<'_>) -> String {
    let backends: Vec<String> = setup.backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let mut config = format!(
        "[runtime]\nworkers = 1\n[admin]\nlisten = \"{}\"\n[listeners.bench]\nbind = \"{}\"\npool = \"slow\"\n\
         [pools.slow]\nbackends = [{}]\n",
        setup.admin,
        setup.listen,
        backends.join(", "),
    );
    if control != Control::Nothing {
        // Writing to a String cannot fail, here and below.
        let _ = writeln!(config, "backend_max_connections = {}", options.at_once);
    }
    let queue = match control {
        Control::Nothing | Control::Maxima => None,
        Control::Queue { more, shed } => Some((format!("{}ms", half_patience(options)), more, shed)),
        Control::Long { more, shed } => Some(("5s".to_owned(), more, shed)),
    };
    if let Some((max_wait, more, shed)) = queue {
        let _ = write!(config, "[pools.slow.queue]\nmax_wait = \"{max_wait}\"\n{more}");
        if shed {
            let _ = writeln!(config, "[pools.slow.shed]\nqueue_time = \"{}ms\"", 2 * options.service);
        }
    }
    config
}

fn haproxy(control: Control, options: &Options, setup: &Setup<'_>) -> String {
    let (queue, more) = match control {
        Control::Nothing | Control::Maxima => (String::new(), ""),
        Control::Queue { more, .. } => (format!("    timeout queue {}ms\n", half_patience(options)), more),
        Control::Long { more, .. } => ("    timeout queue 5s\n".to_owned(), more),
    };
    let mut config = format!(
        "global\n    nbthread 1\ndefaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n\
         {queue}{more}listen bench\n    bind {} backlog 4096\n    balance roundrobin\n",
        setup.listen,
    );
    let maximum = if control == Control::Nothing { String::new() } else { format!(" maxconn {}", options.at_once) };
    for (index, backend) in setup.backends.iter().enumerate() {
        let _ = writeln!(config, "    server b{index} {backend} check inter 2s{maximum}");
    }
    config
}
