//! The head of an HTTP/1 request: method, path, host, and a header by its name.
//!
//! Owns how safely it is read. A route must not see another host or path than the backend will, so that whatever
//! readers of the head are known to differ in is malformed: bare CR and LF, folded lines, spaces around a header's
//! name, two hosts. What is only about the body (its length and coding) is not looked at: the whole connection goes
//! to one backend, wherever a request ends.
//!
//! Source: RFC 9112 sections 2 to 5, RFC 9110 section 7.2, RFC 3986 section 6.2.2.

use super::detect::is_token;
use crate::net::client_hello::host_name;
use std::net::Ipv6Addr;

/// A head, as far as it was read.
#[derive(Clone, Debug, Default)]
pub(super) struct Head {
    method: Box<str>,
    path: Option<Box<str>>,
    /// From the target.
    authority: Option<Box<str>>,
    /// From the header, in which it may be empty.
    host: Option<Box<str>>,
    /// Where the first header begins; 0 before the request line was read.
    headers: usize,
    /// Where the line begins that is read.
    line: usize,
    /// How far its end was searched.
    searched: usize,
    complete: bool,
}

impl Head {
    pub fn method(&self) -> &str {
        &self.method
    }

    pub fn path(&self) -> Option<&str> {
        self.path.as_deref()
    }

    pub fn is_complete(&self) -> bool {
        self.complete
    }

    pub fn host(&self) -> Option<&str> {
        self.authority.as_deref().or(self.host.as_deref()).filter(|host| !host.is_empty())
    }

    /// The one value of a header of this name that is text and not empty.
    pub fn header<'a>(&self, all: &'a [u8], name: &str) -> Option<&'a str> {
        let lines = all[self.headers..self.line].split(|byte| *byte == b'\n');
        let mut values = lines.filter_map(split_header).filter(|(this, _)| this.eq_ignore_ascii_case(name.as_bytes()));
        let (_, value) = values.next()?;
        let alone = values.next().is_none();
        std::str::from_utf8(value).ok().filter(|value| alone && !value.is_empty())
    }

    /// Goes on reading: `all` is everything that came, from the first byte. A sentence says what is malformed.
    pub fn read(&mut self, all: &[u8]) -> Result<(), &'static str> {
        while !self.complete {
            let Some(end) = all[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = all.len();
                return Ok(());
            };
            let end = self.searched + end;
            let line = all[self.line..end].strip_suffix(b"\r");
            let line = line.ok_or("a line of the HTTP head ends in LF without CR")?;
            if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
                return Err("the HTTP head has a control character");
            }
            if self.headers == 0 {
                self.request_line(line)?;
                self.headers = end + 1;
            } else if line.is_empty() {
                self.complete = true;
                break;
            } else {
                self.header_line(line)?;
            }
            (self.line, self.searched) = (end + 1, end + 1);
        }
        self.one_host()
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        const SENTENCE: &str =
            "the request line of the HTTP head is not made of three words with one space between them";
        let line = std::str::from_utf8(line).map_err(|_| "the request line of the HTTP head is not UTF-8")?;
        let mut words = line.split(' ');
        let (Some(method), Some(target), Some(version), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(SENTENCE);
        };
        if target.is_empty() || target.contains('\t') || !version.starts_with("HTTP/1.") || version.len() != 8 {
            return Err(SENTENCE);
        }
        if target.contains('#') {
            return Err("the target of the HTTP request has a fragment");
        }
        self.method = method.into();
        if method == "CONNECT" {
            self.authority = Some(authority(target.as_bytes())?);
        } else if let Some(rest) = behind_scheme(target) {
            let (named, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
            if named.is_empty() {
                return Err("the target of the HTTP request has an empty host");
            }
            self.authority = Some(authority(named.as_bytes())?);
            self.path = Some(comparable(if path.starts_with('/') { path } else { "/" })?);
        } else if target.starts_with('/') || target == "*" {
            self.path = Some(comparable(target)?);
        } else {
            return Err("the target of the HTTP request is neither a path nor a URI");
        }
        Ok(())
    }

    fn header_line(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line[0] == b' ' || line[0] == b'\t' {
            return Err("a header of the HTTP head goes on in a second line");
        }
        let (name, value) = split_header(line).ok_or("a line of the HTTP head is no header")?;
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err("the name of a header of the HTTP head has a character that no name has");
        }
        if name.eq_ignore_ascii_case(b"host") && self.host.replace(authority(value)?).is_some() {
            return Err("the HTTP head names the host twice");
        }
        Ok(())
    }

    /// A target with a host and the header have to agree; the standard lets the target win, not every reader does.
    fn one_host(&self) -> Result<(), &'static str> {
        match (&self.authority, &self.host) {
            (Some(authority), Some(host)) if host != authority => Err("the HTTP head names two different hosts"),
            _ => Ok(()),
        }
    }
}

fn behind_scheme(target: &str) -> Option<&str> {
    ["http://", "https://"].into_iter().find_map(|scheme| {
        let (begin, rest) = target.split_at_checked(scheme.len())?;
        begin.eq_ignore_ascii_case(scheme).then_some(rest)
    })
}

/// Name and value of a header, without the spaces around the value.
fn split_header(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    Some((&line[..colon], line[colon + 1..].trim_ascii()))
}

/// The host in `host`, `host:port` or `[IPv6]:port`, in the form in which hosts are compared; empty if that is.
fn authority(text: &[u8]) -> Result<Box<str>, &'static str> {
    if text.is_empty() {
        return Ok(Box::default());
    }
    let end = if text[0] == b'[' {
        text.iter().position(|byte| *byte == b']').ok_or("the host of the HTTP request has a bracket too few")? + 1
    } else {
        text.iter().position(|byte| *byte == b':').unwrap_or(text.len())
    };
    let (host, port) = text.split_at(end);
    let digits = port.strip_prefix(b":").unwrap_or(port);
    let is_port = digits.iter().all(u8::is_ascii_digit) && digits.len() <= 5;
    if !is_port || digits.len() == port.len() && !port.is_empty() {
        return Err("the port of the host of the HTTP request is no number");
    }
    if let Some(inside) = host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")) {
        let address = std::str::from_utf8(inside).ok().and_then(|text| text.parse::<Ipv6Addr>().ok());
        let address = address.ok_or("the host of the HTTP request is no IPv6 address")?;
        return Ok(format!("[{address}]").into());
    }
    host_name(host)
}

/// The path of a target in the form in which paths are compared. Malformed: a segment that some reader takes for `.`
/// or `..`, or that ends for some at a NUL.
fn comparable(target: &str) -> Result<Box<str>, &'static str> {
    let path = target.split('?').next().unwrap_or_default().as_bytes();
    // What the most generous reader makes of it.
    let (mut compared, mut generous) = (Vec::with_capacity(path.len()), Vec::with_capacity(path.len()));
    let mut rest = path;
    while let Some((&byte, behind)) = rest.split_first() {
        let escaped = (byte == b'%').then(|| behind.split_at_checked(2)).flatten();
        let escaped = escaped.and_then(|(digits, behind)| Some((hex(digits[0])? << 4 | hex(digits[1])?, behind)));
        let (meant, behind_it) = escaped.unwrap_or((byte, behind));
        generous.push(if meant == b'\\' { b'/' } else { meant });
        if escaped.is_some() && (meant.is_ascii_alphanumeric() || b"-._~".contains(&meant)) {
            compared.push(meant);
            rest = behind_it;
        } else if escaped.is_some() {
            compared.push(b'%');
            compared.extend(behind[..2].iter().map(u8::to_ascii_uppercase));
            rest = behind_it;
        } else {
            if byte != b'/' || compared.last() != Some(&b'/') {
                compared.push(byte);
            }
            rest = behind;
        }
    }
    for segment in generous.split(|byte| *byte == b'/') {
        let plain = segment.split(|byte| *byte == b';').next().unwrap_or_default();
        if plain == b"." || plain == b".." || segment.contains(&0) {
            return Err("the path of the HTTP request has a segment that servers read differently");
        }
    }
    let compared = String::from_utf8(compared).map_err(|_| "the path of the HTTP request is not UTF-8")?;
    Ok(compared.into())
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}
