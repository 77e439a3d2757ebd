//! A listener that an operator takes out: nobody new, those that are there stay, and it comes back to the same address.

use crate::kit::{Backend, Config, Conn, Launch, Tidegate, eventually};
use crate::reload::reload;
use rustix::process::Signal;

/// True once connects are refused.
fn refuses(tidegate: &Tidegate) -> bool {
    Conn::try_to(&tidegate.addr()).map(Conn::reset).is_err()
}

fn set(tidegate: &Tidegate, state: &str) {
    let answer = tidegate.post("/listeners/web", &format!("{{\"state\": \"{state}\"}}"));
    assert_eq!((answer.status, &answer.json()["changed"]), (200, &true.into()), "{}", answer.body);
    tidegate.logged(&["changed", "command=\"listener\"", &format!("to=\"{state}\"")]);
}

fn state(tidegate: &Tidegate) -> String {
    tidegate.status()["listeners"][0]["state"].as_str().unwrap().to_owned()
}

#[test]
fn a_listener_that_is_taken_out_refuses_new_clients_keeps_the_others_and_comes_back() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let mut before = tidegate.echoed();
    for (number, out) in ["draining", "disabled"].into_iter().enumerate() {
        set(&tidegate, out);
        eventually("nobody is let in", || refuses(&tidegate));
        assert_eq!(state(&tidegate), out);
        assert_eq!(tidegate.metrics().one("tidegate_listener_up", &[]) as u64, 0);
        before.speak();
        // A reload leaves it as it is, also where its sockets get other options.
        reload(&tidegate, Config::over([&backend]).listener(&format!("backlog = {}", 90 + number)));
        assert!(refuses(&tidegate) && state(&tidegate) == out);
        set(&tidegate, "enabled");
        tidegate.echoed();
        assert_eq!(
            (state(&tidegate), tidegate.metrics().one("tidegate_listener_up", &[]) as u64),
            ("up".to_owned(), 1)
        );
    }
    // Whoever is in the accept queue is still served.
    for _ in 0..3 {
        set(&tidegate, "draining");
        set(&tidegate, "enabled");
        let mut clients: Vec<Conn> = (0..10).map(|_| tidegate.connect()).collect();
        clients.iter_mut().for_each(Conn::speak);
    }
    let unknown = tidegate.post("/listeners/wep", "{\"state\": \"draining\"}");
    assert_eq!(unknown.status, 404);
    assert!(unknown.body.contains("web"), "{}", unknown.body);
}

#[test]
fn one_that_is_taken_out_and_back_at_once_breaks_nothing_and_nobody_is_lost() {
    let backend = Backend::echo();
    for bind in ["127.0.0.1:0", "unix:$DIR/web.sock"] {
        let tidegate = Tidegate::start(Config::over([&backend]).bind(bind));
        for _ in 0..50 {
            set(&tidegate, "draining");
            set(&tidegate, "enabled");
            let mut clients: Vec<Conn> = (0..4).map(|_| tidegate.connect()).collect();
            clients.iter_mut().for_each(Conn::speak);
        }
        assert_eq!(tidegate.count_logged(&["listener broke"]), 0, "{bind}");
    }
}

#[test]
fn what_a_reload_says_of_the_sockets_of_one_that_is_out_holds_when_it_is_back() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    set(&tidegate, "draining");
    eventually("nobody is let in", || refuses(&tidegate));
    let keys = "backlog = 33\n[listeners.web.socket]\ndefer_accept = \"60s\"";
    reload(&tidegate, Config::over([&backend]).listener(keys));
    assert!(refuses(&tidegate), "it doesn't listen by that");
    set(&tidegate, "enabled");
    let accepted = || tidegate.count("tidegate_listener_connections_total");
    // Of those that came before it refused them.
    let before = accepted();
    let mut silent = tidegate.connect();
    // The handshake of this one is over, and that of the next one comes after it.
    tidegate.connect().speak();
    assert_eq!(accepted(), before + 1);
    silent.speak();
    assert_eq!(accepted(), before + 2);
}

#[test]
fn to_ask_again_never_puts_the_end_of_sessions_off() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend]));
    let _client = tidegate.echoed();
    let ask = |body: &str| {
        let answer = tidegate.post("/listeners/web", body).json();
        let of_details = |key: &str| answer["details"][key].clone();
        (answer["changed"] == true, of_details("deadline_ms").as_u64().map(|ms| ms.div_ceil(60_000)))
    };
    assert_eq!(ask(r#"{"state": "draining", "deadline": "1h"}"#), (true, Some(60)));
    assert_eq!(ask(r#"{"state": "draining"}"#), (false, Some(60)));
    assert_eq!(ask(r#"{"state": "draining", "deadline": "2h"}"#), (false, Some(60)));
    assert_eq!(ask(r#"{"state": "disabled"}"#), (true, Some(60)), "and stays with another state");
    assert_eq!(ask(r#"{"state": "disabled", "deadline": "10m"}"#), (true, Some(10)));
    assert_eq!(ask(r#"{"state": "enabled"}"#), (true, None));
    assert_eq!(ask(r#"{"state": "draining"}"#), (true, None), "it was taken back");
}

#[test]
fn a_listener_stays_out_over_a_restart_if_there_is_a_state_file() {
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend]).runtime("state_file = \"$DIR/state.json\""));
    let state_file = launch.dir().join("state.json");
    let mut tidegate = launch.start();
    set(&tidegate, "draining");
    tidegate.leaks_not_asked();
    tidegate.signal(Signal::TERM);
    assert_eq!(tidegate.wait().code, Some(0));
    let config = Config::over([&backend]).runtime("state_file = \"$DIR/state.json\"");
    let launch = Launch::new(config);
    std::fs::copy(state_file, launch.dir().join("state.json")).unwrap();
    let tidegate = launch.start();
    assert!(refuses(&tidegate) && state(&tidegate) == "draining");
    set(&tidegate, "enabled");
    tidegate.echoed();
}
