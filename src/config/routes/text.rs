//! How names, paths, methods, ports and prefixes are written in a route.
//!
//! Owns their syntax and the words for what is wrong with them.

use super::Prefix;
use crate::config::findings::Complaint;
use crate::config::{limits, words};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

/// Names of servers, in lower case and without a final dot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NamePattern {
    /// `*`: any name.
    Any,
    Exact(Box<str>),
    /// `*.example.com`: exactly one label more than this.
    OneLabel(Box<str>),
    /// `.example.com`: at least one label more than this.
    Labels(Box<str>),
}

impl NamePattern {
    /// Whether `name`, which is in lower case and has no final dot, is one of these.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let before = |suffix: &str| name.strip_suffix(suffix)?.strip_suffix('.').filter(|labels| !labels.is_empty());
        match self {
            Self::Any => true,
            Self::Exact(exact) => **exact == *name,
            Self::OneLabel(suffix) => before(suffix).is_some_and(|labels| !labels.contains('.')),
            Self::Labels(suffix) => before(suffix).is_some(),
        }
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Exact(name) => f.write_str(name),
            Self::OneLabel(suffix) => write!(f, "*.{suffix}"),
            Self::Labels(suffix) => write!(f, ".{suffix}"),
        }
    }
}

/// Whether an address may stand where a name does.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Addresses {
    /// No TLS client names one.
    No,
    Yes,
}

pub fn name(text: &str, addresses: Addresses) -> Result<NamePattern, Complaint> {
    let quoted = words::quoted(text);
    let lower = text.to_ascii_lowercase();
    let plain = lower.strip_suffix('.').unwrap_or(&lower);
    if lower == "*" {
        return Ok(NamePattern::Any);
    }
    let is_address = plain.parse::<IpAddr>().is_ok() || plain.starts_with('[');
    match addresses {
        Addresses::Yes if is_address => {
            let inside = plain.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
            let canonical = match inside {
                Some(inside) => inside.parse::<Ipv6Addr>().ok().map(|address| format!("[{address}]")),
                None => plain.parse::<Ipv4Addr>().ok().map(|address| address.to_string()),
            };
            return canonical.map(|address| NamePattern::Exact(address.into())).ok_or_else(|| {
                let hint = "write an IPv6 address in brackets, and no port";
                Complaint::new(format!("{quoted} is no host of a request"), hint)
            });
        }
        Addresses::No if is_address => {
            let message = format!("{quoted} is an address, and clients name none");
            return Err(Complaint::new(message, "use local_address, or sni = [] for clients without a name"));
        }
        _ => {}
    }
    let (kind, rest): (fn(Box<str>) -> NamePattern, &str) = match plain {
        wildcard if wildcard.starts_with("*.") => (NamePattern::OneLabel, &wildcard[2..]),
        suffix if suffix.starts_with('.') => (NamePattern::Labels, &suffix[1..]),
        exact => (NamePattern::Exact, exact),
    };
    if is_host_name(rest) {
        return Ok(kind(rest.into()));
    }
    let hint = match () {
        () if !text.is_ascii() => "write it as clients send it, in its form that begins with xn--",
        () if text.contains('/') => "leave out what isn't the name of the host",
        () if text.contains(':') => "leave out the port",
        () => {
            "write \"a.example.com\", \"*.example.com\" (one label more), \".example.com\" (any number more) or \"*\""
        }
    };
    Err(Complaint::new(format!("{quoted} is not a name"), hint))
}

/// As a client may send it: up to 253 bytes in labels of 1 to 63 (RFC 1035).
fn is_host_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let is_label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(good);
    text.len() <= 253 && text.split('.').all(is_label)
}

pub fn path(text: &str) -> Result<Box<str>, Complaint> {
    let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#');
    if text.starts_with('/') && text.bytes().all(good) {
        if text.split('/').any(|segment| matches!(segment, "." | "..")) {
            let message =
                format!("{} has a segment of dots alone, and such requests are malformed", words::quoted(text));
            return Err(Complaint::new(message, "write the path that it means"));
        }
        let compared = compared(text);
        if compared != text {
            let message = format!("{} is never compared so", words::quoted(text));
            return Err(Complaint::new(message, format!("write {}", words::quoted(&compared))));
        }
        return Ok(text.into());
    }
    let hint = match text {
        _ if text.contains(['?', '#']) => "leave out what follows the path: it is not compared",
        _ if !text.starts_with('/') => "begin it with a slash",
        _ => "write it as clients send it, with other characters as %20 is one",
    };
    Err(Complaint::new(format!("{} is not the beginning of a path", words::quoted(text)), hint))
}

/// The form in which paths are compared: escapes of letters, digits and `-._~` resolved (RFC 3986 section 6.2.2.2), the
/// digits of all others in upper case (section 6.2.2.1), and several slashes in a row made one.
fn compared(path: &str) -> String {
    let mut plain = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(char) = rest.chars().next() {
        let digits = rest.strip_prefix('%').and_then(|rest| rest.get(..2));
        let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let escaped = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (meant, length) = match (escaped, digits) {
            (Some(byte), _) if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) => {
                (char::from(byte).to_string(), 3)
            }
            (_, Some(digits)) => (format!("%{}", digits.to_ascii_uppercase()), 3),
            _ => (char.to_string(), char.len_utf8()),
        };
        if meant != "/" || !plain.ends_with('/') {
            plain.push_str(&meant);
        }
        rest = &rest[length..];
    }
    plain
}

pub fn method(text: &str) -> Result<Box<str>, Complaint> {
    let good = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_');
    if !text.is_empty() && text.len() <= 32 && text.bytes().all(good) {
        return Ok(text.into());
    }
    let hint = match text.to_ascii_uppercase() {
        upper if !upper.is_empty() && upper.len() <= 32 && upper.bytes().all(good) => {
            format!("write \"{upper}\"")
        }
        _ => "write one such as \"GET\"".to_owned(),
    };
    Err(Complaint::new(format!("{} is not a method", words::quoted(text)), hint))
}

/// Of ALPN: 1 to 255 bytes (RFC 7301).
pub fn alpn(text: &str) -> Result<Box<[u8]>, Complaint> {
    match text.len() {
        1..=255 => Ok(text.as_bytes().into()),
        0 => Err(Complaint::new("the name is empty", "write one such as \"h2\"")),
        length => Err(Complaint::new(format!("the name has {length} bytes"), "use up to 255")),
    }
}

pub fn port(number: i128) -> Result<RangeInclusive<u16>, Complaint> {
    match u16::try_from(number) {
        Ok(port @ 1..) => Ok(port..=port),
        _ => Err(Complaint::new(format!("{number} is out of range"), "use 1 to 65535")),
    }
}

/// `"8000-8099"`, or a port alone.
pub fn ports(text: &str) -> Result<RangeInclusive<u16>, Complaint> {
    let not_one =
        || Complaint::new(format!("{} is no range of ports", words::quoted(text)), "write one such as \"8000-8099\"");
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.trim() {
        digits if !digits.is_empty() && digits.len() < 10 && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<i128>().map_err(|_| not_one())
        }
        _ => Err(not_one()),
    };
    let (first, last) = (number(first)?, number(last)?);
    let (first, last) = (*port(first)?.start(), *port(last)?.start());
    if first > last {
        let message = format!("{} ends before it begins", words::quoted(text));
        return Err(Complaint::new(message, format!("write \"{last}-{first}\"")));
    }
    Ok(first..=last)
}

/// `"SSH-"`, or `"hex:160301"`.
pub fn prefix(text: &str) -> Result<Prefix, Complaint> {
    let quoted = words::quoted(text);
    let bytes: Box<[u8]> = match text.strip_prefix("hex:") {
        None => text.as_bytes().into(),
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            if digits.len() % 2 == 1 {
                let message = format!("{quoted} has an odd number of digits");
                return Err(Complaint::new(message, "write two for each byte"));
            }
            let digit = |byte: u8| (byte as char).to_digit(16).unwrap_or(0) as u8;
            digits.as_bytes().chunks_exact(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
        }
        Some(_) => {
            let message = format!("{quoted} holds something that is no hexadecimal digit");
            return Err(Complaint::new(message, "write one such as \"hex:160301\""));
        }
    };
    match bytes.len() {
        0 => Err(Complaint::new("the prefix is empty", "write the first bytes, such as \"SSH-\" or \"hex:160301\"")),
        length if length > limits::MAX_PREFIX => {
            Err(Complaint::new(format!("the prefix has {length} bytes"), format!("use up to {}", limits::MAX_PREFIX)))
        }
        _ => Ok(Prefix { bytes, text: text.into() }),
    }
}

/// A value that is good as it stands, but was probably meant otherwise: what is said of it, and what to write.
pub type Doubt = Option<(String, String)>;

/// A star, as other balancers have it.
pub fn doubt_path(text: &str) -> Doubt {
    let plain = text.trim_end_matches(['$', '*', '.', '/']);
    let below = if plain.is_empty() { "/" } else { plain };
    text.contains('*').then(|| {
        let hint = if plain.contains('*') {
            "write whole beginnings of paths".to_owned()
        } else {
            format!("write {}, which takes everything below it", words::quoted(below))
        };
        (format!("the star of {} stands for itself alone", words::quoted(text)), hint)
    })
}

/// A protocol that no client calls so. Source of the names: IANA's list of ALPN protocol ids.
pub fn doubt_alpn(text: &str) -> Doubt {
    let name = match text.to_ascii_lowercase().as_str() {
        "http2" | "http/2" | "http/2.0" | "h2" => "h2",
        "http1" | "http1.1" | "http/1" | "http/1.1" | "h1" => "http/1.1",
        _ => return None,
    };
    (text != name).then(|| (format!("no client offers {}", words::quoted(text)), format!("write \"{name}\"")))
}

/// Digits that look like bytes.
pub fn doubt_prefix(text: &str) -> Doubt {
    let digits = text.strip_prefix("0x")?;
    let are_bytes = !digits.is_empty() && digits.len() % 2 == 0 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    let message = || format!("{} is taken as text", words::quoted(text));
    are_bytes.then(|| (message(), format!("write \"hex:{digits}\" for these bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_take_what_they_say() {
        for (pattern, taken, others) in [
            ("a.example.com", &["a.example.com"][..], &["b.a.example.com", "example.com", "xa.example.com"][..]),
            ("*.example.com", &["a.example.com", "b.example.com"], &["example.com", "b.a.example.com", "aexample.com"]),
            (".example.com", &["a.example.com", "b.a.example.com"], &["example.com", ".example.com", "aexample.com"]),
            ("*", &["a", "a.example.com"], &[]),
            ("A.Example.COM.", &["a.example.com"], &["example.com"]),
        ] {
            let pattern = name(pattern, Addresses::No).unwrap();
            assert!(taken.iter().all(|name| pattern.matches(name)), "{pattern}");
            assert!(!others.iter().any(|name| pattern.matches(name)), "{pattern}");
        }
    }

    #[test]
    fn patterns_are_shown_as_they_are_written() {
        for text in ["a.example.com", "*.example.com", ".example.com", "*"] {
            assert_eq!(name(text, Addresses::No).unwrap().to_string(), text);
        }
        for text in ["192.0.2.1", "[2001:db8::1]"] {
            assert_eq!(name(text, Addresses::Yes).unwrap().to_string(), text);
        }
    }

    #[test]
    fn prefixes_are_text_or_digits() {
        assert_eq!(*prefix("SSH-").unwrap().bytes, *b"SSH-");
        assert_eq!(*prefix("hex:1603Ff").unwrap().bytes, [0x16, 0x03, 0xff]);
    }

    #[test]
    fn ports_are_one_or_a_range() {
        assert_eq!(ports("8000-8099"), Ok(8_000..=8_099));
        assert_eq!(ports("443"), Ok(443..=443));
        for text in ["", "-", "1-", "-1", "80-90-100", "a-b", "+1-2"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
