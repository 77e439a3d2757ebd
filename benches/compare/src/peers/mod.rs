//! The peers: what is measured. Each is found (or missing, and then named so), configured, started and checked here.
//!
//! One file a proxy says how it is configured. Invariant: a peer counts as started only when its port is listened on
//! by its own processes and by nobody else, and an echo and a download have come through it intact.

mod haproxy;
mod nginx;
mod probe;
mod tidegate;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cli::{Health, Options};
use crate::ports;
use crate::process::{Ending, Process};

/// Bound on the time from the start of a proxy to the first byte through it.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// The peers have their backends on 127.0.0.10 and up, one address each, so that the closed connections of one
/// (`TIME_WAIT`) don't take local ports away from another.
const FIRST_BACKEND_HOST: u8 = 10;

pub struct Peer {
    pub name: String,
    /// How it was set up, in a few words.
    pub description: String,
    pub state: State,
    kind: Kind,
    /// Where it listens. Where the peer is no proxy, nobody does.
    port: u16,
    backends: Vec<SocketAddrV4>,
}

pub enum State {
    /// With its version.
    Present(String),
    /// Not to be measured, with the reason.
    Missing(String),
}

enum Kind {
    Direct,
    Tidegate(PathBuf),
    Haproxy(PathBuf, haproxy::Variant),
    Nginx(nginx::Nginx),
    Extra(String),
}

/// What all configurations share.
pub struct Setup<'a> {
    pub listen: SocketAddrV4,
    pub backends: &'a [SocketAddrV4],
    pub workers: u16,
    pub health: Health,
    /// Connections that the limit of descriptors leaves room for.
    pub connections: u32,
    /// Of this peer alone, for its files.
    pub directory: &'a Path,
}

/// How to start a proxy.
struct Launch {
    command: Vec<String>,
    ending: Ending,
    /// The proxy says on its standard output when it is ready.
    announces: Option<&'static str>,
}

/// How a peer is to be started.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    pub workers: u16,
    pub health: Health,
    /// Connections that the limit of descriptors leaves room for.
    pub connections: u32,
}

/// A peer that is up.
pub struct Running {
    /// `None` without a proxy.
    process: Option<Process>,
    pub targets: Vec<SocketAddrV4>,
}

impl Running {
    /// The processes of the proxy as they are now.
    pub fn pids(&self) -> Vec<i32> {
        self.process.as_ref().map(Process::tree).unwrap_or_default()
    }

    /// Says what became of the proxy, unless it still is these very processes.
    pub fn fate(&mut self, before: &[i32]) -> Result<Option<String>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        if let Some(status) = process.wait(Duration::ZERO)? {
            return Ok(Some(format!("the proxy ended ({status}){}", process.last_words())));
        }
        let now = process.tree();
        Ok((now != before)
            .then(|| format!("the processes of the proxy were {before:?} and are {now:?}{}", process.last_words())))
    }
}

/// How many connections every peer can carry at once where the limit of descriptors leaves room for so many.
pub fn most_connections(connections: u32) -> u32 {
    connections.saturating_sub(haproxy::RESERVE)
}

/// Finds all the peers that were asked for, missing ones included. Builds tidegate if none was named.
pub fn find(options: &Options) -> Result<Vec<Peer>> {
    let wanted = |name: &str| {
        if options.peers.is_empty() {
            // A quick run has no time for it.
            !options.quick || name != haproxy::Variant::SpliceAuto.name() || name == options.base
        } else {
            options.peers.iter().any(|peer| peer == name)
        }
    };
    let mut found = Found { peers: Vec::new(), options };
    if wanted("direct") {
        found.add("direct", "no proxy", Kind::Direct, State::Present(String::new()));
    }
    if wanted("tidegate") {
        let (path, state) = tidegate::find(options.tidegate.as_deref());
        found.add("tidegate", "as it comes, metrics on", Kind::Tidegate(path), state);
    }
    let (path, state) = haproxy::find();
    for &variant in haproxy::Variant::ALL {
        if wanted(variant.name()) {
            let state = match &state {
                State::Present(version) => State::Present(version.clone()),
                State::Missing(reason) => State::Missing(reason.clone()),
            };
            found.add(variant.name(), variant.description(), Kind::Haproxy(path.clone(), variant), state);
        }
    }
    if wanted("nginx") {
        let (nginx, state) = nginx::find();
        found.add("nginx", "stream, reuseport, 64 KiB buffer", Kind::Nginx(nginx), state);
    }
    for extra in &options.extra {
        let (name, command) = extra.split_once('=').context("--extra wants NAME=COMMAND")?;
        found.add(name, "given with --extra", Kind::Extra(command.to_owned()), State::Present(String::new()));
    }
    let peers = found.peers;
    if let Some(unknown) = options.peers.iter().find(|name| !peers.iter().any(|peer| peer.name == **name)) {
        bail!("there is no peer {unknown:?}");
    }
    Ok(peers)
}

struct Found<'a> {
    peers: Vec<Peer>,
    options: &'a Options,
}

impl Found<'_> {
    fn add(&mut self, name: &str, description: &str, kind: Kind, state: State) {
        let index = self.peers.len();
        let host = match kind {
            // Its command may know nothing but the usual address.
            Kind::Extra(_) => Ipv4Addr::LOCALHOST,
            _ => Ipv4Addr::new(127, 0, 0, FIRST_BACKEND_HOST + index as u8),
        };
        self.peers.push(Peer {
            name: name.to_owned(),
            description: description.to_owned(),
            state,
            kind,
            port: self.options.base_port + index as u16,
            backends: self.options.backend_ports.iter().map(|&port| SocketAddrV4::new(host, port)).collect(),
        });
    }
}

impl Peer {
    pub fn is_present(&self) -> bool {
        matches!(self.state, State::Present(_))
    }

    pub fn is_proxy(&self) -> bool {
        !matches!(self.kind, Kind::Direct)
    }

    pub fn backends(&self) -> &[SocketAddrV4] {
        &self.backends
    }

    fn listen(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::LOCALHOST, self.port)
    }

    /// Fails if somebody listens in its place already.
    pub fn ensure_port_free(&self) -> Result<()> {
        if self.is_proxy() { ports::ensure_free(self.listen()) } else { Ok(()) }
    }

    /// Starts it and makes sure that it works and that nobody else answers in its place.
    pub fn start(&self, start: Start, directory: &Path) -> Result<Running> {
        if !self.is_proxy() {
            self.backends.iter().try_for_each(|&backend| probe::check(backend).context("without a proxy"))?;
            return Ok(Running { process: None, targets: self.backends.clone() });
        }
        self.ensure_port_free()?;
        let setup = Setup {
            listen: self.listen(),
            backends: &self.backends,
            workers: start.workers,
            health: start.health,
            connections: start.connections,
            directory,
        };
        let launch = match &self.kind {
            Kind::Direct => bail!("no proxy has nothing to start"),
            Kind::Tidegate(path) => tidegate::launch(path, &self.name, &setup)?,
            Kind::Haproxy(path, variant) => haproxy::launch(path, *variant, &setup)?,
            Kind::Nginx(nginx) => nginx.launch(&setup)?,
            Kind::Extra(command) => extra(command, &setup),
        };
        let mut process = Process::start(&self.name, &launch.command, launch.ending, directory)?;
        process.wait_until("listening", START_TIMEOUT, |process| {
            let announced = launch.announces.is_none_or(|words| process.output().contains(words));
            Ok(announced && ports::listened_by(self.listen(), &process.tree())?)
        })?;
        probe::check_either_way(self.listen())
            .with_context(|| format!("through {}{}", self.name, process.last_words()))?;
        Ok(Running { process: Some(process), targets: vec![self.listen()] })
    }
}

fn extra(command: &str, setup: &Setup<'_>) -> Launch {
    let mut command = command.replace("{port}", &setup.listen.port().to_string());
    for (index, backend) in setup.backends.iter().enumerate() {
        command = command.replace(&format!("{{backend{}}}", index + 1), &backend.port().to_string());
    }
    let command = ["/bin/sh".to_owned(), "-c".to_owned(), format!("exec {command}")].to_vec();
    Launch { command, ending: Ending::Kill, announces: None }
}
