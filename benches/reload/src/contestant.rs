//! The contestants: proxies with the same listeners, pools and backends, how each is told to change, and how each is
//! seen to have changed.
//!
//! Every change moves the listener `extra` to another port, and changes weights, a limit, the set of backends of the
//! main pool and the name of the pool behind `extra`. A change is done when a question to the new port is answered:
//! so it is seen from outside, alike for all.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::process::{Pid, Signal, kill_process};
use tidegate_compare::build;
use tidegate_compare::process::{Ending, Process, find_program, output_of};

use crate::cli::{Change, Options};
use crate::load::QUESTION;

/// Bound on the time from the start of a proxy until it answers.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Bound on a change; and when a signal that nothing has come of is sent again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_secs(1);
const BACKENDS: u16 = 4;
/// Ports that `extra` uses in turn.
const EXTRAS: u16 = 8;
/// Pools that `extra` uses in turn.
const POOLS: u32 = 3;
/// Where a distribution puts the stream module of nginx.
const MODULES: [&str; 3] = ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Proxy {
    Tidegate,
    Haproxy,
    Nginx,
}

impl Proxy {
    pub const ALL: [Self; 3] = [Self::Tidegate, Self::Haproxy, Self::Nginx];

    pub fn name(self) -> &'static str {
        match self {
            Self::Tidegate => "tidegate",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// Its program, or why there is none.
    pub fn program(self, options: &Options) -> Result<PathBuf> {
        if self == Self::Tidegate {
            return options.tidegate.clone().map_or_else(build::tidegate, Ok);
        }
        let name = self.name();
        find_program(name).with_context(|| format!("no program {name}; Debian: apt-get install {name}"))
    }

    pub fn version(self, program: &Path) -> String {
        let argument = if self == Self::Tidegate { "--version" } else { "-v" };
        output_of(program, &[argument]).and_then(|text| text.lines().next().map(str::to_owned)).unwrap_or_default()
    }
}

/// Where everything is.
#[derive(Clone, Copy)]
pub struct Layout {
    base: u16,
    workers: u32,
}

impl Layout {
    pub fn of(options: &Options) -> Self {
        Self { base: options.base_port, workers: options.workers }
    }

    fn at(self, offset: u16) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.base + offset)
    }

    /// Where all clients of the load go.
    pub fn listen(self) -> SocketAddrV4 {
        self.at(0)
    }

    pub fn backends(self) -> Vec<SocketAddrV4> {
        (1..=BACKENDS).map(|offset| self.at(offset)).collect()
    }

    fn extra(self, version: u32) -> SocketAddrV4 {
        self.at(1 + BACKENDS + (version % u32::from(EXTRAS)) as u16)
    }

    pub fn all(self) -> impl Iterator<Item = SocketAddrV4> {
        (0..=BACKENDS + EXTRAS).map(move |offset| self.at(offset))
    }

    /// The backends of the main pool with their weights: all but one.
    fn servers(self, version: u32) -> Vec<(SocketAddrV4, u32)> {
        let away = version % u32::from(BACKENDS);
        let all = self.backends().into_iter().zip(0..);
        all.filter(|&(_, index)| index != away).map(|(server, index)| (server, 1 + (index + version) % 5)).collect()
    }
}

/// A proxy that runs.
pub struct Running {
    proxy: Proxy,
    process: Process,
    directory: PathBuf,
    program: PathBuf,
    layout: Layout,
    version: u32,
    /// Who takes signals.
    current: i32,
    /// Signals that had to be sent again.
    pub lost_signals: u32,
}

/// Starts a proxy that is to be changed in this way; returns once it answers.
pub fn start(proxy: Proxy, change: Change, program: &Path, layout: Layout, directory: &Path) -> Result<Running> {
    let text = config(proxy, layout, directory, 0)?;
    let file = directory.join("config");
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
    let (program_text, file, place) = (program.display(), file.display(), directory.display());
    let command = match proxy {
        Proxy::Tidegate => format!("{program_text} run --announce --config {file}"),
        Proxy::Haproxy => format!("{program_text} -W -S {place}/master.sock -f {file}"),
        Proxy::Nginx => format!("{program_text} -p {place} -c {file} -e {place}/nginx.log"),
    };
    let is_orphan = (proxy, change) == (Proxy::Nginx, Change::Upgrade);
    let command: Vec<String> = if is_orphan {
        // As long as the process that has started it is there, nginx takes itself for the new one of an upgrade, and
        // refuses another one.
        let script = format!("{command} & until [ -s {place}/nginx.pid ]; do sleep 0.01; done");
        ["/bin/sh", "-c", &script].map(str::to_owned).to_vec()
    } else {
        command.split(' ').map(str::to_owned).collect()
    };
    // A master that is killed would leave its workers behind.
    let ending = if proxy == Proxy::Tidegate { Ending::Kill } else { Ending::Terminate };
    let process = Process::start(proxy.name(), &command, ending, directory)?;
    let (directory, program) = (directory.to_owned(), program.to_owned());
    let current = process.pid();
    let mut running = Running { proxy, process, directory, program, layout, version: 0, current, lost_signals: 0 };
    let until = Instant::now() + START_TIMEOUT;
    for address in [layout.listen(), layout.extra(0)] {
        if !is_answered(address, until) {
            let ended = running.process.wait(Duration::ZERO)?;
            bail!("{} doesn't answer at {address} (ended: {ended:?}){}", proxy.name(), running.process.last_words());
        }
    }
    if is_orphan {
        running.current = running.in_charge()?;
    }
    Ok(running)
}

impl Running {
    /// Gives it the next config and waits until that is in force: how long it took, or `None` if that didn't come
    /// within the bound, or before `end`.
    pub fn change(&mut self, change: Change, end: Instant) -> Result<Option<Duration>> {
        let version = self.version + 1;
        let text = config(self.proxy, self.layout, &self.directory, version)?;
        let (file, new) = (self.directory.join("config"), self.directory.join("config.new"));
        fs::write(&new, text).and_then(|()| fs::rename(&new, &file)).context("writing the next config")?;
        let begun = Instant::now();
        let number = match (self.proxy, change) {
            (Proxy::Haproxy, _) | (_, Change::Upgrade) => Signal::USR2,
            (_, Change::Reload) => Signal::HUP,
        };
        signal(self.current, number)?;
        // A master that is just starting anew hears nothing. One that hears it twice changes twice, to the same.
        while !is_answered(self.layout.extra(version), end.min(Instant::now() + AGAIN)) {
            if begun.elapsed() > CHANGE_TIMEOUT || Instant::now() > end {
                return Ok(None);
            }
            self.lost_signals += 1;
            signal(self.current, number)?;
        }
        let took = begun.elapsed();
        self.version = version;
        if change == Change::Upgrade {
            if self.proxy == Proxy::Nginx {
                // The new master waits until it hears that the old one is to go; that ends with its last connection.
                signal(self.current, Signal::QUIT)?;
            }
            self.current = self.in_charge()?;
        }
        Ok(Some(took))
    }

    /// The process that the last upgrade left in charge.
    fn in_charge(&self) -> Result<i32> {
        match self.proxy {
            Proxy::Haproxy => Ok(self.process.pid()),
            Proxy::Nginx => {
                let file = self.directory.join("nginx.pid");
                let text = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
                text.trim().parse().context("reading the number of nginx's master")
            }
            // Each says who it is when it serves, which is moments after it accepts.
            Proxy::Tidegate => {
                let until = Instant::now() + START_TIMEOUT;
                while Instant::now() < until {
                    let pid = announced(&self.process.output());
                    if let Some(pid) = pid.filter(|&pid| pid != self.current) {
                        return Ok(pid);
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                bail!("the successor doesn't say who it is{}", self.process.last_words())
            }
        }
    }

    pub fn program(&self) -> &Path {
        &self.program
    }
}

/// The last process that says on this output of tidegate that it serves.
fn announced(output: &str) -> Option<i32> {
    let line: serde_json::Value = serde_json::from_str(output.lines().last()?).ok()?;
    line["pid"].as_i64().map(|pid| pid as i32)
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(pid).context("no process has the number 0")?;
    kill_process(pid, signal).context("sending a signal to the proxy")
}

/// Asks again and again until somebody answers.
fn is_answered(address: SocketAddrV4, until: Instant) -> bool {
    while Instant::now() < until {
        if ask(address).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

fn ask(address: SocketAddrV4) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&address.into(), Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(&[b'?'; QUESTION])?;
    stream.read_exact(&mut [0; QUESTION])
}

fn config(proxy: Proxy, layout: Layout, directory: &Path, version: u32) -> Result<String> {
    Ok(match proxy {
        Proxy::Tidegate => tidegate(layout, version),
        Proxy::Haproxy => haproxy(layout, directory, version),
        Proxy::Nginx => nginx(layout, directory, version)?,
    })
}

fn tidegate(layout: Layout, version: u32) -> String {
    let servers: Vec<String> = layout
        .servers(version)
        .into_iter()
        .map(|(server, weight)| format!("{{ address = \"{server}\", weight = {weight} }}"))
        .collect();
    format!(
        "[runtime]\nworkers = {workers}\n[admin]\nlisten = \"off\"\n\
         [listeners.web]\nbind = \"{listen}\"\npool = \"web\"\nmax_connections = {limit}\n\
         [listeners.extra]\nbind = \"{extra}\"\npool = \"extra{pool}\"\n\
         [pools.web]\nbackends = [{servers}]\nhealth.probe = \"none\"\n\
         [pools.extra{pool}]\nbackends = [\"{first}\"]\nhealth.probe = \"none\"\n",
        workers = layout.workers,
        listen = layout.listen(),
        extra = layout.extra(version),
        limit = limit(version),
        pool = version % POOLS,
        servers = servers.join(", "),
        first = layout.backends()[0],
    )
}

fn haproxy(layout: Layout, directory: &Path, version: u32) -> String {
    let mut servers = String::new();
    for (server, weight) in layout.servers(version) {
        let _ = writeln!(servers, "    server s{} {server} weight {weight}", server.port());
    }
    format!(
        "global\n    nbthread {workers}\n    maxconn 8000\n    stats socket {place}/stats.sock level admin expose-fd listeners\n\
         defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n\
         frontend web\n    bind {listen}\n    maxconn {limit}\n    default_backend web\n\
         frontend extra\n    bind {extra}\n    default_backend extra{pool}\n\
         backend web\n    balance roundrobin\n{servers}\
         backend extra{pool}\n    server first {first}\n",
        workers = layout.workers,
        place = directory.display(),
        listen = layout.listen(),
        extra = layout.extra(version),
        limit = limit(version),
        pool = version % POOLS,
        first = layout.backends()[0],
    )
}

fn nginx(layout: Layout, directory: &Path, version: u32) -> Result<String> {
    let program = find_program("nginx").context("no program nginx")?;
    let build = output_of(&program, &["-V"]).unwrap_or_default();
    let named = build.split_whitespace().find_map(|word| word.strip_prefix("--modules-path=")).map(PathBuf::from);
    let modules = named.into_iter().chain(MODULES.map(PathBuf::from));
    let module = modules.map(|place| place.join("ngx_stream_module.so")).find(|file| file.is_file());
    let load = if build.split_whitespace().any(|word| word == "--with-stream") {
        String::new()
    } else {
        let module = module.context("nginx has no stream module; Debian: apt-get install libnginx-mod-stream")?;
        format!("load_module {};\n", module.display())
    };
    // Started by root, nginx would change its workers' user, and that user can't reach a private directory.
    let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
    let mut servers = String::new();
    for (server, weight) in layout.servers(version) {
        let _ = writeln!(servers, "        server {server} weight={weight};");
    }
    Ok(format!(
        "{load}{user}daemon off;\nworker_processes {workers};\npid {place}/nginx.pid;\nerror_log {place}/nginx.log warn;\n\
         events {{\n    worker_connections 8000;\n}}\n\
         stream {{\n    access_log off;\n    limit_conn_zone $server_port zone=ports:1m;\n\
         \x20   upstream web {{\n{servers}    }}\n    upstream extra{pool} {{\n        server {first};\n    }}\n\
         \x20   server {{\n        listen {listen} backlog=4096;\n        limit_conn ports {limit};\n        proxy_pass web;\n    }}\n\
         \x20   server {{\n        listen {extra};\n        proxy_pass extra{pool};\n    }}\n}}\n",
        workers = layout.workers,
        place = directory.display(),
        listen = layout.listen(),
        extra = layout.extra(version),
        limit = limit(version),
        pool = version % POOLS,
        first = layout.backends()[0],
    ))
}

/// Of connections: more than ever come, so that it refuses nobody.
fn limit(version: u32) -> u32 {
    5_000 + version
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { base: 17_400, workers: 2 };

    #[test]
    fn the_one_in_charge_is_the_last_that_has_said_so() {
        assert_eq!(announced(""), None);
        assert_eq!(announced("{\"ready\":true,\"pid\":7}\n{\"ready\":true,\"pid\":12}\n"), Some(12));
        assert_eq!(announced("{\"ready\":true,\"pid\":7}\n{\"ready\":tr"), None);
    }

    #[test]
    fn each_change_changes_ports_pools_weights_limits_and_backends() {
        for version in 0..20 {
            let (now, next) = (LAYOUT.servers(version), LAYOUT.servers(version + 1));
            let names = |servers: &[(SocketAddrV4, u32)]| servers.iter().map(|server| server.0).collect::<Vec<_>>();
            assert_ne!(names(&now), names(&next));
            assert_ne!(LAYOUT.extra(version), LAYOUT.extra(version + 1));
            let same = now.iter().filter(|(server, weight)| next.iter().any(|it| it == &(*server, *weight))).count();
            assert_eq!(same, 0, "a server that stays has another weight");
        }
        assert!(LAYOUT.all().all(|address| (17_400..17_420).contains(&address.port())));
    }
}
