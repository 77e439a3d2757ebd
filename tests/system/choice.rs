//! Which backend a connection goes to: round-robin to the letter, weights, random, failover groups.

use crate::kit::{Backend, Config, Refusing, Tidegate};
use std::collections::BTreeMap;

fn names(tidegate: &Tidegate, count: usize) -> Vec<String> {
    (0..count).map(|_| tidegate.connect().rest().text().trim_end().to_owned()).collect()
}

fn tally(names: &[String]) -> BTreeMap<&str, usize> {
    let mut tally = BTreeMap::new();
    for name in names {
        *tally.entry(&**name).or_default() += 1;
    }
    tally
}

/// `target = "failover:(tcp://…|tcp://…)"`, with the group written by the test.
fn target(group: &str) -> Config {
    Config::with_pool(&format!("target = \"{group}\""))
}

#[test]
fn round_robin_is_exact_over_all_workers_together() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let config = Config::over(&backends).only_runtime("workers = 4");
    let tidegate = Tidegate::start(config);
    let names = names(&tidegate, 30);
    assert_eq!(names, ["a", "b", "c"].repeat(10), "connections 0, 3, 6, … go to the first");
}

#[test]
fn round_robin_gives_each_backend_its_share_of_connections_at_once() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let tidegate = Tidegate::start(Config::over(&backends));
    let all: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(|| names(&tidegate, 50))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(tally(&all), BTreeMap::from([("a", 100), ("b", 100), ("c", 100)]));
}

#[test]
fn weights_are_kept_exactly_and_smoothly() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let entry = |index: usize, weight| format!("{{ address = \"{}\", weight = {weight} }}", backends[index]);
    let list = format!("backends = [{}, {}, {}]", entry(0, 5), entry(1, 1), entry(2, 1));
    let tidegate = Tidegate::start(Config::with_pool(&list));
    let names = names(&tidegate, 28);
    for cycle in names.chunks(7) {
        assert_eq!(tally(cycle), BTreeMap::from([("a", 5), ("b", 1), ("c", 1)]), "{cycle:?}");
        // Smooth: the light ones are not served back to back at one end of the cycle.
        let light: Vec<usize> = (0..7).filter(|&at| cycle[at] != "a").collect();
        assert!(light[1] - light[0] > 1, "{cycle:?}");
    }
}

#[test]
fn random_follows_the_weights() {
    let backends = ["a", "b"].map(Backend::named);
    let list = format!(
        "balance = \"random\"\nbackends = [{{ address = \"{}\", weight = 3 }}, \"{}\"]",
        backends[0], backends[1]
    );
    let tidegate = Tidegate::start(Config::with_pool(&list));
    let names = names(&tidegate, 400);
    let first = tally(&names)["a"];
    // The mean is 300 and the standard deviation 8.7: nine of them to either side.
    assert!((222..=378).contains(&first), "{first} of 400");
    // In turn, there would never be more than three of them; and by chance four hundred never are without such a run.
    assert!(names.windows(5).any(|run| run.iter().all(|name| name == "a")), "a run of five shows that it's random");
}

#[test]
fn a_failover_target_begins_at_random_and_goes_on_in_sequence() {
    let backends = ["a", "b", "c"].map(Backend::named);
    let [a, b, c] = backends.each_ref().map(ToString::to_string);
    let tidegate = Tidegate::start(target(&format!("failover:(tcp://{a}|tcp://{b}|tcp://{c})")));
    let names = names(&tidegate, 90);
    for name in ["a", "b", "c"] {
        assert!(tally(&names).get(name).is_some_and(|count| *count >= 5), "{name} is a first choice too: {names:?}");
    }
}

#[test]
fn a_failover_target_passes_over_what_refuses() {
    let alive = Backend::named("alive");
    let dead = [Refusing::new(), Refusing::new()];
    let group = format!("failover:(tcp://{}|tcp://{}|tcp://{alive})", dead[0], dead[1]);
    let config = target(&group).log("access = \"$DIR/access.log\"\nformat = \"json\"");
    let tidegate = Tidegate::start(config.ejection("consecutive_failures = \"off\""));
    assert_eq!(names(&tidegate, 40), ["alive"; 40]);
    let cycle = [dead[0].to_string(), dead[1].to_string(), alive.to_string()];
    for record in tidegate.records(40) {
        let attempts = record["attempts"].as_str().unwrap();
        let tried: Vec<&str> = attempts.split(", ").map(|one| one.split(' ').next().unwrap()).collect();
        let first = cycle.iter().position(|address| address == tried[0]).unwrap();
        // "In sequence": whoever is first, the ones after it follow in their order.
        assert_eq!(tried, cycle[first..].iter().map(String::as_str).collect::<Vec<_>>(), "{attempts}");
    }
}

#[test]
fn failover_groups_nest_and_may_hold_a_single_target() {
    let (alive, dead) = (Backend::named("alive"), [Refusing::new(), Refusing::new(), Refusing::new()]);
    for group in [
        format!("failover:(tcp://{alive})"),
        format!("failover:(failover:(tcp://{}|tcp://{})|failover:(tcp://{alive}))", dead[0], dead[1]),
        format!("failover:(tcp://{}|failover:(tcp://{alive}|tcp://{}))", dead[0], dead[2]),
    ] {
        let tidegate = Tidegate::start(target(&group));
        assert_eq!(names(&tidegate, 12), ["alive"; 12], "{group}");
    }
}

#[test]
fn a_backend_is_called_by_its_name_where_it_has_one() {
    let backend = Backend::named("x");
    let list = format!("backends = [{{ address = \"{backend}\", name = \"blue one\" }}]");
    let tidegate = Tidegate::start(Config::with_pool(&list));
    assert_eq!(names(&tidegate, 1), ["x"]);
    tidegate.until_idle();
    let labels = [("pool", "web"), ("backend", "blue one")];
    assert_eq!(tidegate.metrics().one("tidegate_backend_connections_total", &labels) as u64, 1);
    assert_eq!(tidegate.backend_status("blue one")["address"], backend.to_string());
}

#[test]
fn two_listeners_reach_their_own_pools() {
    let (one, two) = (Backend::named("one"), Backend::named("two"));
    let more = format!(
        "[listeners.other]\nbind = \"127.0.0.1:0\"\npool = \"other\"\n\n[pools.other]\nbackends = [\"{two}\"]\n\
         [pools.other.health]\nprobe = \"none\"\n"
    );
    let tidegate = Tidegate::start(Config::over([&one]).more(&more));
    assert_eq!(tidegate.connect().rest().text(), "one\n");
    assert_eq!(crate::kit::Conn::to(&tidegate.addr_of("other", 0)).rest().text(), "two\n");
}

#[test]
fn host_names_are_resolved_at_start() {
    let backend = Backend::named("here");
    let config = Config::over([format!("localhost:{}", backend.addr.tcp().port())]).connect("attempts = 3");
    let tidegate = Tidegate::start(config);
    // localhost may be ::1 as well, where nobody listens: then failover finds the other one.
    assert_eq!(names(&tidegate, 4), ["here"; 4]);
}
