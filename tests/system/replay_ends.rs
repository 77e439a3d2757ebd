//! Where replay ends: what is never sent again, and how a session ends that nobody else can serve.

use crate::kit::conn::{Rest, transfer};
use crate::kit::{Config, End, Listening, Refusing, Silent, Tidegate, eventually, kernel, throughout};
use crate::replay::{DEATHS, Death, LIMIT, accepted, attempts, die, failures, logged, over, replays, three};
use rustix::process::Signal;
use serde_json::Value;
use std::time::Duration;

#[test]
fn exactly_as_much_as_is_kept_is_sent_again_and_with_one_byte_more_nothing_is() {
    for how in [Death::Reset, Death::Finish] {
        let backends = three();
        let tidegate = Tidegate::start(over(&backends));
        let mut client = tidegate.connect();
        // The last byte by itself: what has been kept until then must not tempt anybody.
        client.send_pattern(0, LIMIT as u64);
        let (_, mut first) = accepted(&backends);
        first.expect_pattern(0, LIMIT as u64);
        die(first, how);
        let (second, mut last) = accepted(&backends);
        last.expect_pattern(0, LIMIT as u64);
        client.send_pattern(LIMIT as u64, 1);
        last.expect_pattern(LIMIT as u64, 1);
        let left = die(last, how);
        match how {
            Death::Reset => client.expect_end(End::Rst),
            _ => client.expect_end(End::Fin),
        }
        drop((client, left));
        let record = tidegate.records(1).remove(0);
        assert_eq!(attempts(&record).last().unwrap(), &format!("{second} connected"));
        assert_eq!(replays(&tidegate), 1);
        assert!(backends.iter().all(|backend| backend.accept_now().is_none()), "nobody else was asked");
    }
}

#[test]
fn after_the_first_byte_of_the_answer_nothing_is_sent_again() {
    for how in DEATHS {
        for waits in [true, false] {
            let backends = three();
            let tidegate = Tidegate::start(over(&backends));
            let mut client = tidegate.connect();
            client.send("a question");
            let (_, mut dying) = accepted(&backends);
            dying.expect("a question");
            dying.send("a");
            if waits {
                client.expect("a");
            }
            let left = die(dying, how);
            let bytes = if waits { vec![] } else { b"a".to_vec() };
            let end = if how == Death::Reset { End::Rst } else { End::Fin };
            assert_eq!(client.rest(), Rest { bytes, end }, "{how:?}");
            drop((client, left));
            let record = tidegate.records(1).remove(0);
            assert_eq!([attempts(&record).len() as u64, replays(&tidegate)], [1, 0]);
            assert!(backends.iter().all(|backend| backend.accept_now().is_none()), "nobody else was asked");
        }
    }
}

#[test]
fn a_server_that_speaks_first_has_answered() {
    let backends = three();
    let tidegate = Tidegate::start(over(&backends));
    let mut client = tidegate.connect();
    let (_, mut backend) = accepted(&backends);
    backend.send("220 welcome\r\n");
    client.expect("220 welcome\r\n");
    client.send("EHLO\r\n");
    backend.expect("EHLO\r\n");
    backend.reset();
    client.expect_end(End::Rst);
    assert_eq!(tidegate.records(1)[0]["reason"], "backend_reset");
    assert_eq!(replays(&tidegate), 0);
}

#[test]
fn a_client_that_resets_gives_both_places_up() {
    // While a backend is silent, with and without its FIN before.
    for finishes in [false, true] {
        let backends = three();
        let tidegate = Tidegate::start(over(&backends));
        let mut client = tidegate.connect();
        client.send("a question");
        let (_, mut backend) = accepted(&backends);
        backend.expect("a question");
        if finishes {
            client.finish();
            backend.expect_end(End::Fin);
        }
        assert_eq!([tidegate.sessions(), tidegate.slots()], [1, 1]);
        client.reset();
        if finishes {
            backend.expect_cut();
        } else {
            backend.expect_end(End::Rst);
        }
        let record = tidegate.records(1).remove(0);
        assert_eq!([&record["reason"], &record["phase"]], ["client_reset", "relay"]);
        assert_eq!(replays(&tidegate), 0);
    }
    // While the next one is connected to.
    let (first, silent) = (Listening::new(), Silent::new());
    let config = over([&first.addr, &silent.addr]).connect("timeout = \"60s\"\nbudget = \"60s\"");
    let tidegate = Tidegate::start(config);
    let client = tidegate.connect();
    first.accept().reset();
    eventually("the connect is under way", || kernel::sockets_to(silent.addr.tcp().port(), &["02"]) == 1);
    client.reset();
    let record = tidegate.records(1).remove(0);
    assert_eq!([&record["reason"], &record["phase"]], ["client_reset", "connect"]);
}

#[test]
fn what_a_client_has_sent_before_its_reset_still_arrives() {
    let backends = three();
    let tidegate = Tidegate::start(over(&backends));
    let mut client = tidegate.connect();
    let (_, mut backend) = accepted(&backends);
    client.send("the last words");
    client.reset();
    assert_eq!(backend.rest(), Rest { bytes: b"the last words".to_vec(), end: End::Rst });
}

#[test]
fn when_all_die_the_client_sees_the_last_end() {
    for how in [Death::Reset, Death::Finish] {
        let backends = three();
        let tidegate = Tidegate::start(over(&backends));
        let mut client = tidegate.connect();
        client.send("a question");
        let mut seen = Vec::new();
        let mut left = Vec::new();
        for _ in &backends {
            let (backend, mut dying) = accepted(&backends);
            dying.expect("a question");
            left.extend(die(dying, how));
            seen.push(backend);
        }
        let last = seen.pop().unwrap();
        if how == Death::Reset {
            client.expect_end(End::Rst);
        } else {
            client.expect_end(End::Fin);
            // Half-closed as any other session: it may still say something.
            client.send(", and another");
            client.finish();
            let last = left.last_mut().unwrap();
            last.expect(", and another");
            last.expect_end(End::Fin);
        }
        drop((client, left));
        let record = tidegate.records(1).remove(0);
        let mut outcomes: Vec<String> = seen.iter().map(|backend| format!("{backend} unanswered")).collect();
        outcomes.push(format!("{last} connected"));
        assert_eq!(attempts(&record), outcomes);
        assert_eq!(record["reason"], if how == Death::Reset { "backend_reset" } else { "complete" });
        assert_eq!(record["backend"], last.to_string());
        assert_eq!(failures(&tidegate), 3, "one for each");
    }
}

#[test]
fn when_the_others_refuse_a_fin_is_still_passed_on() {
    let (first, dead) = (Listening::new(), Refusing::new());
    let tidegate = Tidegate::start(over([&first.addr, &dead.addr]));
    let mut client = tidegate.connect();
    let mut backend = first.accept();
    backend.finish();
    client.expect_end(End::Fin);
    client.send("so what");
    backend.expect("so what");
    client.finish();
    backend.expect_end(End::Fin);
    drop(backend);
    let record = tidegate.records(1).remove(0);
    assert_eq!([&record["reason"], &record["to_backend"]], [&Value::from("complete"), &Value::from(7)]);
    let outcomes = [format!("{first} unanswered"), format!("{dead} refused"), format!("{first} connected")];
    assert_eq!(attempts(&record), outcomes);
}

#[test]
fn after_the_budget_nothing_is_sent_again() {
    let backends = three();
    let tidegate = Tidegate::start(over(&backends).connect("budget = \"300ms\""));
    let mut client = tidegate.connect();
    client.send("a question");
    let (_, mut backend) = accepted(&backends);
    backend.expect("a question");
    throughout("it is waited for", Duration::from_millis(900), || tidegate.sessions() == 1);
    transfer(&mut client, &mut backend, 0, 1_000);
    backend.reset();
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!([&record["reason"], &record["to_backend"]], [&Value::from("backend_reset"), &Value::from(1_010)]);
    assert_eq!(replays(&tidegate), 0);
}

#[test]
fn the_budget_bounds_the_search_for_the_next_one() {
    let (first, silent) = (Listening::new(), [Silent::new(), Silent::new(), Silent::new()]);
    let config = over([&first.addr, &silent[0].addr, &silent[1].addr, &silent[2].addr]);
    let config = config.connect("timeout = \"400ms\"\nattempts = 4\nbudget = \"600ms\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("a question");
    let mut dying = first.accept();
    dying.expect("a question");
    dying.reset();
    client.expect_end(End::Rst);
    let record = tidegate.records(1).remove(0);
    assert_eq!([&record["reason"], &record["ended_by"]], ["backend_reset", "backend"]);
    // Of the second silent one nothing but the rest of the budget is left, and of the third nothing at all.
    assert!(attempts(&record).len() <= 3, "{record}");
    assert_eq!(attempts(&record)[0], format!("{first} unanswered"));
}

/// The connection of a backend that is believed to be down stands, and is worth waiting for when there is no other.
#[test]
fn a_verdict_ends_a_session_that_nobody_else_can_serve_only_where_the_pool_says_so() {
    for resets in [false, true] {
        let backend = Listening::new();
        let on_down = if resets { "reset" } else { "keep" };
        let config = over([&backend]).pool(&format!("on_down = \"{on_down}\""));
        let tidegate = Tidegate::start(config.health("probe = \"tcp\"\ninterval = \"100ms\"\nfall = 2"));
        let mut client = tidegate.connect();
        client.send("a question");
        let mut served = crate::kit::eventually_some("the question comes", || {
            let mut conn = backend.accept_now()?;
            (conn.try_receive(10)? == b"a question").then_some(conn)
        });
        let gone = backend.addr.clone();
        drop(backend);
        if resets {
            client.expect_end(End::Rst);
            served.expect_end(End::Rst);
        } else {
            eventually("it is down", || tidegate.backend_status(&gone)["state"] == "down");
            // Until the workers have heard of it.
            throughout("it goes on", Duration::from_millis(500), || tidegate.sessions() == 1);
            served.send("late");
            client.expect("late");
            drop(served);
            client.expect_end(End::Fin);
        }
        drop(client);
        let record = tidegate.records(1).remove(0);
        assert_eq!(record["reason"], if resets { "backend_down" } else { "complete" }, "{record}");
        assert_eq!(attempts(&record), [format!("{gone} connected")]);
        assert_eq!(failures(&tidegate), 0, "that is the probes' business");
    }
}

#[test]
fn a_session_that_waits_for_its_answer_is_idle_as_any_other() {
    for (listener, finishes, reason) in [
        ("idle_timeout = \"300ms\"", false, "idle_timeout"),
        ("half_close_timeout = \"300ms\"", true, "half_close_timeout"),
        ("half_close_timeout = \"0s\"", true, "client_half_close"),
    ] {
        let backends = three();
        let tidegate = Tidegate::start(over(&backends).listener(listener));
        let mut client = tidegate.connect();
        client.send("a question");
        let (_, mut backend) = accepted(&backends);
        backend.expect("a question");
        if finishes {
            client.finish();
            assert_eq!(backend.read(&mut [0]).ok(), Some(0), "the FIN");
        }
        client.expect_end(End::Rst);
        let record = tidegate.records(1).remove(0);
        assert_eq!(record["reason"], reason);
        assert!(record["duration"].as_f64().unwrap() < 5.0, "long before the budget is over: {record}");
        assert_eq!(replays(&tidegate), 0);
    }
}

#[test]
fn it_is_reset_at_the_drain_deadline_as_any_other() {
    let backends = three();
    let mut tidegate = Tidegate::start(over(&backends).runtime("drain_timeout = \"300ms\""));
    let mut client = tidegate.connect();
    client.send("a question");
    let (_, mut backend) = accepted(&backends);
    backend.expect("a question");
    tidegate.signal(Signal::TERM);
    client.expect_end(End::Rst);
    backend.expect_end(End::Rst);
    assert_eq!(tidegate.wait().code, Some(0));
}

#[test]
fn without_the_key_nothing_is_sent_again() {
    let backends = three();
    let tidegate = Tidegate::start(logged(Config::over(&backends)));
    let mut client = tidegate.connect();
    client.send("a question");
    let (_, mut dying) = accepted(&backends);
    dying.expect("a question");
    dying.reset();
    client.expect_end(End::Rst);
    assert_eq!(attempts(&tidegate.records(1)[0]).len(), 1);
    assert_eq!(replays(&tidegate), 0);
}
