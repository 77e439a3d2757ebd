//! Real TLS clients through a route by SNI to real TLS servers: curl, openssl and Chromium to nginx.
//!
//! Each server has a certificate for its own name alone, and says its name: a client that trusts only that certificate
//! and gets that answer has arrived where it should, and not a byte of its hello was changed (both sides sign what
//! they have sent and seen).

use crate::kit::program::{Beside, succeed};
use crate::kit::wait::pace;
use crate::kit::{Addr, Backend, Config, Conn, Tidegate};
use crate::{free_port, until_listening};
use rcgen::{CertificateParams, KeyPair};
use rustix::process::Signal;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;

const NGINX: &str = "Install it: apt-get install nginx";
const CURL: &str = "Install it: apt-get install curl";
const OPENSSL: &str = "Install it: apt-get install openssl";
const CHROMIUM: &str = "Install it: apt-get install chromium";

/// nginx with TLS, until it is dropped.
struct TlsServer {
    name: &'static str,
    port: u16,
    _program: Beside,
    dir: TempDir,
}

impl TlsServer {
    /// With a certificate for `host`; answers every request with a line that says `name`.
    fn new(name: &'static str, host: &str) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![host.to_owned()]).unwrap().self_signed(&key).unwrap();
        fs::write(dir.path().join("cert.pem"), certificate.pem()).unwrap();
        fs::write(dir.path().join("key.pem"), key.serialize_pem()).unwrap();
        // Started by root, it would change its workers' user, and that user can't reach a private directory.
        let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
        let path = dir.path().display();
        let config = format!(
            "{user} daemon off; master_process off; pid {path}/pid; error_log {path}/error.log;\n\
             events {{ worker_connections 100; }}\n\
             http {{ access_log off; default_type text/plain;\n\
             client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;\n\
             uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;\n\
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_protocols TLSv1.2 TLSv1.3;\n\
             ssl_certificate {path}/cert.pem; ssl_certificate_key {path}/key.pem;\n\
             location / {{ return 200 \"this is {name}\\n\"; }} }} }}\n"
        );
        fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
        command.arg("-e").arg(dir.path().join("error.log"));
        let mut program = Beside::start(&mut command, Signal::TERM, NGINX);
        until_listening("nginx", port, &mut program);
        Self { name, port, _program: program, dir }
    }

    fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    fn says(&self) -> String {
        format!("this is {}", self.name)
    }

    fn pool(&self) -> String {
        format!("[pools.{}]\nbackends = [\"127.0.0.1:{}\"]\nhealth.probe = \"none\"\n", self.name, self.port)
    }
}

/// What asks for another name or none goes to the third server.
struct Site {
    tidegate: Tidegate,
    first: TlsServer,
    second: TlsServer,
    rest: TlsServer,
}

impl Site {
    fn new() -> Self {
        let first = TlsServer::new("first", "a.example.com");
        let second = TlsServer::new("second", "b.example.com");
        let rest = TlsServer::new("rest", "c.example.net");
        let routes = "[[listeners.web.routes]]\nname = \"a\"\nsni = \"a.example.com\"\npool = \"first\"\n\
                      [[listeners.web.routes]]\nname = \"sub\"\nsni = [\"*.example.com\"]\npool = \"second\"\n";
        let config = Config::over([format!("127.0.0.1:{}", rest.port)]).logged();
        let tidegate = Tidegate::start(config.more(&first.pool()).more(&second.pool()).more(routes));
        Self { tidegate, first, second, rest }
    }

    fn port(&self) -> u16 {
        self.tidegate.addr().tcp().port()
    }

    /// Who answers whom.
    fn by_host(&self) -> [(&'static str, &TlsServer); 3] {
        [("a.example.com", &self.first), ("b.example.com", &self.second), ("c.example.net", &self.rest)]
    }

    /// Rule, name and protocols in the access log, for each of so many sessions.
    fn logged(&self, sessions: usize) -> Vec<[String; 3]> {
        let text = |value: &serde_json::Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let records = self.tidegate.records(sessions);
        records.iter().map(|record| ["rule", "sni", "alpn"].map(|field| text(&record[field]))).collect()
    }
}

#[test]
fn curl_arrives_by_name_at_the_server_of_that_name() {
    let site = Site::new();
    for (host, server) in site.by_host() {
        for version in [&["--tlsv1.3"][..], &["--tls-max", "1.2"], &["--http1.1"]] {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "--fail", "--max-time", "20", "--noproxy", "*"]).args(version);
            curl.arg("--cacert").arg(server.certificate());
            curl.arg("--resolve").arg(format!("{host}:{}:127.0.0.1", site.port()));
            let said = succeed(curl.arg(format!("https://{host}:{}/", site.port())), CURL);
            assert_eq!(said.trim(), server.says(), "{host}, {version:?}");
        }
    }
    let logged = site.logged(9);
    for (rule, name) in [("a", "a.example.com"), ("sub", "b.example.com"), ("default", "c.example.net")] {
        let these = logged.iter().filter(|record| record[0] == rule && record[1] == name);
        assert_eq!(these.clone().count(), 3, "{rule}: {logged:?}");
        assert_eq!(these.filter(|record| record[2].contains("h2")).count(), 2, "{rule}: {logged:?}");
    }
}

#[test]
fn openssl_arrives_by_name_at_the_server_of_that_name() {
    let site = Site::new();
    for (host, server) in site.by_host() {
        for (name, versions) in [(host.to_owned(), &["-tls1_3"][..]), (host.to_uppercase(), &["-tls1_2"])] {
            let said = by_openssl(site.port(), server, host, &[&["-servername", &name], versions].concat());
            assert!(said.contains(&server.says()), "{name}: {said}");
        }
    }
    let said = by_openssl(site.port(), &site.rest, "c.example.net", &["-noservername"]);
    assert!(said.contains(&site.rest.says()), "{said}");
}

/// What the server answers to a request in TLS, once its certificate is found to be that of `host`.
fn by_openssl(port: u16, server: &TlsServer, host: &str, options: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.args(["30", "openssl", "s_client", "-quiet", "-connect", &format!("127.0.0.1:{port}")]).args(options);
    command.args(["-verify_return_error", "-verify_hostname", host, "-CAfile"]).arg(server.certificate());
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("can't run openssl: {error}. {OPENSSL}"));
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    // Closed only after the answer: with the end of its input it would hang up.
    let mut input = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, request.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    drop(input);
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

/// Stands before the balancer, passes on what a client sends first in small pieces, and keeps how long the client's
/// hello is.
struct Cutter {
    backend: Backend,
    hellos: Arc<Mutex<Vec<usize>>>,
}

impl Cutter {
    fn before(target: Addr) -> Self {
        let hellos = Arc::<Mutex<Vec<usize>>>::default();
        let kept = hellos.clone();
        let backend = Backend::new(move |mut near| {
            let Ok(mut far) = Conn::try_to(&target) else { return near.reset() };
            let (mut from, mut to) = (far.twin(), near.twin());
            let back = std::thread::spawn(move || while pass(&mut from, &mut to) {});
            if let Some(header) = near.try_receive(5) {
                let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
                kept.lock().unwrap().push(length + 5);
                let hello = [header, near.try_receive(length).unwrap_or_default()].concat();
                for piece in hello.chunks(211) {
                    let _ = far.try_send(piece);
                    // So that it comes as a segment of its own.
                    pace(Duration::from_millis(1));
                }
                while pass(&mut near, &mut far) {}
            } else {
                let _ = far.try_finish();
            }
            back.join().unwrap();
        });
        Self { backend, hellos }
    }
}

/// Passes on what comes next; an end too, which is the last.
fn pass(from: &mut Conn, to: &mut Conn) -> bool {
    let mut buffer = [0; 16 << 10];
    let count = from.read(&mut buffer).unwrap_or_default();
    let passed = count > 0 && to.try_send(&buffer[..count]).is_ok();
    if !passed {
        let _ = to.try_finish();
    }
    passed
}

#[test]
fn chromium_arrives_by_name_with_a_hello_of_more_than_a_segment() {
    let site = Site::new();
    let cutter = Cutter::before(site.tidegate.addr());
    let ports = [site.port(), cutter.backend.addr.tcp().port()];
    for port in ports {
        for (host, server) in site.by_host() {
            let page = by_chromium(host, port);
            assert!(page.contains(&server.says()), "{host}: {page}");
        }
    }
    // With a post-quantum key share.
    let hellos = cutter.hellos.lock().unwrap().clone();
    assert!(hellos.len() >= 3 && hellos.iter().all(|length| *length > 1_460), "{hellos:?}");
}

/// The page that the browser makes of the answer. It trusts any certificate: it has no way to be told of one.
fn by_chromium(host: &str, port: u16) -> String {
    let profile = tempfile::tempdir().unwrap();
    let mut command = Command::new("timeout");
    command.args(["120", "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command.args(["--no-first-run", "--disable-background-networking", "--no-proxy-server"]);
    command.args(["--ignore-certificate-errors", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", profile.path().display()));
    command.arg(format!("--host-resolver-rules=MAP {host} 127.0.0.1:{port}"));
    succeed(command.arg(format!("https://{host}/")), CHROMIUM)
}
