//! The admin endpoint's sockets: bound at the start or by a reload, served, passed on by an upgrade.
//!
//! Owns one task for each address, started again after a panic, and which of the addresses a reload keeps. Invariants:
//! an address that stays keeps its socket and whoever is connected; who has asked for the end of the address that he
//! came by has his answer, since answers that have begun are finished; a config that is refused has bound nothing.
//! Next: `admin::serve`.

use super::inherit::Inherited;
use super::listening::Ours;
use super::privileges::Identity;
use super::supervise::keep_running;
use crate::admin;
use crate::config::{Config, Socket};
use crate::drain::spawn;
use crate::name::BindAddr;
use crate::net::listen::{AtClose, ListenSocket, Neighbours, Options, SocketAccess, bind_all};
use std::io;
use std::sync::Arc;
use tokio::sync::watch;

const BACKLOG: u32 = 128;

/// Where the address of a config comes from.
pub struct Place {
    wanted: BindAddr,
    /// Bound, or somebody else's; `None`: the endpoint has it.
    new: Option<ListenSocket>,
}

/// A place that clients can connect to.
pub struct Opened {
    wanted: BindAddr,
    new: Option<(Arc<ListenSocket>, ListenSocket)>,
}

/// The sockets that there are.
#[derive(Default)]
pub struct Endpoint {
    doors: Vec<Door>,
    /// Those that are on their way out.
    leaving: Vec<watch::Sender<bool>>,
    /// Once they are served.
    state: Option<Arc<admin::State>>,
}

/// One address.
struct Door {
    /// As the config has it: the port may be 0.
    wanted: BindAddr,
    /// For a successor.
    socket: Arc<ListenSocket>,
    /// The same, until it is served.
    idle: Option<ListenSocket>,
    /// Ends the serving. It is closed once that has come to its end.
    stop: watch::Sender<bool>,
}

/// Finds or binds a place for each address of the config. Fails with a line for each address that can't be had, and
/// nothing is bound then.
pub fn bind(
    config: &Config,
    before: &[(BindAddr, BindAddr)],
    identity: Option<&Identity>,
    inherited: &mut Inherited,
) -> Result<Vec<Place>, Vec<String>> {
    let (at_close, socket) = (AtClose::Finish, Socket::default());
    let access = identity.map_or(SocketAccess::OWNER, |identity| identity.fill_in(SocketAccess::OWNER));
    let options = Options { backlog: BACKLOG, at_close, socket, access };
    let ours = Ours::new(before.iter().map(|(_, actual)| actual));
    let mut kept: Vec<&BindAddr> = before.iter().map(|(own, _)| own).collect();
    let (mut places, mut refused) = (Vec::new(), Vec::new());
    for wanted in &config.admin.listen {
        // Each once: there may be several with a port of 0.
        let new = if let Some(index) = kept.iter().position(|own| *own == wanted) {
            kept.swap_remove(index);
            None
        } else {
            let neighbours = if ours.has(wanted) { Neighbours::Own } else { Neighbours::None };
            let bound = match inherited.take_admin(wanted, &options) {
                Some(taken) => taken.map(Some),
                None => bind_all(wanted, &options, 1, neighbours).map(|bound| bound.into_iter().next()),
            };
            match bound {
                Ok(socket) => socket,
                Err(error) => {
                    refused.push(format!("admin.listen: {error} (or turn it off: listen = \"off\")"));
                    continue;
                }
            }
        };
        places.push(Place { wanted: wanted.clone(), new });
    }
    if refused.is_empty() { Ok(places) } else { Err(refused) }
}

/// Listens on what is new. If that fails, what was new is closed.
pub fn open(places: Vec<Place>) -> Result<Vec<Opened>, String> {
    let open = |Place { wanted, new }| {
        let Some(socket) = new else { return Ok(Opened { wanted, new: None }) };
        socket.listen(BACKLOG).map_err(|error| format!("admin.listen: {error}"))?;
        let twin = socket.twin().map_err(|refused| format!("admin.listen: {wanted}: {refused}"))?;
        Ok(Opened { wanted, new: Some((Arc::new(twin), socket)) })
    };
    places.into_iter().map(open).collect()
}

impl Endpoint {
    /// Has exactly these addresses from now on. The others end, with their answers finished. Fails if the runtime
    /// can't take a socket, which is given up then; all the rest is done.
    pub fn change(&mut self, opened: Vec<Opened>) -> io::Result<()> {
        let mut before = std::mem::take(&mut self.doors);
        for Opened { wanted, new } in opened {
            let door = match new {
                Some((socket, idle)) => Door { wanted, socket, idle: Some(idle), stop: watch::Sender::new(false) },
                None => match before.iter().position(|door| door.wanted == wanted) {
                    Some(index) => before.swap_remove(index),
                    None => continue,
                },
            };
            self.doors.push(door);
        }
        self.leaving.retain(|stop| !stop.is_closed());
        self.leaving.extend(before.into_iter().map(Door::close));
        self.serve_idle()
    }

    /// Serves every address, from now on and after each change. Fails as a change.
    pub fn serve(&mut self, state: Arc<admin::State>) -> io::Result<()> {
        self.state = Some(state);
        self.serve_idle()
    }

    fn serve_idle(&mut self) -> io::Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let mut all = Ok(());
        self.doors.retain_mut(|door| {
            let Some(socket) = door.idle.take() else { return true };
            let served = serve(socket, state, door.stop.subscribe());
            let is_served = served.is_ok();
            all = std::mem::replace(&mut all, Ok(())).and(served);
            is_served
        });
        all
    }

    /// Its addresses: as the config has them, and as they are.
    pub fn addresses(&self) -> Vec<(BindAddr, BindAddr)> {
        self.doors.iter().map(|door| (door.wanted.clone(), door.socket.address.clone())).collect()
    }

    /// The sockets, with their addresses as the config has them.
    pub fn sockets(&self) -> impl Iterator<Item = (&BindAddr, &Arc<ListenSocket>)> {
        self.doors.iter().map(|door| (&door.wanted, &door.socket))
    }

    /// Ready as soon as no socket that was told to end is there any more.
    pub fn are_gone(&self) -> impl Future<Output = ()> + use<> {
        let leaving: Vec<_> = self.leaving.clone();
        async move {
            for stop in leaving {
                stop.closed().await;
            }
        }
    }

    /// Another process has the addresses, or nobody: answers that have begun are finished.
    pub fn close(&mut self) {
        // Nothing is new.
        let _ = self.change(Vec::new());
    }

    /// Waits until they are, within the endpoint's own bound.
    pub async fn stop(mut self) {
        self.close();
        self.are_gone().await;
    }
}

impl Door {
    fn close(self) -> watch::Sender<bool> {
        // It is there until the last answer has been given; who comes meanwhile finds those that take its place.
        let _ = self.socket.hide();
        self.stop.send_replace(true);
        self.stop
    }
}

fn serve(socket: ListenSocket, state: &Arc<admin::State>, stopped: watch::Receiver<bool>) -> io::Result<()> {
    let listener = Arc::new(admin::Listener::new(socket)?);
    let (state, metrics) = (Arc::clone(state), Arc::clone(&state.metrics));
    let serve = move || {
        let mut stopped = stopped.clone();
        // Both an order to stop and nobody left to give it end the endpoint.
        let stop = async move { drop(stopped.wait_for(|stop| *stop).await) };
        admin::serve(Arc::clone(&listener), Arc::clone(&state), stop)
    };
    drop(spawn(keep_running("admin", metrics, serve)));
    Ok(())
}
