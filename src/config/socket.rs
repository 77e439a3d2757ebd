//! `[listeners.NAME.socket]`, and the keys of `[pools.NAME.connect]` that say where connects come from and how.
//!
//! Owns the plain data, the keys, and what is wrong with them by themselves and beside the addresses that they are for.
//! What this host or the process's privileges don't allow shows at the start: that is the daemon's.

use super::findings::{At, Complaint, Findings, Given, Placed};
use super::section::Section;
use super::{Address, Member, address, limits, words};
use crate::name::{BindAddr, Endpoint};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub(super) const SOCKET: &[&str] =
    &["interface", "v6only", "fast_open", "defer_accept", "transparent", "mptcp", "mode", "owner", "group"];

/// `[listeners.NAME.socket]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// Clients come in through this one alone.
    pub interface: Option<Arc<str>>,
    /// Addresses of IPv6 take no clients of IPv4.
    pub v6only: bool,
    /// Clients at once that may have sent bytes with their SYN.
    pub fast_open: Option<u32>,
    /// Seconds for which a client that has sent nothing isn't accepted.
    pub defer_accept: Option<u32>,
    /// Addresses of other hosts may be bound, and clients of other hosts' addresses taken (TPROXY).
    pub transparent: bool,
    pub mptcp: bool,
    /// Of unix sockets; `None` is what the umask leaves.
    pub mode: Option<u32>,
    /// Of unix sockets.
    pub owner: Option<Owner>,
    /// Of unix sockets.
    pub group: Option<Owner>,
}

/// A user or a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    Name(Arc<str>),
    Number(u32),
}

/// Where the connects of a pool come from, and how they are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// With port 0. Empty: the kernel chooses.
    pub source_address: Vec<SocketAddr>,
    pub interface: Option<Arc<str>>,
    pub mark: Option<u32>,
    /// The client's own address and port.
    pub transparent: bool,
    /// The first bytes may go with the SYN.
    pub fast_open: bool,
    pub mptcp: bool,
}

/// The keys of a listener's table.
pub(super) struct GivenSocket {
    interface: Given<Arc<str>>,
    v6only: Given<bool>,
    fast_open: Given<Option<u32>>,
    defer_accept: Given<Option<Duration>>,
    transparent: Given<bool>,
    mptcp: Given<bool>,
    mode: Given<u32>,
    owner: Given<Owner>,
    group: Given<Owner>,
}

/// The keys of a pool's `connect` that are for sockets.
pub(super) struct GivenOrigin {
    source_address: Given<Vec<Placed<String>>>,
    interface: Given<Arc<str>>,
    mark: Given<u32>,
    transparent: Given<bool>,
    fast_open: Given<bool>,
    mptcp: Given<bool>,
}

impl GivenSocket {
    pub fn read(listener: &Section) -> Self {
        let section = listener.section("socket", SOCKET);
        Self {
            interface: section.parsed("interface", interface),
            v6only: section.boolean("v6only"),
            fast_open: section.integer_or_off("fast_open", &(1..=limits::MAX_BACKLOG)),
            defer_accept: section.duration_or_off("defer_accept", &limits::DEFER_ACCEPT),
            transparent: section.boolean("transparent"),
            mptcp: section.boolean("mptcp"),
            mode: section.parsed("mode", mode),
            owner: section.parsed("owner", |text| owner(text, "a user")),
            group: section.parsed("group", |text| owner(text, "a group")),
        }
    }

    /// Whether an address of IPv6 leaves IPv4 to others.
    pub fn is_v6only(&self) -> bool {
        self.v6only.or(false)
    }

    /// The socket's options, judged beside the addresses that it is bound to.
    pub fn judged(self, findings: &Findings, binds: &[Placed<BindAddr>]) -> Socket {
        let has = |which: fn(&Endpoint) -> bool| binds.is_empty() || binds.iter().any(|bind| which(&bind.value.0));
        let no_effect = |places: &[Option<&At>], why: &str, hint: &str| {
            for at in places.iter().flatten() {
                findings.warning(at, format!("this has no effect: {why}"), hint);
            }
        };
        if !has(is_unix) {
            let places = [place(&self.mode), place(&self.owner), place(&self.group)];
            no_effect(&places, "the listener has no unix socket", "remove it");
        }
        if !has(|endpoint| !is_unix(endpoint)) {
            let places = [
                place(&self.interface),
                place(&self.v6only),
                place(&self.fast_open),
                place(&self.defer_accept),
                place(&self.transparent),
                place(&self.mptcp),
            ];
            no_effect(&places, "the listener has unix sockets alone", "remove it");
        } else if !has(|endpoint| matches!(endpoint, Endpoint::Tcp(SocketAddr::V6(_)))) {
            no_effect(&[place(&self.v6only)], "the listener has no address of IPv6", "remove it");
        }
        Socket {
            v6only: self.is_v6only(),
            interface: self.interface.into_good().map(|placed| placed.value),
            fast_open: self.fast_open.or(None),
            defer_accept: self.defer_accept.or(None).map(|time| time.as_millis().div_ceil(1_000) as u32),
            transparent: self.transparent.or(false),
            mptcp: self.mptcp.or(false),
            mode: self.mode.good().map(|placed| placed.value),
            owner: self.owner.into_good().map(|placed| placed.value),
            group: self.group.into_good().map(|placed| placed.value),
        }
    }
}

impl GivenOrigin {
    pub fn read(connect: &Section) -> Self {
        Self {
            source_address: connect.texts("source_address"),
            interface: connect.parsed("interface", interface),
            mark: connect.integer("mark", &(1..=u32::MAX)),
            transparent: connect.boolean("transparent"),
            fast_open: connect.boolean("fast_open"),
            mptcp: connect.boolean("mptcp"),
        }
    }

    /// The origin, judged beside the backends that it is for.
    pub fn judged(self, findings: &Findings, members: &[Member]) -> Origin {
        let sources = sources(findings, &self.source_address);
        let is_unix = |member: &Member| matches!(member.address, Address::Endpoint(Endpoint::Unix(_)));
        if !members.is_empty() && members.iter().all(is_unix) {
            let places = [
                place(&self.source_address),
                place(&self.interface),
                place(&self.mark),
                place(&self.transparent),
                place(&self.fast_open),
                place(&self.mptcp),
            ];
            for at in places.into_iter().flatten() {
                findings.warning(at, "this has no effect: all backends are unix sockets", "remove it");
            }
        } else if let Some(at) = place(&self.source_address) {
            check_families(findings, at, &sources, members);
        }
        Origin {
            source_address: sources.into_iter().map(|source| source.value).collect(),
            interface: self.interface.into_good().map(|placed| placed.value),
            mark: self.mark.good().map(|placed| placed.value),
            transparent: self.transparent.or(false),
            fast_open: self.fast_open.or(false),
            mptcp: self.mptcp.or(false),
        }
    }
}

/// The good ones of the addresses, each once.
fn sources(findings: &Findings, given: &Given<Vec<Placed<String>>>) -> Vec<Placed<SocketAddr>> {
    let Some(Placed { at, value: texts }) = given.good() else { return Vec::new() };
    if texts.is_empty() {
        findings.mistake(at, "the list is empty", "name at least one address of this machine, or remove the key");
    }
    if texts.len() > limits::MAX_SOURCES {
        let message = format!("{} are too many addresses", texts.len());
        findings.mistake(at, message, format!("name up to {}", limits::MAX_SOURCES));
        return Vec::new();
    }
    let mut sources: Vec<Placed<SocketAddr>> = Vec::new();
    for text in texts {
        match address::source(&text.value) {
            Ok(value) if sources.iter().any(|source| source.value == value) => {
                findings.warning(&text.at, "the same address is named twice", "remove one");
            }
            Ok(value) => sources.push(Placed { at: text.at.clone(), value }),
            Err(complaint) => findings.complaint(&text.at, complaint),
        }
    }
    sources
}

/// A source address is used for backends of its own family. What host names stand for isn't known yet.
fn check_families(findings: &Findings, at: &At, sources: &[Placed<SocketAddr>], members: &[Member]) {
    let family = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
    let tcp = |member: &Member| match &member.address {
        Address::Endpoint(Endpoint::Tcp(address)) => Some(*address),
        _ => None,
    };
    let has_hosts = members.iter().any(|member| matches!(member.address, Address::Host { .. }));
    for is_ipv4 in [true, false] {
        let source = sources.iter().find(|source| source.value.is_ipv4() == is_ipv4);
        let backend = members.iter().filter_map(tcp).find(|backend| backend.is_ipv4() == is_ipv4);
        match (source, backend) {
            (Some(source), None) if !has_hosts && !members.is_empty() => {
                let message = format!("this has no effect: no backend has an address of {}", family(is_ipv4));
                findings.warning(&source.at, message, "remove it");
            }
            (None, Some(backend)) if !sources.is_empty() => {
                let message = format!("none of these is for {backend}: the kernel chooses its source address");
                findings.warning(at, message, format!("add an address of {}", family(is_ipv4)));
            }
            _ => {}
        }
    }
}

fn place<T>(given: &Given<T>) -> Option<&At> {
    given.good().map(|placed| &placed.at)
}

fn is_unix(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Unix(_))
}

/// What the kernel takes for the name of an interface. Source: `dev_valid_name` in Linux.
fn interface(text: &str) -> Result<Arc<str>, Complaint> {
    let complaint = |what: &str, hint: &str| Err(Complaint::new(format!("{} {what}", words::quoted(text)), hint));
    if text.is_empty() {
        return Err(Complaint::new("the name is empty", "name an interface that `ip link` lists"));
    }
    if text.len() > limits::MAX_INTERFACE {
        return complaint("is too long for an interface", "name one that `ip link` lists, of up to 15 bytes");
    }
    if matches!(text, "." | "..") || text.contains(|char: char| matches!(char, '/' | ':') || char.is_whitespace()) {
        return complaint("is not the name of an interface", "name one that `ip link` lists, such as \"eth0\"");
    }
    if text.contains(words::is_unsafe) {
        return complaint("holds characters that can't be seen", "name an interface that `ip link` lists");
    }
    Ok(text.into())
}

/// Three octal digits, or four with a leading zero: the bits above them mean nothing for a socket.
fn mode(text: &str) -> Result<u32, Complaint> {
    let digits = text.strip_prefix('0').filter(|rest| rest.len() == 3).unwrap_or(text);
    let is_octal = digits.len() == 3 && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    let mode = u32::from_str_radix(digits, 8).ok().filter(|_| is_octal);
    mode.ok_or_else(|| {
        let message = format!("{} is not a mode", words::quoted(text));
        Complaint::new(message, "write it in octal, as in \"0660\": who may write may connect")
    })
}

/// A user or a group, by name or number.
pub(super) fn owner(text: &str, what: &str) -> Result<Owner, Complaint> {
    let wrong = |hint: &str| Complaint::new(format!("{} is not {what}", words::quoted(text)), hint);
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // The highest number means "leave it as it is" to the kernel.
        let number = text.parse().ok().filter(|&number: &u32| number < u32::MAX);
        return number.map(Owner::Number).ok_or_else(|| wrong("use a number up to 4294967294, or a name"));
    }
    if text.is_empty()
        || text.len() > limits::MAX_NAME
        || text.contains(|char: char| char.is_whitespace() || char == ':')
    {
        return Err(wrong("write its name or its number"));
    }
    if text.contains(words::is_unsafe) {
        return Err(wrong("use a name whose characters can be seen"));
    }
    Ok(Owner::Name(text.into()))
}
