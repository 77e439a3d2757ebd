//! The keys of the PROXY protocol: what they mean, and what is said about those that are wrong or do nothing.

use super::{Case, assert_said, good, with_listener, with_pool};
use std::time::Duration;
use tidegate::config::{SendProxy, Tlvs};

const LISTENER: &str = "bind = \"127.0.0.1:0\"\npool = \"web\"\n";

/// The key is on line 6.
fn accepting(value: &str) -> String {
    with_listener(&format!("{LISTENER}accept_proxy_protocol = {value}"))
}

/// The keys begin on line 6.
fn sending(keys: &str) -> String {
    with_pool(&format!("backends = [\"10.0.0.1:80\"]\n{keys}"))
}

#[test]
fn a_listener_takes_headers_from_whom_it_is_told_to() {
    assert_eq!(good(&with_listener(LISTENER)).listeners[0].accept_proxy, None);
    let accept = |value| good(&accepting(value)).listeners[0].accept_proxy.clone().unwrap();
    let plain = accept("{ from = \"10.0.0.0/8\" }");
    let shown: Vec<_> = plain.from.iter().map(ToString::to_string).collect();
    assert_eq!((shown, plain.required, plain.timeout), (vec!["10.0.0.0/8".to_owned()], true, Duration::from_secs(5)));
    let other = accept("{ from = [\"::1\", \"::ffff:10.0.0.1\"], required = false, timeout = \"250ms\" }");
    let shown: Vec<_> = other.from.iter().map(ToString::to_string).collect();
    assert_eq!((shown, other.required), (vec!["::1/128".to_owned(), "10.0.0.1/32".to_owned()], false));
    assert_eq!(other.timeout, Duration::from_millis(250));
}

#[test]
fn a_pool_sends_what_it_is_told_to() {
    let send = |keys| good(&sending(keys)).pools[0].send_proxy.clone();
    assert_eq!((send(""), send("send_proxy_protocol = \"off\"")), (None, None));
    assert_eq!(send("send_proxy_protocol = \"v1\""), Some(SendProxy::V1));
    let Some(SendProxy::V2(plain)) = send("send_proxy_protocol = \"v2\"") else { panic!("no version 2") };
    assert_eq!((*plain).clone(), Tlvs::default());
    assert!(plain.crc32c && !plain.pass && plain.own.is_empty());
    let keys = "send_proxy_protocol = \"v2\"\nproxy_protocol = { unique_id = true, authority = true, alpn = true, \
                ssl = true, crc32c = false, tlvs = { \"0xf7\" = \"hex:00 fF\", \"0xE0\" = \"grün\" } }";
    let Some(SendProxy::V2(all)) = send(keys) else { panic!("no version 2") };
    assert!(all.unique_id && all.authority && all.alpn && all.ssl && !all.crc32c);
    assert_eq!(all.own, [(0xe0, "grün".as_bytes().into()), (0xf7, [0, 255].into())]);
}

#[test]
fn what_is_wrong_with_accepting_is_said() {
    let cases: &[Case] = &[
        (
            "{}",
            &[
                "6:25: listeners.web.accept_proxy_protocol: from is missing; write from = [\"10.0.0.0/8\"], the networks of \
               your proxies",
            ],
        ),
        (
            "{ from = [] }",
            &[
                "6:34: listeners.web.accept_proxy_protocol.from: the list is empty, so that no proxy is believed; name the \
               networks of your proxies",
            ],
        ),
        (
            "{ from = \"10.0.0.0/33\", timeout = 5 }",
            &[
                "6:34: listeners.web.accept_proxy_protocol.from: the prefix of \"10.0.0.0/33\" is out of range; use /0 to \
                 /32",
                "6:59: listeners.web.accept_proxy_protocol.timeout: 5 has no unit; write \"5s\"",
            ],
        ),
        (
            "{ from = [\"10.0.0.0/8\", \"::/0\"] }",
            &[
                "6:49: listeners.web.accept_proxy_protocol.from[1]: warning: ::/0 is everybody, who may then claim to be \
               anybody; name the networks of your proxies",
            ],
        ),
        (
            "{ from = \"10.0.0.0/8\", require = true }",
            &["6:48: listeners.web.accept_proxy_protocol.require: unknown key; did you mean \"required\"?"],
        ),
    ];
    for (value, said) in cases {
        assert_said(&accepting(value), said);
    }
}

#[test]
fn what_is_wrong_with_sending_is_said() {
    let v2 = |table: &str| format!("send_proxy_protocol = \"v2\"\nproxy_protocol = {table}");
    let kinds = "use 0xE0 to 0xEF, which are for everybody, or 0xF0 to 0xF7, for experiments";
    for (keys, said) in [
        (
            "send_proxy_protocol = \"v3\"".to_owned(),
            "6:23: pools.web.send_proxy_protocol: \"v3\" is not known here; use \"off\", \"v1\" or \"v2\"".to_owned(),
        ),
        (
            "send_proxy_protocol = \"v1\"\nproxy_protocol = { unique_id = true }".into(),
            "7:18: pools.web.proxy_protocol: warning: this has no effect without send_proxy_protocol = \"v2\"; use \
             \"v2\", or remove this: version 1 says nothing but the addresses"
                .into(),
        ),
        (
            "proxy_protocol = { unique_id = true }".into(),
            "6:18: pools.web.proxy_protocol: warning: this has no effect without send_proxy_protocol = \"v2\"; add it, or \
             remove this"
                .into(),
        ),
        (
            v2("{ pass = true, ssl = true }"),
            "7:39: pools.web.proxy_protocol.ssl: warning: this has no effect beside pass = true, which passes it on; \
             remove one of the two"
                .into(),
        ),
        (
            v2("{ tlvs = { \"0x05\" = \"x\" } }"),
            format!("7:29: pools.web.proxy_protocol.tlvs.0x05: type 0x05 is not for everybody; {kinds}"),
        ),
        (
            v2("{ tlvs = { 0xF8 = \"x\" } }"),
            format!("7:29: pools.web.proxy_protocol.tlvs.0xF8: type 0xF8 is not for everybody; {kinds}"),
        ),
        (
            v2("{ tlvs = { edge = \"x\" } }"),
            format!("7:29: pools.web.proxy_protocol.tlvs.edge: \"edge\" is not the type of a TLV; {kinds}"),
        ),
        (
            v2("{ tlvs = { 224 = \"x\" } }"),
            format!("7:29: pools.web.proxy_protocol.tlvs.224: \"224\" is not the type of a TLV; {kinds}"),
        ),
        (
            v2("{ tlvs = { 0xE0 = \"x\", 0xe0 = \"y\" } }"),
            "7:41: pools.web.proxy_protocol.tlvs.0xe0: type 0xE0 is here twice; remove one".into(),
        ),
        (
            v2("{ tlvs = { 0xE0 = \"hex:0\" } }"),
            "7:36: pools.web.proxy_protocol.tlvs.0xE0: \"0\" is not made of pairs of hex digits; write it as in \"00 00 \
             00 08 04 d2 16 2f\""
                .into(),
        ),
        (
            v2("{ tlvs = { 0xE0 = 1 } }"),
            "7:36: pools.web.proxy_protocol.tlvs.0xE0: 1 is an integer, but a string is wanted; write \"1\"".into(),
        ),
        (
            v2(&format!("{{ tlvs = {{ 0xE0 = \"{}\", 0xE1 = \"{}\" }} }}", "x".repeat(3_000), "y".repeat(67))),
            "7:27: pools.web.proxy_protocol.tlvs: these make 3073 bytes; a header has room for 3072 of them".into(),
        ),
    ] {
        assert_said(&sending(&keys), &[&said]);
    }
}
