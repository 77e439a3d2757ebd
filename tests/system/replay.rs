//! Replay: a backend that dies before it has answered is replaced, and the client can't tell but by time.

use crate::kit::conn::{Rest, transfer};
use crate::kit::{
    Addr, Backend, Config, Conn, End, Listening, Refusing, Silent, Tidegate, eventually, eventually_eq, kernel,
};
use serde_json::Value;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub const LIMIT: usize = 16 << 10;

/// With replay on and an access log.
pub fn over<T: Display>(backends: impl IntoIterator<Item = T>) -> Config {
    logged(Config::over(backends).pool("replay = \"16KiB\""))
}

pub fn logged(config: Config) -> Config {
    config.log("access = \"$DIR/access.log\"\nformat = \"json\"")
}

pub fn three() -> [Listening; 3] {
    std::array::from_fn(|_| Listening::new())
}

/// The next connection, whichever of them gets it.
pub fn accepted(backends: &[Listening]) -> (&Listening, Conn) {
    crate::kit::eventually_some("a connection comes", || {
        backends.iter().find_map(|backend| Some((backend, backend.accept_now()?)))
    })
}

/// The attempts of a record, as `ADDRESS OUTCOME`.
pub fn attempts(record: &Value) -> Vec<String> {
    let text = record["attempts"].as_str().unwrap_or_else(|| panic!("no attempts in {record}"));
    text.split(", ").filter(|one| !one.is_empty()).map(|one| one.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

/// Waits until so many connects have succeeded: a reset before that is a failed connect, and no case of ours.
pub fn until_connected(tidegate: &Tidegate, count: u64) {
    let connected = || tidegate.metrics().sum("tidegate_backend_connections_total", &[]) as u64;
    eventually_eq("connected", &count, connected);
}

pub fn replays(tidegate: &Tidegate) -> u64 {
    tidegate.metrics().one("tidegate_pool_replays_total", &[("pool", "web")]) as u64
}

/// How often traffic has failed on a backend.
pub fn failures(tidegate: &Tidegate) -> u64 {
    tidegate.metrics().sum("tidegate_backend_traffic_failures_total", &[]) as u64
}

/// How a backend of a test dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    Reset,
    /// Its FIN, while it still takes what comes.
    Finish,
    /// As a process that is killed: a FIN if it had read everything, else a reset.
    Exit,
}

pub const DEATHS: [Death; 3] = [Death::Reset, Death::Finish, Death::Exit];

/// What must stay for the death to be that one.
pub fn die(conn: Conn, how: Death) -> Option<Conn> {
    match how {
        Death::Reset => conn.reset(),
        Death::Finish => {
            conn.finish();
            return Some(conn);
        }
        Death::Exit => drop(conn),
    }
    None
}

/// Answers, in order, and ends the session so.
pub fn answer(mut client: Conn, mut backend: Conn) {
    backend.send("the answer");
    client.expect("the answer");
    client.finish();
    backend.expect_end(End::Fin);
    drop(backend);
    client.expect_end(End::Fin);
}

#[test]
fn a_backend_that_dies_before_it_answers_is_replaced_however_much_it_had_read() {
    for how in DEATHS {
        for (sent, read) in [(0, 0), (1, 0), (1, 1), (1_000, 0), (1_000, 1), (1_000, 1_000), (LIMIT, LIMIT)] {
            let backends = three();
            let tidegate = Tidegate::start(over(&backends));
            let mut client = tidegate.connect();
            client.send_pattern(0, sent as u64);
            let (first, mut dying) = accepted(&backends);
            dying.expect_pattern(0, read as u64);
            until_connected(&tidegate, 1);
            let _left = die(dying, how);
            let (second, mut living) = accepted(&backends);
            assert_ne!(first.addr, second.addr, "a backend that has died was tried again");
            living.expect_pattern(0, sent as u64);
            // The session goes on as any other.
            transfer(&mut client, &mut living, sent as u64, 100);
            answer(client, living);
            let record = tidegate.records(1).remove(0);
            let labels = format!("{how:?} after {read} of {sent} bytes: {record}");
            assert_eq!(attempts(&record), [format!("{first} unanswered"), format!("{second} connected")], "{labels}");
            assert_eq!(record["backend"], second.to_string(), "{labels}");
            assert_eq!(record["to_backend"], sent + 100, "{labels}");
            assert_eq!(record["to_client"], 10, "{labels}");
            assert_eq!([&record["reason"], &record["phase"]], ["complete", "relay"], "{labels}");
            assert_eq!(replays(&tidegate), 1, "{labels}");
            let got = |backend: &Listening| {
                let labels = [("backend", &*backend.to_string()), ("direction", "to_backend")];
                tidegate.metrics().one("tidegate_backend_bytes_total", &labels) as usize
            };
            assert_eq!(got(second), sent + 100, "{labels}");
            assert!((read..=sent).contains(&got(first)), "{labels}: {}", got(first));
        }
    }
}

#[test]
fn a_client_that_has_ended_its_side_is_served_by_the_next_one_with_its_fin() {
    for how in DEATHS {
        for sent in [0, 1_000] {
            let backends = three();
            let tidegate = Tidegate::start(over(&backends));
            let mut client = tidegate.connect();
            client.send_pattern(0, sent);
            client.finish();
            for _ in 0..2 {
                let (_, mut dying) = accepted(&backends);
                dying.expect_pattern(0, sent);
                dying.expect_end(End::Fin);
                die(dying, how);
            }
            let (_, mut living) = accepted(&backends);
            living.expect_pattern(0, sent);
            living.expect_end(End::Fin);
            living.send_pattern(0, 3 << 20);
            drop(living);
            assert_eq!(client.rest_of_pattern(0).bytes, 3 << 20);
            let record = tidegate.records(1).remove(0);
            assert_eq!([&record["reason"], &record["to_backend"]], [&Value::from("complete"), &Value::from(sent)]);
            assert_eq!(replays(&tidegate), 2);
            // After the client's own FIN, theirs is no failure: nothing need have been owed. Nor is anything by one
            // that was asked nothing.
            assert_eq!(failures(&tidegate), if how == Death::Reset && sent > 0 { 2 } else { 0 });
        }
    }
}

#[test]
fn byte_by_byte_each_backend_gets_all_of_it_in_order() {
    let backends = three();
    let tidegate = Tidegate::start(over(&backends));
    let mut client = tidegate.connect();
    let mut sent = 0;
    let mut living = None;
    for how in [Death::Reset, Death::Exit, Death::Finish] {
        let (_, mut backend) = accepted(&backends);
        backend.expect_pattern(0, sent);
        for _ in 0..20 {
            client.send_pattern(sent, 1);
            backend.expect_pattern(sent, 1);
            sent += 1;
        }
        if sent < 60 {
            die(backend, how);
        } else {
            living = Some(backend);
        }
    }
    answer(client, living.unwrap());
    assert_eq!(tidegate.records(1)[0]["to_backend"], 60);
    assert_eq!(replays(&tidegate), 2);
}

#[test]
fn what_arrives_while_the_next_one_is_connected_to_is_not_lost() {
    let (first, silent, last) = (Listening::new(), Silent::new(), Listening::new());
    let config = over([&first.addr, &silent.addr, &last.addr]).connect("timeout = \"3s\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("before, ");
    let mut dying = first.accept();
    dying.expect("before, ");
    dying.reset();
    let port = silent.addr.tcp().port();
    eventually("the connect is under way", || kernel::sockets_to(port, &["02"]) == 1);
    client.send("meanwhile");
    client.finish();
    let mut living = last.accept();
    living.expect("before, meanwhile");
    living.expect_end(End::Fin);
    living.send("the answer");
    drop(living);
    assert_eq!(client.rest(), Rest { bytes: b"the answer".to_vec(), end: End::Fin });
    let record = tidegate.records(1).remove(0);
    let outcomes = [format!("{first} unanswered"), format!("{silent} timeout"), format!("{last} connected")];
    assert_eq!(attempts(&record), outcomes);
    assert_eq!(record["to_backend"], "before, meanwhile".len());
}

#[test]
fn attempts_are_counted_with_those_of_connecting() {
    let backends = three();
    let dead = Refusing::new();
    let [first, second, third] = &backends;
    let config = over([&first.addr, &dead.addr, &second.addr, &third.addr]).connect("attempts = 3");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    for (count, backend) in [(1, first), (2, second)] {
        let dying = backend.accept();
        until_connected(&tidegate, count);
        dying.reset();
    }
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    let outcomes = [format!("{first} unanswered"), format!("{dead} refused"), format!("{second} connected")];
    assert_eq!(attempts(&record), outcomes);
    assert!(third.accept_now().is_none());
}

#[test]
fn a_backend_whose_probes_say_down_while_it_owes_an_answer_counts_as_dead() {
    let mut backends: Vec<Listening> = three().into();
    let config = over(&backends).health("probe = \"tcp\"\ninterval = \"100ms\"\nfall = 2");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("a question");
    // Probes come as well; they send nothing.
    let asked = |backends: &[Listening]| {
        crate::kit::eventually_some("the question comes", || {
            backends.iter().enumerate().find_map(|(index, backend)| {
                let mut conn = backend.accept_now()?;
                let question = conn.try_receive("a question".len())?;
                assert_eq!(question, b"a question");
                Some((index, conn))
            })
        })
    };
    let (index, mut silent) = asked(&backends);
    let first = backends.remove(index);
    let gone = first.addr.clone();
    drop(first);
    let (_, living) = asked(&backends);
    silent.expect_end(End::Rst);
    answer(client, living);
    let record = tidegate.records(1).remove(0);
    assert_eq!(attempts(&record)[0], format!("{gone} unanswered"));
    assert_eq!(replays(&tidegate), 1);
}

#[test]
fn urgent_data_is_kept_as_the_bytes_that_it_is() {
    let backends = three();
    let tidegate = Tidegate::start(over(&backends));
    let mut client = tidegate.connect();
    client.send("before");
    client.send_urgent("!");
    client.send("after");
    for _ in 0..2 {
        let (_, mut dying) = accepted(&backends);
        dying.expect("before!after");
        dying.reset();
    }
    let (_, mut living) = accepted(&backends);
    living.expect("before!after");
    client.send_urgent("?");
    living.expect("?");
    answer(client, living);
}

#[test]
fn unix_sockets_on_both_sides() {
    let dir = tempfile::tempdir().unwrap();
    for how in [Death::Finish, Death::Exit] {
        for read in [0, 1_000] {
            let folder = tempfile::tempdir_in(dir.path()).unwrap();
            let at = |name: &str| Listening::at(&Addr::Unix(folder.path().join(name)));
            let backends = [at("a.sock"), at("b.sock")];
            let tidegate = Tidegate::start(over(&backends).bind("unix:$DIR/web.sock"));
            let mut client = tidegate.connect();
            client.send_pattern(0, 1_000);
            let (first, mut dying) = accepted(&backends);
            dying.expect_pattern(0, read);
            let _left = die(dying, how);
            let (second, mut living) = accepted(&backends);
            assert_ne!(first.addr, second.addr);
            living.expect_pattern(0, 1_000);
            answer(client, living);
            let record = tidegate.records(1).remove(0);
            assert_eq!([&record["reason"], &record["to_backend"]], [&Value::from("complete"), &Value::from(1_000)]);
        }
    }
}

#[test]
fn a_backend_that_takes_nothing_is_replaced_with_all_bytes_and_slows_nobody_down() {
    let backends = three().map(Listening::small_windows);
    let config = logged(Config::over(&backends).pool("replay = \"1MiB\""));
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    let (_, dying) = accepted(&backends);
    client.send_pattern(0, 1 << 20);
    dying.reset();
    let (_, mut living) = accepted(&backends);
    living.expect_pattern(0, 1 << 20);
    // Beyond what is kept, both ways.
    transfer(&mut client, &mut living, 1 << 20, 2 << 20);
    transfer(&mut living, &mut client, 0, 3 << 20);
    client.finish();
    living.expect_end(End::Fin);
    drop(living);
    client.expect_end(End::Fin);
    let record = tidegate.records(1).remove(0);
    assert_eq!([&record["reason"], &record["to_backend"]], [&Value::from("complete"), &Value::from(3 << 20)]);
}

/// A number that looks random and depends on nothing but `seed`.
fn mixed(seed: u64) -> u64 {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^ (x >> 31)
}

/// A request is its length in two bytes, and so many; the answer is the same bytes.
fn serve(mut conn: Conn, dice: u64) {
    let Some(length) = conn.try_receive(2) else { return };
    let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
    let read = if dice.is_multiple_of(2) { length } else { mixed(dice) as usize % (length + 1) };
    let Some(request) = conn.try_receive(read) else { return };
    match dice % 6 {
        0 if conn.try_send(request).is_ok() => {}
        0 => return,
        1 | 2 => return conn.reset(),
        3 | 4 => return drop(conn),
        _ => {
            let _ = conn.try_finish();
        }
    }
    while conn.read(&mut [0; 4_096]).is_ok_and(|count| count > 0) {}
}

/// Three backends that die in most cases, each time in another way, and one that never does.
#[test]
fn f21_nobody_notices_that_most_backends_die_most_of_the_time() {
    const SESSIONS: u64 = 320;
    let flaky = Arc::new(AtomicU64::new(0));
    let mut backends: Vec<Backend> = (0..3)
        .map(|_| {
            let count = flaky.clone();
            Backend::new(move |conn| serve(conn, mixed(count.fetch_add(1, Ordering::SeqCst))))
        })
        .collect();
    backends.push(Backend::new(|conn| serve(conn, 0)));
    let list: Vec<&Addr> = backends.iter().map(|backend| &backend.addr).collect();
    let tidegate = Tidegate::start(over(list).connect("attempts = 4"));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let tidegate = &tidegate;
            scope.spawn(move || {
                for session in (thread..SESSIONS).step_by(8) {
                    let length = 1 + mixed(session) % 16_000;
                    let mut client = tidegate.connect();
                    client.send((length as u16).to_le_bytes());
                    client.send_pattern(session, length);
                    if session % 3 == 0 {
                        client.finish();
                    }
                    client.expect_pattern(session, length);
                    if session % 3 != 0 {
                        client.finish();
                    }
                    client.expect_end(End::Fin);
                }
            });
        }
    });
    let records = tidegate.records(SESSIONS as usize);
    let unanswered = records.iter().flat_map(attempts).filter(|attempt| attempt.ends_with(" unanswered")).count();
    assert!(unanswered as u64 > SESSIONS / 2, "hardly anybody died: {unanswered}");
    assert_eq!(unanswered as u64, replays(&tidegate));
    assert_eq!(tidegate.closed("complete"), SESSIONS);
}
