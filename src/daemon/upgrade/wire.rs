//! The messages between the two processes, over a pair of unix sockets that keep messages apart (`SOCK_SEQPACKET`).
//!
//! Owns their form: one letter, then what it is about; descriptors travel beside it, in batches below the kernel's
//! bound. Decides nothing. A peer that has gone is a message of no bytes.

use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors in one message. The kernel's bound is 253 (`SCM_MAX_FD`).
const BATCH: usize = 128;
/// Bytes of a description in one message.
const CHUNK: usize = 32 << 10;

/// What a message says.
#[derive(Debug)]
pub enum Message {
    /// A piece of the description.
    Description(Vec<u8>),
    /// Some of the descriptors, in order.
    Descriptors(Vec<OwnedFd>),
    /// Description and descriptors are complete; with the standard streams that the successor is to use when it is on
    /// its own: output and errors.
    Complete(Vec<OwnedFd>),
    /// The successor accepts; what it has taken, in JSON.
    Ready(Vec<u8>),
    /// The successor was told to stop, by what is said here, and waits for the word.
    Leave(Vec<u8>),
    /// The successor isn't wanted any more.
    No,
    /// The successor is on its own.
    Go,
}

/// The two ends; neither outlives an exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Errno> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// A message on its way out, without the descriptors that it takes along.
#[derive(Debug)]
pub enum Outgoing {
    Description(Vec<u8>),
    /// So many of them, from this one on.
    Descriptors {
        first: usize,
        count: usize,
    },
    Complete,
}

/// What a predecessor sends at first, piece by piece.
pub fn pieces(description: &[u8], descriptors: usize) -> impl Iterator<Item = Outgoing> + use<> {
    let chunks: Vec<_> = description.chunks(CHUNK).map(|chunk| Outgoing::Description(chunk.to_vec())).collect();
    let batches = (0..descriptors).step_by(BATCH);
    let batches = batches.map(move |first| Outgoing::Descriptors { first, count: BATCH.min(descriptors - first) });
    chunks.into_iter().chain(batches).chain([Outgoing::Complete])
}

/// Sends one piece; `EAGAIN` if the socket is nonblocking and has no room.
pub fn send_piece<Fd: AsFd>(socket: Fd, piece: &Outgoing, descriptors: &[OwnedFd]) -> Result<(), Errno> {
    match piece {
        Outgoing::Description(bytes) => send(socket, b'd', bytes, &[]),
        Outgoing::Descriptors { first, count } => {
            let some: Vec<_> = descriptors[*first..first + count].iter().map(AsFd::as_fd).collect();
            send(socket, b'f', &[], &some)
        }
        Outgoing::Complete => {
            let (output, errors) = (std::io::stdout(), std::io::stderr());
            send(socket, b'e', &[], &[output.as_fd(), errors.as_fd()])
        }
    }
}

pub fn send_ready<Fd: AsFd>(socket: Fd, taken: &[u8]) -> Result<(), Errno> {
    send(socket, b'r', taken, &[])
}

pub fn send_leave<Fd: AsFd>(socket: Fd, signal: &str) -> Result<(), Errno> {
    send(socket, b'l', signal.as_bytes(), &[])
}

pub fn send_go<Fd: AsFd>(socket: Fd) -> Result<(), Errno> {
    send(socket, b'g', &[], &[])
}

pub fn send_no<Fd: AsFd>(socket: Fd) -> Result<(), Errno> {
    send(socket, b'n', &[], &[])
}

fn send<Fd: AsFd>(socket: Fd, letter: u8, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let letter = [letter];
    let parts = [IoSlice::new(&letter), IoSlice::new(bytes)];
    // A peer that is gone is an error, not a signal.
    sendmsg(socket, &parts, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message; `None` if the peer is gone, `EBADMSG` for what isn't known.
pub fn receive<Fd: AsFd>(socket: Fd) -> Result<Option<Message>, Errno> {
    let mut bytes = vec![0; CHUNK + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    // With a time-out, it is interrupted whenever this process was stopped and goes on: see signal(7).
    let received = retry_on_intr(|| recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC))?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            descriptors.extend(some);
        }
    }
    bytes.truncate(received.bytes);
    let Some((letter, rest)) = bytes.split_first() else { return Ok(None) };
    Ok(Some(match letter {
        b'd' => Message::Description(rest.to_vec()),
        b'f' => Message::Descriptors(descriptors),
        b'e' => Message::Complete(descriptors),
        b'r' => Message::Ready(rest.to_vec()),
        b'l' => Message::Leave(rest.to_vec()),
        b'n' => Message::No,
        b'g' => Message::Go,
        _ => return Err(Errno::BADMSG),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;

    #[test]
    fn more_descriptors_than_the_kernel_takes_at_once_arrive_in_order() {
        let count = 300;
        let descriptors: Vec<OwnedFd> = (0..count).map(|_| UnixDatagram::unbound().unwrap().into()).collect();
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
        let sent: Vec<_> = descriptors.iter().map(inode).collect();
        let description: Vec<u8> = (0..100_000_u32).map(|index| (index % 251) as u8).collect();
        let (near, far) = pair().unwrap();
        let expected = description.clone();
        let sender = std::thread::spawn(move || {
            for piece in pieces(&description, count) {
                send_piece(&near, &piece, &descriptors).unwrap();
            }
        });
        let (mut text, mut received, mut complete) = (Vec::new(), Vec::new(), false);
        while let Some(message) = receive(&far).unwrap() {
            match message {
                Message::Description(bytes) => text.extend(bytes),
                Message::Descriptors(some) => received.extend(some),
                Message::Complete(streams) => complete = streams.len() == 2,
                other => panic!("{other:?}"),
            }
        }
        sender.join().unwrap();
        assert!(complete);
        assert_eq!(text, expected);
        assert_eq!(received.iter().map(inode).collect::<Vec<_>>(), sent);
        assert!(received.iter().all(|fd| rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)));
    }

    #[test]
    fn both_sides_understand_each_other_and_nobody_else() {
        let (near, far) = pair().unwrap();
        send_ready(&far, b"[1]").unwrap();
        assert!(matches!(receive(&near), Ok(Some(Message::Ready(taken))) if taken == b"[1]"));
        send_leave(&far, "SIGTERM").unwrap();
        assert!(matches!(receive(&near), Ok(Some(Message::Leave(signal))) if signal == b"SIGTERM"));
        send_go(&near).unwrap();
        assert!(matches!(receive(&far), Ok(Some(Message::Go))));
        rustix::net::send(&near, b"?", SendFlags::empty()).unwrap();
        assert_eq!(receive(&far).unwrap_err(), Errno::BADMSG);
        drop(near);
        assert!(receive(&far).unwrap().is_none());
    }
}
