//! Who may read, and who may change: the peer of a connection, its token, its user.
//!
//! Owns the decision and what it is made from, which a reload swaps whole. Reading is open on loopback addresses and
//! unix sockets, and needs the token elsewhere, but for what `shown` has for everybody. Changing needs the token, or a
//! unix socket and a user who may. The right token always passes, however many wrong ones come meanwhile: nobody can
//! lock the operator out.

use super::command::Asker;
use super::secret::Secret;
use super::token::{self, Own};
use crate::config::{Admin, Owner};
use crate::sys::user::{Database, number_of};
use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp {
        from: SocketAddr,
        /// Our own end.
        at: SocketAddr,
        /// Only this host reaches it.
        is_loopback: bool,
    },
    /// The number of its user, if the kernel says it.
    Unix(Option<u32>),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { from, .. } => from.fmt(f),
            Self::Unix(Some(uid)) => write!(f, "uid {uid}"),
            Self::Unix(None) => f.write_str("unix"),
        }
    }
}

/// What is decided by.
#[derive(Debug, Default)]
pub struct Access {
    token: Option<Secret>,
    uids: Vec<u32>,
    /// As [`Admin::allowed_hosts`].
    pub hosts: Vec<String>,
}

/// Why somebody is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A token is wanted, and there was none, or another one.
    Token,
    /// A token is wanted, and none is configured.
    NoToken,
    /// This user may not.
    User,
}

impl Denied {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Token => StatusCode::UNAUTHORIZED,
            Self::NoToken | Self::User => StatusCode::FORBIDDEN,
        }
    }

    pub fn text(self) -> &'static str {
        match self {
            Self::Token => "the token is missing or wrong; send Authorization: Bearer TOKEN",
            Self::NoToken => {
                "changes over TCP need a token, and none is configured; put listen = [\"127.0.0.1:9900\", \
                 \"unix:/run/tidegate/admin.sock\"] under [admin] in the config and reload it by SIGHUP (systemctl reload \
                 tidegate): then root may change things from the shell, and needs none; or set admin.token_file"
            }
            Self::User => "this user may not change anything; name it in admin.allow_uids, or send the token",
        }
    }
}

impl Access {
    /// Reads the token and looks users up, for a process that runs as `own`. Fails with a line for each thing
    /// that can't be had.
    pub fn load(admin: &Admin, own: &Own) -> Result<Self, String> {
        let mut mistakes = Vec::new();
        let token = token::read(admin, own).map_err(|text| mistakes.push(text)).ok().flatten();
        let uids = match &admin.allow_uids {
            None => vec![0, own.uid],
            Some(owners) => {
                owners.iter().filter_map(|owner| number(owner).map_err(|text| mistakes.push(text)).ok()).collect()
            }
        };
        let hosts = admin.allowed_hosts.clone();
        if mistakes.is_empty() { Ok(Self { token, uids, hosts }) } else { Err(mistakes.join("\n")) }
    }

    /// Whether the same ones may do the same, by the same token.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let same_token = match (&self.token, &other.token) {
            (Some(one), Some(other)) => one.is_same(other),
            (None, None) => true,
            _ => false,
        };
        same_token && self.uids == other.uids && self.hosts == other.hosts
    }

    /// Whether the peer may see what there is.
    pub fn may_read(&self, peer: Peer, headers: &HeaderMap) -> Result<(), Denied> {
        match peer {
            Peer::Tcp { is_loopback: false, .. } if !self.has_token(headers) => Err(Denied::Token),
            _ => Ok(()),
        }
    }

    /// Who it is that may change things.
    pub fn may_change(&self, peer: Peer, headers: &HeaderMap) -> Result<Asker, Denied> {
        if self.has_token(headers) {
            return Ok(Asker::Token(peer.to_string()));
        }
        match peer {
            // Whoever sends a token means it to count.
            _ if headers.contains_key(AUTHORIZATION) && self.token.is_some() => Err(Denied::Token),
            Peer::Unix(Some(uid)) if self.uids.contains(&uid) => Ok(Asker::Uid(uid)),
            Peer::Unix(_) => Err(Denied::User),
            Peer::Tcp { .. } if self.token.is_some() => Err(Denied::Token),
            Peer::Tcp { .. } => Err(Denied::NoToken),
        }
    }

    fn has_token(&self, headers: &HeaderMap) -> bool {
        let mut given = headers.get_all(AUTHORIZATION).iter();
        let (Some(secret), Some(value), None) = (&self.token, given.next(), given.next()) else { return false };
        let Some((scheme, rest)) = value.as_bytes().split_at_checked("Bearer ".len()) else { return false };
        scheme.eq_ignore_ascii_case(b"Bearer ") && secret.is(rest.trim_ascii())
    }
}

fn number(owner: &Owner) -> Result<u32, String> {
    match owner {
        Owner::Number(number) => Ok(*number),
        Owner::Name(name) => match number_of(Database::Users, name) {
            Ok(Some(number)) => Ok(number),
            Ok(None) => Err(format!("admin.allow_uids: this host doesn't know {name}; create it, or write a number")),
            Err(error) => Err(format!("admin.allow_uids: {name}: {}; write a number", io::Error::from(error))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    const LOCAL: Peer = tcp(true);
    const REMOTE: Peer = tcp(false);

    const fn tcp(is_loopback: bool) -> Peer {
        let address = SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::new(192, 0, 2, 1), 5));
        Peer::Tcp { from: address, at: address, is_loopback }
    }

    fn access(token: Option<&str>) -> Access {
        let token = token.map(|token| Secret::new(token.as_bytes()));
        Access { token, uids: vec![0, 7], hosts: Vec::new() }
    }

    fn sent(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn whoever_may_not_is_shown_the_line_of_the_example() {
        let line = r#"listen = ["127.0.0.1:9900", "unix:/run/tidegate/admin.sock"]"#;
        assert!(Denied::NoToken.text().contains(line), "{}", Denied::NoToken.text());
        assert!(include_str!("../../lb.toml.example").contains(line));
    }

    #[test]
    fn reading_is_open_where_only_this_host_comes() {
        let access = access(Some("right"));
        for peer in [LOCAL, Peer::Unix(Some(9)), Peer::Unix(None)] {
            assert_eq!(access.may_read(peer, &sent(&[])), Ok(()));
        }
        assert_eq!(access.may_read(REMOTE, &sent(&[])), Err(Denied::Token));
        assert_eq!(access.may_read(REMOTE, &sent(&["Bearer wrong"])), Err(Denied::Token));
        assert_eq!(access.may_read(REMOTE, &sent(&["Bearer right"])), Ok(()));
    }

    #[test]
    fn changing_needs_the_token_or_a_user_who_may() {
        let with = access(Some("right"));
        let token = |from: &str| Ok(Asker::Token(from.to_owned()));
        for (peer, values, expected) in [
            (LOCAL, &[][..], Err(Denied::Token)),
            (REMOTE, &[], Err(Denied::Token)),
            (LOCAL, &["Bearer right"], token("192.0.2.1:5")),
            (REMOTE, &["bearer  right "], token("192.0.2.1:5")),
            (LOCAL, &["Basic right"], Err(Denied::Token)),
            (LOCAL, &["right"], Err(Denied::Token)),
            (LOCAL, &["Bearer"], Err(Denied::Token)),
            (LOCAL, &["Bearer right", "Bearer right"], Err(Denied::Token)),
            (Peer::Unix(Some(7)), &[], Ok(Asker::Uid(7))),
            (Peer::Unix(Some(8)), &[], Err(Denied::User)),
            (Peer::Unix(None), &[], Err(Denied::User)),
            (Peer::Unix(Some(8)), &["Bearer right"], token("uid 8")),
            (Peer::Unix(Some(7)), &["Bearer wrong"], Err(Denied::Token)),
        ] {
            assert_eq!(with.may_change(peer, &sent(values)), expected, "{peer} {values:?}");
        }
        let without = access(None);
        for (peer, values, expected) in [
            (LOCAL, &[][..], Err(Denied::NoToken)),
            (LOCAL, &["Bearer "], Err(Denied::NoToken)),
            (Peer::Unix(Some(0)), &["Bearer right"], Ok(Asker::Uid(0))),
        ] {
            assert_eq!(without.may_change(peer, &sent(values)), expected, "{peer} {values:?}");
        }
    }

    #[test]
    fn users_are_numbers_and_by_default_our_own_and_root() {
        let own = Own { uid: 7, groups: Vec::new() };
        assert_eq!(Access::load(&Admin::default(), &own).unwrap().uids, [0, 7]);
        let owners = [Owner::Name("root".into()), Owner::Number(5)];
        let named = Admin { allow_uids: Some(owners.into()), ..Admin::default() };
        assert_eq!(Access::load(&named, &own).unwrap().uids, [0, 5]);
        let unknown = Admin { allow_uids: Some(vec![Owner::Name("no-such-one".into())]), ..Admin::default() };
        let text = "admin.allow_uids: this host doesn't know no-such-one; create it, or write a number";
        assert_eq!(Access::load(&unknown, &own).unwrap_err(), text);
    }
}
