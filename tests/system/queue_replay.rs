//! Replay beside the queue: who needs another backend waits for a place as anybody does, and holds none meanwhile.

use crate::kit::{Config, Conn, End, Listening, Tidegate, eventually, eventually_eq};

/// Two backends with one place each, replay, and a queue.
fn config(backends: &[Listening; 2], queue: &str) -> Config {
    Config::over(backends)
        .pool("backend_max_connections = 1\nreplay = \"16KiB\"")
        .ejection("consecutive_failures = \"off\"")
        .more(&format!("[pools.web.queue]\n{queue}"))
        .logged()
}

fn waiting(tidegate: &Tidegate) -> u64 {
    tidegate.count("tidegate_pool_queue_waiting")
}

/// A client that has said this, and the index of the backend that has heard it.
fn session(tidegate: &Tidegate, backends: &[Listening; 2], word: &str) -> (Conn, usize, Conn) {
    let mut client = tidegate.connect();
    client.send(word);
    let (index, mut backend) = crate::kit::eventually_some("a connection comes", || {
        (0..2).find_map(|index| Some((index, backends[index].accept_now()?)))
    });
    backend.expect(word);
    (client, index, backend)
}

#[test]
fn f28_two_that_wait_for_each_others_places_both_get_them() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends, "max_wait = \"60s\""));
    let (mut one, first, backend_of_one) = session(&tidegate, &backends, "one");
    let (mut two, second, backend_of_two) = session(&tidegate, &backends, "two");
    assert_ne!(first, second);
    // Neither of them has answered, and each of them could only be replaced by the other.
    backend_of_one.finish();
    eventually_eq("it waits", &1, || waiting(&tidegate));
    backend_of_two.finish();
    let (mut new_of_one, mut new_of_two) = (backends[second].accept(), backends[first].accept());
    new_of_one.expect("one");
    new_of_two.expect("two");
    for (client, backend) in [(&mut one, &mut new_of_one), (&mut two, &mut new_of_two)] {
        backend.send("answer");
        client.expect("answer");
    }
    drop((backend_of_one, backend_of_two));
    assert_eq!(tidegate.count("tidegate_pool_replays_total"), 2);
}

#[test]
fn f28_who_is_replaced_leaves_its_place_to_those_that_wait_and_waits_itself() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends, "max_wait = \"60s\""));
    let (mut one, first, backend_of_one) = session(&tidegate, &backends, "one");
    let (two, second, backend_of_two) = session(&tidegate, &backends, "two");
    let mut third = tidegate.connect();
    third.send("three");
    eventually_eq("it waits", &1, || waiting(&tidegate));
    backend_of_one.reset();
    let mut backend_of_three = backends[first].accept();
    backend_of_three.expect("three");
    eventually_eq("the first one waits", &1, || waiting(&tidegate));
    // Though there is a place again on the backend that has failed it.
    third.reset();
    eventually("there is", || tidegate.backend_status(&backends[first])["active"] == 0);
    assert_eq!(waiting(&tidegate), 1);
    // The answer ends the replay, so that it is over in order.
    let mut answering = backend_of_two;
    answering.send("bye");
    drop(answering);
    drop(two);
    let mut new_of_one = backends[second].accept();
    new_of_one.expect("one");
    new_of_one.send("answer");
    one.expect("answer");
    drop((one, new_of_one, backend_of_three));
    let records = tidegate.records(3);
    let waited = records.iter().find(|record| record["attempts"].as_str().unwrap().contains("unanswered"));
    assert!(waited.unwrap_or_else(|| panic!("{records:?}"))["wait"].as_f64().unwrap() > 0.0);
}

#[test]
fn f28_who_waits_in_vain_for_another_backend_is_reset() {
    let backends = [Listening::new(), Listening::new()];
    let tidegate = Tidegate::start(config(&backends, "max_wait = \"300ms\""));
    let (mut one, first, backend_of_one) = session(&tidegate, &backends, "one");
    let (two, _, _backend_of_two) = session(&tidegate, &backends, "two");
    backend_of_one.finish();
    one.expect_end(End::Rst);
    backend_of_one.expect_cut();
    eventually_eq("its place is free", &0, || tidegate.backend_status(&backends[first])["active"].as_u64().unwrap());
    eventually_eq("for that reason", &1, || tidegate.closed("queue_timeout"));
    two.reset();
}
