//! The PROXY protocol at both ends of a session: the header with which a client comes, and the one for its backend.
//!
//! Decides who is believed, and what it means that a header is there, is not, or is broken; the bytes are
//! `net::proxy_protocol`'s. Invariants: a header is looked at in the kernel's buffer and taken from there alone, so
//! that what is behind it is the client's first byte; nothing is guessed: from an address that isn't believed, bytes
//! are data, or the end of the session; limits of single clients are asked of the address that counts. Next:
//! `admission` for those, `connect` for when a backend gets its header.

use super::Session;
use super::close::CloseReason;
use super::pending::Shown;
use super::record::{Phase, Proxied, Record};
use crate::admission::Refusal;
use crate::config::{self, AcceptProxy, SendProxy};
use crate::metrics::{ProxyResult, ProxyVersion};
use crate::name::{ClientAddr, Side};
use crate::net::client_hello::Offers;
use crate::net::proxy_protocol::{self, Found, Header, Invalid, MAX_HEADER, Subject, V2, Version, kind, write_v1};
use crate::net::relay::RelayEnd;
use crate::net::stream::Stream;
use crate::pool::Pool;
use crate::sys;
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, getsockname, recv};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::Interest;

/// Why a session ends before it is known whose it is, or as soon as that is known.
pub enum Stop {
    Refused(Refusal),
    Closed(CloseReason),
}

impl Stop {
    /// Ends the session as this asks for.
    pub fn end(self, mut session: Session) {
        match self {
            Self::Closed(reason) => session.close(reason),
            Self::Refused(refusal) => {
                session.record.phase = Phase::Admit;
                if session.record.listener.gate.refuses_by_fin() {
                    discard(&session.client);
                    session.client.close();
                } else {
                    drop(session.client);
                }
                session.record.finish(CloseReason::of_refusal(refusal));
            }
        }
    }
}

/// Finds out whose connection it is, on a listener that takes PROXY headers, and asks whether that client may come in.
pub async fn receive(session: &mut Session) -> Result<(), Stop> {
    let listener = Arc::clone(&session.record.listener);
    let Some(accept) = &listener.config.accept_proxy else { return Ok(()) };
    session.record.phase = Phase::Preread;
    let left = accept.timeout.saturating_sub(session.record.age());
    let seen = Shown::new(&session.record, &session.worker);
    let outcome = seen.during(find(&session.client, session.record.client, accept, left)).await;
    if let Some((version, result)) = outcome.labels() {
        listener.metrics.proxy_header(version, result);
    }
    let reason = match outcome {
        Outcome::Header(header) => {
            let (peer, tlvs) = (session.record.client, header.tlvs);
            let (client, destination) = match header.subject {
                Subject::Tcp { source, destination } => (ClientAddr::tcp(source), Some(destination)),
                Subject::Unix => (ClientAddr::Unix, None),
                Subject::Local | Subject::Unknown => (peer, None),
            };
            session.record.come_through(client, Proxied { peer, destination, tlvs });
            None
        }
        Outcome::Absent => None,
        Outcome::Missing => Some(CloseReason::ProxyMissing),
        Outcome::Untrusted => Some(CloseReason::ProxyUntrusted),
        Outcome::Timeout(_) => Some(CloseReason::ProxyTimeout),
        Outcome::Invalid(_, error) => {
            if listener.broken_headers.is_due(Instant::now()) {
                let (listener, proxy) = (&listener.name, session.record.client);
                tracing::warn!(%listener, %proxy, "a connection with a broken PROXY header is reset: {error}");
            }
            Some(CloseReason::ProxyInvalid)
        }
        Outcome::Failed(error) => Some(CloseReason::of_relay(RelayEnd::of_error(Side::Client, error))),
    };
    match reason {
        Some(reason) => Err(Stop::Closed(reason)),
        None => session.record.identify().map_err(Stop::Refused),
    }
}

/// What has come of waiting for a header.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Header(Header),
    /// The client comes without, and may.
    Absent,
    Missing,
    Untrusted,
    Timeout(Option<Version>),
    Invalid(Option<Version>, Invalid),
    /// The socket has this error.
    Failed(Errno),
}

impl Outcome {
    /// `None` for what says nothing of headers.
    fn labels(&self) -> Option<(ProxyVersion, ProxyResult)> {
        let of = |version: Option<Version>| match version {
            Some(Version::V1) => ProxyVersion::V1,
            Some(Version::V2) => ProxyVersion::V2,
            None => ProxyVersion::None,
        };
        Some(match self {
            Self::Header(header) => {
                let result = match header.subject {
                    Subject::Tcp { .. } | Subject::Unix => ProxyResult::Client,
                    Subject::Local => ProxyResult::Local,
                    Subject::Unknown => ProxyResult::Unknown,
                };
                (of(Some(header.version)), result)
            }
            Self::Absent => (ProxyVersion::None, ProxyResult::Absent),
            Self::Missing => (ProxyVersion::None, ProxyResult::Missing),
            Self::Untrusted => (ProxyVersion::None, ProxyResult::Untrusted),
            Self::Timeout(version) => (of(*version), ProxyResult::Timeout),
            Self::Invalid(version, _) => (of(*version), ProxyResult::Invalid),
            Self::Failed(_) => return None,
        })
    }
}

/// Whether `peer` is believed. Whoever may open a unix socket is: its permission is that of the socket's file.
fn is_trusted(peer: ClientAddr, accept: &AcceptProxy) -> bool {
    match peer {
        ClientAddr::Tcp(address) => accept.from.iter().any(|network| network.contains(address.ip())),
        ClientAddr::Unix => true,
    }
}

/// Waits for the header of `peer`, for as long as `left`.
async fn find(client: &Stream, peer: ClientAddr, accept: &AcceptProxy, left: Duration) -> Outcome {
    if !is_trusted(peer, accept) {
        return if accept.required { Outcome::Untrusted } else { Outcome::Absent };
    }
    let without = if accept.required { Outcome::Missing } else { Outcome::Absent };
    let mut seen = Seen::Nothing;
    match tokio::time::timeout(left, look_on(client, &mut seen)).await {
        Ok(Look::Header(header)) => Outcome::Header(header),
        Ok(Look::Other) => without,
        Ok(Look::Invalid(error)) => Outcome::Invalid(seen.version(), error),
        Ok(Look::Failed(error)) => Outcome::Failed(error),
        // Its end has come. What has begun like a header for certain is broken; anything else is not one's beginning.
        Ok(Look::More) => match seen.version() {
            Some(version) => Outcome::Invalid(Some(version), Invalid::CutOff),
            None => without,
        },
        Err(_) if seen == Seen::Nothing && !accept.required => Outcome::Absent,
        Err(_) => Outcome::Timeout(seen.version()),
    }
}

/// What has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// Something with which headers of either version begin, or one version's.
    Some(Option<Version>),
}

impl Seen {
    fn version(self) -> Option<Version> {
        match self {
            Self::Nothing => None,
            Self::Some(version) => version,
        }
    }
}

/// What one look at the first bytes has shown.
#[derive(Debug, PartialEq, Eq)]
enum Look {
    /// A header, which has been taken.
    Header(Header),
    /// No header.
    Other,
    Invalid(Invalid),
    Failed(Errno),
    /// Not enough to tell.
    More,
}

/// Looks until there is something to tell, or the end has come.
async fn look_on(client: &Stream, seen: &mut Seen) -> Look {
    // Mostly it has come with the connection, and to look is cheaper than to be told.
    let first = look(client, seen);
    if first != Look::More {
        return first;
    }
    let watched = match sys::watch(client.as_fd(), Interest::READABLE) {
        Ok(watched) => watched,
        Err(error) => return Look::Failed(error),
    };
    loop {
        // Fails only when the runtime shuts down, and this task with it.
        let Ok(mut ready) = watched.readable().await else { return Look::Failed(Errno::CANCELED) };
        // Before the look: what came until the end is there by now.
        let ended = ready.ready().is_read_closed();
        let found = look(client, seen);
        if ended || found != Look::More {
            return found;
        }
        ready.clear_ready();
    }
}

/// One look at what is there, without taking anything but a header.
fn look(client: &Stream, seen: &mut Seen) -> Look {
    // Not cleared: that would take longer than to look.
    let mut buffer = [MaybeUninit::uninit(); MAX_HEADER];
    let bytes = loop {
        match recv(client, &mut buffer[..], RecvFlags::PEEK) {
            Ok((([], _), _)) | Err(Errno::AGAIN) => return Look::More,
            Ok(((bytes, _), _)) => break bytes,
            Err(Errno::INTR) => {}
            Err(error) => return Look::Failed(error),
        }
    };
    *seen = Seen::Some(proxy_protocol::version(bytes));
    match proxy_protocol::read(bytes) {
        Ok(Found::Header(header, length)) => {
            take(client, &mut bytes[..length]).map_or_else(Look::Failed, |()| Look::Header(header))
        }
        Ok(Found::Nothing) => Look::Other,
        Ok(Found::NeedsMore) => Look::More,
        Err(error) => Look::Invalid(error),
    }
}

/// Takes what has been looked at.
fn take(client: &Stream, mut bytes: &mut [u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let (count, _) = retry_on_intr(|| recv(client, &mut *bytes, RecvFlags::empty()))?;
        if count == 0 {
            return Err(Errno::CONNRESET);
        }
        bytes = &mut bytes[count..];
    }
    Ok(())
}

/// Takes what has come behind the header, up to a bound: a socket that is closed with anything unread sends a reset and
/// no FIN.
fn discard(client: &Stream) {
    const READS: usize = 16;
    let mut bytes = [0; MAX_HEADER];
    for _ in 0..READS {
        match retry_on_intr(|| recv(client, &mut bytes, RecvFlags::empty())) {
            Ok((1.., _)) => {}
            _ => return,
        }
    }
}

/// The header that the backends of a pool with `send` get for this client.
pub fn preface(send: &SendProxy, client: &Stream, record: &Record) -> Arc<[u8]> {
    let subject = subject(client, record);
    match send {
        SendProxy::V1 => write_v1(&subject).into(),
        SendProxy::V2(tlvs) => with_tlvs(V2::new(&subject), tlvs, record).into(),
    }
}

/// Whose connection it is. Where a proxy has said what the client connected to, it was that; else it was our socket.
fn subject(client: &Stream, record: &Record) -> Subject {
    let ClientAddr::Tcp(source) = record.client else { return Subject::Unix };
    let said = record.proxied().and_then(|proxied| proxied.destination);
    let own = || getsockname(client).and_then(SocketAddr::try_from).ok();
    said.or_else(own).map_or(Subject::Unknown, |destination| Subject::tcp(source, destination))
}

fn with_tlvs(mut header: V2, wanted: &config::Tlvs, record: &Record) -> Vec<u8> {
    let received = record.proxied().map(|proxied| &proxied.tlvs).filter(|tlvs| !tlvs.is_empty());
    let value = |kind: u8| received.and_then(|tlvs| tlvs.get(kind));
    let is_passed = |kind: u8| wanted.pass && value(kind).is_some();
    // What has no room is left out, so that a header is never longer than the longest that we would take.
    for (kind, value) in wanted.own.iter().filter(|(kind, _)| !is_passed(*kind)) {
        header.push(*kind, value);
    }
    if wanted.unique_id && !is_passed(kind::UNIQUE_ID) {
        header.push(kind::UNIQUE_ID, record.id.to_string().as_bytes());
    }
    let hello = record.hello();
    let name = hello.and_then(|hello| hello.server_name.as_deref()).map(|name| name.as_bytes().to_vec());
    let offers = hello.and_then(|hello| protocols(&hello.alpn));
    for (kind, is_wanted, read) in [(kind::AUTHORITY, wanted.authority, name), (kind::ALPN, wanted.alpn, offers)] {
        let value = read.or_else(|| value(kind).map(<[u8]>::to_vec)).filter(|_| is_wanted && !is_passed(kind));
        if let Some(value) = value {
            header.push(kind, &value);
        }
    }
    for (kind, value) in received.into_iter().flat_map(proxy_protocol::Tlvs::iter) {
        let goes_on = wanted.pass && !matches!(kind, kind::CRC32C | kind::NOOP) || wanted.ssl && kind == kind::SSL;
        if goes_on {
            header.push(kind, value);
        }
    }
    header.finish(wanted.crc32c)
}

/// Whether backends of a pool are told what is in the hello of TLS.
pub fn tells_of_tls(pool: &Pool) -> bool {
    matches!(&pool.send_proxy, Some(SendProxy::V2(tlvs)) if tlvs.authority || tlvs.alpn)
}

/// The protocols that a client offers: the only one by its name, which is the one that is spoken then; several as in
/// the hello itself, each behind its length and all of them behind theirs. `None` if it offers none.
fn protocols(offers: &Offers) -> Option<Vec<u8>> {
    let (mut each, list) = (offers.iter(), offers.as_list());
    match (each.next()?, each.next()) {
        (only, None) => Some(only.to_vec()),
        _ => Some([&(list.len() as u16).to_be_bytes(), list].concat()),
    }
}
