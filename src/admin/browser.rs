//! What browsers tell of who made them send a request: the `Host` that they asked for, and the page that asked.
//!
//! Owns two answers. A name that isn't ours has been made to point at us, so that a page could read what it may not
//! (DNS rebinding). A change that another site's page asks for is refused whoever it is that is made to ask. Programs
//! that send neither header lose nothing.

use super::who::Peer;
use hyper::header::{HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::http::uri::Authority;
use hyper::{Uri, Version};
use std::net::IpAddr;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Whom a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Ours,
    /// It names nobody, or two, or in a way that isn't HTTP's.
    Unclear,
    Foreign,
}

/// Whether a request is for us. Over a unix socket whoever asks has found us by the path, so any name will do.
pub fn target(peer: Peer, version: Version, uri: &Uri, headers: &HeaderMap, hosts: &[String]) -> Target {
    let mut given = headers.get_all(HOST).iter();
    let host = match (given.next(), given.next()) {
        (None, _) if version < Version::HTTP_11 => None,
        (Some(host), None) => Some(host.to_str().ok().and_then(|host| host.parse::<Authority>().ok())),
        _ => return Target::Unclear,
    };
    let host = match host {
        Some(None) => return Target::Unclear,
        Some(Some(host)) => Some(host),
        None => None,
    };
    let Peer::Tcp { at, .. } = peer else { return Target::Ours };
    let named = [host.as_ref(), uri.authority()];
    for authority in named.into_iter().flatten() {
        if authority.as_str().contains('@') || authority.as_str() != authority.as_str().trim() {
            return Target::Unclear;
        }
        if !is_ours(authority.host(), at.ip(), hosts) {
            return Target::Foreign;
        }
    }
    Target::Ours
}

fn is_ours(host: &str, at: IpAddr, hosts: &[String]) -> bool {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        return ip.is_loopback() || ip == at.to_canonical() || hosts.contains(&ip.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost") || hosts.contains(&name)
}

/// Whether a page of another site, or of another port of this host, makes a browser ask.
pub fn is_foreign(headers: &HeaderMap) -> bool {
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let is_own = |origin: &str| {
        let authority = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        authority.zip(host).is_some_and(|(authority, host)| authority.eq_ignore_ascii_case(host))
    };
    let foreign_origin = headers.get_all(ORIGIN).iter().any(|origin| !origin.to_str().is_ok_and(is_own));
    let foreign_site =
        headers.get_all(SEC_FETCH_SITE).iter().any(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"));
    foreign_origin || foreign_site
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    fn asked(peer: Peer, uri: &str, hosts: &[&'static str]) -> Target {
        let pairs: Vec<_> = hosts.iter().map(|&host| (HOST, host)).collect();
        let allowed = ["lb.example.com".to_owned(), "198.51.100.9".to_owned()];
        target(peer, Version::HTTP_11, &uri.parse().unwrap(), &headers(&pairs), &allowed)
    }

    #[test]
    fn f77_only_our_own_names_and_addresses_are_ours() {
        let peer = Peer::Tcp {
            from: "192.0.2.8:1".parse().unwrap(),
            at: "[::ffff:192.0.2.1]:9900".parse().unwrap(),
            is_loopback: false,
        };
        for host in [
            "localhost",
            "LOCALHOST:9900",
            "localhost.",
            "a.localhost:1",
            "127.0.0.1:9900",
            "127.8.9.10",
            "[::1]:9900",
            "192.0.2.1",
            "192.0.2.1:80",
            "lb.example.com:9900",
            "LB.example.com.",
            "198.51.100.9",
        ] {
            assert_eq!(asked(peer, "/", &[host]), Target::Ours, "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "192.0.2.2:9900",
            "0.0.0.0:9900",
            "[::]",
            "lb.example.com.evil.example",
            "127.0.0.1.evil.example",
        ] {
            assert_eq!(asked(peer, "/", &[host]), Target::Foreign, "{host}");
            assert_eq!(asked(Peer::Unix(Some(0)), "/", &[host]), Target::Ours, "{host}");
        }
        assert_eq!(asked(peer, "http://evil.example/", &["localhost"]), Target::Foreign);
        assert_eq!(asked(peer, "http://localhost/", &["localhost"]), Target::Ours);
        for hosts in [&[][..], &["localhost", "localhost"], &["a b"], &["localhost@evil.example"], &[""]] {
            assert_eq!(asked(peer, "/", hosts), Target::Unclear, "{hosts:?}");
        }
        let old = target(peer, Version::HTTP_10, &"/".parse().unwrap(), &headers(&[]), &[]);
        assert_eq!(old, Target::Ours, "HTTP/1.0 has no Host, and no browser speaks it");
    }

    #[test]
    fn f76_other_sites_are_foreign_and_programs_are_not() {
        let foreign = |more: &[(HeaderName, &'static str)]| {
            is_foreign(&headers(&[&[(HOST, "localhost:9900")][..], more].concat()))
        };
        for pairs in [
            &[][..],
            &[(ORIGIN, "http://localhost:9900")],
            &[(ORIGIN, "https://LOCALHOST:9900")],
            &[(SEC_FETCH_SITE, "same-origin")],
            &[(SEC_FETCH_SITE, "none")],
        ] {
            assert!(!foreign(pairs), "{pairs:?}");
        }
        for pairs in [
            &[(ORIGIN, "null")][..],
            &[(ORIGIN, "http://localhost:3000")],
            &[(ORIGIN, "http://localhost")],
            &[(ORIGIN, "http://evil.example")],
            &[(ORIGIN, "localhost:9900")],
            &[(ORIGIN, "")],
            &[(ORIGIN, "http://localhost:9900"), (ORIGIN, "http://evil.example")],
            &[(SEC_FETCH_SITE, "cross-site")],
            &[(SEC_FETCH_SITE, "same-site")],
            &[(ORIGIN, "http://localhost:9900"), (SEC_FETCH_SITE, "cross-site")],
        ] {
            assert!(foreign(pairs), "{pairs:?}");
        }
    }
}
