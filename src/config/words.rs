//! Words for messages: values quoted and escaped, lists joined, the key or name that was probably meant.
//!
//! Owns no rule about the config. Whatever is taken from a file passes through here before a person sees it.

/// The longest piece of a file that a message repeats, in characters.
const MAX_SHOWN: usize = 100;
/// A part of a name that is shorter says too little about which is meant.
const MIN_PART: usize = 4;
/// Among more names than this nobody looks for the one that was meant.
const MAX_CANDIDATES: usize = 1_000;

/// The text with whatever a terminal or log might act upon written as an escape; long text is cut.
pub(super) fn escaped(text: &str) -> String {
    let mut shown = String::new();
    for (count, char) in text.chars().enumerate() {
        if count == MAX_SHOWN {
            shown.push('…');
            break;
        }
        push_escaped(&mut shown, char);
    }
    shown
}

/// As [`escaped`], in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text).replace('"', "\\\""))
}

/// The text with each such character replaced by one visible character, so that columns stay where they are.
pub(super) fn masked(text: &str) -> String {
    text.chars().map(|char| if is_unsafe(char) && char != '\t' { char::REPLACEMENT_CHARACTER } else { char }).collect()
}

fn push_escaped(shown: &mut String, char: char) {
    if is_unsafe(char) {
        shown.extend(char.escape_default());
    } else {
        shown.push(char);
    }
}

/// Control characters, and those that reverse or hide what stands beside them.
pub(super) fn is_unsafe(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(char, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

/// Whether no path of the admin endpoint could name it, because it means a folder there.
pub(super) fn is_folder(name: &str) -> bool {
    matches!(name, "." | "..")
}

/// A key as it would be written in a dotted path: quoted if need be.
pub(super) fn key(key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if bare { escaped(key) } else { quoted(key) }
}

/// `a, b or c`.
pub(super) fn any_of<S: AsRef<str>>(words: &[S]) -> String {
    let words: Vec<&str> = words.iter().map(AsRef::as_ref).collect();
    match words.split_last() {
        None => String::new(),
        Some((last, [])) => (*last).to_owned(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
    }
}

/// The candidate that `word` is probably a slip of: one edit off, or one for each three characters; or else the one
/// that it is a part of, as the plain name of a thing is of the full one.
pub(super) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    if word.len() > 2 * MAX_SHOWN {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let plain = |text: &str| text.replace(['-', '_', '.'], "");
    let edits = |candidate: &str| {
        let most = (candidate.len() / 3).max(1);
        if candidate.len().abs_diff(word.len()) > most {
            return None;
        }
        let candidate = candidate.to_ascii_lowercase();
        if plain(&candidate) == plain(&word) {
            return Some(0);
        }
        let edits = strsim::damerau_levenshtein(&word, &candidate);
        (edits <= most && edits < candidate.len()).then_some(edits)
    };
    let near = candidates.clone().take(MAX_CANDIDATES).filter_map(|candidate| Some((edits(candidate)?, candidate)));
    let slip = near.min_by_key(|&(edits, _)| edits).map(|(_, candidate)| candidate);
    slip.or_else(|| whole(&plain(&word), candidates.take(MAX_CANDIDATES).map(|name| (plain(name), name))))
}

/// The candidate that has `part` in it, if all others that do have this one in them. Each comes with its plain letters.
fn whole<'a>(part: &str, candidates: impl Iterator<Item = (String, &'a str)>) -> Option<&'a str> {
    if part.len() < MIN_PART {
        return None;
    }
    let whole: Vec<_> = candidates.filter(|(plain, _)| plain.contains(part)).collect();
    let (shortest, name) = whole.iter().min_by_key(|(plain, _)| plain.len())?;
    whole.iter().all(|(plain, _)| plain.contains(shortest.as_str())).then_some(*name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_acts_upon_gets_through() {
        assert_eq!(quoted("a\x1b[31m\r\n\u{9b}\u{202e}\"z"), r#""a\u{1b}[31m\r\n\u{9b}\u{202e}\"z""#);
        assert_eq!(escaped("grün"), "grün");
        assert_eq!(masked("a\x1bb\tc"), "a\u{fffd}b\tc");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(escaped(&"x".repeat(1_000)).chars().count(), MAX_SHOWN + 1);
    }

    #[test]
    fn a_slip_finds_its_key_and_a_stranger_does_not() {
        let keys = ["bind", "pool", "idle_timeout", "backlog"];
        for (slip, meant) in
            [("idle_timout", "idle_timeout"), ("idle-timeout", "idle_timeout"), ("Bind", "bind"), ("pol", "pool")]
        {
            assert_eq!(nearest(slip, keys.into_iter()), Some(meant), "{slip}");
        }
        for stranger in ["", "x", "certificate", "weight"] {
            assert_eq!(nearest(stranger, keys.into_iter()), None, "{stranger}");
        }
        assert_eq!(nearest("ab", ["a"].into_iter()), None, "a candidate of one letter is a slip of nothing");
    }

    #[test]
    fn a_part_finds_the_whole_and_an_ambiguous_one_does_not() {
        let keys = ["backend_max_connections", "accept_rate", "accept_rate_per_client", "burst_per_client"];
        for (part, meant) in [
            ("max_connections", Some("backend_max_connections")),
            ("maxconn", Some("backend_max_connections")),
            ("accept", Some("accept_rate")),
            ("per_client", None),
            ("max", None),
        ] {
            assert_eq!(nearest(part, keys.into_iter()), meant, "{part}");
        }
    }

    #[test]
    fn lists_read_as_sentences() {
        assert_eq!(any_of::<&str>(&[]), "");
        assert_eq!(any_of(&["a"]), "a");
        assert_eq!(any_of(&["a", "b", "c"]), "a, b or c");
    }
}
