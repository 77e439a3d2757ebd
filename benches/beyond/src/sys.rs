//! What no crate wraps safely: bpf(2), three socket options, and an `io_uring` whose buffers can't dangle.
//!
//! Owns all the `unsafe` of this package. Invariant: memory that the kernel may write to or read from after a call has
//! returned is leaked, never freed, and Rust makes no reference into it.

#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{self, BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Bytes in the send queue that the peer has not acknowledged, sent or not (`SIOCOUTQ`).
pub fn unacknowledged(socket: impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open while borrowed; TIOCOUTQ (which is SIOCOUTQ) writes one c_int, which `bytes` is.
    check(unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(bytes.max(0) as u32)
}

/// What TCP itself counts of a connection, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpCounts {
    /// Received in order, whether anybody has read it or not. A FIN counts as one.
    pub received: u64,
    /// Handed to the socket and acknowledged by the peer. A FIN counts as one.
    pub acknowledged: u64,
}

/// Reads `TCP_INFO`. Fails with EOPNOTSUPP on kernels that lack the counters (before 4.2).
pub fn tcp_counts(socket: impl AsFd) -> io::Result<TcpCounts> {
    /// `tcpi_bytes_acked` and `tcpi_bytes_received` in `struct tcp_info`, which only ever grows at its end.
    const ACKNOWLEDGED: usize = 120;
    const RECEIVED: usize = 128;
    let mut info = [0_u8; 136];
    let mut length = info.len() as libc::socklen_t;
    // SAFETY: the descriptor is open while borrowed; the kernel writes at most `length` bytes, which `info` has.
    check(unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    if (length as usize) < info.len() {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    let field = |offset: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&info[offset..offset + 8]);
        u64::from_ne_bytes(bytes)
    };
    Ok(TcpCounts { received: field(RECEIVED), acknowledged: field(ACKNOWLEDGED) })
}

/// Sets the receive low-water mark. Linux answers with a look at what is queued, and announces it if it is enough: with
/// `bytes` 1 this is a way to have the announcement of old bytes repeated.
pub fn set_receive_low_water(socket: impl AsFd, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open while borrowed; the option takes one c_int, which `bytes` is.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    })?;
    Ok(())
}

/// The first 128 bytes of `union bpf_attr`: more than any command used here has fields. Zero means "not set".
#[repr(C, align(8))]
struct BpfAttributes([u8; 128]);

impl BpfAttributes {
    fn new() -> Self {
        Self([0; 128])
    }

    fn with_u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    fn with_u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// # Safety
    /// Every address among the attributes has to be valid for what the command does with it until the call returns.
    unsafe fn call(&self, command: libc::c_int) -> io::Result<libc::c_int> {
        // SAFETY: the attributes are 128 valid bytes, as said; the addresses in them are the caller's promise.
        check(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const self.0, self.0.len()) as libc::c_int })
    }
}

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;

/// `BPF_MAP_TYPE_SOCKHASH` from u64 keys to sockets.
pub struct SockHash(OwnedFd);

impl SockHash {
    /// Needs `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn new(entries: u32) -> io::Result<Self> {
        const SOCKHASH: u32 = 18;
        const KEY_BYTES: u32 = 8;
        const VALUE_BYTES: u32 = 4;
        let attributes = BpfAttributes::new()
            .with_u32(0, SOCKHASH)
            .with_u32(4, KEY_BYTES)
            .with_u32(8, VALUE_BYTES)
            .with_u32(12, entries);
        // SAFETY: this command takes no addresses; a result that is no error is a descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(attributes.call(BPF_MAP_CREATE)?) }))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// From now on `socket` runs the map's program, and `key` leads to it. Fails with EOPNOTSUPP if it isn't
    /// established (any more), and with EEXIST if the key is taken.
    pub fn insert(&self, key: u64, socket: impl AsFd) -> io::Result<()> {
        const NO_EXIST: u64 = 1;
        let value = socket.as_fd().as_raw_fd() as u32;
        let attributes = self.element(&key).with_u64(16, (&raw const value) as u64).with_u64(24, NO_EXIST);
        // SAFETY: the map's keys are 8 bytes and its values 4, as `key` and `value` are; both outlive the call.
        unsafe { attributes.call(BPF_MAP_UPDATE_ELEM) }.map(drop)
    }

    /// Fails with ENOENT if there is no such key: a socket that has closed has left the map already.
    pub fn remove(&self, key: u64) -> io::Result<()> {
        let attributes = self.element(&key);
        // SAFETY: the map's keys are 8 bytes, as `key` is, which outlives the call.
        unsafe { attributes.call(BPF_MAP_DELETE_ELEM) }.map(drop)
    }

    fn element(&self, key: &u64) -> BpfAttributes {
        BpfAttributes::new().with_u32(0, self.fd() as u32).with_u64(8, std::ptr::from_ref(key) as u64)
    }

    /// All sockets in the map run this `BPF_PROG_TYPE_SK_SKB` program as their stream verdict: once for each buffer
    /// received. The program stays loaded as long as the map lives.
    pub fn attach(&self, instructions: &[u64]) -> io::Result<()> {
        const SK_SKB: u32 = 14;
        const SK_SKB_STREAM_VERDICT: u32 = 5;
        let license = c"Apache-2.0";
        let mut log = vec![0_u8; 1 << 16];
        let load = BpfAttributes::new()
            .with_u32(0, SK_SKB)
            .with_u32(4, instructions.len() as u32)
            .with_u64(8, instructions.as_ptr() as u64)
            .with_u64(16, license.as_ptr() as u64)
            .with_u32(24, 1)
            .with_u32(28, log.len() as u32)
            .with_u64(32, log.as_mut_ptr() as u64);
        // SAFETY: the instructions, the licence and the log are valid for the lengths given and outlive the call.
        let program = match unsafe { load.call(BPF_PROG_LOAD) } {
            // SAFETY: a result that is no error is a descriptor that nobody else owns.
            Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd) },
            Err(error) => {
                let words = String::from_utf8_lossy(&log);
                return Err(io::Error::new(error.kind(), format!("{error}: {}", words.trim_end_matches('\0'))));
            }
        };
        let attach = BpfAttributes::new()
            .with_u32(0, self.fd() as u32)
            .with_u32(4, program.as_raw_fd() as u32)
            .with_u32(8, SK_SKB_STREAM_VERDICT);
        // SAFETY: this command takes no addresses.
        unsafe { attach.call(BPF_PROG_ATTACH) }.map(drop)
    }
}

/// The buffers' group; there is one.
const GROUP: u16 = 0;

/// An `io_uring` for one thread, with one ring of equal buffers that the kernel takes for what it receives.
///
/// Only these methods put requests into it, and each leads to memory that is never freed.
pub struct Ring {
    kernel: IoUring,
    entries: *mut BufRingEntry,
    buffers: *mut u8,
    buffer_bytes: u32,
    mask: u16,
    tail: u16,
}

/// One completion. Made only in `Ring::completions`, once each.
#[derive(Debug)]
pub struct Completion {
    pub token: u64,
    pub result: i32,
    /// The buffer that was filled; it has to be given back.
    pub buffer: Option<u16>,
    /// The request goes on and will complete again.
    pub more: bool,
    _made_here: (),
}

impl Ring {
    /// `buffers` is a power of two. Fails with EPERM where `kernel.io_uring_disabled` or a seccomp filter forbids it.
    pub fn new(buffers: u16, buffer_bytes: u32) -> io::Result<Self> {
        const SUBMISSIONS: u32 = 4096;
        const COMPLETIONS: u32 = 32_768;
        assert!(buffers.is_power_of_two(), "{buffers} buffers are no power of two");
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)?;
        let entries = leaked(usize::from(buffers) * size_of::<BufRingEntry>())?.cast::<BufRingEntry>();
        let memory = leaked(usize::from(buffers) * buffer_bytes as usize)?.cast::<u8>();
        // SAFETY: `entries` is page-aligned, has room for `buffers` entries, and is never unmapped.
        unsafe { ring.submitter().register_buf_ring_with_flags(entries as u64, buffers, GROUP, 0)? };
        let mut ring = Self { kernel: ring, entries, buffers: memory, buffer_bytes, mask: buffers - 1, tail: 0 };
        for index in 0..buffers {
            // SAFETY: the offset lies within the mapping, which the kernel can't write to before the next line. One
            // page of each buffer becomes resident here, so that idle connections aren't charged with it later.
            unsafe { ring.buffers.add(usize::from(index) * buffer_bytes as usize).write_volatile(1) };
            ring.give_back(index);
        }
        Ok(ring)
    }

    /// The kernel may fill this buffer again.
    pub fn give_back(&mut self, buffer: u16) {
        let slot = usize::from(self.tail & self.mask);
        // SAFETY: `slot` is below the number of entries. The kernel reads an entry only below the tail, which still
        // excludes this one, because at most as many buffers are out as there are entries.
        unsafe {
            let entry = &mut *self.entries.add(slot);
            entry.set_addr(self.buffers.add(usize::from(buffer) * self.buffer_bytes as usize) as u64);
            entry.set_len(self.buffer_bytes);
            entry.set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the tail lies in the first entry, is aligned, and is only ever written here, atomically.
        let tail = unsafe { &*BufRingEntry::tail(self.entries).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }

    /// Accepts again and again; the result of each completion is a descriptor, for `accepted`.
    pub fn accept(&mut self, listener: RawFd, token: u64) {
        self.push(&opcode::AcceptMulti::new(Fd(listener)).flags(libc::SOCK_CLOEXEC).build().user_data(token));
    }

    /// Connects; `address` is for ever because the kernel may read it late.
    pub fn connect(&mut self, socket: RawFd, address: &'static Address, token: u64) {
        let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        self.push(&opcode::Connect::new(Fd(socket), (&raw const address.0).cast(), length).build().user_data(token));
    }

    /// Receives into one buffer after the other until it fails, ends, or is cancelled.
    pub fn receive_again_and_again(&mut self, socket: RawFd, token: u64) {
        self.push(&opcode::RecvMulti::new(Fd(socket), GROUP).build().user_data(token));
    }

    /// Receives into one buffer, once.
    pub fn receive_once(&mut self, socket: RawFd, token: u64) {
        let entry = opcode::Recv::new(Fd(socket), std::ptr::null_mut(), 0).buf_group(GROUP).build();
        self.push(&entry.flags(squeue::Flags::BUFFER_SELECT).user_data(token));
    }

    /// Sends `length` bytes from the start of a buffer, all of them unless the connection fails.
    pub fn send(&mut self, socket: RawFd, buffer: u16, length: u32, token: u64) {
        assert!(buffer <= self.mask && length <= self.buffer_bytes, "{length} bytes of buffer {buffer}");
        // SAFETY: the offset lies within the mapping, as just asserted.
        let start = unsafe { self.buffers.add(usize::from(buffer) * self.buffer_bytes as usize) };
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        self.push(&opcode::Send::new(Fd(socket), start, length).flags(flags).build().user_data(token));
    }

    /// Ends the request with the token `target`; the answer to this request itself comes with `token`.
    pub fn cancel(&mut self, target: u64, token: u64) {
        self.push(&opcode::AsyncCancel::new(target).build().user_data(token));
    }

    fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the methods above are the only callers; the addresses in their entries lead to leaked memory or
            // to statics, so they are valid however late the kernel uses them.
            if unsafe { self.kernel.submission().push(entry) }.is_ok() {
                return;
            }
            // Full. What goes wrong with the submission is seen again, and reported, in `wait`.
            let _ = self.kernel.submit();
        }
    }

    /// Submits what was asked for and waits for a completion, or for so long.
    pub fn wait(&mut self, longest: Option<Duration>) -> io::Result<()> {
        let result = match longest {
            None => self.kernel.submit_and_wait(1),
            Some(longest) => {
                let time = types::Timespec::from(longest);
                self.kernel.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(error) if matches!(error.raw_os_error(), Some(libc::ETIME | libc::EINTR | libc::EBUSY)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes all completions that are there.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        into.extend(self.kernel.completion().map(|entry| Completion {
            token: entry.user_data(),
            result: entry.result(),
            buffer: cqueue::buffer_select(entry.flags()),
            more: cqueue::more(entry.flags()),
            _made_here: (),
        }));
    }
}

/// The socket that an accept completed with; `None` if it failed.
#[allow(clippy::needless_pass_by_value, reason = "the socket must not be taken twice")]
pub fn accepted(completion: Completion) -> Option<OwnedFd> {
    // SAFETY: the kernel opened this descriptor for the accept, and a completion is taken once.
    (completion.result >= 0).then(|| unsafe { OwnedFd::from_raw_fd(completion.result) })
}

/// An address as the kernel reads it.
pub struct Address(libc::sockaddr_in);

impl From<SocketAddrV4> for Address {
    fn from(address: SocketAddrV4) -> Self {
        Self(libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: address.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
            sin_zero: [0; 8],
        })
    }
}

/// Zeroed, page-aligned memory for ever.
fn leaked(bytes: usize) -> io::Result<*mut libc::c_void> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory that exists.
    let memory = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(memory) }
}
