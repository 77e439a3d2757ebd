//! The PROXY protocol with programs that speak it: those that say to us whose connection it is, and those that we tell.

use crate::kit::conn::{Addr, Conn};
use crate::kit::program::{Beside, run, succeed};
use crate::kit::proxied::told;
use crate::kit::{Backend, Config, Listening, Tidegate, eventually, eventually_eq};
use crate::{BY_PEERS, POSTGRES, assert_flawless, free_port, local, postgres, until_listening};
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use tempfile::TempDir;

const HAPROXY: &str = "Install it: apt-get install haproxy";
const NGINX: &str = "Install it: apt-get install nginx libnginx-mod-stream";
const CURL: &str = "Install it: apt-get install curl";
const MARIADB: &str = "Install it: apt-get install mariadb-server mariadb-client";

/// A client that is told apart from everything else here by its address.
const OTHER: &str = "127.0.0.2";
const FROM: &str = "accept_proxy_protocol = { from = \"127.0.0.0/8\" }";

fn from_other(to: &Addr) -> Conn {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&format!("{OTHER}:0").parse::<SocketAddr>().unwrap().into()).unwrap();
    socket.connect(&to.tcp().into()).unwrap();
    Conn::new(socket)
}

/// A program with its files.
pub struct Program {
    _program: Beside,
    dir: TempDir,
}

fn haproxy(port: u16, config: &str) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("haproxy.cfg");
    let defaults = "timeout connect 20s\ntimeout client 60s\ntimeout server 60s";
    fs::write(&path, format!("defaults\nmode tcp\n{defaults}\n{config}\n")).unwrap();
    let mut command = Command::new("haproxy");
    let mut program = Beside::start(command.args(["-db", "-q", "-f"]).arg(&path), Signal::TERM, HAPROXY);
    until_listening("haproxy", port, &mut program);
    Program { _program: program, dir }
}

/// With these blocks, of which `DIR` is the folder for logs.
pub fn nginx(port: u16, blocks: &str) -> Program {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().display().to_string();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|what| format!("{what}_temp_path {folder}/{what};\n"))
        .concat();
    let blocks = blocks.replace("http {", &format!("http {{\n{temporary}")).replace("DIR", &folder);
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    let stream = if blocks.contains("stream {") { format!("load_module {module};\n") } else { String::new() };
    let main = format!("daemon off;\nmaster_process off;\npid {folder}/pid;\nerror_log {folder}/error.log info;\n");
    let path = dir.path().join("nginx.conf");
    fs::write(&path, format!("{stream}{main}events {{}}\n{blocks}")).unwrap();
    let mut command = Command::new("nginx");
    command.args(["-p", &folder, "-e", &format!("{folder}/error.log"), "-c"]).arg(&path);
    let mut program = Beside::start(&mut command, Signal::TERM, NGINX);
    until_listening("nginx", port, &mut program);
    Program { _program: program, dir }
}

impl Program {
    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn curl(arguments: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "20", "--interface", OTHER]).args(arguments);
    let output = run(&mut command, CURL);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

fn field<'r>(record: &'r Value, name: &str) -> &'r str {
    record[name].as_str().unwrap_or("-")
}

#[test]
fn haproxy_says_to_us_whose_connection_it_is() {
    let backend = Listening::new();
    let pass = "[pools.web.proxy_protocol]\npass = true";
    let config = Config::over([&backend]).listener(FROM).pool("send_proxy_protocol = \"v2\"").more(pass).logged();
    let tidegate = Tidegate::start(config);
    let to = tidegate.addr();
    let identity = rcgen::generate_simple_self_signed(["a.example.com".to_owned()]).unwrap();
    let pem = tempfile::NamedTempFile::new().unwrap();
    fs::write(pem.path(), format!("{}{}", identity.cert.pem(), identity.signing_key.serialize_pem())).unwrap();
    let ports = [free_port(), free_port(), free_port()];
    let [v1, v2, tls] = ports;
    let _haproxy = haproxy(
        tls,
        &format!(
            "listen v1\nbind 127.0.0.1:{v1}\nserver s {to} send-proxy\n\
             listen v2\nbind 127.0.0.1:{v2}\nserver s {to} send-proxy-v2\n\
             listen tls\nbind 127.0.0.1:{tls} ssl crt {} alpn h2,http/1.1\nunique-id-format conn-%ci-%cp\n\
             server s {to} send-proxy-v2-ssl proxy-v2-options crc32c,unique-id,authority,ssl-cipher",
            pem.path().display(),
        ),
    );
    for port in [v1, v2] {
        let mut client = from_other(&local(port));
        client.send("hello");
        let mut served = backend.accept();
        let told = told(&mut served);
        assert_eq!(told.addresses, Some((client.local(), client.peer())), "the client, and where it has connected to");
        served.expect("hello");
        served.send("hi");
        client.expect("hi");
    }

    let answer = std::thread::spawn(move || {
        let resolve = format!("a.example.com:{tls}:127.0.0.1");
        curl(&["-k", "--http1.1", "--resolve", &resolve, &format!("https://a.example.com:{tls}/")])
    });
    let mut served = backend.accept();
    let told = told(&mut served);
    assert_eq!(told.source().ip().to_string(), OTHER);
    assert_eq!(told.tlv(2).as_deref(), Some("a.example.com"));
    assert_eq!(told.tlv(1).as_deref(), Some("http/1.1"));
    assert_eq!(told.tlv(5), Some(format!("conn-{OTHER}-{}", told.source().port())));
    let ssl = told.tlv(0x20).expect("what it knows of TLS");
    assert!(ssl.contains("TLSv1.3"), "{}", ssl.escape_debug());
    served.expect("GET / HTTP/1.1\r\n");
    served.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
    served.finish();
    assert_eq!(answer.join().unwrap(), "hi");
    drop(served);
    let record = tidegate.records(3).pop().unwrap();
    assert!(
        field(&record, "client").starts_with(OTHER) && field(&record, "proxy").starts_with("127.0.0.1:"),
        "{record}"
    );
    let metrics = tidegate.metrics();
    let labels = |version| [("version", version), ("result", "client")];
    assert_eq!(metrics.sum("tidegate_proxy_headers_total", &labels("v1")) as u64, 1, "{metrics}");
    assert!(metrics.sum("tidegate_proxy_headers_total", &labels("v2")) as u64 >= 2, "{metrics}");
}

#[test]
fn the_checks_of_haproxy_are_its_own_connections() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]).listener(FROM).logged());
    let (to, port) = (tidegate.addr(), free_port());
    let server = |version| format!("server {version} {to} {version} check inter 100ms");
    let haproxy = haproxy(
        port,
        &format!("listen l\nbind 127.0.0.1:{port}\n{}\n{}", server("send-proxy"), server("send-proxy-v2")),
    );
    let count = |version, result| {
        let labels = [("version", version), ("result", result)];
        tidegate.metrics().sum("tidegate_proxy_headers_total", &labels) as u64
    };
    eventually("checks of version 2", || count("v2", "local") >= 2);
    // In version 1, it says the addresses of the check itself, as we do.
    eventually("checks of version 1", || count("v1", "client") + count("v1", "unknown") >= 2);
    // Before its end, which may come between a connect and its header.
    for reason in ["proxy_invalid", "proxy_missing"] {
        assert_eq!(tidegate.closed(reason), 0, "{reason}");
    }
    drop(haproxy);
}

#[test]
fn nginx_and_curl_say_to_us_whose_connection_it_is() {
    let backend = Backend::new(|mut conn| {
        let mut request = [0; 1_024];
        if conn.read(&mut request).is_ok_and(|count| count > 0) {
            let _ = conn.try_send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi");
            let _ = conn.try_finish();
            let _ = conn.rest();
        }
    });
    let tidegate = Tidegate::start(Config::over([&backend]).listener(FROM).logged());
    let (to, port) = (tidegate.addr(), free_port());
    let server = format!("stream {{ server {{ listen 127.0.0.1:{port}; proxy_pass {to}; proxy_protocol on; }} }}");
    let _nginx = nginx(port, &server);
    assert_eq!(curl(&[&format!("http://127.0.0.1:{port}/")]), "hi");
    assert_eq!(curl(&["--haproxy-protocol", &format!("http://{to}/")]), "hi");
    let clients: Vec<_> =
        tidegate.records(3).into_iter().filter(|record| field(record, "client").starts_with(OTHER)).collect();
    assert_eq!(clients.len(), 2, "{clients:?}");
    let labels = [("version", "v1"), ("result", "client")];
    assert_eq!(
        tidegate.metrics().sum("tidegate_proxy_headers_total", &labels) as u64,
        3,
        "with the look at nginx's port"
    );
}

/// The client's address and port as the access log has it, and where it had connected to.
fn as_logged(record: &Value, tidegate: &Tidegate) -> String {
    let client: SocketAddr = field(record, "client").parse().unwrap();
    let to = tidegate.addr().tcp();
    format!("{} {} {} {}", client.ip(), client.port(), to.ip(), to.port())
}

#[test]
fn haproxy_and_nginx_hear_from_us_whose_connection_it_is() {
    let ports = [free_port(), free_port()];
    let haproxy = haproxy(
        ports[0],
        &format!(
            "frontend f\nmode http\nbind 127.0.0.1:{} accept-proxy\nhttp-request return status 200 content-type text/plain \
             lf-string \"%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_unique_id]\"",
            ports[0]
        ),
    );
    let said = "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port ";
    let nginx = nginx(
        ports[1],
        &format!(
            "http {{\nlog_format who \"{said}\";\naccess_log DIR/access.log who;\n\
             server {{ listen 127.0.0.1:{} proxy_protocol; location / {{ return 200 \"{said}\"; }} }} }}",
            ports[1]
        ),
    );
    let before = nginx.log("error.log").matches("broken header").count();
    for port in ports {
        for version in ["v1", "v2"] {
            let more = if version == "v2" { "[pools.web.proxy_protocol]\nunique_id = true" } else { "" };
            let pool = format!("send_proxy_protocol = \"{version}\"");
            let probes = "probe = \"tcp\"\ninterval = \"100ms\"\nfast_interval = \"100ms\"\ntimeout = \"100ms\"";
            let config = Config::over([local(port)]).pool(&pool).health(probes).more(more).logged();
            let tidegate = Tidegate::start(config);
            eventually("some probes", || {
                tidegate.metrics().sum("tidegate_backend_health_checks_total", &[]) as u64 > 3
            });
            let heard = curl(&[&format!("http://{}/", tidegate.addr())]);
            let record = tidegate.records(1).remove(0);
            let (addresses, id) = heard.rsplit_once(' ').unwrap();
            assert_eq!(addresses, as_logged(&record, &tidegate), "{version}");
            let expected = if version == "v2" && port == ports[0] { field(&record, "id") } else { "" };
            assert!(addresses.starts_with(OTHER));
            assert_eq!(id.trim_end(), expected);
            if port == ports[1] {
                eventually("nginx has logged it", || nginx.log("access.log").contains(addresses));
            }
        }
    }
    let after = nginx.log("error.log");
    assert_eq!(after.matches("broken header").count(), before, "{after}");
    drop(haproxy);
}

/// Behind a proxy that takes the header and lets in only who has connected to our port.
#[test]
fn pgbench_reaches_a_postgres_behind_a_haproxy_that_wants_headers() {
    let postgres = postgres(&["-A", "trust"]);
    for version in ["v1", "v2"] {
        let (port, ours) = (free_port(), free_port());
        let _haproxy = haproxy(
            port,
            &format!(
                "listen l\nbind 127.0.0.1:{port} accept-proxy\ntcp-request session reject if !{{ dst_port {ours} }}\n\
                 server s 127.0.0.1:{}",
                postgres.port
            ),
        );
        let pool = format!("send_proxy_protocol = \"{version}\"");
        let tidegate = Tidegate::start(Config::over([local(port)]).bind(local(ours)).pool(&pool));
        let pgbench = |options: &[&str]| {
            let mut command = Command::new("pgbench");
            command.args(["-h", "127.0.0.1", "-p", &ours.to_string(), "-U", "postgres"]).args(options).arg("postgres");
            succeed(&mut command, POSTGRES)
        };
        pgbench(&["-i", "-s", "1"]);
        for options in [&["-S", "-c", "4", "-t", "500"][..], &["-S", "-C", "-c", "4", "-t", "50"]] {
            let said = pgbench(options);
            assert!(said.contains("number of failed transactions: 0 "), "{said}");
        }
        assert_flawless(&tidegate, &BY_PEERS);
    }
}

fn mariadb() -> (u16, Program) {
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let folder = dir.path().join("data");
    let root = rustix::process::geteuid().is_root();
    let user: &[&str] = if root { &["--user=root"] } else { &[] };
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"]).args(user);
    succeed(install.arg(format!("--datadir={}", folder.display())), MARIADB);
    let mut command = Command::new("mariadbd");
    command.args(["--no-defaults", "--skip-name-resolve", "--bind-address=127.0.0.1"]).args(user);
    command.args(["--proxy-protocol-networks=127.0.0.1", "--innodb-flush-log-at-trx-commit=0"]);
    command.arg(format!("--port={port}")).arg(format!("--datadir={}", folder.display()));
    command.arg(format!("--socket={}", dir.path().join("s").display()));
    command.arg(format!("--log-error={}", dir.path().join("error.log").display()));
    let mut program = Beside::start(&mut command, Signal::TERM, MARIADB);
    until_listening("mariadbd", port, &mut program);
    let server = Program { _program: program, dir };
    // The account that there is knows only clients of this host; the one of the test comes from elsewhere.
    let socket = format!("--socket={}", server.dir.path().join("s").display());
    let account = format!("create user 'guest'@'{OTHER}'");
    succeed(Command::new("mariadb").args(["--no-defaults", "-u", "root", &socket, "-e", &account]), MARIADB);
    (port, server)
}

#[test]
fn mariadb_hears_from_us_whose_connection_it_is() {
    let (port, server) = mariadb();
    for version in ["v1", "v2"] {
        let pool = format!("send_proxy_protocol = \"{version}\"");
        let health = "probe = \"exchange\"\nexchange = { expect = \"mysql_native_password\" }";
        let tidegate = Tidegate::start(Config::over([local(port)]).pool(&pool).health(health).logged());
        // Its probes are let in: a server that greets has understood their header.
        eventually_eq("it is up", &1, || tidegate.count("tidegate_backend_up"));
        // Nothing but the address tells it apart: a client of ours that comes from there.
        let front = free_port();
        let to = tidegate.addr();
        let server = format!("server {{ listen 127.0.0.1:{front}; proxy_bind {OTHER}; proxy_pass {to}; }}");
        let _nginx = nginx(front, &format!("stream {{ {server} }}"));
        let query = "select user(), host from information_schema.processlist where id = connection_id()";
        let mut command = Command::new("mariadb");
        command.args(["--no-defaults", "--protocol=tcp", "-h", "127.0.0.1", "-P", &front.to_string()]);
        let said = succeed(command.args(["-u", "guest", "--skip-ssl", "-N", "-B", "-e", query]), MARIADB);
        let record = tidegate.records(2).into_iter().find(|record| said.contains(field(record, "client")));
        let record = record.unwrap_or_else(|| panic!("none of our clients is the one that it sees: {said}"));
        assert_eq!(said.trim_end(), format!("guest@{OTHER}\t{}", field(&record, "client")), "{version}");
    }
    assert!(!server.log("error.log").contains("proxy"), "{}", server.log("error.log"));
}
