//! Routes and the preread: what the keys mean, and what is said about those that are wrong or do nothing.

use super::{Case, assert_said, good, said};
use std::time::Duration;
use tidegate::config::{
    Conditions, Config, Destination, Listener, NamePattern, Percent, PrereadFailed, Protocol, WeightedPool,
};
use tidegate::name::PoolName;

/// The keys of the first route begin at line 7.
fn with_route(keys: &str) -> String {
    format!("{}[[listeners.web.routes]]\n{keys}", with_keys(""))
}

/// The listener's keys begin at line 5.
fn with_keys(keys: &str) -> String {
    let pools = "pools = { web.backends = [\"10.0.0.1:80\"], late.backends = [\"10.0.0.2:80\"] }";
    let listeners = "listeners.late = { bind = \"127.0.0.1:0\", pool = \"late\" }";
    format!("{pools}\n{listeners}\n[listeners.web]\nbind = \"127.0.0.1:0\"\n{}", with_pool(keys))
}

fn with_pool(keys: &str) -> String {
    match keys {
        "" => "pool = \"web\"\n".to_owned(),
        keys => format!("{keys}\npool = \"web\"\n"),
    }
}

fn web(config: &Config) -> &Listener {
    config.listeners.iter().find(|listener| listener.name.as_str() == "web").expect("the listener of these tests")
}

#[test]
fn nothing_is_read_and_nothing_asked_by_default() {
    let config = good(&with_keys(""));
    let listener = web(&config);
    assert!(listener.routes.is_empty() && !listener.reads_first_bytes());
    let preread = &listener.preread;
    assert_eq!((preread.timeout, preread.bytes), (Duration::from_secs(5), 16 << 10));
    assert_eq!((&preread.timeout_pool, preread.failed), (&None, PrereadFailed::Reset));
}

#[test]
fn each_condition_means_what_it_says() {
    let config = good(&with_route(
        r#"
        source = ["10.0.0.0/8", "::1"]
        local_port = [443, "8000-8099"]
        local_address = "192.0.2.0/24"
        share = "2.5%"
        pool = "late"
        [[listeners.web.routes]]
        name = "tls"
        sni = ["A.example.com.", "*.example.com", ".example.com", "*"]
        alpn = "h2"
        alpn_all = []
        pools = [{ pool = "web", weight = 9 }, { pool = "late" }]
        [[listeners.web.routes]]
        http_host = ["a.example.com", "192.0.2.1", "[::1]"]
        http_path = "/api"
        http_method = ["GET", "M-SEARCH"]
        pool = "late"
        [[listeners.web.routes]]
        protocol = ["tls", "http1", "http2", "ssh", "postgres", "redis", "other"]
        prefix = ["SSH-", "hex:160301"]
        refuse = true
        [[listeners.web.routes]]
        sni = []
        refuse = true
        "#,
    ));
    let routes = &web(&config).routes;
    let names: Vec<&str> = routes.iter().map(|route| &*route.name).collect();
    assert_eq!(names, ["route-1", "tls", "route-3", "route-4", "route-5"]);
    let when = &routes[0].when;
    assert_eq!(when.source.iter().map(ToString::to_string).collect::<Vec<_>>(), ["10.0.0.0/8", "::1/128"]);
    assert_eq!(when.local_port, [443..=443, 8_000..=8_099]);
    assert_eq!(
        (when.local_address[0].to_string().as_str(), when.share),
        ("192.0.2.0/24", Some(Percent::hundredths(250)))
    );
    assert!(!when.reads_first_bytes() && web(&config).reads_first_bytes());
    assert_eq!(routes[0].to, Destination::Pool(PoolName::new("late")));
    let when = &routes[1].when;
    let sni = when.sni.as_ref().unwrap();
    assert_eq!(sni[0], NamePattern::Exact("a.example.com".into()));
    assert_eq!(sni.iter().map(ToString::to_string).collect::<Vec<_>>()[1..], ["*.example.com", ".example.com", "*"]);
    assert_eq!((&*when.alpn[0], &when.alpn_all), (&b"h2"[..], &Some(Vec::new())));
    let weighted = |pool, weight| WeightedPool { pool: PoolName::new(pool), weight };
    assert_eq!(routes[1].to, Destination::Pools(vec![weighted("web", 9), weighted("late", 1)]));
    let when = &routes[2].when;
    let hosts: Vec<_> = when.http_host.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["a.example.com", "192.0.2.1", "[::1]"]);
    assert_eq!((&*when.http_path[0], &*when.http_method[1]), ("/api", "M-SEARCH"));
    let when = &routes[3].when;
    assert_eq!(when.protocol, Protocol::WORDS.map(|(_, protocol)| protocol));
    assert_eq!((&*when.prefix[0].bytes, &*when.prefix[1].bytes), (&b"SSH-"[..], &[0x16, 0x03, 0x01][..]));
    assert_eq!(routes[3].to, Destination::Refuse);
    assert_eq!(routes[4].when, Conditions { sni: Some(Vec::new()), ..Conditions::default() });
}

#[test]
fn a_route_for_everybody_makes_the_pool_dispensable() {
    let text = "pools.web.backends = [\"10.0.0.1:80\"]\n[listeners.web]\nbind = \"127.0.0.1:0\"\n";
    let config = good(&format!("{text}[[listeners.web.routes]]\npool = \"web\""));
    assert_eq!(web(&config).pool, None);
    assert_said(
        &format!("{text}[[listeners.web.routes]]\nsni = \"*\"\npool = \"web\""),
        &["2:1: listeners.web: pool is missing; write pool = \"web\", or end with a route without conditions"],
    );
    assert_said(text, &["2:1: listeners.web: pool is missing; write pool = \"web\""]);
}

#[test]
fn a_pool_that_only_routes_lead_to_is_used() {
    let text = "[listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"a\"\npreread_timeout_pool = \"b\"\n\
                routes = [{ prefix = \"x\", pool = \"c\" }, { pools = [{ pool = \"d\" }], prefix = \"y\" }]\n";
    let pools = |names: &[&str]| {
        names.iter().map(|name| format!("pools.{name}.backends = [\"10.0.0.1:80\"]")).collect::<Vec<_>>().join("\n")
            + "\n"
    };
    good(&format!("{}{text}", pools(&["a", "b", "c", "d"])));
    assert_said(
        &format!("{}{text}", pools(&["a", "b", "c", "d", "e"])),
        &["5:7: pools.e: warning: no listener leads to this pool; remove it, or name it in a listener"],
    );
}

#[test]
fn mistakes_of_where_a_route_leads() {
    let cases: &[Case] = &[
        (
            "prefix = \"x\"\npool = \"lat\"",
            &["8:8: listeners.web.routes[0].pool: there is no pool \"lat\"; did you mean \"late\"?"],
        ),
        (
            "prefix = \"x\"\npools = [{ pool = \"database\" }]",
            &["8:19: listeners.web.routes[0].pools[0].pool: there is no pool \"database\"; add [pools.database]"],
        ),
        (
            "prefix = \"x\"",
            &["6:1: listeners.web.routes[0]: the route leads nowhere; add pool, pools or refuse = true"],
        ),
        (
            "prefix = \"x\"\npool = \"late\"\nrefuse = true",
            &[
                "6:1: listeners.web.routes[0]: the route leads to more than one place; keep one of pool, pools and refuse",
            ],
        ),
        (
            "prefix = \"x\"\npool = \"late\"\npools = [{ pool = \"web\" }]",
            &[
                "6:1: listeners.web.routes[0]: the route leads to more than one place; keep one of pool, pools and refuse",
            ],
        ),
        (
            "prefix = \"x\"\npool = \"late\"\nrefuse = false",
            &["9:10: listeners.web.routes[0].refuse: warning: this says nothing; remove the key"],
        ),
        (
            "prefix = \"x\"\npools = []",
            &["8:9: listeners.web.routes[0].pools: the list is empty; name at least one, or remove the key"],
        ),
        (
            "prefix = \"x\"\npools = [{ weight = 0, pool = \"web\" }]",
            &["8:21: listeners.web.routes[0].pools[0].weight: 0 is out of range; use 1 to 256"],
        ),
        (
            "prefix = \"x\"\npools = [{ weight = 2 }]",
            &["8:10: listeners.web.routes[0].pools[0]: pool is missing; write { pool = \"NAME\", weight = 1 }"],
        ),
        (
            "prefix = \"x\"\npools = [{ pool = \"web\" }, { pool = \"web\" }]",
            &["8:37: listeners.web.routes[0].pools[1].pool: the same pool is here twice; remove one, and give the \
               other its weight"],
        ),
        (
            "prefix = \"x\"\npools = [\"web\"]",
            &[
                "8:10: listeners.web.routes[0].pools[0]: \"web\" is a string, but a table is wanted; write { pool = ... }; \
               the keys here are pool, weight",
            ],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_route(keys), expected);
    }
}

#[test]
fn mistakes_of_conditions() {
    let names =
        "write \"a.example.com\", \"*.example.com\" (one label more), \".example.com\" (any number more) or \"*\"";
    let cases: &[(&str, String)] = &[
        ("source = []", "source: the list is empty; name at least one, or remove the key".into()),
        ("local_port = []", "local_port: the list is empty; name at least one, or remove the key".into()),
        ("alpn = []", "alpn: the list is empty; name at least one, or remove the key".into()),
        ("local_port = 0", "local_port: 0 is out of range; use 1 to 65535".into()),
        ("local_port = 65536", "local_port: 65536 is out of range; use 1 to 65535".into()),
        ("local_port = \"9000-8000\"", "local_port: \"9000-8000\" ends before it begins; write \"8000-9000\"".into()),
        ("local_port = \"http\"", "local_port: \"http\" is no range of ports; write one such as \"8000-8099\"".into()),
        ("local_port = true", "local_port: true is a boolean, but a port is wanted".into()),
        ("source = \"10.0.0.0/33\"", "source: the prefix of \"10.0.0.0/33\" is out of range; use /0 to /32".into()),
        (
            "local_address = \"here\"",
            "local_address: \"here\" is not a network; write one such as \"10.0.0.0/8\" or \"2001:db8::/32\"".into(),
        ),
        ("sni = \"a.*.com\"", format!("sni: \"a.*.com\" is not a name; {names}")),
        ("sni = \"**.com\"", format!("sni: \"**.com\" is not a name; {names}")),
        ("sni = \"\"", format!("sni: \"\" is not a name; {names}")),
        ("sni = \"a..com\"", format!("sni: \"a..com\" is not a name; {names}")),
        ("sni = \"*.\"", format!("sni: \"*.\" is not a name; {names}")),
        ("sni = \"a.com:443\"", "sni: \"a.com:443\" is not a name; leave out the port".into()),
        (
            "sni = \"grün.example\"",
            "sni: \"grün.example\" is not a name; write it as clients send it, in its form that begins with xn--"
                .into(),
        ),
        (
            "sni = \"192.0.2.1\"",
            "sni: \"192.0.2.1\" is an address, and clients name none; use local_address, or sni = [] for clients \
             without a name"
                .into(),
        ),
        (
            "http_host = \"::1\"",
            "http_host: \"::1\" is no host of a request; write an IPv6 address in brackets, and no port".into(),
        ),
        (
            "sni = \"https://a.com\"",
            "sni: \"https://a.com\" is not a name; leave out what isn't the name of the host".into(),
        ),
        ("http_host = \"a.com:80\"", "http_host: \"a.com:80\" is not a name; leave out the port".into()),
        ("http_path = \"api\"", "http_path: \"api\" is not the beginning of a path; begin it with a slash".into()),
        (
            "http_path = \"/a?b\"",
            "http_path: \"/a?b\" is not the beginning of a path; leave out what follows the path: it is not compared"
                .into(),
        ),
        (
            "http_path = \"/a b\"",
            "http_path: \"/a b\" is not the beginning of a path; write it as clients send it, with other characters \
             as %20 is one"
                .into(),
        ),
        ("http_path = \"/a//b\"", "http_path: \"/a//b\" is never compared so; write \"/a/b\"".into()),
        ("http_path = \"/%61pi\"", "http_path: \"/%61pi\" is never compared so; write \"/api\"".into()),
        ("http_path = \"/caf%c3%a9\"", "http_path: \"/caf%c3%a9\" is never compared so; write \"/caf%C3%A9\"".into()),
        ("http_path = \"/a%+fb%2fc\"", "http_path: \"/a%+fb%2fc\" is never compared so; write \"/a%+fb%2Fc\"".into()),
        (
            "http_path = \"/a/../b\"",
            "http_path: \"/a/../b\" has a segment of dots alone, and such requests are malformed; write the path \
             that it means"
                .into(),
        ),
        ("http_method = \"get\"", "http_method: \"get\" is not a method; write \"GET\"".into()),
        ("http_method = \"\"", "http_method: \"\" is not a method; write one such as \"GET\"".into()),
        (
            "protocol = \"http\"",
            "protocol: \"http\" is not known here; use \"tls\", \"http1\", \"http2\", \"ssh\", \"postgres\", \
             \"redis\" or \"other\""
                .into(),
        ),
        ("prefix = \"hex:160\"", "prefix: \"hex:160\" has an odd number of digits; write two for each byte".into()),
        (
            "prefix = \"hex:xy\"",
            "prefix: \"hex:xy\" holds something that is no hexadecimal digit; write one such as \"hex:160301\"".into(),
        ),
        (
            "prefix = \"hex:\"",
            "prefix: the prefix is empty; write the first bytes, such as \"SSH-\" or \"hex:160301\"".into(),
        ),
        ("share = 5", "share: 5 has no sign; write \"5%\"".into()),
        ("alpn = \"\"", "alpn: the name is empty; write one such as \"h2\"".into()),
    ];
    for (key, expected) in cases {
        let column = key.find('=').unwrap() + 3;
        let expected = format!("7:{column}: listeners.web.routes[0].{expected}");
        assert_said(&with_route(&format!("{key}\npool = \"late\"")), &[&expected]);
    }
}

#[test]
fn mistakes_of_names_and_order() {
    let second = |keys: &str| format!("prefix = \"x\"\npool = \"late\"\n[[listeners.web.routes]]\n{keys}");
    let cases: &[(String, &[&str])] = &[
        (
            "name = \"a b\"\nprefix = \"x\"\npool = \"late\"".into(),
            &["7:8: listeners.web.routes[0].name: \"a b\" is not a name; use up to 128 letters, digits, _ . and -"],
        ),
        (
            "name = \"..\"\nprefix = \"x\"\npool = \"late\"".into(),
            &["7:8: listeners.web.routes[0].name: \"..\" is not a name; use up to 128 letters, digits, _ . and -"],
        ),
        (
            "name = \"default\"\nprefix = \"x\"\npool = \"late\"".into(),
            &[
                "7:8: listeners.web.routes[0].name: \"default\" has a meaning of its own in log and metrics; use another \
               name",
            ],
        ),
        (
            second("name = \"route-1\"\nprefix = \"y\"\npool = \"late\""),
            &[
                "10:8: listeners.web.routes[1].name: the route on line 6 is called \"route-1\" already; use another name",
            ],
        ),
        (
            "pool = \"late\"\n[[listeners.web.routes]]\nprefix = \"x\"\nrefuse = true".into(),
            &[
                "8:1: listeners.web.routes[1]: warning: nothing ever comes here: route \"route-1\" takes everybody; move \
               that one to the end, or give it a condition",
            ],
        ),
        (
            second("pool = \"late\""),
            &["5:8: listeners.web.pool: warning: nothing ever comes here: route \"route-2\" takes everybody; remove \
               the key, or give that route a condition"],
        ),
        (
            "prefix = [\"x\", \"x\"]\npool = \"late\"".into(),
            &["7:16: listeners.web.routes[0].prefix[1]: warning: \"x\" is here twice; remove one"],
        ),
        (
            "sni = \"*\"\nhttp_path = \"/\"\npool = \"late\"".into(),
            &["6:1: listeners.web.routes[0]: warning: this route is never taken: sni is about TLS, which hides \
               http_path; remove one, or make two routes"],
        ),
        (
            "alpn = \"h2\"\nprotocol = [\"http2\", \"ssh\"]\npool = \"late\"".into(),
            &["6:1: listeners.web.routes[0]: warning: this route is never taken: alpn is about TLS, and protocol is \
               not; remove one, or make two routes"],
        ),
        (
            "http_method = \"GET\"\nprotocol = \"http2\"\npool = \"late\"".into(),
            &["6:1: listeners.web.routes[0]: warning: this route is never taken: http_method is about HTTP/1, and \
               protocol is not; remove one, or make two routes"],
        ),
        (
            "http_path = [\"/api/*\", \"/a*/b\", \"/*\"]\npool = \"late\"".into(),
            &[
                "7:14: listeners.web.routes[0].http_path[0]: warning: the star of \"/api/*\" stands for itself alone; \
                 write \"/api\", which takes everything below it",
                "7:24: listeners.web.routes[0].http_path[1]: warning: the star of \"/a*/b\" stands for itself alone; \
                 write whole beginnings of paths",
                "7:33: listeners.web.routes[0].http_path[2]: warning: the star of \"/*\" stands for itself alone; \
                 write \"/\", which takes everything below it",
            ],
        ),
        (
            "alpn = [\"h2\", \"HTTP/2\", \"http/1.1\"]\nalpn_all = \"http1.1\"\npool = \"late\"".into(),
            &[
                "7:15: listeners.web.routes[0].alpn[1]: warning: no client offers \"HTTP/2\"; write \"h2\"",
                "8:12: listeners.web.routes[0].alpn_all: warning: no client offers \"http1.1\"; write \"http/1.1\"",
            ],
        ),
        (
            "prefix = [\"0xdead\", \"0xd\"]\npool = \"late\"".into(),
            &["7:11: listeners.web.routes[0].prefix[0]: warning: \"0xdead\" is taken as text; write \"hex:dead\" for \
               these bytes"],
        ),
        (
            "snj = \"x\"\npool = \"late\"".into(),
            &["7:1: listeners.web.routes[0].snj: unknown key; did you mean \"sni\"?"],
        ),
    ];
    for (keys, expected) in cases {
        assert_said(&with_route(keys), expected);
    }
    assert_said(
        &with_keys("routes = \"late\""),
        &["5:10: listeners.web.routes: \"late\" is a string, but a list is wanted; write [\"late\"]"],
    );
    assert_said(
        &format!("{}[listeners.web.routes]\nprefix = \"x\"\npool = \"late\"", with_keys("")),
        &["6:1: listeners.web.routes: this is a table, but a list is wanted; write [[listeners.web.routes]]"],
    );
}

#[test]
fn mistakes_of_the_preread() {
    let reads = "routes = [{ prefix = \"x\", pool = \"late\" }]";
    let cases: &[Case] = &[
        ("preread_bytes = \"63B\"", &["5:17: listeners.web.preread_bytes: \"63B\" is out of range; use 64B to 1MiB"]),
        ("preread_bytes = 100", &["5:17: listeners.web.preread_bytes: \"100\" has no unit; write \"100B\""]),
        ("preread_timeout = \"0s\"", &["5:19: listeners.web.preread_timeout: \"0s\" is out of range; use 1ms to 366d"]),
        (
            "preread_timeout_pool = \"lat\"",
            &["5:24: listeners.web.preread_timeout_pool: there is no pool \"lat\"; did you mean \"late\"?"],
        ),
        (
            "preread_failed = \"drop\"",
            &["5:18: listeners.web.preread_failed: \"drop\" is not known here; use \"reset\" or \"pool\""],
        ),
    ];
    for (key, expected) in cases {
        assert_said(&with_keys(&format!("{key}\n{reads}")), expected);
    }
    for key in [
        "preread_timeout = \"1s\"",
        "preread_bytes = \"1KiB\"",
        "preread_timeout_pool = \"late\"",
        "preread_failed = \"pool\"",
    ] {
        let said = said(&with_keys(key));
        let (name, _) = key.split_once(' ').unwrap();
        let column = name.len() + 4;
        let expected = format!(
            "lb.toml:5:{column}: listeners.web.{name}: warning: this has no effect: no route or pool looks at what \
             clients send; remove it, or add a route with a condition such as sni, protocol or prefix"
        );
        assert_eq!(said, [expected]);
        // A pool that goes by a name or a header reads as well.
        let web = "web = { backends = [\"10.0.0.1:80\"], balance = \"source_hash\", hash = { key = \"sni\" } }";
        let by_name = with_keys(key).replacen("web.backends = [\"10.0.0.1:80\"]", web, 1);
        assert!(by_name.contains(web));
        assert_said(&by_name, &[]);
    }
}

#[test]
fn a_listener_that_a_route_leads_back_to_is_a_mistake() {
    let text = "[pools]\nweb.backends = [\"10.0.0.1:80\"]\nlate.backends = [\"127.0.0.1:7777\"]\n[listeners.web]\n\
                bind = \"127.0.0.1:7777\"\npool = \"web\"\nroutes = [{ prefix = \"x\", pool = \"late\" }]";
    assert_said(
        text,
        &[
            "5:8: listeners.web.bind: the listener's own pool late leads back to it at 127.0.0.1:7777; connections would \
           go round; use another address",
        ],
    );
}
