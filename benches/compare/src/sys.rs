//! The two system calls that rustix does not wrap, and the only `unsafe` of this program.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// The CPU time that a process and all its threads, ended ones included, have used so far.
///
/// Any process may be asked. Fails with ESRCH once the process is gone.
pub fn process_cpu(pid: i32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    // SAFETY: `clock` is a valid place for one clockid_t and outlives the call.
    let errno = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for one timespec and outlives the call.
    if unsafe { libc::clock_gettime(clock, &raw mut time) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Lets `bind` choose only the address: the port is chosen by `connect`, which can reuse a local port that is taken
/// towards another peer. Without it a client that binds runs out of ports after one range of them.
pub fn bind_address_only(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open as long as it is borrowed; the option takes one c_int, which `on` is.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_clock_runs_and_a_missing_process_is_an_error() {
        let before = process_cpu(std::process::id() as i32).unwrap();
        let mut spins = 0_u64;
        while process_cpu(std::process::id() as i32).unwrap() <= before {
            spins += 1;
            assert!(spins < 1_000_000_000, "the clock of a busy process stands still");
        }
        // Beyond the largest number that Linux gives (PID_MAX_LIMIT).
        assert!(process_cpu((1 << 22) + 1).is_err());
    }
}
