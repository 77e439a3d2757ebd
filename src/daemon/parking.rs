//! Listeners that an operator has taken out for a while: their sockets don't listen, and keep their addresses.
//!
//! Owns how that is made so and undone. A socket that is parked is emptied by its acceptor as one that is retired, and
//! then its listening ends, so that clients are refused by the kernel and can go elsewhere; the descriptor stays bound,
//! so that listening again needs no privilege and nobody else gets the address meanwhile. A unix socket can't listen
//! again: it is bound anew. Invariants: who had connected is served; sessions that there are go on.

use super::control::end_of_sessions;
use super::listening::Bound;
use super::live::{Live, share};
use crate::admin::command::{Asker, Done, Refused, Reply, Why};
use crate::clock::Now;
use crate::config::{self, Adjustments, AdminState, Config, unknown_name};
use crate::drain::Stage;
use crate::name::ListenerName;
use crate::net::listen::{ListenSocket, Neighbours, bind_again, bind_all};
use crate::session::balance::{Seats, SharedSocket};
use crate::session::orders::Order;
use crate::table::Listener;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::OwnedPermit;

/// Has a listener take nobody new, or take clients again; those that it has may stay until `deadline`.
pub fn carry_out(
    name: &ListenerName,
    state: AdminState,
    deadline: Option<Duration>,
    by: &Asker,
    live: &mut Live,
) -> Reply {
    let invalid = |text: &str| Refused { why: Why::Invalid, text: text.to_owned() };
    let table = live.shared.table.load_full();
    let Some(listener) = table.listener(name) else {
        let names: Vec<&str> = table.listeners.iter().map(|listener| listener.name.as_str()).collect();
        return Err(Refused {
            why: Why::NotFound,
            text: unknown_name("listener", name.as_str(), "the config", &names),
        });
    };
    if deadline.is_some() && state == AdminState::Enabled {
        return Err(invalid(
            "a deadline is for a listener that is taken out; use it with state = \"draining\" or \"disabled\"",
        ));
    }
    let before = listener.admin();
    if state == AdminState::Enabled {
        live.listen_again(listener).map_err(|text| invalid(&text))?;
    } else {
        live.bound.iter_mut().filter(|bound| bound.listener == *name).for_each(park);
        live.keep_in_store();
    }
    listener.set_admin(state);
    let is_bounded = set_end(listener, state, deadline);
    let mut next = live.adjustments.clone();
    if state == AdminState::Enabled {
        next.listeners.remove(name.as_str());
    } else {
        next.listeners.insert(name.to_string(), state);
    }
    live.change(next);
    let differs = before != state;
    let changed = differs || is_bounded;
    let (from, to) = (before.as_str(), state.as_str());
    if changed {
        let deadline = deadline.filter(|_| is_bounded).map(tracing::field::debug);
        tracing::info!(%by, command = "listener", listener = %name, from, to, deadline, "changed");
    }
    let summary = if differs {
        format!("listener {name}: {to} (before: {from})")
    } else if is_bounded {
        format!("listener {name}: {to}, as before, with another deadline")
    } else {
        format!("nothing has changed: listener {name}: {to}")
    };
    let now = Now::read().millis;
    let details = json!({
        "listener": name.as_str(),
        "state": state,
        "sessions": listener.metrics.active.get(),
        "deadline_ms": listener.drain_deadline().map(|at| at.saturating_sub(now)),
        "generation": table.generation,
        "survives_restart": live.is_kept(),
    });
    Ok(Done { summary, changed, details })
}

/// Sets when the sessions of a listener are ended, or takes that back. Whether that is another time.
fn set_end(listener: &Listener, state: AdminState, deadline: Option<Duration>) -> bool {
    let stands = listener.drain_deadline();
    let wanted = match state {
        AdminState::Enabled => None,
        _ => end_of_sessions(stands, deadline),
    };
    if wanted != stands {
        listener.set_drain_deadline(wanted);
    }
    wanted != stands
}

impl Live {
    /// Takes clients again, all addresses of the listener or none.
    fn listen_again(&mut self, listener: &Arc<Listener>) -> Result<(), String> {
        let parked: Vec<usize> = (0..self.bound.len())
            .filter(|&index| self.bound[index].listener == listener.name && self.bound[index].is_parked())
            .collect();
        if parked.is_empty() {
            return Ok(());
        }
        let (seats, rooms) = self.rooms()?;
        let mut new: Vec<Vec<Arc<SharedSocket>>> = Vec::new();
        for &index in &parked {
            match unpark(&self.bound[index], listener) {
                Ok(sockets) => new.push(sockets),
                Err(text) => {
                    for socket in new.iter().flatten() {
                        end(socket);
                    }
                    return Err(text);
                }
            }
        }
        for (&index, sockets) in parked.iter().zip(&new) {
            (self.bound[index].sockets, self.bound[index].parked) = (sockets.clone(), Vec::new());
        }
        for (seat, room) in seats.iter().zip(rooms) {
            let worker = usize::from(seat.index);
            seat.listen(new.iter().flat_map(|sockets| share(sockets, worker, seats.len())).collect(), room);
        }
        self.keep_in_store();
        Ok(())
    }

    /// The workers, and room for an order to each. Fails if one of them is stuck.
    pub fn rooms(&self) -> Result<(Arc<Seats>, Vec<OwnedPermit<Order>>), String> {
        let seats = self.shared.seats.get().cloned().ok_or("the workers have not begun")?;
        let stuck = |index| format!("worker {index} doesn't take orders: it is stuck; try again when it is back");
        let rooms = seats.iter().map(|seat| seat.reserve_order().ok_or_else(|| stuck(seat.index)));
        let rooms = rooms.collect::<Result<_, _>>()?;
        Ok((seats, rooms))
    }

    /// Parks addresses that have come to a listener which is taken out, and listens again on those that have left one;
    /// the sockets that no worker has yet.
    pub fn follow_operators(&mut self) -> Vec<Vec<Arc<SharedSocket>>> {
        let mut new = Vec::new();
        let table = self.shared.table.load_full();
        for bound in &mut self.bound {
            let Some(listener) = table.listener(&bound.listener) else { continue };
            let idle = listener.admin() != AdminState::Enabled;
            if idle {
                park(bound);
            } else if bound.is_parked() {
                match unpark(bound, listener) {
                    Ok(sockets) => {
                        (bound.sockets, bound.parked) = (sockets.clone(), Vec::new());
                        new.push(sockets);
                    }
                    Err(text) => tracing::error!("{text}"),
                }
            }
        }
        new
    }
}

/// For each listener, whether an operator has taken it out.
pub fn idle(config: &Config, adjustments: &Adjustments) -> Vec<bool> {
    let state = |listener: &config::Listener| adjustments.listeners.get(listener.name.as_str()).copied();
    config.listeners.iter().map(|listener| state(listener).unwrap_or_default() != AdminState::Enabled).collect()
}

/// The socket of one that no worker has; it doesn't listen, also if it came from another process that did.
pub fn take(shared: &SharedSocket) -> Option<Arc<ListenSocket>> {
    let socket = shared.take();
    if let Some(socket) = &socket {
        socket.stop();
    }
    socket
}

/// Has the sockets emptied and their listening ended.
pub fn park(bound: &mut Bound) {
    if bound.is_parked() {
        return;
    }
    bound.parked = bound.sockets.iter().map(|shared| shared.get()).collect();
    for shared in &bound.sockets {
        shared.stop_for_good();
        shared.advance(Stage::Draining);
    }
}

/// Sockets that listen again at the address of a parked one.
pub fn unpark(bound: &Bound, listener: &Arc<Listener>) -> Result<Vec<Arc<SharedSocket>>, String> {
    // Of those that nobody has closed yet, the acceptor goes on for a moment, beside the new one.
    let taken: Vec<Option<Arc<ListenSocket>>> = bound.sockets.iter().map(|shared| shared.take()).collect();
    let (backlog, options) = (bound.options.backlog, &bound.options);
    let sockets = if !bound.actual.is_path() {
        let again = |(taken, parked): (&Option<Arc<ListenSocket>>, &Option<Arc<ListenSocket>>)| match taken
            .as_ref()
            .or(parked.as_ref())
        {
            Some(socket) => socket.listen(backlog).map(|()| Arc::clone(socket)),
            None => bind_again(&bound.actual, options).map(Arc::new),
        };
        taken.iter().zip(&bound.parked).map(again).collect()
    } else if let Some(all) = taken.iter().cloned().collect::<Option<Vec<_>>>() {
        Ok(all)
    } else {
        taken.iter().flatten().for_each(|socket| socket.stop());
        bind_all(&bound.actual, options, bound.sockets.len(), Neighbours::None).and_then(|sockets| {
            sockets.iter().try_for_each(|socket| socket.listen(backlog))?;
            Ok(sockets.into_iter().map(Arc::new).collect::<Vec<_>>())
        })
    };
    match sockets {
        Ok(sockets) => {
            let share = |socket| Arc::new(SharedSocket::new(socket, options.clone(), Arc::clone(listener)));
            Ok(sockets.into_iter().map(share).collect())
        }
        Err(error) => {
            let all = taken.iter().chain(&bound.parked).flatten();
            all.for_each(|socket| socket.stop());
            Err(format!("listeners.{}: {error}", bound.listener))
        }
    }
}

/// Takes back what was begun.
fn end(socket: &SharedSocket) {
    socket.stop_for_good();
    socket.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::Gate;
    use crate::config::Socket;
    use crate::metrics::Metrics;
    use crate::name::{BindAddr, Endpoint, PoolName};
    use crate::net::listen::{AtClose, Options, SocketAccess};
    use crate::sys::option;

    fn options() -> Options {
        let socket = Socket { fast_open: Some(7), defer_accept: Some(3), ..Socket::default() };
        Options { backlog: 16, at_close: AtClose::Reset, socket, access: SocketAccess::OWNER }
    }

    /// Two sockets that listen at `wanted`.
    fn bound(wanted: BindAddr) -> (Bound, Arc<Listener>) {
        let config = config::Listener::new(ListenerName::new("web"), vec![wanted.clone()], PoolName::new("p"));
        let metrics = Arc::new(Metrics::new().unwrap());
        let gate = Gate::open(&config.name, 9, &metrics);
        let handles = metrics.listener(&config.name, &[]);
        let listener = Arc::new(Listener::new(config, handles, Vec::new(), gate, None));
        let sockets = bind_all(&wanted, &options(), 2, Neighbours::None).unwrap();
        for socket in &sockets {
            socket.listen(16).unwrap();
        }
        let actual = sockets[0].address.clone();
        let share = |socket| Arc::new(SharedSocket::new(Arc::new(socket), options(), Arc::clone(&listener)));
        let sockets = sockets.into_iter().map(share).collect();
        let listener_name = listener.name.clone();
        let (options, apart, parked) = (options(), false, Vec::new());
        (Bound { listener: listener_name, wanted, actual, options, sockets, apart, parked }, listener)
    }

    fn takes(address: &BindAddr) -> bool {
        match &address.0 {
            Endpoint::Tcp(address) => std::net::TcpStream::connect(address).is_ok(),
            Endpoint::Unix(path) => std::os::unix::net::UnixStream::connect(path).is_ok(),
        }
    }

    #[test]
    fn a_parked_address_is_refused_and_kept_and_listens_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = BindAddr(Endpoint::Unix(dir.path().join("a.sock").as_path().into()));
        for wanted in [BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap())), path] {
            let (mut bound, listener) = bound(wanted);
            for _ in 0..3 {
                let before = bound.sockets.clone();
                park(&mut bound);
                assert!(bound.is_parked() && before.iter().all(|socket| socket.is_retired()));
                assert!(takes(&bound.actual), "as long as the queue is being emptied");
                for socket in &before {
                    socket.close();
                }
                assert!(!takes(&bound.actual));
                bound.sockets = unpark(&bound, &listener).unwrap();
                bound.parked = Vec::new();
                assert!(takes(&bound.actual));
                assert!(bound.sockets.iter().all(|socket| !socket.is_retired()));
                if let Endpoint::Tcp(_) = bound.actual.0 {
                    let socket = bound.sockets[0].get().unwrap();
                    assert_eq!(socket.address, bound.actual);
                    assert_eq!((option::fast_open_queue(&*socket), option::defers_accept(&*socket)), (Ok(7), Ok(true)));
                }
            }
        }
    }

    #[test]
    fn one_that_is_wanted_again_before_it_is_empty_never_stops_listening() {
        let (mut bound, listener) = bound(BindAddr(Endpoint::Tcp("127.0.0.1:0".parse().unwrap())));
        let before = bound.sockets.clone();
        park(&mut bound);
        bound.sockets = unpark(&bound, &listener).unwrap();
        // The acceptors of before come to their end.
        for socket in &before {
            socket.close();
        }
        assert!(takes(&bound.actual));
    }
}
