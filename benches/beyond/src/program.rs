//! The BPF program of the sockmap relay, by hand: eleven instructions need no compiler for BPF.
//!
//! It looks up its own socket's cookie in the map, where the other socket of the session stands, and hands the buffer
//! to that one's send side. Invariant: it never drops. Without an entry the bytes stay with the socket, to be read as
//! usual.

use std::os::fd::RawFd;

const CONTEXT: u8 = 1;
const SAVED: u8 = 6;
const STACK: u8 = 10;
const GET_SOCKET_COOKIE: i32 = 46;
const SK_REDIRECT_HASH: i32 = 72;
const SK_PASS: i32 = 1;

fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

fn copy(to: u8, from: u8) -> u64 {
    instruction(0xbf, to, from, 0, 0)
}

fn set(to: u8, value: i32) -> u64 {
    instruction(0xb7, to, 0, 0, value)
}

fn call(helper: i32) -> u64 {
    instruction(0x85, 0, 0, 0, helper)
}

/// The program for the map with this descriptor.
pub fn redirect_to_the_other(map: RawFd) -> Vec<u64> {
    vec![
        copy(SAVED, CONTEXT),
        call(GET_SOCKET_COOKIE),
        // The cookie is the key: *(u64 *)(stack - 8) = r0
        instruction(0x7b, STACK, 0, -8, 0),
        copy(1, SAVED),
        // r2 = the map, an instruction of two words
        instruction(0x18, 2, 1, 0, map),
        0,
        copy(3, STACK),
        instruction(0x07, 3, 0, 0, -8),
        // No flags: to the send side of the other socket
        set(4, 0),
        call(SK_REDIRECT_HASH),
        // Whatever it found: nothing is dropped
        set(0, SK_PASS),
        instruction(0x95, 0, 0, 0, 0),
    ]
}
