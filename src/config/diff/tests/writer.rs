//! Good configs of all kinds, as texts: every key of the file may be there, with one of a few values.
//!
//! Few names and few values, so that two configs have much in common and differ in much.

use std::fmt::Write;

/// A key, and some of the values that it may have.
type Values = (&'static str, &'static [&'static str]);

const RUNTIME: &[Values] = &[
    ("workers", &["1", "2"]),
    ("max_connections", &["1_000", "2_000"]),
    ("drain_timeout", &["\"1s\"", "\"2m\""]),
    ("drain_spread", &["\"500ms\""]),
    ("lame_duck", &["\"1s\""]),
    ("relay", &["\"copy\"", "\"splice\""]),
    ("memory_high", &["\"off\"", "\"50%\""]),
    ("state_file", &["\"off\"", "\"/var/lib/a b.json\""]),
    ("retired_timeout", &["\"off\"", "\"1h\""]),
    ("watch", &["\"1s\"", "\"2m\""]),
    ("landlock", &["\"on\"", "\"required\""]),
];
/// What goes only with a user.
const USER: &[Values] = &[("user", &["\"nobody\"", "\"7\""])];
const WITH_USER: &[Values] = &[
    ("group", &["\"daemon\"", "\"7\""]),
    ("keep_capabilities", &["[\"net_raw\"]", "[\"net_bind_service\", \"net_admin\"]"]),
];
/// A credential and a file are no config together.
const ADMIN: &[Values] = &[
    ("listen", &["\"off\"", "\"127.0.0.1:0\"", "[\"127.0.0.1:0\", \"unix:/run/tidegate.sock\"]"]),
    ("token_file", &["\"/etc/tidegate/token\""]),
    ("allow_uids", &["[0, \"root\"]", "5"]),
    ("allowed_hosts", &["\"lb.example.com\""]),
];
const LOG: &[Values] = &[
    ("level", &["\"debug\"", "\"error\""]),
    ("format", &["\"json\""]),
    ("access", &["\"stdout\"", "\"/var/log/a b.log\""]),
];
const LIMIT: &[Values] = &[
    ("max_connections", &["5", "\"off\""]),
    ("max_connections_per_client", &["2", "3"]),
    ("accept_rate", &["\"10/s\"", "\"30/m\""]),
    ("burst", &["3", "9"]),
    ("accept_rate_per_client", &["\"7/h\""]),
    ("burst_per_client", &["1", "2"]),
    ("client_prefix_ipv4", &["24", "32"]),
    ("client_prefix_ipv6", &["48", "56"]),
    ("max_clients", &["100", "200"]),
];
const LISTENER: &[Values] = &[
    ("backlog", &["1", "4_096"]),
    ("idle_timeout", &["\"1m\"", "\"10m\""]),
    ("half_close_timeout", &["\"1s\"", "\"2s\""]),
    ("keepalive", &["\"off\"", "\"30s\""]),
    ("limits", &["[\"shared\"]"]),
    ("reserved_connections", &["1", "2"]),
    ("allow", &["[\"10.0.0.0/8\"]", "[\"::/0\", \"192.0.2.7\"]"]),
    ("deny", &["[\"10.1.0.0/16\"]"]),
    ("overload", &["\"reset\"", "\"wait\"", "\"close\""]),
    ("dry_run", &["true"]),
    ("rate_to_client", &["\"1MiB/s\"", "\"2MiB/s\""]),
    ("rate_to_backend", &["\"off\"", "\"1MiB/s\""]),
    ("rate_burst", &["\"8KiB\"", "\"9KiB\""]),
    (
        "accept_proxy_protocol",
        &["{ from = [\"10.0.0.0/8\"] }", "{ from = \"10.0.0.1\", required = true, timeout = \"9s\" }"],
    ),
    ("preread_timeout", &["\"3s\""]),
    ("preread_bytes", &["\"1KiB\"", "\"2KiB\""]),
    ("preread_timeout_pool", &["\"fixed\""]),
    ("preread_failed", &["\"pool\""]),
];
const SOCKET: &[Values] = &[
    ("interface", &["\"lo\"", "\"eth0\""]),
    ("v6only", &["true"]),
    ("fast_open", &["16", "\"off\""]),
    ("defer_accept", &["\"1s\"", "\"2s\""]),
    ("transparent", &["true"]),
    ("mptcp", &["true"]),
    ("mode", &["\"0660\"", "\"0600\""]),
    ("owner", &["\"root\"", "\"7\""]),
    ("group", &["\"7\""]),
];
/// What a route may ask together.
const ROUTE: &[Values] = &[
    ("source", &["[\"10.0.0.0/8\"]", "[\"192.0.2.7\"]"]),
    ("local_port", &["[80, \"8000-8099\"]", "443"]),
    ("local_address", &["[\"127.0.0.1\"]"]),
    ("share", &["\"10%\"", "\"20%\""]),
];
/// What goes alone with that.
const FIRST_BYTES: &[Values] = &[
    ("sni", &["[]", "[\"a.example\", \"*.b.example\"]"]),
    ("alpn", &["[\"h2\"]", "[\"http/1.1\"]"]),
    ("alpn_all", &["[]", "[\"h2\", \"http/1.1\"]"]),
    ("protocol", &["[\"ssh\"]", "[\"redis\", \"postgres\"]"]),
    ("http_host", &["[\"a.example\"]", "[\".b.example\"]"]),
    ("http_path", &["[\"/a\"]", "[\"/b\", \"/c\"]"]),
    ("http_method", &["[\"GET\"]", "[\"PUT\"]"]),
    ("prefix", &["[\"SSH-\"]", "[\"hex:160301\"]"]),
];
const TO: &[Values] = &[
    ("pool", &["\"fixed\""]),
    ("pools", &["[{ pool = \"fixed\", weight = 3 }]", "[{ pool = \"fixed\" }]"]),
    ("refuse", &["true"]),
];
const POOL: &[Values] = &[
    ("panic_threshold", &["\"0%\"", "\"20%\""]),
    ("min_available", &["2", "3"]),
    ("tier_hold", &["\"1s\""]),
    ("slow_start", &["\"0s\"", "\"1s\""]),
    ("replay", &["\"1KiB\"", "\"64KiB\""]),
    ("on_down", &["\"reset\""]),
    ("max_lifetime", &["\"1h\"", "\"2h\""]),
    ("rebalance", &["\"1%\"", "\"2%\""]),
    ("backend_max_connections", &["10", "20"]),
    ("send_proxy_protocol", &["\"v1\"", "\"v2\""]),
];
const CONNECT: &[Values] = &[
    ("timeout", &["\"1s\"", "\"2s\""]),
    ("attempts", &["1", "2"]),
    ("budget", &["\"7s\"", "\"8s\""]),
    ("hedge_after", &["\"100ms\"", "\"200ms\""]),
    ("hedge_share", &["\"1%\""]),
    ("max_rate", &["10", "20"]),
    ("source_address", &["\"10.0.0.5\"", "[\"10.0.0.5\", \"10.0.0.6\"]"]),
    ("interface", &["\"lo\""]),
    ("mark", &["7", "8"]),
    ("transparent", &["true"]),
    ("fast_open", &["true"]),
    ("mptcp", &["true"]),
];
const TLVS: &[Values] = &[
    ("unique_id", &["true"]),
    ("authority", &["true"]),
    ("alpn", &["true"]),
    ("pass", &["true"]),
    ("ssl", &["true"]),
    ("crc32c", &["false"]),
    ("tlvs", &["{ \"0xE0\" = \"edge-1\" }", "{ \"0xE0\" = \"edge-2\" }"]),
];
const EJECTION: &[Values] = &[
    ("consecutive_failures", &["\"off\"", "7"]),
    ("base_time", &["\"1s\"", "\"2s\""]),
    ("max_time", &["\"60s\"", "\"70s\""]),
    ("max_ejected", &["\"50%\""]),
    ("slow_connect", &["\"1s\""]),
];
const QUEUE: &[Values] = &[
    ("max_wait", &["\"1s\"", "\"2s\""]),
    ("max_waiting", &["1", "2"]),
    ("order", &["\"lifo\"", "\"adaptive\""]),
    ("client_fin", &["\"leave\""]),
];
const SHED: &[Values] = &[
    ("connect_time", &["\"10ms\"", "\"20ms\""]),
    ("first_byte", &["\"1s\""]),
    ("window", &["\"1s\""]),
    ("dry_run", &["true"]),
];
/// Of a pool that has a queue.
const QUEUE_TIME: &[Values] = &[("queue_time", &["\"200ms\""])];
const HOLD: &[Values] = &[
    ("max_connections", &["1", "2"]),
    ("max_bytes", &["\"20MiB\""]),
    ("max_bytes_each", &["\"4KiB\"", "\"8KiB\""]),
    ("max_wait", &["\"1s\""]),
    ("overflow", &["\"oldest\""]),
    ("release_rate", &["\"10/s\"", "\"10/m\""]),
];
const HASH: &[Values] = &[
    ("prefix_ipv4", &["24"]),
    ("prefix_ipv6", &["48"]),
    ("table_size", &["251", "65_537"]),
    ("max_load", &["2", "\"off\""]),
];
const HASH_KEY: &[Values] =
    &[("key", &["\"sni\"", "\"http_path\"", "\"http_header\"\nheader = \"X-A\"", "\"http_header\"\nheader = \"X-B\""])];
const HEALTH: &[Values] = &[
    ("interval", &["\"3s\"", "\"4s\""]),
    ("fast_interval", &["\"200ms\"", "\"300ms\""]),
    ("down_interval", &["\"5s\""]),
    ("jitter", &["\"0%\""]),
    ("timeout", &["\"100ms\"", "\"200ms\""]),
    ("rise", &["3"]),
    ("fall", &["4", "5"]),
    ("initial", &["\"up\""]),
    ("port", &["81", "82"]),
    ("address", &["\"10.9.9.9\""]),
];
/// The probes; the keys of each are asked for only with it.
const PROBE: &[Values] = &[("probe", &["\"none\"", "\"http\"", "\"tls\"", "\"exchange\""])];
const HTTP: &[Values] = &[
    ("method", &["\"POST\"", "\"OPTIONS\""]),
    ("path", &["\"/healthz\"", "\"/ready?x=1\""]),
    ("host", &["\"a.example\"", "\"b.example\""]),
    ("headers", &["{ authorization = \"Bearer SECRET-ONE\" }", "{ authorization = \"Bearer SECRET-TWO\" }"]),
    ("status", &["200", "[200, \"300-399\"]"]),
    ("body", &["\"ready\""]),
    ("max_bytes", &["\"1KiB\"", "\"2KiB\""]),
];
const TLS: &[Values] = &[("name", &["\"a.example\""]), ("expiry_warning", &["\"1d\"", "\"2d\""])];
const EXCHANGE: &[Values] = &[("send", &["\"AUTH SECRET-ONE\"", "\"AUTH SECRET-TWO\""]), ("max_bytes", &["\"1KiB\""])];
const EXPECT: &[Values] =
    &[("expect", &["\"OK\""]), ("expect_prefix", &["\"OK\"", "\"+\""]), ("expect_prefix_hex", &["\"00 ff\""])];
const AGENT: &[Values] = &[("interval", &["\"1s\"", "\"3s\""]), ("send", &["\"SECRET-ONE\"", "\"SECRET-TWO\""])];

/// Writes configs, led by a list of numbers; behind its end they are all zero, and zero is as little as can be.
pub struct Writer<'n> {
    numbers: std::slice::Iter<'n, u8>,
    text: String,
}

impl Writer<'_> {
    fn number(&mut self, below: usize) -> usize {
        usize::from(self.numbers.next().copied().unwrap_or(0)) % below
    }

    /// Every key of a table, or not, with one of its values.
    fn keys(&mut self, keys: &[Values]) {
        for (key, values) in keys {
            // Half of them are there.
            let choice = self.number(2 * values.len());
            if let Some(value) = choice.checked_sub(values.len()) {
                let _ = writeln!(self.text, "{key} = {}", values[value]);
            }
        }
    }

    /// Exactly one of these.
    fn one(&mut self, keys: &[Values]) {
        let (key, values) = keys[self.number(keys.len())];
        let value = values[self.number(values.len())];
        self.line(format!("{key} = {value}"));
    }

    fn line(&mut self, line: impl AsRef<str>) {
        self.text.push_str(line.as_ref());
        self.text.push('\n');
    }

    fn table(&mut self, name: &str, keys: &[Values]) {
        self.line(format!("[{name}]"));
        self.keys(keys);
    }

    /// Some of the names, in some order; without those that `need` names it would be no config.
    fn names<'s>(&mut self, names: &[&'s str], need: &str) -> Vec<&'s str> {
        let mut chosen: Vec<&str> = Vec::new();
        for name in names {
            if *name == need || self.number(3) > 0 {
                let place = chosen.len() - self.number(chosen.len() + 1);
                chosen.insert(place, name);
            }
        }
        chosen
    }

    pub fn config(numbers: &[u8]) -> String {
        let mut it = Writer { numbers: numbers.iter(), text: String::new() };
        it.table("runtime", RUNTIME);
        if it.number(2) > 0 {
            it.one(USER);
            it.keys(WITH_USER);
        }
        it.table("admin", ADMIN);
        it.table("log", LOG);
        for limit in it.names(&["shared", "other"], "shared") {
            it.table(&format!("limits.{limit}"), LIMIT);
        }
        for (port, name) in it.names(&["web", "api", "mail"], "web").into_iter().enumerate() {
            it.listener(8_000 + 10 * port, name);
        }
        for name in it.names(&["fixed", "db", "cache"], "fixed") {
            it.pool(name);
        }
        it.text
    }

    fn listener(&mut self, port: usize, name: &str) {
        self.line(format!("[listeners.{name}]"));
        let binds = [
            format!("\"127.0.0.1:{port}\""),
            format!("[\"127.0.0.1:{port}\", \"unix:/run/{name}.sock\"]"),
            format!("\"[::1]:{port}-{}\"", port + 2),
        ];
        let bind = self.number(binds.len());
        self.line(format!("bind = {}", binds[bind]));
        self.line("pool = \"fixed\"");
        self.keys(LIMIT);
        self.keys(LISTENER);
        self.table(&format!("listeners.{name}.socket"), SOCKET);
        for route in self.names(&["a", "b", "", "c"], "c") {
            self.line(format!("[[listeners.{name}.routes]]"));
            if !route.is_empty() {
                self.line(format!("name = \"{route}\""));
            }
            self.keys(ROUTE);
            if self.number(2) > 0 {
                self.one(FIRST_BYTES);
            }
            self.one(TO);
        }
    }

    fn pool(&mut self, name: &str) {
        self.line(format!("[pools.{name}]"));
        let mut by_hash = false;
        let addresses = ["10.0.0.1:80", "10.0.0.2:80", "db.example:80", "[2001:db8::1]:80"];
        let backends = self.names(&addresses, addresses[1]);
        if self.number(4) == 0 {
            let targets: Vec<_> = backends.iter().map(|address| format!("tcp://{address}")).collect();
            self.line(format!("target = \"failover:({})\"", targets.join("|")));
        } else {
            let backends: Vec<_> = backends.iter().map(|address| self.backend(address)).collect();
            self.line(format!("backends = [{}]", backends.join(", ")));
            let balance = ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma", "source_hash"];
            let balance = balance[self.number(balance.len())];
            by_hash = balance == "source_hash";
            self.line(format!("balance = \"{balance}\""));
        }
        self.keys(POOL);
        self.table(&format!("pools.{name}.connect"), CONNECT);
        self.table(&format!("pools.{name}.proxy_protocol"), TLVS);
        self.table(&format!("pools.{name}.ejection"), EJECTION);
        let has_queue = self.number(2) > 0;
        if has_queue {
            self.table(&format!("pools.{name}.queue"), QUEUE);
        }
        if self.number(2) > 0 {
            self.table(&format!("pools.{name}.shed"), SHED);
            self.keys(if has_queue { QUEUE_TIME } else { &[] });
        }
        if self.number(2) > 0 {
            self.table(&format!("pools.{name}.hold"), HOLD);
        }
        if by_hash {
            self.table(&format!("pools.{name}.hash"), HASH);
            self.keys(HASH_KEY);
        }
        self.health(name);
    }

    fn backend(&mut self, address: &str) -> String {
        let mut backend = format!("{{ address = \"{address}\"");
        let name = format!("name = \"of {address}\"");
        for key in ["weight = 2", "weight = 3", "max_connections = 5", &name] {
            let is_double = key.starts_with("weight") && backend.contains("weight");
            if self.number(3) == 0 && !is_double {
                let _ = write!(backend, ", {key}");
            }
        }
        backend + [" }", ", tier = 1 }", ", tier = 2 }", ", backup = true }"][self.number(4)]
    }

    fn health(&mut self, name: &str) {
        self.table(&format!("pools.{name}.health"), HEALTH);
        let before = self.text.len();
        self.keys(PROBE);
        let probe = self.text[before..].trim().trim_start_matches("probe = ").trim_matches('"').to_owned();
        match probe.as_str() {
            "http" => self.table(&format!("pools.{name}.health.http"), HTTP),
            "tls" => self.table(&format!("pools.{name}.health.tls"), TLS),
            "exchange" => {
                self.table(&format!("pools.{name}.health.exchange"), EXCHANGE);
                self.one(EXPECT);
            }
            _ => {}
        }
        if self.number(2) > 0 {
            let port = 9_000 + self.number(2);
            self.line(format!("[pools.{name}.health.agent]\nport = {port}"));
            self.keys(AGENT);
        }
    }
}
