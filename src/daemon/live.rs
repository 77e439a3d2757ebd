//! What runs now: the config, where it came from, what it is bound to; and the two phases by which another one takes
//! its place.
//!
//! Owns the order. [`prepare`] does all that can fail or take long, beside the loop: judge, resolve, look at what this
//! host lacks, share out the file descriptors, bind. [`Live::commit`] gives living sockets their options and listens on
//! the new ones, which is undone if it fails; from then on nothing can: one store of the table, then sockets are handed
//! over, workers ordered to accept, and what is gone is retired. A start is the same, with nothing before it.
//!
//! Invariants: a config that is refused has changed nothing; there is a way for each client that is accepted, before,
//! while and after the table changes; a session keeps the listener and the pool that it began with. Next: `listening`
//! for the sockets, `carry_out` for who asks.

mod replace;

use super::Failure;
use super::endpoint::{self, Endpoint};
use super::examine::{Examined, examine, hash};
use super::fd_store::Store;
use super::fds;
use super::history::{History, Next, Told};
use super::inherit::Inherited;
use super::listening::{self, Bound, Place};
use super::look::Looked;
use super::parking;
use super::privileges::Identity;
use super::start::Shared;
use super::state_file::{self, Keeper};
use super::upgrade::Handover;
use crate::admin::{Access, Own};
use crate::admission::SharedLimits;
use crate::clock::{Now, millis};
use crate::config::{Adjustments, Config, Level, Loaded};
use crate::name::BindAddr;
use crate::session::balance::{Seats, SharedSocket};
use crate::table::{Resolution, RoutingTable, settled};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use xxhash_rust::xxh3::xxh3_64;

/// How long a reload waits for unix sockets that are on their way out: their paths can't be bound before.
const SETTLE: Duration = Duration::from_secs(1);

/// Where a config comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum ConfigSource {
    /// From this file, as it was read at the start.
    File { path: PathBuf, loaded: Loaded },
    /// From whoever started the process; there is nothing to read it from again.
    Given(Config),
}

impl ConfigSource {
    /// The path, and what was read or given.
    pub(super) fn into_parts(self) -> (Option<PathBuf>, Loaded) {
        match self {
            Self::File { path, loaded } => (Some(path), loaded),
            Self::Given(config) => (None, Loaded { config, warnings: Vec::new(), text: "".into() }),
        }
    }
}

/// What a candidate is prepared against: as things are, or nothing yet.
#[derive(Clone, Default)]
pub struct Base {
    pub workers: usize,
    /// File descriptors that the process may have.
    pub limit: u64,
    /// Whom the process is while it serves, if not who started it: the files of unix sockets are its own.
    identity: Option<Identity>,
    bound: Vec<Bound>,
    /// Of the admin endpoint: as the config has them, and as they are.
    admin: Vec<(BindAddr, BindAddr)>,
    /// Addresses of sockets that are on their way out.
    others: HashSet<BindAddr>,
}

impl Base {
    /// Before there is anything but another process's sockets at some addresses.
    #[must_use]
    pub fn of_start(workers: usize, limit: u64, identity: Option<Identity>, beside: HashSet<BindAddr>) -> Self {
        Self { workers, limit, identity, bound: Vec::new(), admin: Vec::new(), others: beside }
    }
}

/// A config that can be had: all that could fail has been done.
pub struct Candidate {
    pub config: Arc<Config>,
    pub text: Arc<str>,
    resolution: Resolution,
    pub plan: fds::Plan,
    places: Vec<Vec<Place>>,
    admin: Vec<endpoint::Place>,
    access: Access,
    /// What it does that is hardly meant.
    pub warnings: Vec<String>,
}

/// Phase one: everything short of what others could notice. Fails with a line for each mistake, and nothing is left.
pub fn prepare(base: &Base, loaded: Loaded, inherited: &mut Inherited) -> Result<Candidate, Failure> {
    let Examined { config, text, resolution, plan, warnings } = examine(base, loaded)?;
    let identity = base.identity.as_ref();
    let own = identity.map_or_else(Own::now, Identity::own);
    let access = Access::load(&config.admin, &own).map_err(Failure::System)?;
    let places = listening::bind(&config, &base.bound, &base.others, base.workers, identity, inherited);
    let admin = endpoint::bind(&config, &base.admin, identity, inherited);
    match (places, admin) {
        (Ok(places), Ok(admin)) => {
            Ok(Candidate { config: Arc::new(config), text, resolution, plan, places, admin, access, warnings })
        }
        (places, admin) => {
            let refused = [places.err(), admin.err()].into_iter().flatten().flatten();
            Err(Failure::System(refused.collect::<Vec<_>>().join("\n")))
        }
    }
}

/// The config that runs, and all that it has made.
pub struct Live {
    pub config: Arc<Config>,
    /// Where it can be read again.
    pub path: Option<PathBuf>,
    /// See [`Looked`].
    tried: Arc<AtomicU64>,
    pub text: Arc<str>,
    pub resolution: Resolution,
    /// The ones before it.
    pub history: History,
    /// What operators have changed on top of it.
    pub adjustments: Adjustments,
    /// Keeps them over restarts.
    pub keeper: Option<Keeper>,
    pub shared: Shared,
    shared_limits: SharedLimits,
    pub bound: Vec<Bound>,
    limit: u64,
    identity: Option<Identity>,
    store: Store,
    pub endpoint: Endpoint,
    /// The number of the first table.
    first_generation: u64,
    /// When there may be ways of retired listeners to forget.
    pub forget_at: Option<Instant>,
}

/// What a commit has come to.
pub struct Committed {
    pub generation: u64,
    /// Whether anything of the config is different from before.
    pub changed: bool,
    /// Whether others than before may change things, or with another token.
    pub other_access: bool,
    pub warnings: Vec<String>,
}

impl Live {
    /// Listens on what a candidate has bound, and builds the first table, with what a predecessor knew. Fails if an
    /// address was lost meanwhile.
    pub fn first(
        candidate: Candidate,
        path: Option<PathBuf>,
        base: Base,
        shared: Shared,
        handover: Option<&Handover>,
    ) -> Result<Self, Failure> {
        let Candidate { config, text, resolution, places, admin, access, warnings, .. } = candidate;
        shared.who.access.store(Arc::new(access));
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        let shared_limits = SharedLimits::default();
        let opened = state_file::path_of(&config).map(|path| Keeper::open(path, &shared.metrics));
        let (keeper, read) = opened.map_or((None, Adjustments::default()), |(keeper, read)| (Some(keeper), read));
        let generation = handover.map_or(1, |before| before.generation + u64::from(before.hash != hash(&text)));
        let by = if handover.is_some() { "upgrade" } else { "start" }.to_owned();
        let kept = handover.map_or_else(|| read.clone(), |handover| handover.adjustments.clone());
        if let Some(keeper) = keeper.as_ref().filter(|_| kept != read) {
            keeper.keep(kept.clone());
        }
        let admin = endpoint::open(admin).map_err(Failure::System)?;
        let places = listening::open(places, &parking::idle(&config, &kept), &[]).map_err(Failure::System)?;
        let first = Next { generation, hash: hash(&text), text: &text, config: &config, by, rollback_to: None };
        let told = Told { status: &shared.config_status, metrics: &shared.metrics };
        let past = handover.map_or_else(Vec::new, |handover| handover.history.clone());
        let history = History::new(&config, past, first, path.as_deref(), told);
        let mut live = Self {
            history,
            config: Arc::clone(&config),
            path,
            tried: Arc::new(AtomicU64::new(xxh3_64(text.as_bytes()))),
            text,
            resolution,
            adjustments: Adjustments::default(),
            keeper,
            shared,
            shared_limits,
            bound: Vec::new(),
            limit: base.limit,
            identity: base.identity,
            store: handover.map_or_else(Store::default, |handover| Store::of_predecessor(handover.stored())),
            endpoint: Endpoint::default(),
            first_generation: generation,
            forget_at: None,
        };
        live.shared.adjustments.store(Arc::new(kept.clone()));
        live.adjustments = kept;
        live.change(settled(&config, &live.resolution, &live.adjustments));
        let (_, warnings) = live.replace(config, places, None);
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        live.take_admin(admin);
        if let Some(handover) = handover {
            let told = handover.tell(&live.shared.table.load().pools, Now::read());
            tracing::info!(backends = told, generation = live.generation(), "the predecessor has told what it knows");
        }
        Ok(live)
    }

    /// The sockets of each worker.
    pub fn sockets(&self) -> Vec<Vec<Arc<SharedSocket>>> {
        let workers = self.shared.workers;
        let listening = || self.bound.iter().filter(|bound| !bound.is_parked());
        let of = |worker| listening().flat_map(|bound| share(&bound.sockets, worker, workers)).collect();
        (0..workers).map(of).collect()
    }

    /// Gives the listening sockets to the user that the process becomes, so that it can bind others beside them.
    pub fn give_to(&self, user: u32) -> io::Result<()> {
        let own = self.bound.iter().flat_map(|bound| &bound.sockets).filter_map(|shared| shared.get());
        let parked = self.bound.iter().flat_map(|bound| bound.parked.iter().flatten().cloned());
        let admin = self.endpoint.sockets().map(|(_, socket)| Arc::clone(socket));
        own.chain(parked).chain(admin).try_for_each(|socket| Ok(socket.give_to(user)?))
    }

    /// Lets the service manager keep the listening sockets for the next process, where it offers that.
    pub fn keep_in_store(&mut self) {
        let mut sockets: BTreeMap<_, Vec<_>> = BTreeMap::new();
        // The manager drops one that doesn't listen by itself.
        for bound in self.bound.iter().filter(|bound| !bound.is_parked()) {
            let own = bound.sockets.iter().filter_map(|shared| shared.get());
            sockets.entry(bound.listener.clone()).or_default().extend(own);
        }
        self.store.keep(&sockets);
    }

    /// Which one of the configs that this process had it is.
    pub fn generation(&self) -> u64 {
        self.shared.table.load().generation
    }

    /// Of the config's text, by xxh3; 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        hash(&self.text)
    }

    /// The file, for whoever looks whether it is another one.
    pub fn looked(&self) -> Option<Looked> {
        self.path.clone().map(|path| Looked { path, tried: Arc::clone(&self.tried) })
    }

    /// Notes what the config file says, be it taken or not.
    pub fn has_tried(&self, text: &str) {
        self.tried.store(xxh3_64(text.as_bytes()), Relaxed);
    }

    /// What the next candidate is prepared against, as soon as sockets on their way out have gone whose paths are
    /// needed again, but within a bound.
    pub fn base(&self) -> impl Future<Output = Base> + use<> {
        let mut base = Base {
            workers: self.shared.workers,
            limit: self.limit,
            identity: self.identity.clone(),
            bound: self.bound.clone(),
            admin: self.endpoint.addresses(),
            others: HashSet::new(),
        };
        let seats = self.shared.seats.get().cloned();
        let admin = self.endpoint.are_gone();
        async move {
            let _ = timeout(SETTLE, admin).await;
            if let Some(seats) = seats {
                // Those that don't go in time are told of by the bind.
                let _ = timeout(SETTLE, paths_are_free(&seats)).await;
                let retired = seats.iter().flat_map(|seat| seat.sockets()).filter(|socket| socket.is_retired());
                base.others = retired.filter_map(|shared| shared.get()).map(|socket| socket.address.clone()).collect();
            }
            base
        }
    }

    /// Phase two. If it fails, with the reason, nothing has changed.
    pub fn commit(&mut self, candidate: Candidate) -> Result<Committed, String> {
        let Candidate { config, text, resolution, places, admin, access, mut warnings, plan } = candidate;
        let other_access = !self.shared.who.access.load().is_same(&access);
        if text == self.text && resolution == self.resolution && *config == *self.config {
            // Another token in the same file is no other config.
            self.shared.who.access.store(Arc::new(access));
            return Ok(Committed { generation: self.generation(), changed: false, other_access, warnings });
        }
        let (seats, rooms) = self.rooms()?;
        let admin = endpoint::open(admin)?;
        let places = listening::open(places, &parking::idle(&config, &self.adjustments), &self.bound)?;
        // From here on nothing can fail.
        self.shared.who.access.store(Arc::new(access));
        let before = std::mem::take(&mut self.bound);
        (self.text, self.resolution) = (text, resolution);
        self.change(settled(&config, &self.resolution, &self.adjustments));
        self.shared.metrics.max_connections.set(plan.max_sessions as i64);
        self.shared.process.set_max(plan.max_sessions);
        let (mut new, left_out) = self.replace(config, places, Some(&before));
        warnings.extend(left_out);
        new.extend(self.follow_operators());
        for (seat, room) in seats.iter().zip(rooms) {
            let worker = usize::from(seat.index);
            let own = new.iter().flat_map(|sockets| share(sockets, worker, seats.len())).collect();
            seat.listen(own, room);
        }
        let kept: HashSet<*const SharedSocket> = self.bound.iter().flat_map(|b| &b.sockets).map(Arc::as_ptr).collect();
        for bound in &before {
            let gone: Vec<_> = bound.sockets.iter().filter(|socket| !kept.contains(&Arc::as_ptr(socket))).collect();
            if !gone.is_empty() {
                let heir = listening::heir(bound, &self.bound);
                for socket in gone {
                    socket.get().iter().for_each(|own| own.take_from_store());
                    socket.retire(heir);
                }
            }
        }
        self.take_admin(admin);
        self.shared.table_changed.notify_one();
        self.keep_in_store();
        Ok(Committed { generation: self.generation(), changed: true, other_access, warnings })
    }

    fn take_admin(&mut self, opened: Vec<endpoint::Opened>) {
        if let Err(error) = self.endpoint.change(opened) {
            tracing::error!(%error, "can't watch a socket of the admin endpoint");
        }
    }

    /// How much the log says: what an operator has said of that, or else the config.
    pub fn log_level(&self) -> Level {
        self.adjustments.log_level.unwrap_or(self.config.log.level)
    }

    /// Takes other adjustments for those in force, for everybody who asks for them; what they come to is the caller's
    /// to do.
    pub fn change(&mut self, adjustments: Adjustments) {
        if adjustments != self.adjustments {
            self.adjustments = adjustments;
            self.shared.adjustments.store(Arc::new(self.adjustments.clone()));
            if let Some(keeper) = &self.keeper {
                keeper.keep(self.adjustments.clone());
            }
        }
    }

    /// Whether adjustments outlive the process.
    pub fn is_kept(&self) -> bool {
        self.keeper.is_some()
    }

    /// Forgets what was kept for the last clients of retired listeners.
    pub fn forget(&mut self) {
        let table = self.shared.table.load_full();
        let table = table.without_old_ways(millis(Instant::now()));
        self.forget_at = forget_at(&table);
        self.shared.table.store(Arc::new(table));
    }
}

/// One worker's share of an address's sockets; at least one, since there are never fewer than workers.
pub fn share(sockets: &[Arc<SharedSocket>], worker: usize, workers: usize) -> impl Iterator<Item = Arc<SharedSocket>> {
    sockets.iter().skip(worker).step_by(workers.max(1)).cloned()
}

fn forget_at(table: &RoutingTable) -> Option<Instant> {
    let now = Instant::now();
    table.forgets_at().map(|at| now + Duration::from_millis(at.saturating_sub(millis(now))))
}

/// Waits until no socket of a path is on its way out.
async fn paths_are_free(seats: &Seats) {
    let is_leaving =
        |socket: &Arc<SharedSocket>| socket.is_retired() && socket.get().is_some_and(|socket| socket.address.is_path());
    for seat in seats.iter() {
        // The seat has the other end.
        let _ = seat.watch_sockets().wait_for(|sockets| !sockets.iter().any(is_leaving)).await;
    }
}
