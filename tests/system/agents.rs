//! Agents: a backend that says its own state, in one line, and what becomes of traffic for each word.

use crate::kit::backend::naming;
use crate::kit::{Addr, Backend, Config, Conn, Listening, Tidegate, eventually, eventually_eq};
use std::sync::{Arc, Mutex};

/// Backend `a` with an agent whose line can be changed, and backend `b` with one that says `up` for ever.
struct World {
    line: Arc<Mutex<String>>,
    a: Backend,
    b: Backend,
    port: u16,
    agents: [Backend; 2],
}

const IPS: [&str; 2] = ["127.4.0.1", "127.4.0.2"];

fn at(ip: &str, port: u16, script: impl Fn(Conn) + Send + Sync + 'static) -> Backend {
    Backend::at(&Addr::parse(&format!("{ip}:{port}")), script)
}

/// Says a line and ends.
fn say(mut conn: Conn, line: &str) {
    if conn.try_send(line).is_ok() {
        let _ = conn.try_finish();
    }
}

impl World {
    fn new() -> Self {
        let line = Arc::new(Mutex::new("up\n".to_owned()));
        let said = line.clone();
        let agent = at(IPS[0], 0, move |conn| say(conn, &said.lock().unwrap()));
        let port = agent.addr.tcp().port();
        let other = at(IPS[1], port, |conn| say(conn, "up\n"));
        Self { line, a: at(IPS[0], 0, naming("a")), b: at(IPS[1], 0, naming("b")), port, agents: [agent, other] }
    }

    fn start(&self) -> Tidegate {
        let agent = format!("probe = \"none\"\nagent = {{ port = {}, interval = \"100ms\" }}", self.port);
        Tidegate::start(Config::over([&self.a, &self.b]).pool("slow_start = \"0s\"").health(&agent))
    }

    fn say(&self, line: &str) {
        line.clone_into(&mut self.line.lock().unwrap());
    }
}

fn count(tidegate: &Tidegate, name: &str, of: usize) -> usize {
    (0..of).filter(|_| tidegate.connect().rest().text().trim_end() == name).count()
}

#[test]
fn a_percentage_is_a_share_of_the_weight() {
    let world = World::new();
    let tidegate = world.start();
    world.say("50%\n");
    eventually("half", || (tidegate.share(&world.a) - 0.5).abs() < 0.01);
    // Of its turns it passes on each by chance: a third of 300 is 100, and the standard deviation below 5.
    let seen = count(&tidegate, "a", 300);
    assert!((70..=130).contains(&seen), "{seen} of 300, where a third would be its share");
    world.say("100%\n");
    eventually("all", || (tidegate.share(&world.a) - 1.0).abs() < 0.01);
    assert_eq!(count(&tidegate, "a", 20), 10);
}

#[test]
fn sessions_of_a_draining_backend_go_on() {
    let world = World::new();
    let listening = Listening::at(&Addr::parse(&format!("{}:0", IPS[0])));
    let agent = format!("probe = \"none\"\nagent = {{ port = {}, interval = \"100ms\" }}", world.port);
    let config = Config::over([&listening.addr, &world.b.addr]).pool("on_down = \"reset\"").health(&agent);
    let tidegate = Tidegate::start(config);
    let mut client = tidegate.connect();
    client.send("hello");
    let mut backend = listening.accept();
    backend.expect("hello");
    world.say("drain\n");
    eventually_eq("it drains", &"agent_draining".to_owned(), || tidegate.state(&listening));
    assert_eq!(count(&tidegate, "b", 4), 4);
    backend.send("world");
    client.expect("world");
}

#[test]
fn f32_garbage_and_floods_change_nothing() {
    let world = World::new();
    let tidegate = world.start();
    world.say("drain\n");
    eventually_eq("it drains", &"agent_draining".to_owned(), || tidegate.state(&world.a));
    for line in ["gibberish\n".to_owned(), String::new(), "\u{0}\u{1b}[31m\n".to_owned(), "x".repeat(10 << 20)] {
        world.say(&line);
        let before = world.agents[0].accepted();
        eventually("it was heard some times", || world.agents[0].accepted() >= before + 3);
        assert_eq!(tidegate.state(&world.a), "agent_draining", "{line:.20}");
    }
    assert!(!tidegate.log().contains('\u{1b}'), "{}", tidegate.log());
}
