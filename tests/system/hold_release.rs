//! The end of a hold: who is released when, by what, and what is never sent twice.

use crate::hold::{
    NO_EJECTION, QUICK, all_down, held, held_bytes, holding, outcome, probed, recovered, until_closed, until_held,
    until_over, until_up,
};
use crate::kit::wait::pace;
use crate::kit::{
    Backend, Conn, End, Listening, Refusing, Silent, Tidegate, eventually, eventually_eq, kernel, outcomes, throughout,
};
use crate::limits::hard_limit;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

#[test]
fn they_are_released_in_order_of_arrival_and_at_the_rate() {
    const CLIENTS: usize = 30;
    let (down, config) = all_down("max_wait = \"60s\"\nrelease_rate = \"50/s\"");
    let tidegate = Tidegate::start(config.only_runtime("workers = 1"));
    let clients: Vec<Conn> = (0..CLIENTS)
        .map(|number| {
            let mut client = tidegate.connect();
            client.send(format!("{number}\n"));
            until_held(&tidegate, number as u64 + 1);
            client
        })
        .collect();
    let begun = Instant::now();
    let address = down.addr.clone();
    drop(down);
    // Accepts one after the other, so that the order of the connects is seen.
    let backend = Listening::at(&address);
    let (mut conns, mut order) = (Vec::new(), Vec::<usize>::new());
    while conns.len() < CLIENTS {
        let mut conn = backend.accept();
        conn.read_timeout(Duration::from_secs(1));
        let mut line = [0; 1];
        let mut text = String::new();
        while conn.read(&mut line).is_ok_and(|count| count > 0) && line != *b"\n" {
            text.push(char::from(line[0]));
        }
        if let Ok(number) = text.parse() {
            order.push(number);
            conns.push(conn);
        }
    }
    let span = begun.elapsed();
    assert_eq!(order, (0..CLIENTS).collect::<Vec<usize>>());
    // Less the 10 ms that may be caught up with, however quick the machine is.
    assert!(span >= Duration::from_millis(29 * 20 - 10), "{span:?}");
    drop((clients, conns));
}

#[test]
fn without_probes_failed_attempts_lead_to_the_hold_and_out_of_it() {
    let down = [Refusing::new(), Refusing::new()];
    let addresses = [down[0].addr.clone(), down[1].addr.clone()];
    let config = holding(&addresses, "max_wait = \"60s\"").ejection(NO_EJECTION);
    let tidegate = Tidegate::start(config);
    let mut clients: Vec<Conn> = (0..5).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        client.send("ping");
    }
    until_held(&tidegate, 5);
    eventually_eq("their words are kept", &20, || held_bytes(&tidegate));
    let errors = || tidegate.count("tidegate_backend_connect_errors_total");
    // One after the other tries, now and then, and goes back to its place.
    let before = errors();
    eventually("they are tried again", || errors() >= before + 6);
    assert_eq!((held(&tidegate), outcome(&tidegate, "served")), (5, 0));
    drop(down);
    let _back = addresses.each_ref().map(|address| Backend::at(address, crate::kit::backend::echo));
    for client in &mut clients {
        client.expect("ping");
        client.speak();
    }
    drop(clients);
    until_over(&tidegate);
    for record in tidegate.records(5) {
        // Of the searches that came to nothing, the first one is shown, and the last if it was another one.
        assert!((3..=5).contains(&outcomes(&record).len()), "{record}");
    }
}

#[test]
fn a_backend_that_refuses_again_right_after_the_release_costs_nobody_its_place() {
    let (down, config) = all_down("max_wait = \"60s\"\nrelease_rate = \"10/s\"");
    let tidegate = Tidegate::start(config.health(&QUICK.replace("fall = 1", "fall = 2")));
    let mut clients: Vec<Conn> = (0..12).map(|_| tidegate.connect()).collect();
    until_held(&tidegate, 12);
    let address = down.addr.clone();
    drop(down);
    // Some are served; then it's gone again, and nobody knows yet.
    let first = Backend::at(&address, crate::kit::backend::echo);
    eventually("some are served", || outcome(&tidegate, "served") >= 2);
    first.die();
    until_up(&tidegate, 0);
    let served = outcome(&tidegate, "served");
    let _back = Backend::at(&address, crate::kit::backend::echo);
    eventually_eq("all are served", &12, || outcome(&tidegate, "served"));
    // Those whom the first one served are cut or go on; none of the others was lost.
    let answered = clients.iter_mut().filter_map(|client| {
        client.try_send("ping").ok()?;
        client.try_receive(4)
    });
    assert!(answered.count() >= 12 - served as usize);
    assert_eq!(outcome(&tidegate, "expired") + outcome(&tidegate, "gone") + outcome(&tidegate, "overflow"), 0);
}

#[test]
fn an_ejected_backend_lets_them_go_through_its_trial() {
    let backend = Listening::new();
    let address = backend.addr.clone();
    let ejection = "consecutive_failures = 1\nbase_time = \"3s\"";
    let config = holding([&address], "max_wait = \"60s\"").ejection(ejection).pool("slow_start = \"0s\"");
    let tidegate = Tidegate::start(config);
    let mut first = tidegate.connect();
    first.send("ping");
    let mut conn = backend.accept();
    conn.expect("ping");
    conn.reset();
    first.expect_end(End::Rst);
    eventually_eq("it is ejected", &1, || tidegate.count("tidegate_backend_ejections_total"));
    let mut clients: Vec<Conn> = (0..4).map(|_| tidegate.connect()).collect();
    for client in &mut clients {
        client.send("ping");
    }
    // One of them is the trial: the others are held until that one has got its answer.
    let mut trial = backend.accept();
    trial.expect("ping");
    throughout("nobody else goes", Duration::from_millis(600), || {
        backend.accept_now().is_none() && held(&tidegate) == 3
    });
    trial.send("pong");
    let mut others: Vec<Conn> = (0..3).map(|_| backend.accept()).collect();
    for other in &mut others {
        other.expect("ping");
        other.send("pong");
    }
    for client in &mut clients {
        client.expect("pong");
    }
    drop((clients, trial, others));
    until_over(&tidegate);
}

#[test]
fn who_is_released_while_the_backend_is_full_waits_for_a_place_in_its_order() {
    for queue in ["", "[pools.web.queue]\nmax_wait = \"60s\""] {
        let (down, config) = all_down("max_wait = \"60s\"");
        // Two that are released in the same millisecond have no order between workers.
        let config = config.only_runtime("workers = 1").pool("backend_max_connections = 1");
        let tidegate = Tidegate::start(config.more(queue));
        let clients: Vec<Conn> = (1..=4)
            .map(|count| {
                let mut client = tidegate.connect();
                client.send(format!("{count}"));
                until_held(&tidegate, count);
                client
            })
            .collect();
        let _back = recovered(down);
        for (mut client, count) in clients.into_iter().zip(1..) {
            client.expect(format!("{count}"));
            client.speak();
        }
        until_over(&tidegate);
        assert_eq!((outcome(&tidegate, "served"), tidegate.closed("backends_full")), (4, 0));
    }
}

#[test]
fn what_is_kept_goes_on_into_replay() {
    let down = [Refusing::new(), Refusing::new()];
    let addresses = [down[0].addr.clone(), down[1].addr.clone()];
    let config = probed(&addresses, "max_wait = \"60s\"").pool("replay = \"1KiB\"");
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("question");
    client.finish();
    let mut long = tidegate.connect();
    long.send_pattern(0, 4_000);
    until_held(&tidegate, 2);
    eventually_eq("all is kept", &4_008, || held_bytes(&tidegate));
    drop(down);
    // The first that is asked for an answer resets, as soon as there is another one to ask.
    let (asked, other_is_up) = (Arc::new(Mutex::new(0)), Arc::new(AtomicBool::new(false)));
    let _back = addresses.each_ref().map(|address| {
        let (asked, other_is_up) = (Arc::clone(&asked), Arc::clone(&other_is_up));
        Backend::at(address, move |mut conn| {
            let mut buffer = [0; 8];
            if !conn.read(&mut buffer).is_ok_and(|count| count == 8) {
                return;
            }
            if buffer == *b"question" {
                let before = std::mem::replace(&mut *asked.lock().unwrap(), 1);
                if before == 0 {
                    eventually("the other one is up", || other_is_up.load(Ordering::SeqCst));
                    return conn.reset();
                }
                conn.expect_end(End::Fin);
                conn.send("answer");
            } else {
                // More than may be sent again: it goes to one backend alone, and whole.
                conn.expect_pattern(8, 4_000 - 8);
                conn.send("long answer");
            }
        })
    });
    until_up(&tidegate, 2);
    other_is_up.store(true, Ordering::SeqCst);
    client.expect("answer");
    client.expect_end(End::Fin);
    long.expect("long answer");
    drop(long);
    assert_eq!(tidegate.count("tidegate_pool_replays_total"), 1);
    until_over(&tidegate);
}

#[test]
fn bytes_that_a_backend_has_got_never_come_back_to_the_hold() {
    let backend = Listening::new();
    let address = backend.addr.clone();
    let config = probed([&address], "max_wait = \"60s\"");
    let tidegate = Tidegate::start(config);
    until_up(&tidegate, 1);
    let mut client = tidegate.connect();
    client.send("an order");
    loop {
        let mut conn = backend.accept();
        if conn.try_receive(8).is_some_and(|bytes| bytes == b"an order") {
            conn.reset();
            break;
        }
    }
    drop(backend);
    client.expect_end(End::Rst);
    assert_eq!((held(&tidegate), outcome(&tidegate, "served")), (0, 0));
}

#[test]
fn panic_does_not_use_the_dead_where_they_could_be_held() {
    // Up to a connect, but not for the probe.
    let half_dead = [Listening::new(), Listening::new()];
    let exchange = "probe = \"exchange\"\nexchange = { send = \"PING\", expect_prefix = \"PONG\" }";
    let expect = format!("{QUICK}\n{exchange}");
    let config = holding(&half_dead, "max_wait = \"60s\"").health(&expect).ejection(NO_EJECTION);
    let tidegate = Tidegate::start(config.pool("panic_threshold = \"100%\""));
    let mut client = tidegate.connect();
    client.send("ping");
    until_held(&tidegate, 1);
    assert_eq!(tidegate.pool_status()["panic"], false);
    throughout("it is held", Duration::from_millis(600), || held(&tidegate) == 1);
    client.reset();
    until_over(&tidegate);
}

#[test]
fn what_this_host_lacks_does_not_lead_to_the_hold() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(holding([&backend], "max_wait = \"60s\""));
    // Enough for the client's socket, none for the backend's.
    tidegate.limit_fds(kernel::lowest_free_fd(tidegate.pid) + 1);
    tidegate.connect().expect_end(End::Rst);
    tidegate.limit_fds(hard_limit());
    until_closed(&tidegate, "no_resources", 1);
    assert_eq!(held(&tidegate), 0);
    tidegate.connect().speak();
}

#[test]
fn attempts_that_time_out_lead_to_the_hold_too() {
    let silent = Silent::new();
    let address = silent.addr.clone();
    let config = holding([&address], "max_wait = \"60s\"").ejection(NO_EJECTION);
    let tidegate = Tidegate::start(config.connect("timeout = \"200ms\"\nbudget = \"300ms\""));
    let mut client = tidegate.connect();
    client.send("ping");
    until_held(&tidegate, 1);
    let backend = silent.wake();
    let echo = std::thread::spawn(move || crate::kit::backend::echo(backend.accept()));
    client.expect("ping");
    drop(client);
    echo.join().unwrap();
    until_over(&tidegate);
}

#[test]
fn who_was_held_with_its_fin_waits_in_the_queue_for_its_turn_whatever_a_fin_means_there() {
    let queue = "[pools.web.queue]\nmax_wait = \"60s\"\nclient_fin = \"leave\"";
    let gone = Listening::new();
    let address = gone.addr.clone();
    drop(gone);
    let config = probed([&address], &format!("max_wait = \"60s\"\n{queue}")).pool("backend_max_connections = 1");
    let tidegate = Tidegate::start(config);
    let said = ["one", "two", "three"];
    let _clients = said.map(|word| {
        let mut client = tidegate.connect();
        client.send(word);
        client.finish();
        client
    });
    until_held(&tidegate, 3);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&heard);
    let _back = Backend::at(&address, move |mut conn: Conn| {
        let rest = conn.rest();
        if !rest.bytes.is_empty() {
            // As long as the others need to be released.
            pace(Duration::from_millis(300));
            shared.lock().unwrap().push(rest.text());
        }
    });
    eventually_eq("all have brought what they said", &3, || heard.lock().unwrap().len());
    let mut heard = heard.lock().unwrap().clone();
    heard.sort_unstable();
    assert_eq!(heard, ["one", "three", "two"]);
    assert_eq!(tidegate.closed("client_left"), 0);
}
