//! Bytes that tell where in a stream they belong, so that a lost, doubled or swapped piece shows up at its offset.

use std::sync::LazyLock;

/// A prime, so that no buffer size of anybody's is a multiple of the period.
const PERIOD: usize = 65_521;

static BLOCK: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..PERIOD)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 24) as u8
        })
        .collect()
});

/// The stream's next bytes at `offset`: at least one, at most a period.
pub fn at(offset: u64) -> &'static [u8] {
    &BLOCK[(offset % PERIOD as u64) as usize..]
}

/// `count` bytes of the stream from `offset`.
pub fn bytes(offset: u64, count: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count);
    while out.len() < count {
        let piece = at(offset + out.len() as u64);
        out.extend_from_slice(&piece[..piece.len().min(count - out.len())]);
    }
    out
}

/// Asserts that `seen` are the stream's bytes at `offset`.
///
/// # Panics
/// At the first byte that differs, with its offset.
pub fn check(offset: u64, seen: &[u8]) {
    let mut done = 0;
    while done < seen.len() {
        let wanted = at(offset + done as u64);
        let length = wanted.len().min(seen.len() - done);
        let piece = &seen[done..done + length];
        if piece != &wanted[..length] {
            let first = piece.iter().zip(wanted).position(|(a, b)| a != b).unwrap();
            panic!("byte {} of the stream is not the one that was sent there", offset + (done + first) as u64);
        }
        done += length;
    }
}
