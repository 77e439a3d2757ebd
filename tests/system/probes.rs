//! Probes that ask for more than a connection, and agents: each takes a backend down and brings it back, says why in
//! `/status` and in the log, and is bounded whatever the backend sends.

use crate::kit::{Addr, Backend, Config, Conn, End, Tidegate, eventually, eventually_eq, throughout};
use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustix::process::Signal;
use rustls::crypto::ring;
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

/// Changes are seen soon, and a slow machine has time to answer.
const QUICK: &str =
    "interval = \"2s\"\nfast_interval = \"100ms\"\ndown_interval = \"100ms\"\ntimeout = \"2s\"\nrise = 1\nfall = 1";

/// What a scripted backend answers; the test changes it.
#[derive(Clone)]
struct Says(Arc<Mutex<Vec<u8>>>);

impl Says {
    fn new(answer: &str) -> Self {
        Self(Arc::new(Mutex::new(answer.into())))
    }

    fn say(&self, answer: &str) {
        *self.0.lock().unwrap() = answer.into();
    }

    fn now(&self) -> Vec<u8> {
        self.0.lock().unwrap().clone()
    }
}

/// The other end's request, as far as an empty line or its end.
fn request(conn: &mut Conn) -> Vec<u8> {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") && conn.read(&mut byte).is_ok_and(|count| count > 0) {
        request.push(byte[0]);
    }
    request
}

/// A web server that says the same to everybody, then waits for the end; remembers whether anybody was reset.
fn web(says: &Says) -> Backend {
    let says = says.clone();
    Backend::new(move |mut conn| {
        request(&mut conn);
        let _ = conn.try_send(says.now());
        let _ = conn.try_finish();
        let _ = conn.rest();
    })
}

fn state(tidegate: &Tidegate, backend: &impl ToString) -> String {
    tidegate.backend_status(backend.to_string())["state"].as_str().unwrap().to_owned()
}

fn reason(tidegate: &Tidegate, backend: &impl ToString) -> String {
    tidegate.backend_status(backend.to_string())["last_error"]["text"].as_str().unwrap_or_default().to_owned()
}

/// Waits until it is down for this reason, which the log tells too.
fn goes_down(tidegate: &Tidegate, backend: &Backend, because: &str) {
    eventually_eq("it is down", &"down".to_owned(), || state(tidegate, &backend.addr));
    assert_eq!(reason(tidegate, &backend.addr), because);
    // The log escapes quotes and escapes.
    let piece = because.split(['"', '\\']).max_by_key(|piece| piece.len()).unwrap();
    tidegate.logged(&["backend is down", &backend.to_string(), piece]);
}

fn comes_up(tidegate: &Tidegate, backend: &Backend) {
    eventually_eq("it is up", &"up".to_owned(), || state(tidegate, &backend.addr));
}

#[test]
fn a_start_speaks_of_panic_and_of_reasons_after_the_first_probes_only() {
    let slow = |answer: &'static str| {
        Backend::new(move |mut conn| {
            crate::kit::wait::pace(Duration::from_millis(300));
            let _ = conn.try_send(answer);
            let _ = conn.rest();
        })
    };
    let exchange = format!("{QUICK}\nprobe = \"exchange\"\nexchange = {{ expect_prefix = \"ok\" }}");
    let answers = slow("ok");
    let good = Tidegate::start(Config::over([&answers]).health(&exchange));
    // Behind all that a start has to say.
    good.signal(Signal::HUP);
    good.logged(&["SIGHUP"]);
    assert_eq!(good.count_logged(&["panic"]), 0, "{}", good.log());
    drop(answers);

    let bad = slow("no");
    let tidegate = Tidegate::start(Config::over([&bad]).health(&exchange));
    tidegate.logged(&["backend is down", &bad.to_string(), "expected", "no"]);
    tidegate.logged(&["every backend has been probed; some are down", &bad.to_string()]);
    tidegate.logged(&["panic: too few backends are available"]);
}

#[test]
fn http_decides_by_status_and_body() {
    let says = Says::new("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nready");
    let backend = web(&says);
    let http = "probe = \"http\"\nhttp = { path = \"/health\", status = [200, \"202-204\"], body = \"ready\" }";
    let tidegate = Tidegate::start(Config::over([&backend]).health(&format!("{QUICK}\n{http}")));
    comes_up(&tidegate, &backend);
    says.say("HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy");
    goes_down(&tidegate, &backend, "GET /health answered 503, wanted 200, 202-204");
    says.say("HTTP/1.1 204 None\r\n\r\n");
    let no_body = "the answer to GET /health should contain \"ready\", but is \"\"";
    eventually_eq("another reason", &no_body.to_owned(), || reason(&tidegate, &backend));
    says.say("HTTP/1.1 202 OK\r\n\r\nnot yet ready, or is it");
    comes_up(&tidegate, &backend);
}

#[test]
fn an_exchange_decides_by_the_answer() {
    let says = Says::new("+PONG\r\n");
    let redis = {
        let says = says.clone();
        Backend::new(move |mut conn| {
            if conn.try_receive(6).is_some_and(|asked| asked == b"PING\r\n") {
                let _ = conn.try_send(says.now());
            }
            let _ = conn.rest();
        })
    };
    let exchange = "probe = \"exchange\"\nexchange = { send = \"PING\\r\\n\", expect_prefix = \"+PONG\" }";
    let tidegate = Tidegate::start(Config::over([&redis]).health(&format!("{QUICK}\n{exchange}")));
    comes_up(&tidegate, &redis);
    says.say("-LOADING Redis is loading the dataset in memory\r\n");
    let loading = r#"expected "+PONG", got "-LOADING Redis is loading the dataset in memory\r\n""#;
    goes_down(&tidegate, &redis, loading);
    says.say("+PONG\r\n");
    comes_up(&tidegate, &redis);
}

#[test]
fn a_probe_goes_to_another_port_or_address_if_told_so() {
    let (service, says) = (Backend::named("x"), Says::new("HTTP/1.1 200 OK\r\n\r\n"));
    let checker = web(&says);
    let keys = format!("probe = \"http\"\nport = {}\naddress = \"127.0.0.1\"", checker.addr.tcp().port());
    let elsewhere = SocketAddr::from(([127, 9, 9, 9], service.addr.tcp().port()));
    let tidegate = Tidegate::start(Config::over([elsewhere]).health(&format!("{QUICK}\n{keys}")));
    eventually_eq("it is up by what another one says", &"up".to_owned(), || state(&tidegate, &elsewhere));
    assert_eq!(service.accepted(), 0);
    says.say("HTTP/1.1 500 No\r\n\r\n");
    eventually_eq("it is down", &"down".to_owned(), || state(&tidegate, &elsewhere));
}

/// A certificate for this name, good until so many days from now, as a TLS server uses it.
fn identity(name: &str, days: u64) -> (String, Arc<ServerConfig>) {
    let end = SystemTime::now() + Duration::from_secs(days * 24 * 3_600);
    let date = humantime::format_rfc3339_seconds(end).to_string();
    let part = |range: std::ops::Range<usize>| date[range].parse::<u16>().unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.not_after = date_time_ymd(i32::from(part(0..4)), part(5..7) as u8, part(8..10) as u8);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let server = server.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let server = server.with_single_cert(vec![certificate.der().clone()], key).unwrap();
    (certificate.pem(), Arc::new(server))
}

struct Socket(Conn);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_send(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn tls_decides_by_the_certificate_and_warns_before_its_end() {
    let (pem, good) = identity("db.example", 100);
    let (_, other) = identity("other.example", 100);
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), pem).unwrap();
    let shown = Arc::new(Mutex::new(good.clone()));
    let backend = {
        let shown = shown.clone();
        Backend::new(move |conn| {
            let config = shown.lock().unwrap().clone();
            let (mut tls, mut socket) = (ServerConnection::new(config).unwrap(), Socket(conn));
            let _ = rustls::Stream::new(&mut tls, &mut socket).read_to_end(&mut Vec::new());
        })
    };
    let table = format!("name = \"db.example\", ca = \"{}\", expiry_warning = \"366d\"", ca.path().display());
    let tls = format!("{QUICK}\nprobe = \"tls\"\ntls = {{ {table} }}");
    let tidegate = Tidegate::start(Config::over([&backend]).health(&tls));
    comes_up(&tidegate, &backend);
    tidegate.logged(&["the backend's certificate ends soon", &backend.to_string()]);
    *shown.lock().unwrap() = other;
    goes_down(&tidegate, &backend, r#"certificate is for "other.example", not "db.example""#);
    *shown.lock().unwrap() = good;
    comes_up(&tidegate, &backend);
    assert_eq!(tidegate.count_logged(&["certificate ends soon"]), 1, "once a day");
}

#[test]
fn f32_a_probe_that_hangs_or_gets_a_gigabyte_or_garbage_is_bounded() {
    let hanging = Backend::sink();
    let endless = |begin: &'static str| {
        Backend::new(move |mut conn| {
            let mut sent = conn.try_send(begin);
            let piece = vec![b'x'; 1 << 20];
            for _ in 0..1_024 {
                sent = sent.and_then(|()| conn.try_send(&piece));
            }
        })
    };
    let gigabyte = endless("HTTP/1.1 200 OK\r\n\r\n");
    let garbage = endless("\x00\x01garbage\r\n\r\n");
    let http =
        "timeout = \"1s\"\ninterval = \"1s\"\ninitial = \"up\"\nfall = 1\nprobe = \"http\"\nhttp.body = \"ready\"";
    let tidegate = Tidegate::start(Config::over([&hanging, &gigabyte, &garbage]).health(http));
    goes_down(&tidegate, &hanging, "no answer within 1s");
    for (backend, pieces) in [
        (&gigabyte, ["should contain \"ready\", but is \"xxxx", "in the first 65536 bytes"]),
        (&garbage, ["the answer is not HTTP/1", ""]),
    ] {
        eventually_eq("it is down", &"down".to_owned(), || state(&tidegate, backend));
        eventually("its reason is told", || {
            let reason = reason(&tidegate, backend);
            pieces.iter().all(|piece| reason.contains(piece))
        });
    }
    // Some more of them leave nothing behind.
    let so_far = garbage.accepted() + gigabyte.accepted();
    eventually("more probes", || garbage.accepted() + gigabyte.accepted() >= so_far + 4);
    assert!(tidegate.fds().len() < 100, "{:?}", tidegate.fds());
    assert_eq!(tidegate.get("/livez").status, 200);
}

#[test]
fn a_backend_of_an_orderly_exchange_sees_no_reset() {
    let ends: Arc<Mutex<Vec<End>>> = Arc::default();
    let backend = || {
        let ends = ends.clone();
        Backend::new(move |mut conn| {
            request(&mut conn);
            conn.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
            conn.finish();
            ends.lock().unwrap().push(conn.rest().end);
        })
    };
    let backends: Vec<Backend> = (0..10).map(|_| backend()).collect();
    // Time enough for a slow machine: a probe that is given up is no orderly exchange.
    let http = "probe = \"http\"\ninterval = \"10s\"\ntimeout = \"10s\"";
    let _tidegate = Tidegate::start(Config::over(backends.iter().map(|backend| &backend.addr)).health(http));
    eventually("each has seen the end of a probe", || ends.lock().unwrap().len() >= backends.len());
    assert!(ends.lock().unwrap().iter().all(|end| *end == End::Fin));
}

#[test]
fn f89_a_process_that_stood_still_takes_no_backend_down() {
    let says = Says::new("HTTP/1.1 200 OK\r\n\r\n");
    let backends: Vec<Backend> = (0..20).map(|_| web(&says)).collect();
    let http = "probe = \"http\"\ninterval = \"1s\"\nfast_interval = \"1s\"\ntimeout = \"1s\"\nfall = 2\nrise = 1";
    let tidegate = Tidegate::start(Config::over(backends.iter().map(|backend| &backend.addr)).health(http));
    let up = || tidegate.metrics().sum("tidegate_backend_up", &[]) as usize;
    eventually_eq("all are up", &backends.len(), up);
    let changes = || tidegate.metrics().sum("tidegate_backend_state_changes_total", &[]) as u64;
    let before = changes();
    tidegate.signal(Signal::STOP);
    throughout("nothing is asked", Duration::from_secs(3), || true);
    tidegate.signal(Signal::CONT);
    throughout("all stay up", Duration::from_secs(1), || up() == backends.len());
    assert_eq!(changes(), before);
}

/// An agent that says the same to everybody.
fn agent(says: &Says) -> Backend {
    let says = says.clone();
    Backend::new(move |mut conn| {
        assert_eq!(conn.line(), "web");
        let _ = conn.try_send(says.now());
        let _ = conn.try_finish();
        let _ = conn.rest();
    })
}

#[test]
fn an_agent_takes_its_backend_out_and_weighs_it() {
    let (backend, other) = (Backend::named("a"), Backend::named("b"));
    let says = Says::new("up 100%\n");
    let agent = agent(&says);
    // Only the first backend is at the agent's address.
    let name = SocketAddr::from(([127, 0, 0, 1], backend.addr.tcp().port()));
    let elsewhere = Backend::at(&Addr::parse("127.7.7.7:0"), crate::kit::backend::naming("b"));
    drop(other);
    let keys = format!("agent = {{ port = {}, interval = \"100ms\", send = \"web\\n\" }}", agent.addr.tcp().port());
    let config = Config::over([name.to_string(), elsewhere.to_string()]).health(&format!("{QUICK}\n{keys}"));
    let tidegate = Tidegate::start(config.pool("slow_start = \"0s\""));
    eventually("both are up", || state(&tidegate, &name) == "up" && state(&tidegate, &elsewhere) == "up");
    tidegate.logged(&["the agent can't be asked", &elsewhere.to_string(), "refused"]);

    for (line, expected) in [("drain\n", "agent_draining"), ("maint\n", "maint"), ("ready down # disk full\n", "down")]
    {
        says.say(line);
        eventually_eq("it does as the agent says", &expected.to_owned(), || state(&tidegate, &name));
        for _ in 0..4 {
            assert_eq!(tidegate.connect().rest().text(), "b\n");
        }
    }
    assert_eq!(reason(&tidegate, &name), "the agent says down: \"disk full\"");
    tidegate.logged(&["the agent says something new", &name.to_string(), "disk full"]);
    // Words that it doesn't say change nothing.
    says.say("50%\n");
    let share = || tidegate.backend_status(name)["share"].as_f64().unwrap();
    eventually("the weight has changed", || (share() - 0.5).abs() < 0.01);
    assert_eq!(state(&tidegate, &name), "down");
    says.say("up nonsense\n");
    eventually_eq("it is up", &"up".to_owned(), || state(&tidegate, &name));
    tidegate.logged(&["the agent says a word that is not known", "nonsense"]);
    assert!((share() - 0.5).abs() < 0.01);

    // An agent that has gone takes nothing back.
    says.say("drain\n");
    eventually_eq("it is drained", &"agent_draining".to_owned(), || state(&tidegate, &name));
    agent.die();
    throughout("it stays drained", Duration::from_millis(500), || state(&tidegate, &name) == "agent_draining");
}

#[test]
fn probes_and_agents_together_are_bounded_in_sockets() {
    const BACKENDS: u32 = 400;
    const AT_ONCE: usize = 256;
    // What it has besides: three that listen, a pair for signals, the admin's answers.
    const OTHERS: usize = 16;
    let silent = crate::kit::Silent::on(std::net::Ipv4Addr::UNSPECIFIED);
    let port = silent.addr.tcp().port();
    let address = |index: u32| format!("127.3.{}.{}:{port}", index / 250, 1 + index % 250);
    let health = format!(
        "interval = \"1s\"\nfast_interval = \"1s\"\ninitial = \"up\"\nagent = {{ port = {port}, interval = \"1s\" }}"
    );
    let tidegate = Tidegate::start(Config::over((0..BACKENDS).map(address)).health(&health));
    let timeouts = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "timeout")]) as u64;
    let mut most = 0;
    eventually("each was probed", || {
        for _ in 0..20 {
            // Each is a descriptor. The kernel's table of sockets may show one that has ended beside its successor.
            most = most.max(tidegate.sockets());
        }
        timeouts() >= u64::from(BACKENDS)
    });
    assert!(most > AT_ONCE / 2, "{most} sockets: nothing was seen");
    assert!(most <= AT_ONCE + OTHERS, "{most} sockets at once");
}
