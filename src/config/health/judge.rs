//! From what `[pools.NAME.health]` says to what it means.
//!
//! Owns what is wrong between its keys: a table that belongs to another probe, an exchange that expects nothing, a
//! port for a unix socket. Reads the file that `tls.ca` names, so that a config that exists has its certificates.

use super::super::findings::{At, Findings, Given};
use super::super::pools::Bounded;
use super::super::{Address, Member, words};
use super::given::{self, Kind};
use super::{Agent, Ca, Exchange, Expect, Health, Http, Probe, Tls};
use crate::name::Endpoint;
use hyper::Method;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// The largest file of certificates that is read, in bytes: that of a whole system has a quarter of it.
const MAX_CA_FILE: u64 = 1 << 20;

/// Builds the checks of a pool, reporting what is wrong with them.
pub(in crate::config) fn health(findings: &Findings, given: &given::Health) -> Health {
    let default = Health::default();
    let probe = probe(findings, given);
    if probe == Probe::None {
        warn_of_idle_keys(findings, given);
    }
    let interval = given.interval.or(default.interval);
    let within_interval = |time: &Given<Duration>, default: Duration| {
        let bounded = Bounded { given: time, limit: interval, limit_name: "interval", limit_given: &given.interval };
        bounded.judged(findings, default)
    };
    Health {
        probe,
        interval,
        fast_interval: within_interval(&given.fast_interval, default.fast_interval),
        down_interval: given.down_interval.or(interval),
        jitter: given.jitter.or(default.jitter),
        timeout: within_interval(&given.timeout, default.timeout),
        rise: given.rise.or(default.rise),
        fall: given.fall.or(default.fall),
        initial: given.initial.or(default.initial),
        port: given.port.good().map(|placed| placed.value),
        address: given.address.good().map(|placed| placed.value),
        agent: given.agent.as_ref().and_then(|given| agent(findings, given)).map(Arc::new),
    }
}

fn probe(findings: &Findings, given: &given::Health) -> Probe {
    let kind = given.probe.or(Kind::Tcp);
    if !matches!(given.probe, Given::Bad) {
        let tables = [
            (Kind::Http, given.http.as_ref().map(|table| &table.at)),
            (Kind::Tls, given.tls.as_ref().map(|table| &table.at)),
            (Kind::Exchange, given.exchange.as_ref().map(|table| &table.at)),
        ];
        for (owner, at) in tables.into_iter().filter(|(owner, _)| *owner != kind) {
            let Some(at) = at else { continue };
            let (is, wanted) = (kind.word(), owner.word());
            let message = format!("this has no effect with probe = \"{is}\"");
            let hint = format!("write probe = \"{wanted}\", or remove it");
            if given.probe.is_absent() {
                findings.missing(at, message, hint);
            } else {
                findings.mistake(at, message, hint);
            }
        }
    }
    // What belongs to another probe is judged as well, and then left out.
    let http = given.http.as_ref().map(|given| http(findings, given));
    let tls = given.tls.as_ref().map(|given| tls(findings, given));
    let exchange = given.exchange.as_ref().and_then(|given| exchange(findings, given));
    match kind {
        Kind::Tcp => Probe::Tcp,
        Kind::None => Probe::None,
        Kind::Http => Probe::Http(Arc::new(http.unwrap_or_default())),
        Kind::Tls => Probe::Tls(Arc::new(tls.unwrap_or_default())),
        Kind::Exchange => {
            if given.exchange.is_none() {
                let hint = "write exchange = { send = \"PING\\r\\n\", expect_prefix = \"+PONG\" }";
                findings.missing(&given.at, "exchange is missing", hint);
            }
            exchange.map_or(Probe::Tcp, |exchange| Probe::Exchange(Arc::new(exchange)))
        }
    }
}

fn http(findings: &Findings, given: &given::Http) -> Http {
    fn good<T: Clone>(given: &Given<T>) -> Option<T> {
        given.good().map(|placed| placed.value.clone())
    }
    let default = Http::default();
    if let (Some(body), Some(Method::HEAD)) = (given.body.good(), good(&given.method)) {
        findings.mistake(&body.at, "the answer to a HEAD has no body", "use another method, or remove this");
    }
    Http {
        method: good(&given.method).unwrap_or(default.method),
        path: good(&given.path).unwrap_or(default.path),
        host: good(&given.host),
        headers: good(&given.headers).unwrap_or_default(),
        status: good(&given.status).unwrap_or(default.status),
        body: good(&given.body),
        max_bytes: given.max_bytes.good().map_or(default.max_bytes, |placed| placed.value as usize),
    }
}

fn tls(findings: &Findings, given: &given::Tls) -> Tls {
    let default = Tls::default();
    let name = given.name.good().and_then(|placed| {
        let name = ServerName::try_from(placed.value.clone());
        if name.is_err() {
            let message = format!("{} is no name that a certificate carries", words::quoted(&placed.value));
            findings.mistake(&placed.at, message, "write a host name such as \"db.example\", or an IP address");
        }
        name.ok()
    });
    let ca = given.ca.good().and_then(|placed| match ca(&placed.value) {
        Ok(ca) => Some(ca),
        Err(message) => {
            findings.mistake(&placed.at, message, "name a PEM file with the certificates of issuers");
            None
        }
    });
    Tls { name, ca, expiry_warning: given.expiry_warning.or(default.expiry_warning) }
}

/// Reads a file of certificates.
fn ca(text: &str) -> Result<Ca, String> {
    let path = Path::new(text);
    let shown = words::quoted(text);
    if !path.is_absolute() {
        return Err(format!("{shown} is not an absolute path"));
    }
    let cant = |error: std::io::Error| format!("can't read {shown}: {error}");
    // A FIFO or a device could block or never end.
    if !std::fs::metadata(path).map_err(cant)?.is_file() {
        return Err(format!("{shown} is not a file"));
    }
    let mut pem = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_CA_FILE + 1).read_to_end(&mut pem)).map_err(cant)?;
    if pem.len() as u64 > MAX_CA_FILE {
        return Err(format!("{shown} has more than 1 MiB"));
    }
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.map_err(|_| format!("{shown} is not a whole PEM file"))?;
    if certificates.is_empty() {
        return Err(format!("{shown} holds no certificate"));
    }
    let mut roots = RootCertStore::empty();
    for (index, certificate) in certificates.iter().enumerate() {
        roots
            .add(certificate.clone())
            .map_err(|_| format!("certificate {} of {shown} can't be understood", index + 1))?;
    }
    Ok(Ca { path: path.to_owned(), certificates })
}

fn exchange(findings: &Findings, given: &given::Exchange) -> Option<Exchange> {
    if let (Some(_), Some(hex)) = (given.send.good(), given.send_hex.good()) {
        findings.mistake(&hex.at, "there is send already", "remove one of the two");
    }
    let text =
        |given: &Given<String>| given.good().map(|placed| (placed.at.clone(), placed.value.clone().into_bytes()));
    let expects: Vec<(At, Expect)> = [
        text(&given.expect).map(|(at, text)| (at, Expect::Text(text))),
        text(&given.expect_prefix).map(|(at, text)| (at, Expect::Prefix(text))),
        given.expect_prefix_hex.good().map(|hex| (hex.at.clone(), Expect::Prefix(hex.value.clone()))),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let [_, (second, _), ..] = &expects[..] {
        findings.mistake(second, "an exchange expects one thing", "remove all but one of the keys that expect");
    }
    let wrong = [&given.expect, &given.expect_prefix].into_iter().any(|given| matches!(given, Given::Bad))
        || matches!(given.expect_prefix_hex, Given::Bad);
    if expects.is_empty() && !wrong {
        let hint = "add expect, expect_prefix or expect_prefix_hex; to ask for no answer, use probe = \"tcp\"";
        findings.missing(&given.at, "an exchange that expects nothing can't fail", hint);
    }
    let (at, expect) = expects.into_iter().next()?;
    let max_bytes = given.max_bytes.good().map_or(Exchange::DEFAULT_MAX_BYTES, |placed| placed.value as usize);
    let (Expect::Text(wanted) | Expect::Prefix(wanted)) = &expect;
    if wanted.len() > max_bytes {
        let message = format!("these are {} bytes, of which {max_bytes} are read", wanted.len());
        findings.mistake(&at, message, "make max_bytes larger");
    }
    let send = text(&given.send).map(|(_, send)| send);
    let send = send.or(given.send_hex.good().map(|hex| hex.value.clone())).unwrap_or_default();
    Some(Exchange { send, expect, max_bytes })
}

fn agent(findings: &Findings, given: &given::Agent) -> Option<Agent> {
    if given.port.is_absent() {
        findings.missing(&given.at, "port is missing", "write port = 9999, where the backends' agents listen");
    }
    let send = given.send.good().map(|placed| placed.value.clone().into_bytes()).unwrap_or_default();
    let interval = given.interval.or(Agent::DEFAULT_INTERVAL);
    Some(Agent { port: given.port.good()?.value, interval, send })
}

/// The keys that a unix socket, which has no port and is on no other machine, can't do anything with.
pub(in crate::config) fn tcp_only(given: &given::Health) -> Vec<At> {
    let places = [
        given.port.good().map(|placed| &placed.at),
        given.address.good().map(|placed| &placed.at),
        given.agent.as_ref().map(|agent| &agent.at),
    ];
    places.into_iter().flatten().cloned().collect()
}

/// Reports those keys, if one of the members is a unix socket.
pub(in crate::config) fn check_unix_members(findings: &Findings, tcp_only: &[At], members: &[Member]) {
    let unix = members.iter().find(|member| matches!(member.address, Address::Endpoint(Endpoint::Unix(_))));
    let Some(unix) = unix else { return };
    for at in tcp_only {
        let message = format!("the backend {} has no port", words::escaped(&unix.address.to_string()));
        findings.mistake(at, message, "remove this, or give unix sockets a pool of their own");
    }
}

/// Without a probe, the keys that say how to probe do nothing.
fn warn_of_idle_keys(findings: &Findings, given: &given::Health) {
    fn at<T>(given: &Given<T>) -> Option<&At> {
        given.good().map(|placed| &placed.at)
    }
    let places = [
        at(&given.interval),
        at(&given.fast_interval),
        at(&given.down_interval),
        at(&given.rise),
        at(&given.fall),
        at(&given.initial),
        at(&given.port),
        at(&given.address),
    ];
    // Those of the agent as well.
    let shared = [at(&given.jitter), at(&given.timeout)];
    let shared = shared.into_iter().filter(|_| given.agent.is_none());
    for at in places.into_iter().chain(shared).flatten() {
        findings.warning(at, "this has no effect with probe = \"none\"", "remove it");
    }
}
