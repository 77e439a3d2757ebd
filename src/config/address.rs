//! Addresses as the config writes them: `10.0.0.1:80`, `[::1]:80`, `host:80`, `unix:/path`.
//!
//! Owns what a good address is, by itself; whether two of them collide is `binds` and `pools`. Resolves nothing.

use super::findings::Complaint;
use super::{Address, limits, words};
use crate::name::{BindAddr, Endpoint};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV6};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

/// Longer names don't exist in the DNS.
const MAX_HOST: usize = 253;
const MAX_LABEL: usize = 63;
pub(super) const TOO_MANY_BINDS: &str = "a listener has up to 1000 addresses";

/// Where a backend is reached.
pub(super) fn backend(text: &str) -> Result<Address, Complaint> {
    if let Some(path) = unix_path(text) {
        return Ok(Address::Endpoint(Endpoint::Unix(path?)));
    }
    let (host, digits) = split(text, "10.0.0.1:80")?;
    let port = port_number(digits).filter(|&port| port > 0);
    let port = port.ok_or_else(|| not_a_port(digits, "use 1 to 65535"))?;
    match host {
        Host::Name(name) => {
            check_name(name)?;
            Ok(Address::Host { host: name.to_ascii_lowercase().into(), port })
        }
        Host::Address(mut address) => {
            address.set_port(port);
            let ip = address.ip();
            if ip.is_unspecified() {
                let message = format!("{ip} means every address of this machine");
                return Err(Complaint::new(message, "name one to connect to, such as 127.0.0.1"));
            }
            check_unicast(ip)?;
            Ok(Address::Endpoint(Endpoint::Tcp(address)))
        }
    }
}

/// What the admin endpoint is bound to. Port 0 leaves the choice to the kernel.
pub(super) fn bind(text: &str) -> Result<BindAddr, Complaint> {
    match binds(text)?.as_slice() {
        [bind] => Ok(bind.clone()),
        _ => Err(Complaint::new(format!("{} is a range of ports", words::quoted(text)), "name one port")),
    }
}

/// What a listener is bound to: one address, or as many as there are ports in its range.
pub(super) fn binds(text: &str) -> Result<Vec<BindAddr>, Complaint> {
    if let Some(path) = unix_path(text) {
        return Ok(vec![BindAddr(Endpoint::Unix(path?))]);
    }
    let bare = text.strip_prefix("*:").or(text.strip_prefix(':')).unwrap_or(text);
    if ports(bare).is_ok() {
        let hint = format!("write \"[::]:{bare}\" for every address or \"0.0.0.0:{bare}\" for those of IPv4");
        return Err(Complaint::new(format!("{} has no address", words::quoted(text)), hint));
    }
    let (host, digits) = split(text, "0.0.0.0:8080")?;
    let ports = ports(digits)?;
    match host {
        Host::Name(name) => {
            check_name(name)?;
            let message = format!("{} is a name, but only an address can be bound", words::quoted(name));
            Err(Complaint::new(message, "write an address of this machine, such as \"127.0.0.1:8080\""))
        }
        Host::Address(mut address) => {
            check_unicast(address.ip())?;
            let bind = |port| {
                address.set_port(port);
                BindAddr(Endpoint::Tcp(address))
            };
            Ok(ports.map(bind).collect())
        }
    }
}

/// `8080` or `8000-8099`.
fn ports(text: &str) -> Result<RangeInclusive<u16>, Complaint> {
    let Some((first, last)) = text.split_once('-') else {
        let hint = "use 1 to 65535, or 0 to let the kernel choose";
        return port_number(text).map(|port| port..=port).ok_or_else(|| not_a_port(text, hint));
    };
    let port = |text| port_number(text).filter(|&port| port > 0).ok_or_else(|| not_a_port(text, "use 1 to 65535"));
    let (first, last) = (port(first)?, port(last)?);
    if first >= last {
        let message = format!("{} is no range of ports", words::quoted(text));
        return Err(Complaint::new(message, "write the lower port first, as in 8000-8099"));
    }
    if usize::from(last - first) >= limits::MAX_BINDS {
        let message = format!("{} are {} ports", words::quoted(text), u32::from(last - first) + 1);
        return Err(Complaint::new(message, TOO_MANY_BINDS));
    }
    Ok(first..=last)
}

/// An address of this machine that connects come from. Its port is the kernel's choice, and 0 here.
pub(super) fn source(text: &str) -> Result<SocketAddr, Complaint> {
    let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let address = inside.parse::<Ipv4Addr>().ok().map(|ip| SocketAddr::new(ip.into(), 0)).or_else(|| ipv6(inside));
    let Some(address) = address else {
        let message = format!("{} is not an address", words::quoted(text));
        let hint = match split(text, "10.0.0.1:80") {
            Ok((Host::Address(address), _)) => {
                let shown = address.to_string();
                // Without the port of 0 that it has here, and its brackets.
                let bare = shown.strip_suffix(":0").unwrap_or(&shown).trim_matches(['[', ']']);
                format!("write {}: the kernel chooses the port", words::quoted(bare))
            }
            _ => "write an address of this machine, such as \"10.0.0.5\"".to_owned(),
        };
        return Err(Complaint::new(message, hint));
    };
    if address.ip().is_unspecified() {
        let message = format!("{} means every address of this machine", address.ip());
        return Err(Complaint::new(message, "name one, or remove the key to let the kernel choose"));
    }
    check_unicast(address.ip())?;
    Ok(address)
}

/// The path of `unix:/path` or `unix:///path`; `None` for other addresses.
fn unix_path(text: &str) -> Option<Result<Arc<Path>, Complaint>> {
    let rest = text.strip_prefix("unix:")?;
    let path = rest.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(rest);
    let complaint = |what: String, hint: &str| Some(Err(Complaint::new(what, hint)));
    if !path.starts_with('/') {
        let message = format!("{} is not an absolute path", words::quoted(path));
        return complaint(message, "write it as in \"unix:/run/app.sock\"");
    }
    if path.contains(words::is_unsafe) {
        return complaint(format!("{} holds characters that can't be seen", words::quoted(path)), "use another path");
    }
    if path.ends_with('/') {
        return complaint(format!("{} is a directory", words::quoted(path)), "name the socket in it");
    }
    if path.len() > limits::MAX_UNIX_PATH {
        let message = format!("the path has {} bytes", path.len());
        return complaint(message, "the system allows a socket's path 107");
    }
    Some(Ok(Path::new(path).into()))
}

enum Host<'t> {
    /// With port 0. A v4-mapped address is the IPv4 address that it means.
    Address(SocketAddr),
    Name(&'t str),
}

/// The host and the text of the port.
fn split<'t>(text: &'t str, example: &str) -> Result<(Host<'t>, &'t str), Complaint> {
    let shown = words::quoted(text);
    if let Some((scheme, rest)) = text.split_once("://") {
        let hint = match scheme {
            "tcp" => format!("write {}", words::quoted(rest)),
            _ => format!("write \"{example}\" or \"unix:/run/app.sock\""),
        };
        return Err(Complaint::new(format!("{shown} is a URL, not an address"), hint));
    }
    let no_port = |host: &str| {
        let hint = format!("write {}", words::quoted(&format!("{host}:80")));
        Complaint::new(format!("{shown} has no port"), hint)
    };
    if let Some(rest) = text.strip_prefix('[') {
        let address = rest.split_once(']').and_then(|(inside, port)| Some((ipv6(inside)?, inside, port)));
        return match address {
            Some((_, inside, "" | ":")) => Err(no_port(&format!("[{inside}]"))),
            Some((address, _, port)) if port.starts_with(':') => Ok((Host::Address(address), &port[1..])),
            _ => Err(Complaint::new(format!("{shown} is not an IPv6 address and port"), "write it as in \"[::1]:80\"")),
        };
    }
    if ipv6(text).is_some() {
        return Err(Complaint::new(format!("{shown} needs brackets"), format!("write {}", bracketed(text))));
    }
    match text.rsplit_once(':') {
        None if text.is_empty() => Err(Complaint::new("the address is empty", format!("write it as in \"{example}\""))),
        None => Err(no_port(text)),
        Some((host, "")) if !host.is_empty() => Err(no_port(host)),
        Some((host, port)) => Ok((host_of(host, &shown, example)?, port)),
    }
}

fn host_of<'t>(host: &'t str, shown: &str, example: &str) -> Result<Host<'t>, Complaint> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Address(SocketAddr::new(ip.into(), 0)));
    }
    if host.is_empty() || host.contains(':') {
        return Err(Complaint::new(
            format!("{shown} is not an address"),
            format!("write it as in \"{example}\" or \"[::1]:80\""),
        ));
    }
    let last = host.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        let message = format!("{} is not an IPv4 address", words::quoted(host));
        return Err(Complaint::new(message, "write four numbers from 0 to 255, without leading zeros"));
    }
    Ok(Host::Name(host))
}

/// How an IPv6 address without brackets was probably meant: its last part is the port if there is room for one.
fn bracketed(text: &str) -> String {
    match text.rsplit_once(':') {
        Some((host, port)) if ipv6(host).is_some() && port_number(port).is_some() => {
            format!("\"[{host}]:{port}\" or \"[{text}]:80\"")
        }
        _ => format!("\"[{text}]:80\""),
    }
}

/// With its zone, if there is one, as a number.
fn ipv6(text: &str) -> Option<SocketAddr> {
    let address: SocketAddrV6 = format!("[{text}]:0").parse().ok()?;
    Some(match address.ip().to_canonical() {
        ip @ IpAddr::V4(_) => SocketAddr::new(ip, 0),
        IpAddr::V6(_) => address.into(),
    })
}

fn port_number(text: &str) -> Option<u16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn not_a_port(text: &str, hint: &str) -> Complaint {
    Complaint::new(format!("port {} is not a port", words::escaped(text)), hint)
}

fn check_unicast(ip: IpAddr) -> Result<(), Complaint> {
    if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return Err(Complaint::new(format!("{ip} is the address of a group"), "TCP needs the address of one machine"));
    }
    Ok(())
}

/// Of the characters that host names are made of; the underscore is in use, though in no standard.
pub(super) fn check_name(name: &str) -> Result<(), Complaint> {
    let message = || format!("{} is not a host name", words::quoted(name));
    let plain = name.strip_suffix('.').unwrap_or(name);
    if !plain.is_ascii() {
        return Err(Complaint::new(message(), "write it in its ASCII form, which begins with \"xn--\""));
    }
    if plain.len() > MAX_HOST {
        return Err(Complaint::new(message(), format!("a name has up to {MAX_HOST} characters")));
    }
    let is_label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        !label.is_empty()
            && label.len() <= MAX_LABEL
            && label.bytes().all(good)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if plain.split('.').all(is_label) {
        return Ok(());
    }
    Err(Complaint::new(message(), "a name is made of letters, digits, hyphens and dots"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(complaint: &Complaint) -> String {
        format!("{}; {}", complaint.message, complaint.hint)
    }

    #[test]
    fn backends_are_addresses_names_or_paths() {
        let good = [
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
            ("[fe80::1%2]:80", "[fe80::1%2]:80"),
            ("localhost:65535", "localhost:65535"),
            ("DB-1.Example.:5432", "db-1.example.:5432"),
            ("my_service:1", "my_service:1"),
            ("unix:/run/app.sock", "unix:/run/app.sock"),
            ("unix:///run/app.sock", "unix:/run/app.sock"),
        ];
        for (text, shown) in good {
            assert_eq!(backend(text).map(|address| address.to_string()), Ok(shown.to_owned()), "{text}");
        }
        assert!(matches!(backend("a:1"), Ok(Address::Host { .. })));
    }

    #[test]
    fn bad_backends_are_told_why() {
        let name = "a name is made of letters, digits, hyphens and dots";
        let four = "write four numbers from 0 to 255, without leading zeros";
        let long_path = format!("unix:/{}", "p".repeat(107));
        let long_label = format!("{}:80", "l".repeat(64));
        let bad = [
            ("10.0.0.1:0", "port 0 is not a port; use 1 to 65535".to_owned()),
            ("10.0.0.1:65536", "port 65536 is not a port; use 1 to 65535".into()),
            ("10.0.0.1:+80", "port +80 is not a port; use 1 to 65535".into()),
            ("10.0.0.1:http", "port http is not a port; use 1 to 65535".into()),
            ("[::1]:x", "port x is not a port; use 1 to 65535".into()),
            ("10.0.0.1", "\"10.0.0.1\" has no port; write \"10.0.0.1:80\"".into()),
            ("10.0.0.1:", "\"10.0.0.1:\" has no port; write \"10.0.0.1:80\"".into()),
            ("db", "\"db\" has no port; write \"db:80\"".into()),
            ("[::1]", "\"[::1]\" has no port; write \"[::1]:80\"".into()),
            ("[::1]80", "\"[::1]80\" is not an IPv6 address and port; write it as in \"[::1]:80\"".into()),
            ("[1.2.3.4]:80", "\"[1.2.3.4]:80\" is not an IPv6 address and port; write it as in \"[::1]:80\"".into()),
            ("::1", "\"::1\" needs brackets; write \"[::1]:80\"".into()),
            ("fe80::1:80", "\"fe80::1:80\" needs brackets; write \"[fe80::1]:80\" or \"[fe80::1:80]:80\"".into()),
            ("1:2:3", "\"1:2:3\" is not an address; write it as in \"10.0.0.1:80\" or \"[::1]:80\"".into()),
            (":80", "\":80\" is not an address; write it as in \"10.0.0.1:80\" or \"[::1]:80\"".into()),
            ("", "the address is empty; write it as in \"10.0.0.1:80\"".into()),
            ("10.0.0.256:80", format!("\"10.0.0.256\" is not an IPv4 address; {four}")),
            ("10.0.0.01:80", format!("\"10.0.0.01\" is not an IPv4 address; {four}")),
            ("10.1:80", format!("\"10.1\" is not an IPv4 address; {four}")),
            ("a b:80", format!("\"a b\" is not a host name; {name}")),
            ("a..b:80", format!("\"a..b\" is not a host name; {name}")),
            ("-a:80", format!("\"-a\" is not a host name; {name}")),
            (&long_label, format!("\"{}\" is not a host name; {name}", "l".repeat(64))),
            (
                "münchen:80",
                "\"münchen\" is not a host name; write it in its ASCII form, which begins with \"xn--\"".into(),
            ),
            ("tcp://a:80", "\"tcp://a:80\" is a URL, not an address; write \"a:80\"".into()),
            (
                "http://a/",
                "\"http://a/\" is a URL, not an address; write \"10.0.0.1:80\" or \"unix:/run/app.sock\"".into(),
            ),
            (
                "0.0.0.0:80",
                "0.0.0.0 means every address of this machine; name one to connect to, such as 127.0.0.1".into(),
            ),
            ("[::]:80", ":: means every address of this machine; name one to connect to, such as 127.0.0.1".into()),
            ("224.0.0.1:80", "224.0.0.1 is the address of a group; TCP needs the address of one machine".into()),
            ("unix:app.sock", "\"app.sock\" is not an absolute path; write it as in \"unix:/run/app.sock\"".into()),
            ("unix:@app", "\"@app\" is not an absolute path; write it as in \"unix:/run/app.sock\"".into()),
            ("unix:", "\"\" is not an absolute path; write it as in \"unix:/run/app.sock\"".into()),
            ("unix:/run/", "\"/run/\" is a directory; name the socket in it".into()),
            ("unix:/a\0b", r#""/a\u{0}b" holds characters that can't be seen; use another path"#.into()),
            (&long_path, "the path has 108 bytes; the system allows a socket's path 107".into()),
        ];
        for (text, expected) in bad {
            assert_eq!(words(&backend(text).unwrap_err()), expected);
        }
        assert!(backend(&long_path[..long_path.len() - 1]).is_ok(), "107 bytes fit");
        assert!(backend(&long_label[1..]).is_ok(), "63 characters fit");
    }

    #[test]
    fn binds_are_addresses_or_paths_and_may_leave_the_port_to_the_kernel() {
        let good = ["0.0.0.0:8080", "[::]:8080", "127.0.0.1:0", "unix:/run/a.sock", "[::1]:65535"];
        for text in good {
            assert_eq!(bind(text).map(|address| address.to_string()), Ok(text.to_owned()));
        }
        let every = "write \"[::]:80\" for every address or \"0.0.0.0:80\" for those of IPv4";
        let bad = [
            ("80", format!("\"80\" has no address; {every}")),
            (":80", format!("\":80\" has no address; {every}")),
            ("*:80", format!("\"*:80\" has no address; {every}")),
            (
                "localhost:80",
                "\"localhost\" is a name, but only an address can be bound; write an address of this machine, such as \
                 \"127.0.0.1:8080\""
                    .into(),
            ),
            ("0.0.0.0:65536", "port 65536 is not a port; use 1 to 65535, or 0 to let the kernel choose".into()),
            ("[ff02::1]:80", "ff02::1 is the address of a group; TCP needs the address of one machine".into()),
        ];
        for (text, expected) in bad {
            assert_eq!(words(&bind(text).unwrap_err()), expected);
        }
    }
}
