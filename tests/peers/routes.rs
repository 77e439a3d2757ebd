//! One listener that carries everything at once: TLS by name, a server that speaks first, plain HTTP by path, Redis by
//! its first bytes and a canary's share, with the clients' own addresses at nginx, while others dribble.

use crate::kit::conn::{Addr, Conn};
use crate::kit::program::{run, succeed};
use crate::kit::wait::pace;
use crate::kit::{Backend, Config, Tidegate, eventually};
use crate::proxy::{Program, nginx};
use crate::{REDIS, free_port, redis};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tidegate::net::client_hello;

const CURL: &str = "Install it: apt-get install curl";
/// The first has a certificate for the first of these, the second for the second.
const HOSTS: [&str; 2] = ["a.example.com", "b.example.com"];
/// Long enough for slow programs to say their first word, short enough to wait for.
const DEADLINE: Duration = Duration::from_secs(3);
const ROUNDS: u8 = 8;

const ROUTES: &str = r#"
[[listeners.web.routes]]
name = "tls-a"
sni = "a.example.com"
pool = "tls-a"
[[listeners.web.routes]]
name = "tls-b"
sni = "b.example.com"
pool = "tls-b"
[[listeners.web.routes]]
name = "canary"
http_path = "/shop"
share = "40%"
pool = "canary"
[[listeners.web.routes]]
name = "search"
http_path = "/search"
pool = "search"
[[listeners.web.routes]]
name = "web"
protocol = "http1"
pool = "web"
[[listeners.web.routes]]
name = "cache"
protocol = "redis"
pool = "cache"
[[listeners.web.routes]]
name = "strangers"
refuse = true
"#;

/// A server of nginx's for one pool, which says its name and the address that the PROXY header told.
fn server(name: &str, port: u16, tls: &str) -> String {
    let (ssl, keys) = match tls {
        "" => ("", String::new()),
        host => (" ssl", format!("ssl_certificate DIR/{host}.pem; ssl_certificate_key DIR/{host}.pem;")),
    };
    format!(
        "server {{ listen 127.0.0.1:{port}{ssl} proxy_protocol; {keys}\n\
         location / {{ return 200 \"{name} $proxy_protocol_addr\\n\"; }} }}\n"
    )
}

/// Pool, port, and the host of its certificate.
struct Site {
    servers: Vec<(&'static str, u16)>,
    _nginx: Program,
    certificates: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let certificates = tempfile::tempdir().unwrap();
        for host in HOSTS {
            let identity = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
            let (certificate, key) = (identity.cert.pem(), identity.signing_key.serialize_pem());
            fs::write(certificates.path().join(format!("{host}.pem")), format!("{certificate}{key}")).unwrap();
            fs::write(certificates.path().join(format!("{host}.crt")), certificate).unwrap();
        }
        let names = [("tls-a", HOSTS[0]), ("tls-b", HOSTS[1]), ("search", ""), ("web", ""), ("canary", "")];
        let servers: Vec<_> = names.iter().map(|(name, host)| (*name, *host, free_port())).collect();
        let blocks: String = servers.iter().map(|(name, host, port)| server(name, *port, host)).collect();
        let folder = certificates.path().display().to_string();
        let blocks = format!("http {{\naccess_log off;\n{}}}\n", blocks.replace("DIR", &folder));
        let nginx = nginx(servers[0].2, &blocks);
        Self { servers: servers.iter().map(|(name, _, port)| (*name, *port)).collect(), _nginx: nginx, certificates }
    }

    /// Each pool sends PROXY headers of version 2.
    fn pools(&self) -> String {
        let pool = |(name, port): &(&str, u16)| {
            format!(
                "[pools.{name}]\nbackends = [\"127.0.0.1:{port}\"]\nsend_proxy_protocol = \"v2\"\n\
                 health.probe = \"none\"\n"
            )
        };
        self.servers.iter().map(pool).collect::<Vec<_>>().concat()
    }
}

/// Asks from this address; the answer's words.
fn curl(from: Ipv4Addr, arguments: &[&str]) -> Vec<String> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "--max-time", "20", "--noproxy", "*", "--interface", &from.to_string()]);
    let output = run(command.args(arguments), CURL);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text.split_whitespace().map(str::to_owned).collect()
}

fn by_tls(host: &str, port: u16, from: Ipv4Addr, certificates: &Path) -> Vec<String> {
    let (resolve, url) = (format!("{host}:{port}:127.0.0.1"), format!("https://{host}:{port}/"));
    let ca = certificates.join(format!("{host}.crt"));
    curl(from, &["--cacert", ca.to_str().unwrap(), "--resolve", &resolve, &url])
}

/// Sends a hello one byte a second; how long until it was cut.
fn dribble(address: &Addr) -> Duration {
    let mut client = Conn::to(address);
    let begun = Instant::now();
    for byte in client_hello::write(Some(HOSTS[0]), &[]) {
        if client.try_send([byte]).is_err() || client.is_over() {
            break;
        }
        pace(Duration::from_secs(1));
    }
    eventually("the client that dribbles is cut", || client.is_over());
    begun.elapsed()
}

#[test]
fn one_listener_carries_them_all_at_once() {
    let (site, redis) = (Site::new(), redis());
    let greeting = Backend::new(|mut conn| {
        // As an SSH server of the kind whose clients wait for it.
        if conn.try_send("SSH-2.0-greeting\r\n").is_ok() {
            crate::kit::backend::echo(conn);
        }
    });
    let more = format!(
        "[pools.ssh]\nbackends = [\"{greeting}\"]\nhealth.probe = \"none\"\n\
         [pools.cache]\nbackends = [\"127.0.0.1:{}\"]\nhealth.probe = \"none\"\n",
        redis.port
    );
    // Everything is a pool of its own, and each of the kit's own tables is used: so `web` is written out here.
    let listener = format!("preread_timeout = \"{}s\"\npreread_timeout_pool = \"ssh\"", DEADLINE.as_secs());
    let (_, web) = *site.servers.iter().find(|(name, _)| *name == "web").unwrap();
    let pools = site.pools();
    let (before, after) = pools.split_once("[pools.web]\n").unwrap();
    let after = after.split_once("health.probe = \"none\"\n").unwrap().1;
    let config = Config::over([format!("127.0.0.1:{web}")]).pool("send_proxy_protocol = \"v2\"").logged();
    let config = config.listener(&listener).more(before).more(after).more(&more).more(ROUTES).to_string();
    // The last route takes everybody else.
    let tidegate = Tidegate::start(config.replacen("pool = \"web\"\n", "", 1));
    let address = tidegate.addr();
    let port = address.tcp().port();
    let plain = |path: &str, from| curl(from, &[&format!("http://127.0.0.1:{port}{path}")]);
    let certificates = site.certificates.path();

    std::thread::scope(|scope| {
        let dribbling: Vec<_> = (0..3).map(|_| scope.spawn(|| dribble(&address))).collect();
        let waiting = scope.spawn(|| {
            for _ in 0..2 {
                let mut client = Conn::to(&address);
                assert_eq!(client.line(), "SSH-2.0-greeting\r");
                client.speak();
            }
        });
        scope.spawn(|| {
            for (last, host) in (1..=ROUNDS).flat_map(|last| HOSTS.map(|host| (last, host))) {
                let from = Ipv4Addr::new(127, 0, 2, last);
                let pool = if host == HOSTS[0] { "tls-a" } else { "tls-b" };
                assert_eq!(by_tls(host, port, from, certificates), [pool, &from.to_string()]);
            }
        });
        scope.spawn(|| {
            for last in 1..=ROUNDS {
                let from = Ipv4Addr::new(127, 0, 3, last);
                assert_eq!(plain("/search?q=tide", from), ["search", &from.to_string()]);
                assert_eq!(plain("/searching", from), ["web", &from.to_string()]);
            }
        });
        scope.spawn(|| {
            let mut pools = BTreeMap::new();
            for last in (1..=4 * ROUNDS).chain(1..=4 * ROUNDS) {
                let from = Ipv4Addr::new(127, 0, 4, last);
                let answer = plain("/shop/cart", from);
                assert_eq!(answer[1], from.to_string());
                let before = pools.insert(last, answer[0].clone());
                assert!(before.is_none_or(|before| before == answer[0]), "{from} has changed sides: {pools:?}");
            }
            let canary = pools.values().filter(|pool| *pool == "canary").count();
            // Which addresses these are never changes.
            assert_eq!(canary, 13, "40 % of 32: {pools:?}");
            assert!(pools.values().all(|pool| pool == "canary" || pool == "web"), "{pools:?}");
        });
        scope.spawn(|| {
            for number in 0..ROUNDS {
                let (key, value) = (format!("key-{number}"), format!("value-{number}"));
                for (arguments, answer) in [(vec!["set", &key, &value], "OK"), (vec!["get", &key], &value)] {
                    let mut command = Command::new("redis-cli");
                    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]).args(arguments);
                    assert_eq!(succeed(&mut command, REDIS).trim(), answer);
                }
            }
        });
        scope.spawn(|| {
            let mut stranger = Conn::to(&address);
            stranger.send("MYPROTO/1 hello\n");
            stranger.expect_end(crate::kit::End::Rst);
        });
        waiting.join().unwrap();
        for took in dribbling.into_iter().map(|one| one.join().unwrap()) {
            assert!(took >= DEADLINE, "cut after {took:?}");
        }
    });
    tidegate.until_idle();
    let taken = |rule: &str| tidegate.metrics().sum("tidegate_route_sessions_total", &[("rule", rule)]) as u8;
    let rounds = ROUNDS;
    assert_eq!((taken("tls-a"), taken("tls-b"), taken("search")), (rounds, rounds, rounds));
    assert_eq!((taken("cache"), taken("strangers"), taken("preread_timeout")), (2 * rounds, 1, 2));
    assert_eq!(taken("canary") + taken("web"), rounds + 8 * rounds);
    assert_eq!((tidegate.closed("preread_timeout"), tidegate.closed("route_refused")), (3, 1));
    assert_eq!(greeting.accepted(), 2, "none of those that dribbled");
}
