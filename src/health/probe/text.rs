//! What backends send, made fit for a log: escaped, cut, in quotes.
//!
//! Owns how much of an answer a reason repeats. A backend can write anything; nothing that a terminal or a log might
//! act upon gets through.

/// The most that is shown, in bytes of the answer.
const MAX_SHOWN: usize = 60;

/// The bytes in quotes, with everything but printable ASCII as an escape; a long answer is cut.
pub fn quoted(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(MAX_SHOWN)];
    let cut = if bytes.len() > MAX_SHOWN { "…" } else { "" };
    format!("\"{}{cut}\"", shown.escape_ascii())
}

/// Whether `text` is somewhere in `bytes`; as to the bytes before `from`, it is known not to begin there.
pub fn contains(bytes: &[u8], text: &[u8], from: usize) -> bool {
    bytes.get(from..).is_some_and(|bytes| bytes.windows(text.len().max(1)).any(|window| window == text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_escaped_and_cut() {
        assert_eq!(quoted(b"-LOADING\r\n\x1b[31m\xff\"x\""), r#""-LOADING\r\n\x1b[31m\xff\"x\"""#);
        let long = quoted(&[b'x'; 1_000]);
        assert_eq!(long, format!("\"{}…\"", "x".repeat(MAX_SHOWN)));
    }

    #[test]
    fn a_text_is_found_wherever_it_is() {
        assert!(contains(b"all is well", b"well", 0) && contains(b"well", b"well", 0));
        assert!(!contains(b"wel", b"well", 0) && !contains(b"", b"well", 0));
        assert!(!contains(b"well", b"well", 1) && contains(b"xwell", b"well", 1));
    }
}
