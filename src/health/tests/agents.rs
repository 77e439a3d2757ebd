//! Agents beside probes, and certificates that end soon.

use super::*;
use crate::config::{AdminState, Agent, Percent, Tls};

const AGENT_OF_A: &str = "192.0.2.1:9999";

fn with_agent(health: config::Health) -> config::Health {
    let agent = Agent { port: 9_999, interval: 2 * SECOND, send: Vec::new() };
    config::Health { agent: Some(Arc::new(agent)), ..health }
}

impl World {
    fn say(&self, agent: &str, line: &'static str) {
        self.seen.lock().unwrap().lines.insert(agent.into(), line);
    }

    fn fall_silent(&self, agent: &str) {
        self.seen.lock().unwrap().lines.remove(agent);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_heeded_and_its_silence_changes_nothing() {
    let world = World::new(&[A, B], with_agent(config::Health::default()));
    let (lines, _guard) = Lines::capture();
    world.say(AGENT_OF_A, "up");
    world
        .during(async {
            sleep(5 * SECOND).await;
            assert!(world.is_up(A) && world.is_up(B), "an agent that can't be asked is nobody's fault");
            assert_eq!(lines.with("the agent says").len(), 0, "what is as usual is not told");
            world.say(AGENT_OF_A, "down # disk full");
            sleep(3 * SECOND).await;
            assert!(!world.is_up(A) && world.is_up(B));
            assert_eq!(world.backend(A).last_error().unwrap().text, "the agent says down: \"disk full\"");
            assert_eq!(world.backend(A).health().0, crate::pool::Health::Up, "its probes go well");
            world.fall_silent(AGENT_OF_A);
            sleep(3_600 * SECOND).await;
            assert!(!world.is_up(A));
            world.say(AGENT_OF_A, "up drain 50%");
            sleep(3 * SECOND).await;
            assert_eq!((world.is_up(A), world.backend(A).state()), (true, "agent_draining"));
            for (line, why) in [
                ("up maint # upgrade", "the agent says maint: \"upgrade\""),
                ("ready 0%", "the agent says 0%"),
                ("100% drain", "the agent says drain"),
            ] {
                world.say(AGENT_OF_A, line);
                sleep(3 * SECOND).await;
                assert_eq!(world.backend(A).last_error().unwrap().text, why);
            }
        })
        .await;
    assert_eq!(lines.with("the agent says something new").len(), 5, "{:#?}", lines.with("agent"));
    let mut warnings = lines.with("the agent says something new");
    warnings.retain(|line| line.contains("WARN"));
    assert!(warnings.len() == 1 && warnings[0].contains("report=down"), "{warnings:?}");
    assert_eq!(lines.with("the agent can't be asked").len(), 2, "one of each backend: {:#?}", lines.with("agent"));
    let checks = world.metrics.encode().unwrap();
    assert!(!checks.contains("result=\"failure\""), "an agent's failure is no failed probe");
}

#[tokio::test(start_paused = true)]
async fn a_weight_that_keeps_changing_and_a_word_that_nobody_knows_do_not_flood_the_log() {
    let world = World::new(&[A], with_agent(config::Health::default()));
    let (lines, _guard) = Lines::capture();
    world
        .during(async {
            for _ in 0..300 {
                world.say(AGENT_OF_A, "up 50% load:7");
                sleep(2 * SECOND).await;
                world.say(AGENT_OF_A, "up 70% # load");
                sleep(2 * SECOND).await;
            }
        })
        .await;
    assert_eq!(lines.with("the agent says something new").len(), 0, "{:#?}", lines.with("agent"));
    let unknown = lines.with("the agent says a word that is not known").len();
    assert!((50..=121).contains(&unknown), "{unknown} lines in 20 minutes");
}

#[tokio::test(start_paused = true)]
async fn a_backend_without_its_agent_is_its_own_again_and_an_agent_needs_no_probe() {
    let only_agent = with_agent(config::Health { probe: Probe::None, ..config::Health::default() });
    let world = World::new(&[A], only_agent);
    world.say(AGENT_OF_A, "maint");
    let mut over = world.inputs.first_round.subscribe();
    world
        .during(async {
            over.wait_for(|over| *over).await.unwrap();
            assert_eq!(world.backend(A).state(), "maint", "the first round asks agents, too");
            assert_eq!((world.times_asked(A), world.times_asked(AGENT_OF_A)), (0, 1));
            world.swap(&[A], config::Health { probe: Probe::None, ..config::Health::default() });
            sleep(SECOND).await;
            assert_eq!(world.backend(A).state(), "up");
            sleep(10 * SECOND).await;
            assert_eq!(world.times_asked(AGENT_OF_A), 1);
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_an_operator_has_disabled_is_not_asked_and_stays_what_it_was() {
    let world = World::new(&[A, B], with_agent(config::Health::default()));
    world.say(AGENT_OF_A, "maint");
    let operator = |state| {
        let said = config::Adjustment { state: Some(state), ..config::Adjustment::default() };
        let pool = Arc::clone(&world.inputs.table.load().pools[0]);
        pool.adjust(&[(A.to_owned(), said)].into(), &world.metrics, false, Now::read());
        world.inputs.table_changed.notify_one();
    };
    let asked = || (world.times_asked(A), world.times_asked(AGENT_OF_A));
    world
        .during(async {
            sleep(10 * SECOND).await;
            assert_eq!(world.backend(A).state(), "maint");
            operator(AdminState::Draining);
            let before = asked();
            sleep(10 * SECOND).await;
            assert!(asked().0 > before.0 && asked().1 > before.1, "whoever drains is asked all the same");
            operator(AdminState::Disabled);
            sleep(SECOND).await;
            world.say(AGENT_OF_A, "ready");
            world.answer(A, Answer::Refused);
            let (before, other) = (asked(), world.times_asked(B));
            sleep(60 * SECOND).await;
            assert_eq!(asked(), before);
            assert!(world.times_asked(B) > other + 10);
            assert_eq!((world.backend(A).state(), world.is_up(A)), ("disabled", true));
            operator(AdminState::Enabled);
            assert_eq!(world.backend(A).state(), "maint", "what is known of it is what was known then");
            sleep(SECOND).await;
            assert_eq!(world.backend(A).agent(), None, "its agent is asked at once");
            sleep(10 * SECOND).await;
            assert_eq!(world.backend(A).state(), "down", "and its probes go on");
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_probes_and_agents_are_an_even_rate() {
    const BACKENDS: usize = 5_000;
    let names: Vec<String> = (0..BACKENDS).map(|index| format!("10.0.{}.{}:80", index / 250, index % 250)).collect();
    let addresses: Vec<&str> = names.iter().map(String::as_str).collect();
    let world =
        World::new(&addresses, with_agent(config::Health { jitter: Percent::whole(10), ..config::Health::default() }));
    let start = Instant::now();
    world.during(sleep(10 * SECOND)).await;
    let seen = world.seen.lock().unwrap();
    // Two seconds each: after the first ones, a tenth of a second has a twentieth of all.
    let mut tenths = vec![(0, 0); 100];
    for (at, address) in &seen.asked {
        let tenth = &mut tenths[((*at - start).as_millis() / 100).min(99) as usize];
        if address.ends_with(":9999") { tenth.1 += 1 } else { tenth.0 += 1 }
    }
    for (index, (probes, agents)) in tenths.iter().enumerate().skip(25).take(70) {
        assert!((170..=330).contains(probes) && (170..=330).contains(agents), "{probes}, {agents} in tenth {index}");
    }
    assert!(seen.peak <= MAX_PROBES);
}

#[tokio::test(start_paused = true)]
async fn hanging_agents_leave_turns_to_the_probes() {
    let names: Vec<String> = (0..1_000).map(|index| format!("10.0.{}.{}:80", index / 250, index % 250)).collect();
    let addresses: Vec<&str> = names.iter().map(String::as_str).collect();
    let world = World::new(&addresses, with_agent(config::Health::default()));
    for address in &addresses {
        world.answer(&address.replace(":80", ":9999"), Answer::Silence);
    }
    world.during(sleep(20 * SECOND)).await;
    assert_eq!(world.seen.lock().unwrap().peak, MAX_PROBES);
    for address in &addresses {
        assert!(world.is_up(address) && world.times_asked(address) >= 3, "{address}: {}", world.times_asked(address));
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_ends_soon_is_told_once_a_day() {
    let tls = config::Health {
        interval: 60 * SECOND,
        probe: Probe::Tls(Arc::new(Tls::default())),
        ..config::Health::default()
    };
    let world = World::new(&[A, B], tls.clone());
    let (lines, _guard) = Lines::capture();
    let in_days = |days: u64| Some(crate::clock::unix_ms() / 1_000 + days * 24 * 3_600);
    world
        .during(async {
            world.seen.lock().unwrap().certificates = in_days(15);
            sleep(60 * SECOND).await;
            assert_eq!(lines.with("certificate").len(), 0);
            world.seen.lock().unwrap().certificates = in_days(13);
            sleep(23 * 3_600 * SECOND).await;
            world.swap(&[A, B], tls);
            sleep(60 * SECOND).await;
            assert_eq!(lines.with("the backend's certificate ends soon").len(), 2, "one of each");
            sleep(3_600 * SECOND).await;
            assert_eq!(lines.with("the backend's certificate ends soon").len(), 4);
        })
        .await;
    assert!(world.is_up(A) && world.is_up(B));
}
