//! Time that does what it should not: a stopped backend, a stopped balancer, and a wall clock that jumps.

use crate::kit::program::succeed;
use crate::kit::wait::pace;
use crate::kit::{Backend, Config, End, Launch, Refusing, Tidegate, eventually, eventually_eq, kernel, throughout};
use rustix::process::Signal;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

const EXCHANGE: &str = "probe = \"exchange\"\nexchange = { send = \"ping\", expect = \"ping\" }\ninterval = \"1s\"\n\
                        fast_interval = \"100ms\"\ntimeout = \"1s\"\nrise = 2\nfall = 2";
/// With the patience that a slow machine needs.
const PATIENT: &str = "probe = \"exchange\"\nexchange = { send = \"ping\", expect = \"ping\" }\ninterval = \"1s\"\n\
                       fast_interval = \"1s\"\ntimeout = \"1s\"\nrise = 2\nfall = 2";

fn stop(process: &Tidegate) {
    process.signal(Signal::STOP);
    eventually("all its threads have stopped", || kernel::is_stopped(process.pid));
}

/// Another balancer is the backend that is stopped: a process, whose connects the kernel goes on to answer.
fn f23(on_down: &str) -> (Backend, [Tidegate; 2], Tidegate) {
    let echo = Backend::echo();
    let backends = [Tidegate::start(Config::over([&echo])), Tidegate::start(Config::over([&echo]))];
    let addresses = backends.each_ref().map(Tidegate::addr);
    let config = Config::over(addresses).pool(&format!("on_down = \"{on_down}\"")).health(EXCHANGE);
    let tidegate = Tidegate::start(config);
    eventually_eq("both are up", &2, || tidegate.count("tidegate_backend_up"));
    (echo, backends, tidegate)
}

#[test]
fn f23_a_stopped_process_fails_its_probes_and_new_sessions_go_elsewhere() {
    for on_down in ["keep", "reset"] {
        let (_echo, backends, tidegate) = f23(on_down);
        let name = backends[0].addr().to_string();
        // In turn: the first is on the first backend.
        let mut clients = [tidegate.echoed(), tidegate.echoed()];
        stop(&backends[0]);
        eventually_eq("its probes fail", &"down".to_owned(), || tidegate.state(&name));
        for _ in 0..4 {
            tidegate.echoed();
        }
        if on_down == "reset" {
            clients[0].expect_end(End::Rst);
            eventually_eq("for this reason", &1, || tidegate.closed("backend_down"));
        }
        backends[0].signal(Signal::CONT);
        if on_down == "keep" {
            clients[0].speak();
        }
        clients[1].speak();
        eventually_eq("it is back", &"up".to_owned(), || tidegate.state(&name));
        drop(clients);
        drop(tidegate);
    }
}

#[test]
fn f89_a_balancer_that_was_stopped_takes_nobody_down() {
    let backends: Vec<Backend> = (0..10).map(|_| Backend::echo()).collect();
    let tidegate = Tidegate::start(Config::over(&backends).health(PATIENT));
    eventually_eq("all are up", &10, || tidegate.count("tidegate_backend_up"));
    let mut client = tidegate.echoed();
    let changes = tidegate.count("tidegate_backend_state_changes_total");
    for _ in 0..2 {
        stop(&tidegate);
        pace(Duration::from_secs(4));
        tidegate.signal(Signal::CONT);
        throughout("all stay up", Duration::from_secs(3), || tidegate.count("tidegate_backend_up") == 10);
        client.speak();
        drop(tidegate.echoed());
    }
    assert_eq!(tidegate.count("tidegate_backend_state_changes_total"), changes);
    assert_eq!(tidegate.count("tidegate_backend_ejections_total"), 0);
    assert_eq!(tidegate.count_logged(&["down"]), 0, "{}", tidegate.log());
}

/// A wall clock of its own for a process.
struct Clock(File);

impl Clock {
    fn of(launch: Launch) -> (Self, Launch) {
        let (source, library) = (launch.dir().join("clock.c"), launch.dir().join("clock.so"));
        let path = launch.dir().join("clock");
        fs::write(&source, include_str!("clock.c")).unwrap();
        succeed(
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl"),
            "Install a C compiler: apt-get install gcc",
        );
        fs::write(&path, [0; 8]).unwrap();
        let launch =
            launch.env("LD_PRELOAD", library.to_str().unwrap()).env("TIDEGATE_TEST_CLOCK", path.to_str().unwrap());
        (Self(File::options().write(true).open(path).unwrap()), launch)
    }

    /// Seconds ahead of the real time from now on.
    fn jump(&self, seconds: i64) {
        self.0.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }
}

#[test]
fn f88_no_timer_cares_when_the_wall_clock_jumps_ten_years() {
    const TEN_YEARS: i64 = 10 * 365 * 86_400;
    let (good, dead) = (Backend::echo(), Refusing::new());
    let reborn = Backend::echo();
    let name = reborn.to_string();
    let config = Config::over([good.to_string(), dead.to_string(), name.clone()])
        .pool("slow_start = \"1h\"\nmax_lifetime = \"1h\"\npanic_threshold = \"0%\"")
        .listener("idle_timeout = \"10m\"")
        .health("initial = \"up\"\ninterval = \"300ms\"\nfast_interval = \"100ms\"\ntimeout = \"300ms\"\nrise = 1\nfall = 1000")
        .ejection("consecutive_failures = 1\nbase_time = \"300s\"");
    let (clock, launch) = Clock::of(Launch::new(config));
    let tidegate = launch.start();
    let mut client = tidegate.echoed();
    eventually("the dead one is set aside", || {
        drop(tidegate.echoed());
        tidegate.state(&dead) == "ejected"
    });
    let states = || [tidegate.state(&good), tidegate.state(&dead), tidegate.state(&name)];
    let before = states();
    let changes = tidegate.count("tidegate_backend_state_changes_total");
    for seconds in [TEN_YEARS, -TEN_YEARS, 0] {
        let year = |tidegate: &Tidegate| tidegate.status()["now"].as_str().unwrap()[..4].parse::<i64>().unwrap();
        clock.jump(0);
        let now = year(&tidegate);
        clock.jump(seconds);
        let shifted = year(&tidegate) - now;
        assert!((shifted - seconds / (365 * 86_400)).abs() <= 1, "the clock was not moved: {shifted} years");
        let probes = || tidegate.metrics().sum("tidegate_backend_health_checks_total", &[("result", "success")]) as u64;
        let begun = probes();
        eventually("probes go on", || probes() >= begun + 6);
        throughout("nothing changes", Duration::from_millis(500), || states() == before);
        client.speak();
        drop(tidegate.echoed());
    }
    assert_eq!(tidegate.count("tidegate_backend_state_changes_total"), changes);
    eventually_eq("the others have ended", &1, || tidegate.sessions());
}
