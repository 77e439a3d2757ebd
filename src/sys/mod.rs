//! The only `unsafe` of the tree: what neither std, socket2 nor rustix offers safely.
//!
//! Owns thin, safe wrappers around single system calls; no policy. Each block carries its SAFETY sentence.
#![expect(unsafe_code, reason = "this module exists to hold it")]

use rustix::io::Errno;
use rustix::ioctl;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

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
