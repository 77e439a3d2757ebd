//! What clients and backends of the chaos test say to each other, and how either knows that not a byte is wrong.
//!
//! A request is a line, `ID PAYLOAD`; its answer is a line as well, `ID HASH NAME FILLER`: the payload's hash, the
//! backend's name, and a filler that follows from the hash, so that an answer which was cut, doubled or mixed with
//! another can't look complete.

/// The health question, and how its answer begins.
pub const HEALTH: &str = "HEALTH";
pub const HEALTHY: &str = "OK ";

/// The longest filler, in bytes. An answer stays so short that the kernel takes it in one piece: a backend which is
/// killed has then either answered or not.
const MOST_FILLER: u64 = 3_000;

/// FNV-1a.
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn filler(hash: u64) -> String {
    let mut state = hash | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..hash % MOST_FILLER).map(letter).collect()
}

pub fn request(id: u64, payload: &str) -> String {
    format!("{id} {payload}\n")
}

/// The answer to a request without its line feed; `None` if it is no request.
pub fn answer(request: &str, name: &str) -> Option<String> {
    let (id, payload) = request.split_once(' ')?;
    let hash = hash(payload.as_bytes());
    Some(format!("{id} {hash:016x} {name} {}\n", filler(hash)))
}

/// Whether this line is the whole answer to this request, whoever gave it.
pub fn is_answer(line: &str, id: u64, payload: &str) -> bool {
    let hash = hash(payload.as_bytes());
    let rest = line.strip_prefix(&format!("{id} {hash:016x} "));
    rest.and_then(|rest| rest.split_once(' ')).is_some_and(|(_, seen)| seen.strip_suffix('\n') == Some(&filler(hash)))
}
