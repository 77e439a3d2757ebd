//! The prepared routes against every rule asked in its order, with all and with part of the first bytes.

use super::condition::Answer;
use super::{Facts, Passed, Routes, Verdict};
use crate::config::{self, Cidr, Conditions, Destination, NamePattern, Percent, Prefix, Protocol, Route};
use crate::metrics::Metrics;
use crate::name::{ClientAddr, ListenerName, PoolName};
use crate::net::client_hello;
use crate::net::first_bytes::{self, FirstBytes, Known};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use std::net::{IpAddr, SocketAddr};

fn listener(conditions: Vec<Conditions>) -> config::Listener {
    let name = |rule: usize| format!("rule {rule}").into();
    let route = |(rule, when)| Route { name: name(rule), when, to: Destination::Refuse };
    config::Listener {
        pool: None,
        routes: conditions.into_iter().enumerate().map(route).collect(),
        ..config::Listener::new(ListenerName::new("web"), Vec::new(), PoolName::new("none"))
    }
}

fn prepared(listener: &config::Listener) -> Routes {
    Routes::new(listener, |_| None, &Metrics::new().unwrap())
}

/// What is found: the position of the rule, and whether it needs more.
fn found(routes: &Routes, facts: &Facts<'_>) -> Option<(usize, Answer)> {
    match routes.decide(facts, 1) {
        Verdict::NeedsMore(passed) => Some((passed.rules as usize, Answer::NeedsMore)),
        Verdict::Refuse { rule } => Some((rule.name["rule ".len()..].parse().unwrap(), Answer::Yes)),
        Verdict::NoRoute => None,
        Verdict::To { .. } => panic!("there is no pool"),
    }
}

/// The same by the words of the config: what each rule says, each value of each list.
fn answers(listener: &config::Listener, facts: &Facts<'_>) -> Vec<Answer> {
    listener.routes.iter().map(|route| all(&conditions(&route.when, facts))).collect()
}

/// The first of them that isn't ruled out.
fn first_of(answers: &[Answer]) -> Option<(usize, Answer)> {
    answers.iter().copied().enumerate().find(|(_, answer)| *answer != Answer::No)
}

fn all(answers: &[Answer]) -> Answer {
    let any = |answer| answers.contains(&answer);
    match () {
        () if any(Answer::No) => Answer::No,
        () if any(Answer::NeedsMore) => Answer::NeedsMore,
        () => Answer::Yes,
    }
}

fn ask<T>(facts: &Facts<'_>, of: first_bytes::Protocol, known: Known<T>, holds: impl FnOnce(T) -> bool) -> Answer {
    let broken = facts.first.malformed().is_some() && facts.first.protocol() == Known::Yes(of);
    match known {
        Known::Yes(found) => {
            if holds(found) {
                Answer::Yes
            } else {
                Answer::No
            }
        }
        Known::No if broken => Answer::NeedsMore,
        Known::No => Answer::No,
        Known::NeedsMore => Answer::NeedsMore,
    }
}

fn conditions(when: &Conditions, facts: &Facts<'_>) -> Vec<Answer> {
    let first = facts.first;
    let of = |holds: bool| if holds { Answer::Yes } else { Answer::No };
    let within = |networks: &[Cidr], ip: Option<IpAddr>| {
        ip.is_some_and(|ip| networks.iter().any(|network| network.contains(ip)))
    };
    let client = match facts.client {
        ClientAddr::Tcp(address) => Some(address.ip()),
        ClientAddr::Unix => None,
    };
    let mut answers = Vec::new();
    if !when.source.is_empty() {
        answers.push(of(within(&when.source, client)));
    }
    if !when.local_address.is_empty() {
        answers.push(of(within(&when.local_address, facts.local.map(|local| local.ip()))));
    }
    if !when.local_port.is_empty() {
        let port = facts.local.map(|local| local.port());
        answers.push(of(port.is_some_and(|port| when.local_port.iter().any(|range| range.contains(&port)))));
    }
    if let Some(names) = &when.sni {
        answers.push(ask(facts, first_bytes::Protocol::Tls, first.hello(), |hello| match &hello.server_name {
            Some(name) => names.iter().any(|pattern| pattern.matches(name)),
            None => names.is_empty(),
        }));
    }
    if !when.alpn.is_empty() {
        answers.push(ask(facts, first_bytes::Protocol::Tls, first.hello(), |hello| {
            hello.alpn.iter().any(|offer| when.alpn.contains(&offer.into()))
        }));
    }
    if let Some(names) = &when.alpn_all {
        answers.push(ask(facts, first_bytes::Protocol::Tls, first.hello(), |hello| {
            hello.alpn.iter().map(Box::from).collect::<Vec<_>>() == *names
        }));
    }
    if !when.protocol.is_empty() {
        answers.push(match first.protocol() {
            Known::Yes(found) => of(when.protocol.iter().any(|one| format!("{one:?}") == format!("{found:?}"))),
            Known::No => Answer::No,
            Known::NeedsMore => Answer::NeedsMore,
        });
    }
    if !when.http_host.is_empty() {
        answers.push(ask(facts, first_bytes::Protocol::Http1, first.host(), |host| {
            when.http_host.iter().any(|pattern| pattern.matches(host))
        }));
    }
    if !when.http_path.is_empty() {
        let below = |prefix: &str, path: &str| {
            let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
            path == prefix || path.starts_with(&format!("{prefix}/"))
        };
        answers.push(ask(facts, first_bytes::Protocol::Http1, first.path(), |path| {
            when.http_path.iter().any(|prefix| below(prefix, path))
        }));
    }
    if !when.http_method.is_empty() {
        answers.push(ask(facts, first_bytes::Protocol::Http1, first.method(), |method| {
            when.http_method.iter().any(|one| **one == *method)
        }));
    }
    if !when.prefix.is_empty() {
        let each: Vec<Known<()>> = when.prefix.iter().map(|prefix| first.starts_with(&prefix.bytes)).collect();
        answers.push(match () {
            () if each.contains(&Known::Yes(())) => Answer::Yes,
            () if each.contains(&Known::NeedsMore) => Answer::NeedsMore,
            () => Answer::No,
        });
    }
    if when.share == Some(Percent::whole(0)) {
        answers.push(Answer::No);
    }
    answers
}

/// A few names, so that many rules are about the same.
const NAMES: [&str; 5] = ["example.com", "a.example.com", "b.a.example.com", "example.org", "com"];

fn patterns() -> impl Strategy<Value = Vec<NamePattern>> {
    let name = || select(&NAMES[..]).prop_map(Into::into);
    let pattern = prop_oneof![
        4 => name().prop_map(NamePattern::Exact),
        2 => name().prop_map(NamePattern::OneLabel),
        2 => name().prop_map(NamePattern::Labels),
        1 => Just(NamePattern::Any),
    ];
    prop::collection::vec(pattern, 1..4)
}

fn networks() -> impl Strategy<Value = Vec<Cidr>> {
    let network = (0_u8..4, select(&[0_u8, 8, 24, 30, 32][..]), any::<bool>()).prop_map(|(low, prefix, ipv4)| {
        let address: IpAddr =
            if ipv4 { [10, 0, 0, low].into() } else { [0x2001, 0xdb8, 0, 0, 0, 0, 0, low.into()].into() };
        Cidr::of(address, prefix)
    });
    prop::collection::vec(network, 1..3)
}

fn texts<T: From<&'static str> + Clone + std::fmt::Debug>(
    of: &'static [&'static str],
) -> impl Strategy<Value = Vec<T>> {
    subsequence(of, 1..=of.len()).prop_map(|list| list.into_iter().map(T::from).collect())
}

/// Mostly absent, or nothing would ever match.
fn maybe<T: std::fmt::Debug>(of: impl Strategy<Value = T>) -> impl Strategy<Value = Option<T>> {
    prop::option::weighted(0.15, of)
}

fn rule() -> impl Strategy<Value = Conditions> {
    let bytes = |list: Vec<&'static str>| list.into_iter().map(|one| one.as_bytes().into()).collect::<Vec<Box<[u8]>>>();
    let alpn = move |least| subsequence(&["h2", "http/1.1"][..], least..=2).prop_map(bytes);
    let prefix = |text: &'static str| Prefix { bytes: text.as_bytes().into(), text: text.into() };
    let prefixes = subsequence(&["SSH-", "GET /", "\x16\x03", "S"][..], 1..3);
    let protocols = subsequence(Protocol::WORDS.map(|(_, protocol)| protocol).to_vec(), 1..4);
    let facts = (
        maybe(networks()),
        maybe(networks()),
        maybe(prop::collection::vec((1_u16..9).prop_map(|port| port..=port + 2), 1..3)),
    );
    let tls = (
        prop::option::weighted(0.5, prop_oneof![9 => patterns(), 1 => Just(Vec::new())]),
        maybe(alpn(1)),
        maybe(alpn(0)),
    );
    let http = (maybe(patterns()), maybe(texts(&["/", "/api", "/api/x"])), maybe(texts(&["GET", "POST"])));
    let others = (maybe(protocols), maybe(prefixes), maybe(select(&[0, 100][..])));
    (facts, tls, http, others).prop_map(move |((source, local_address, local_port), tls, http, others)| Conditions {
        source: source.unwrap_or_default(),
        local_port: local_port.unwrap_or_default(),
        local_address: local_address.unwrap_or_default(),
        sni: tls.0,
        alpn: tls.1.unwrap_or_default(),
        alpn_all: tls.2,
        http_host: http.0.unwrap_or_default(),
        http_path: http.1.unwrap_or_default(),
        http_method: http.2.unwrap_or_default(),
        protocol: others.0.unwrap_or_default(),
        prefix: others.1.unwrap_or_default().into_iter().map(prefix).collect(),
        share: others.2.map(Percent::whole),
    })
}

/// What clients send first.
fn client() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::option::of(select(&NAMES[..]));
    let alpn = subsequence(&["h2", "http/1.1", "x"][..], 0..=3);
    let hello = (name, alpn).prop_map(|(name, alpn)| client_hello::write(name, &alpn));
    let request = (select(&["GET", "POST"][..]), select(&["/", "/api", "/api/x/y", "/apix"][..]), select(&NAMES[..]));
    let request = request.prop_map(|(method, path, host)| {
        format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: x\r\n\r\n").into_bytes()
    });
    let others = select(
        &[
            "SSH-2.0-x\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "",
            "S",
            "GET /../x HTTP/1.1\r\n\r\n",
            "GET /api HTTP/1.1\r\nHost: a.example.com\r\nHost: example.com\r\n\r\n",
            "\x16\x03\x01\x40\x02\x01",
        ][..],
    );
    prop_oneof![3 => hello, 3 => request, 2 => others.prop_map(|text| text.as_bytes().to_vec())]
}

fn addresses() -> impl Strategy<Value = (ClientAddr, Option<SocketAddr>)> {
    let client = prop_oneof![
        (0_u8..4).prop_map(|low| ClientAddr::tcp(([10, 0, 0, low], 9).into())),
        (0_u16..4).prop_map(|low| ClientAddr::tcp(([0x2001, 0xdb8, 0, 0, 0, 0, 0, low], 9).into())),
        Just(ClientAddr::Unix),
    ];
    let local = prop::option::of((0_u8..4, 1_u16..12).prop_map(|(low, port)| ([10, 0, 0, low], port).into()));
    (client, local)
}

proptest! {
    #[test]
    fn the_look_up_is_every_rule_in_its_order(
        rules in prop::collection::vec(rule(), 0..24),
        (client, local) in addresses(),
        sent in client(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ends in any::<bool>(),
    ) {
        let listener = listener(rules);
        let routes = prepared(&listener);
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.index(sent.len() + 1)).collect();
        cuts.extend([0, sent.len()]);
        cuts.sort_unstable();
        let mut first = FirstBytes::default();
        let (mut before, mut passed) = (0, Passed::default());
        for cut in cuts {
            first.push(&sent[before..cut]);
            before = cut;
            if ends && cut == sent.len() {
                first.finish();
            }
            let facts = Facts { local, ..Facts::new(&listener.name, client, &first) };
            let mut answers = answers(&listener, &facts);
            let expected = first_of(&answers);
            prop_assert_eq!(found(&routes, &facts), expected, "after {} bytes", cut);
            // Also where the rest of a request turns out to be broken.
            answers[..passed.rules as usize].fill(Answer::No);
            let going_on = found(&routes, &Facts { passed, ..facts });
            prop_assert_eq!(going_on, first_of(&answers), "after {} bytes, going on", cut);
            let explained = routes.explain(&facts).into_iter().position(|seen| seen.answer != Answer::No);
            prop_assert_eq!(explained, expected.map(|(rule, _)| rule), "explained after {} bytes", cut);
            match routes.decide(&Facts { passed, ..facts }, 1) {
                Verdict::NeedsMore(next) => passed = next,
                _ => break,
            }
        }
    }
}

#[test]
fn another_table_is_asked_from_its_beginning() {
    let sni = |name: &str| Conditions { sni: Some(vec![NamePattern::Exact(name.into())]), ..Conditions::default() };
    let listener = listener(vec![sni("a"), sni("b")]);
    let routes = prepared(&listener);
    let mut first = FirstBytes::default();
    first.push(&client_hello::write(Some("a"), &[]));
    let facts = Facts::new(&listener.name, ClientAddr::Unix, &first);
    let passed = Passed { generation: 1, rules: 1 };
    assert_eq!(found(&routes, &Facts { passed, ..facts }), None, "the first one was ruled out");
    let passed = Passed { generation: 7, ..passed };
    assert_eq!(found(&routes, &Facts { passed, ..facts }), Some((0, Answer::Yes)));
}

#[test]
fn what_is_asked_of_broken_bytes_stays_open_and_what_is_known_does_not() {
    let tls = Conditions { protocol: vec![Protocol::Tls], ..Conditions::default() };
    let any_name = Conditions { sni: Some(vec![NamePattern::Any]), ..Conditions::default() };
    let mut first = FirstBytes::default();
    // A record of handshake messages whose ClientHello says that it has no bytes.
    first.push(b"\x16\x03\x01\x00\x04\x01\x00\x00\x00");
    assert!(first.malformed().is_some(), "{first:?}");
    let judge = |conditions: Vec<Conditions>| {
        let listener = listener(conditions);
        found(&prepared(&listener), &Facts::new(&listener.name, ClientAddr::Unix, &first))
    };
    assert_eq!(judge(vec![any_name.clone(), tls.clone()]), Some((0, Answer::NeedsMore)));
    assert_eq!(judge(vec![tls, any_name]), Some((0, Answer::Yes)));
}

#[test]
fn rules_after_the_first_thousand_are_counted_together() {
    let listener = listener(vec![Conditions::default(); 1_002]);
    let metrics = Metrics::new().unwrap();
    let routes = Routes::new(&listener, |_| None, &metrics);
    for entry in &routes.rules {
        entry.rule.sessions.as_ref().unwrap().inc();
    }
    let text = metrics.encode().unwrap();
    let lines = text.lines().filter(|line| line.starts_with("tidegate_route_sessions_total{"));
    assert_eq!(lines.count(), 1_001);
    assert!(text.contains("tidegate_route_sessions_total{listener=\"web\",rule=\"rule 999\"} 1\n"));
    assert!(text.contains("tidegate_route_sessions_total{listener=\"web\",rule=\"others\"} 2\n"));
    let counted: Vec<_> = routes.counted().map(|counted| (counted.name.to_owned(), counted.sessions())).collect();
    assert_eq!(counted.len(), 1_001);
    assert_eq!(counted[1_000], ("others".to_owned(), 2));
}
