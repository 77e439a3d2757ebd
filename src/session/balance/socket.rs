//! One of a worker's listening sockets, where its siblings and the daemon find it.
//!
//! Owns the socket's descriptor, the listener that its clients come to, and the signal by which it is retired. Decides
//! nothing. Invariants: a socket that is closed here doesn't listen any more, whoever else still holds it; which
//! listener a client belongs to is read once for each turn of accepting, so that a session keeps the one that it began
//! with.

use crate::drain::{self, Drain, Stage, Stopper};
use crate::net::listen::{ListenSocket, Options};
use crate::table::Listener;
use arc_swap::ArcSwap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub struct SharedSocket {
    listener: ArcSwap<Listener>,
    state: Mutex<State>,
    stopper: Stopper,
    drain: Drain,
}

struct State {
    /// `None` while it is broken, and after it was closed.
    socket: Option<Arc<ListenSocket>>,
    /// For binding it again.
    options: Options,
    /// It doesn't listen any more once it is closed, whoever else has it.
    stops: bool,
    /// See [`SharedSocket::lingers`].
    lingers: bool,
}

/// Where the clients of a socket that goes can connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heir {
    Nobody,
    /// To sockets that the kernel finds once this one is hidden.
    Other,
    /// To sockets of the very same address. Among those, the kernel would go on choosing this one (`SO_REUSEPORT`),
    /// hidden as it is, and clients would wait in vain.
    Same,
}

impl SharedSocket {
    #[must_use]
    pub fn new(socket: Arc<ListenSocket>, options: Options, listener: Arc<Listener>) -> Self {
        let (stopper, drain) = drain::channel();
        let state = Mutex::new(State { socket: Some(socket), options, stops: false, lingers: false });
        Self { listener: ArcSwap::new(listener), state, stopper, drain }
    }

    /// Whose clients come in here.
    #[must_use]
    pub fn listener(&self) -> Arc<Listener> {
        self.listener.load_full()
    }

    /// Whose clients those are that are accepted from now on.
    pub fn hand_to(&self, listener: Arc<Listener>) {
        self.listener.store(listener);
    }

    /// The socket; `None` while it is broken, and after it was closed.
    #[must_use]
    pub fn get(&self) -> Option<Arc<ListenSocket>> {
        self.lock().socket.clone()
    }

    /// Puts a new socket in the place of a broken one, or nothing for the time being.
    pub fn replace(&self, socket: Option<Arc<ListenSocket>>) {
        self.lock().socket = socket;
    }

    /// The socket, for somebody who goes on with it: closing ends nothing any more.
    #[must_use]
    pub fn take(&self) -> Option<Arc<ListenSocket>> {
        self.lock().socket.take()
    }

    #[must_use]
    pub fn options(&self) -> Options {
        self.lock().options.clone()
    }

    /// The options that it has been given, for when it must be bound again.
    pub fn set_options(&self, options: Options) {
        self.lock().options = options;
    }

    /// Says that it is to be emptied and closed. No new client finds it from now on; where others have its clients,
    /// those that are being connected to this one have time for that.
    pub fn retire(&self, heir: Heir) {
        let mut state = self.lock();
        let is_hidden = heir != Heir::Same && state.socket.as_ref().is_some_and(|socket| socket.hide());
        state.lingers = is_hidden && heir == Heir::Other;
        drop(state);
        self.advance(Stage::Draining);
    }

    /// Whether it is to listen for a while once its queue is empty; no new client finds it by then.
    #[must_use]
    pub fn lingers(&self) -> bool {
        self.lock().lingers
    }

    /// Says that it is to be emptied and closed, or that what is left is reset.
    pub fn advance(&self, stage: Stage) {
        self.stopper.advance(stage);
    }

    /// How far its end has come, by itself or with that of the process.
    #[must_use]
    pub fn drain(&self) -> Drain {
        self.drain.clone()
    }

    #[must_use]
    pub fn is_retired(&self) -> bool {
        self.drain.stage() > Stage::Serving
    }

    /// Has its end be the end of listening for other processes too.
    pub fn stop_for_good(&self) {
        self.lock().stops = true;
    }

    /// Ends listening at once, also while others of this process still hold the socket; see [`ListenSocket::end`].
    pub fn close(&self) {
        let mut state = self.lock();
        if let Some(socket) = state.socket.take() {
            if state.stops { socket.stop() } else { socket.end() }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
