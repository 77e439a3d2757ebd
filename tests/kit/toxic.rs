//! A proxy that does harm: it stands before a backend (or before the balancer) and delays, stalls, resets or closes, as
//! it is told at run time.
//!
//! Each direction has a [`Poison`] of its own, which holds for connections that stand and for new ones. Handshakes are
//! the kernel's: what hangs a connect is [`super::Silent`].

use super::backend::Backend;
use super::conn::{Addr, Conn, uninterrupted};
use super::wait::pace;
use std::fmt;
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// What happens to the bytes of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poison {
    #[default]
    None,
    /// Each piece is passed on this much later.
    Delay(Duration),
    /// Nothing is passed on for as long as this holds, neither bytes nor an end.
    Stall,
    /// After so many bytes of a connection both of its sides are reset; 0 means at once.
    ResetAfter(u64),
    /// The same with a FIN to both sides.
    CloseAfter(u64),
}

/// One of the two directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From whoever connects here to the target.
    There,
    Back,
}

#[derive(Default)]
struct Shared {
    poisons: Mutex<[Poison; 2]>,
    changed: Condvar,
}

impl Shared {
    fn poison(&self, way: Way) -> Poison {
        self.poisons.lock().unwrap()[way as usize]
    }

    fn wake(&self) {
        // Under the lock, so that nobody looks before and waits after it.
        let poisons = self.poisons.lock().unwrap();
        self.changed.notify_all();
        drop(poisons);
    }

    /// The poison of this direction, once it isn't a stall or the connection has been cut.
    fn poison_after_stall(&self, way: Way, is_cut: &AtomicBool) -> Poison {
        let stalls =
            |poisons: &mut [Poison; 2]| poisons[way as usize] == Poison::Stall && !is_cut.load(Ordering::SeqCst);
        self.changed.wait_while(self.poisons.lock().unwrap(), stalls).unwrap()[way as usize]
    }
}

/// The proxy.
pub struct Toxic {
    backend: Backend,
    shared: Arc<Shared>,
}

impl Toxic {
    /// Harmless at first.
    pub fn before(target: &Addr) -> Self {
        let shared = Arc::<Shared>::default();
        let (target, state) = (target.clone(), shared.clone());
        let backend = Backend::new(move |conn| join(conn, &target, &state));
        Self { backend, shared }
    }

    pub fn addr(&self) -> &Addr {
        &self.backend.addr
    }

    /// From now on.
    pub fn poison(&self, way: Way, poison: Poison) {
        self.shared.poisons.lock().unwrap()[way as usize] = poison;
        self.shared.changed.notify_all();
    }

    /// Both directions are harmless again, and what was stalled goes on.
    pub fn cure(&self) {
        self.poison(Way::There, Poison::None);
        self.poison(Way::Back, Poison::None);
    }

    /// How many connections it has taken.
    pub fn accepted(&self) -> usize {
        self.backend.accepted()
    }
}

impl fmt::Display for Toxic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addr().fmt(f)
    }
}

fn join(near: Conn, target: &Addr, shared: &Arc<Shared>) {
    let Ok(far) = Conn::try_to(target) else { return near.reset() };
    let is_cut = Arc::<AtomicBool>::default();
    let back =
        Flow { from: far.twin(), to: near.twin(), way: Way::Back, is_cut: is_cut.clone(), shared: shared.clone() };
    let there = Flow { from: near, to: far, way: Way::There, is_cut, shared: shared.clone() };
    let back = std::thread::spawn(move || back.pump());
    there.pump();
    let _ = back.join();
}

/// One direction of a connection.
struct Flow {
    from: Conn,
    to: Conn,
    way: Way,
    /// Of the connection, for both directions.
    is_cut: Arc<AtomicBool>,
    shared: Arc<Shared>,
}

impl Flow {
    /// Moves bytes until they end.
    fn pump(mut self) {
        let mut buffer = vec![0; 64 << 10];
        let mut passed = 0;
        loop {
            match self.shared.poison(self.way) {
                Poison::ResetAfter(most) if passed >= most => return self.cut(),
                Poison::CloseAfter(most) if passed >= most => return self.close(),
                _ => {}
            }
            let count = match uninterrupted(|| self.from.read(&mut buffer)) {
                // Nothing for a while is no end.
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(_) => return self.cut(),
                Ok(count) => count,
            };
            // It may have been told otherwise meanwhile.
            let poison = self.shared.poison_after_stall(self.way, &self.is_cut);
            if self.is_cut.load(Ordering::SeqCst) {
                return;
            }
            let mut most = count;
            match poison {
                Poison::Delay(delay) => pace(delay),
                Poison::ResetAfter(limit) | Poison::CloseAfter(limit) => {
                    most = most.min(usize::try_from(limit.saturating_sub(passed)).unwrap());
                }
                Poison::None | Poison::Stall => {}
            }
            if count == 0 {
                let _ = self.to.try_finish();
                return;
            }
            if self.to.try_send(&buffer[..most]).is_err() {
                return self.cut();
            }
            passed += most as u64;
        }
    }

    /// Lets the last close of each side be a reset, and the other direction come to it.
    fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
        self.from.condemn();
        self.to.condemn();
        self.shared.wake();
    }

    fn close(&self) {
        let _ = self.from.try_finish();
        let _ = self.to.try_finish();
    }
}
