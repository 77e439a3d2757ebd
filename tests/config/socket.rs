//! The keys of sockets: where clients come in, where connects come from, and ranges of ports.

use super::{Case, assert_said, good, with_listener, with_pool};
use tidegate::config::{Origin, Owner, Socket};

fn with_socket(bind: &str, keys: &str) -> String {
    with_listener(&format!("bind = {bind}\npool = \"web\"\n[listeners.web.socket]\n{keys}"))
}

fn with_connect(backends: &str, keys: &str) -> String {
    with_pool(&format!("backends = {backends}\n[pools.web.connect]\n{keys}"))
}

fn bound(bind: &str) -> Vec<String> {
    let config = good(&with_listener(&format!("bind = {bind}\npool = \"web\"")));
    config.listeners[0].bind.iter().map(ToString::to_string).collect()
}

#[test]
fn a_listeners_socket_means_what_it_says() {
    assert_eq!(good(&with_socket("\"127.0.0.1:0\"", "")).listeners[0].socket, Socket::default());
    let keys = "interface = \"eth0.7\"\nv6only = true\nfast_open = 256\ndefer_accept = \"1500ms\"\ntransparent = true\n\
                mptcp = true\nmode = \"0660\"\nowner = \"www-data\"\ngroup = \"33\"";
    let config = good(&with_socket("[\"[::]:0\", \"unix:/run/web.sock\"]", keys));
    assert_eq!(
        config.listeners[0].socket,
        Socket {
            interface: Some("eth0.7".into()),
            v6only: true,
            fast_open: Some(256),
            defer_accept: Some(2),
            transparent: true,
            mptcp: true,
            mode: Some(0o660),
            owner: Some(Owner::Name("www-data".into())),
            group: Some(Owner::Number(33)),
        }
    );
}

#[test]
fn a_pools_origin_means_what_it_says() {
    let backends = "[\"10.0.0.1:80\", \"[2001:db8::1]:80\"]";
    assert_eq!(good(&with_connect(backends, "")).pools[0].origin, Origin::default());
    let keys = "source_address = [\"10.0.0.5\", \"[2001:db8::5]\", \"fe80::5%2\", \"::ffff:10.0.0.6\"]\n\
                interface = \"eth1\"\nmark = 0x10\ntransparent = true\nfast_open = true\nmptcp = true";
    let origin = &good(&with_connect(backends, keys)).pools[0].origin;
    let shown: Vec<_> = origin.source_address.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["10.0.0.5:0", "[2001:db8::5]:0", "[fe80::5%2]:0", "10.0.0.6:0"]);
    assert_eq!((origin.interface.as_deref(), origin.mark), (Some("eth1"), Some(16)));
    assert!(origin.transparent && origin.fast_open && origin.mptcp);
}

#[test]
fn a_range_is_an_address_for_each_of_its_ports() {
    assert_eq!(bound("\"127.0.0.1:8000-8002\""), ["127.0.0.1:8000", "127.0.0.1:8001", "127.0.0.1:8002"]);
    assert_eq!(bound("[\"[::]:1-2\", \"unix:/run/a-1-2\"]"), ["[::]:1", "[::]:2", "unix:/run/a-1-2"]);
    assert_eq!(bound("\"0.0.0.0:64536-65535\"").len(), 1_000);
}

#[test]
fn mistakes_of_ranges() {
    let first = "port 0 is not a port; use 1 to 65535";
    let cases: &[Case] = &[
        ("\"0.0.0.0:0-9\"", &[&format!("4:8: listeners.web.bind: {first}")]),
        ("\"0.0.0.0:8-\"", &["4:8: listeners.web.bind: port  is not a port; use 1 to 65535"]),
        ("\"0.0.0.0:8-9-10\"", &["4:8: listeners.web.bind: port 9-10 is not a port; use 1 to 65535"]),
        (
            "\"0.0.0.0:9-8\"",
            &["4:8: listeners.web.bind: \"9-8\" is no range of ports; write the lower port first, as in 8000-8099"],
        ),
        (
            "\"0.0.0.0:8-8\"",
            &["4:8: listeners.web.bind: \"8-8\" is no range of ports; write the lower port first, as in 8000-8099"],
        ),
        (
            "\"0.0.0.0:1-65535\"",
            &["4:8: listeners.web.bind: \"1-65535\" are 65535 ports; a listener has up to 1000 addresses"],
        ),
        (
            "[\"0.0.0.0:1-600\", \"0.0.0.0:601-1001\"]",
            &["4:26: listeners.web.bind[1]: these are 1001 addresses so far; a listener has up to 1000 addresses"],
        ),
        (
            "\"8000-8099\"",
            &["4:8: listeners.web.bind: \"8000-8099\" has no address; write \"[::]:8000-8099\" for every address or \
               \"0.0.0.0:8000-8099\" for those of IPv4"],
        ),
        (
            "[\"0.0.0.0:8000-8099\", \"127.0.0.1:8050-8149\"]",
            &[
                "4:30: listeners.web.bind[1]: 127.0.0.1:8050 overlaps 0.0.0.0:8050, which is listeners.web.bind[0] on line \
               4; a wildcard takes connections to every address; use another port",
            ],
        ),
    ];
    for (bind, expected) in cases {
        assert_said(&with_listener(&format!("bind = {bind}\npool = \"web\"")), expected);
    }
    let admin = "[admin]\nlisten = \"127.0.0.1:1-2\"\n[listeners.a]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n[pools.p]\n\
                 backends = [\"10.0.0.1:80\"]";
    assert_said(admin, &["2:10: admin.listen: \"127.0.0.1:1-2\" is a range of ports; name one port"]);
}

/// Two listeners on port 80 of these addresses, with these keys.
fn two(first: (&str, &str), second: (&str, &str)) -> String {
    let listener = |name: &str, (bind, keys): (&str, &str)| {
        format!("[listeners.{name}]\nbind = \"{bind}:80\"\npool = \"web\"\nsocket = {{ {keys} }}\n")
    };
    format!("{}{}[pools.web]\nbackends = [\"10.0.0.1:80\"]\n", listener("a", first), listener("b", second))
}

#[test]
fn interfaces_and_families_that_are_apart_do_not_overlap() {
    let (any4, any6, v6only) = ("0.0.0.0", "[::]", "v6only = true");
    let (eth0, eth1) = ("interface = \"eth0\"", "interface = \"eth1\"");
    for (first, second) in [
        ((any6, v6only), (any4, "")),
        ((any4, ""), (any6, v6only)),
        (("10.0.0.9", ""), (any6, v6only)),
        ((any4, eth0), (any4, eth1)),
        ((any6, eth0), ("127.0.0.1", eth1)),
    ] {
        good(&two(first, second));
    }
    let cases = [
        (
            (any6, ""),
            (any4, ""),
            "0.0.0.0:80 overlaps [::]:80",
            "[::] takes IPv4 connections too, so keep only that one",
        ),
        ((any6, v6only), (any6, ""), "[::]:80 overlaps [::]:80", "use another port or address"),
        (
            (any6, v6only),
            ("[::1]", ""),
            "[::1]:80 overlaps [::]:80",
            "a wildcard takes connections to every address; use another port",
        ),
        ((any4, eth0), (any4, eth0), "0.0.0.0:80 overlaps 0.0.0.0:80", "use another port or address"),
        ((any4, eth0), (any4, ""), "0.0.0.0:80 overlaps 0.0.0.0:80", "use another port or address"),
        (
            (any4, ""),
            ("10.0.0.9", eth0),
            "10.0.0.9:80 overlaps 0.0.0.0:80",
            "a wildcard takes connections to every address; use another port",
        ),
    ];
    for (first, second, what, hint) in cases {
        let line = format!("6:8: listeners.b.bind: {what}, which is listeners.a.bind on line 2; {hint}");
        assert_said(&two(first, second), &[&line]);
    }
}

#[test]
fn mistakes_of_a_listeners_socket() {
    let octal = "write it in octal, as in \"0660\": who may write may connect";
    let no_unix = "warning: this has no effect: the listener has no unix socket; remove it";
    let tcp: &[Case] = &[
        (
            "interface = \"\"",
            &["7:13: listeners.web.socket.interface: the name is empty; name an interface that `ip link` lists"],
        ),
        (
            "interface = \"sixteen-bytes-16\"",
            &[
                "7:13: listeners.web.socket.interface: \"sixteen-bytes-16\" is too long for an interface; name one that \
               `ip link` lists, of up to 15 bytes",
            ],
        ),
        (
            "interface = \"eth0:1\"",
            &[
                "7:13: listeners.web.socket.interface: \"eth0:1\" is not the name of an interface; name one that `ip link` \
               lists, such as \"eth0\"",
            ],
        ),
        (
            "fast_open = true",
            &["7:13: listeners.web.socket.fast_open: true is a boolean, but an integer is wanted; use 1 to 1048576"],
        ),
        ("fast_open = 0", &["7:13: listeners.web.socket.fast_open: 0 is out of range; use 1 to 1048576"]),
        ("defer_accept = 3", &["7:16: listeners.web.socket.defer_accept: 3 has no unit; write \"3s\""]),
        (
            "defer_accept = \"10ms\"",
            &["7:16: listeners.web.socket.defer_accept: \"10ms\" is out of range; use 1s to 5m"],
        ),
        ("mode = \"0660\"", &[&format!("7:8: listeners.web.socket.mode: {no_unix}")]),
        ("owner = 1", &["7:9: listeners.web.socket.owner: 1 is an integer, but a string is wanted; write \"1\""]),
        (
            "v6only = true",
            &[
                "7:10: listeners.web.socket.v6only: warning: this has no effect: the listener has no address of IPv6; remove it",
            ],
        ),
        (
            "tos = 1",
            &[
                "7:1: listeners.web.socket.tos: unknown key; the keys here are interface, v6only, fast_open, defer_accept, \
               transparent, mptcp, mode, owner, group",
            ],
        ),
    ];
    for (keys, expected) in tcp {
        assert_said(&with_socket("\"127.0.0.1:0\"", keys), expected);
    }
    let unix_alone = "warning: this has no effect: the listener has unix sockets alone; remove it";
    let unix: &[Case] = &[
        ("mode = \"660\"\nowner = \"0\"", &[]),
        ("mode = \"rw-\"", &[&format!("7:8: listeners.web.socket.mode: \"rw-\" is not a mode; {octal}")]),
        ("mode = \"4755\"", &[&format!("7:8: listeners.web.socket.mode: \"4755\" is not a mode; {octal}")]),
        ("mode = \"0668\"", &[&format!("7:8: listeners.web.socket.mode: \"0668\" is not a mode; {octal}")]),
        ("mode = 0o660", &[&format!("7:8: listeners.web.socket.mode: \"0o660\" is not a mode; {octal}")]),
        (
            "owner = \"4294967295\"",
            &[
                "7:9: listeners.web.socket.owner: \"4294967295\" is not a user; use a number up to 4294967294, or a name",
            ],
        ),
        ("group = \"\"", &["7:9: listeners.web.socket.group: \"\" is not a group; write its name or its number"]),
        ("transparent = true", &[&format!("7:15: listeners.web.socket.transparent: {unix_alone}")]),
        ("v6only = true", &[&format!("7:10: listeners.web.socket.v6only: {unix_alone}")]),
    ];
    for (keys, expected) in unix {
        assert_said(&with_socket("\"unix:/run/web.sock\"", keys), expected);
    }
}

#[test]
fn mistakes_of_where_connects_come_from() {
    let at = "7:18: pools.web.connect.source_address";
    let example = "write an address of this machine, such as \"10.0.0.5\"";
    let too_many = format!("source_address = [{}]", "\"10.0.0.1\", ".repeat(65));
    let cases: &[Case] = &[
        (
            "source_address = []",
            &[&format!("{at}: the list is empty; name at least one address of this machine, or remove the key")],
        ),
        (&too_many, &[&format!("{at}: 65 are too many addresses; name up to 64")]),
        ("source_address = \"db\"", &[&format!("{at}: \"db\" is not an address; {example}")]),
        ("source_address = \"10.0.0.0/24\"", &[&format!("{at}: \"10.0.0.0/24\" is not an address; {example}")]),
        (
            "source_address = \"10.0.0.5:0\"",
            &[&format!("{at}: \"10.0.0.5:0\" is not an address; write \"10.0.0.5\": the kernel chooses the port")],
        ),
        (
            "source_address = \"[2001:db8::5]:80\"",
            &[&format!(
                "{at}: \"[2001:db8::5]:80\" is not an address; write \"2001:db8::5\": the kernel chooses the port"
            )],
        ),
        (
            "source_address = \"0.0.0.0\"",
            &[&format!(
                "{at}: 0.0.0.0 means every address of this machine; name one, or remove the key to let the kernel choose"
            )],
        ),
        (
            "source_address = \"224.0.0.1\"",
            &[&format!("{at}: 224.0.0.1 is the address of a group; TCP needs the address of one machine")],
        ),
        (
            "source_address = [\"10.0.0.5\", \"10.0.0.5\"]",
            &["7:31: pools.web.connect.source_address[1]: warning: the same address is named twice; remove one"],
        ),
        (
            "source_address = [\"10.0.0.5\", \"2001:db8::5\"]",
            &[
                "7:31: pools.web.connect.source_address[1]: warning: this has no effect: no backend has an address of IPv6; \
               remove it",
            ],
        ),
        ("mark = 0", &["7:8: pools.web.connect.mark: 0 is out of range; use 1 to 4294967295"]),
        (
            "mark = \"7\"",
            &["7:8: pools.web.connect.mark: \"7\" is a string, but an integer is wanted; leave out the quotes"],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_connect("[\"10.0.0.1:80\"]", keys), expected);
    }
    assert_said(
        &with_connect("[\"10.0.0.1:80\", \"[::1]:80\"]", "source_address = \"10.0.0.5\""),
        &[&format!(
            "{at}: warning: none of these is for [::1]:80: the kernel chooses its source address; add an address of IPv6"
        )],
    );
    assert_said(
        &with_connect("[\"unix:/run/a.sock\"]", "mptcp = true"),
        &["7:9: pools.web.connect.mptcp: warning: this has no effect: all backends are unix sockets; remove it"],
    );
    // What a name stands for isn't known yet.
    good(&with_connect("[\"db:80\"]", "source_address = [\"10.0.0.5\", \"2001:db8::5\"]"));
}
