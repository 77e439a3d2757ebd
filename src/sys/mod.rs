//! The only `unsafe` of the crate: what neither std, socket2 nor rustix offers safely.
//!
//! Owns thin, safe wrappers around single system calls; no policy. Each block carries its SAFETY sentence.
#![expect(unsafe_code, reason = "this module exists to hold it")]

pub mod option;
pub mod user;

use rustix::io::Errno;
use rustix::ioctl;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes that a TCP peer has not acknowledged yet, or that a unix peer has not read yet; a FIN in flight counts
/// as one byte. Source: SIOCOUTQ in tcp(7) and unix(7).
pub fn send_queue<Fd: AsFd>(socket: Fd) -> Result<u32, Errno> {
    // SAFETY: SIOCOUTQ has no argument to read and writes one int, which is what `Getter<_, c_int>` provides.
    let queued = unsafe {
        let request = ioctl::Getter::<{ libc::TIOCOUTQ as ioctl::Opcode }, libc::c_int>::new();
        ioctl::ioctl(socket, request)
    }?;
    Ok(queued.max(0) as u32)
}

/// For how many milliseconds a TCP peer has acknowledged nothing although it owes an answer: to data in flight, or to
/// several probes in a row (of an idle connection or of a closed window). `None` if it owes none, or for a socket that
/// isn't TCP. Source: `TCP_INFO` in tcp(7).
pub fn unanswered_for<Fd: AsFd>(socket: Fd) -> Option<u32> {
    /// One probe is always on its way now and then.
    const PROBES: u8 = 3;
    let info = tcp_info(socket)?;
    (info.tcpi_unacked > 0 || info.tcpi_probes >= PROBES).then_some(info.tcpi_last_ack_recv)
}

/// Connections that wait for an accept(2), and how many may.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AcceptQueue {
    pub length: u32,
    pub limit: u32,
}

/// The accept queue of a listening TCP socket; `None` for any other. Source: `tcp_get_info` in the kernel, which has
/// two fields tell of the queue while the socket listens.
pub fn accept_queue<Fd: AsFd>(socket: Fd) -> Option<AcceptQueue> {
    /// `TCP_LISTEN` of the kernel's `tcp_states.h`.
    const LISTENS: u8 = 10;
    let info = tcp_info(socket)?;
    (info.tcpi_state == LISTENS).then_some(AcceptQueue { length: info.tcpi_unacked, limit: info.tcpi_sacked })
}

fn tcp_info<Fd: AsFd>(socket: Fd) -> Option<libc::tcp_info> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `info`, which is that long.
    let failed = unsafe {
        let socket = socket.as_fd().as_raw_fd();
        libc::getsockopt(socket, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_ptr().cast(), &raw mut length)
    };
    if failed != 0 {
        return None;
    }
    // SAFETY: every field is an integer, for which what the kernel wrote and the zeroes after it are both valid.
    Some(unsafe { info.assume_init() })
}

/// A descriptor that stays open, and the same one, for as long as its holder lives.
pub trait Steady: AsRawFd + sealed::Sealed {}

impl Steady for OwnedFd {}
impl Steady for BorrowedFd<'_> {}

mod sealed {
    pub trait Sealed {}
    impl Sealed for std::os::fd::OwnedFd {}
    impl Sealed for std::os::fd::BorrowedFd<'_> {}
}

/// Lets the current runtime watch a descriptor for readiness.
pub fn watch<T: Steady>(descriptor: T, interest: Interest) -> Result<AsyncFd<T>, Errno> {
    // SAFETY: the two `Steady` types keep their descriptor open and unchanged until the `AsyncFd` drops them.
    let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
    watched.map_err(|error| Errno::from_io_error(&error.into_parts().1).unwrap_or(Errno::NOMEM))
}

/// The first `count` descriptors above the standard streams, which were passed to this process by the protocol of
/// `sd_listen_fds(3)`; as far as they are open. The second call has none.
pub fn passed_descriptors(count: usize) -> Vec<OwnedFd> {
    /// `SD_LISTEN_FDS_START` of that manual.
    const FIRST: RawFd = 3;
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Vec::new();
    }
    let numbers = (FIRST..).take(count);
    // SAFETY: the call reads flags of whatever the number stands for, if anything.
    let is_open = |number: &RawFd| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
    // SAFETY: they are open, they have been since before the process ran, so that nobody in it has made them, and
    // whoever passed them meant this process to have them; this happens once.
    numbers.filter(is_open).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect()
}

/// Signals that are held back from the thread which made this and from those that it starts, until it lets them go:
/// then one of each kind that has come meanwhile arrives.
pub struct Held(libc::sigset_t);

impl Held {
    #[must_use]
    pub fn new(signals: &[libc::c_int]) -> Self {
        let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: `sigemptyset` writes the whole set before anything reads it, and the others get pointers to it that
        // are valid for the calls; no number of a signal can do more than have its call refused.
        let set = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            set.assume_init()
        };
        Self(set)
    }

    /// For the calling thread, which should be the same one.
    pub fn let_go(self) {
        // SAFETY: the set is initialised, and the call only reads it.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Gives memory that was freed, but is kept for the next allocation, back to the kernel, in all threads' arenas. Takes
/// their locks, one after the other: some milliseconds. Source: `malloc_trim(3)`, which only glibc has; with another
/// allocator this does nothing. What it joins to the end of a thread's heap stays there: see [`shrink_own_heap`].
pub fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and touches only what the allocator itself manages, under the allocator's locks.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Gives the free end of the calling thread's heap back to the kernel, at the price of an allocation. glibc looks at it
/// only when a chunk of 64 KiB or more next to it is freed, and `malloc_trim(3)` looks everywhere else. Source:
/// `_int_free` and `mtrim` in glibc 2.36; with another allocator this does no harm.
pub fn shrink_own_heap() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(96 * 1024)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_signal_that_is_held_back_arrives_once_it_is_let_go() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let held = Held::new(&[libc::SIGUSR2]);
        // SAFETY: no pointers; to this thread alone, which holds it back, or it would end the process.
        assert_eq!(unsafe { libc::raise(libc::SIGUSR2) }, 0);
        runtime.block_on(async {
            let kind = tokio::signal::unix::SignalKind::user_defined2();
            let mut listening = tokio::signal::unix::signal(kind).unwrap();
            held.let_go();
            assert!(listening.recv().await.is_some());
        });
    }

    #[test]
    fn a_peer_that_owes_nothing_is_not_waited_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let near = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(unanswered_for(&near), None);
        assert_eq!(unanswered_for(&UnixStream::pair().unwrap().0), None);
    }

    #[test]
    fn the_accept_queue_counts_who_waits() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 7).unwrap();
        assert_eq!(accept_queue(&listener), Some(AcceptQueue { length: 0, limit: 7 }));
        let address = listener.local_addr().unwrap();
        let waiting = [(); 3].map(|()| std::net::TcpStream::connect(address).unwrap());
        assert_eq!(accept_queue(&listener), Some(AcceptQueue { length: 3, limit: 7 }));
        let _first = listener.accept().unwrap();
        assert_eq!(accept_queue(&listener).map(|queue| queue.length), Some(2));
        assert_eq!(accept_queue(&waiting[0]), None, "it doesn't listen");
        assert_eq!(accept_queue(&UnixStream::pair().unwrap().0), None);
    }

    #[test]
    fn the_send_queue_counts_what_the_peer_has_not_taken() {
        let (mut near, mut far) = UnixStream::pair().unwrap();
        assert_eq!(send_queue(&near).unwrap(), 0);
        near.write_all(b"tide").unwrap();
        assert!(send_queue(&near).unwrap() > 0);
        far.read_exact(&mut [0; 4]).unwrap();
        assert_eq!(send_queue(&near).unwrap(), 0);
    }
}
