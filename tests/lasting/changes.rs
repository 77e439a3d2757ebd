//! Changes under load: nobody who connects or stays connected may notice.

use crate::kit::wait::pace;
use crate::kit::{Config, Tidegate, eventually, eventually_eq, free_port, kernel};
use crate::load::{Echoes, Load};
use rustix::process::Signal;
use std::fmt::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

/// Or the tests below could not fail.
#[test]
fn the_load_notices_what_goes_wrong() {
    let echoes = Echoes::new(2);
    let mut tidegate = Tidegate::start(Config::over(&echoes.addresses));
    let address = tidegate.addr().tcp();
    let load = Load::start(vec![address], 500, &[address], 20);
    eventually("some are served", || load.served() > 200);
    let report = load.finish();
    assert!(report.wrong.is_empty() && report.served > 200 && report.compared > 0 && report.rate > 0.0, "{report:?}");

    let load = Load::start(vec![address], 500, &[address], 20);
    eventually("some are served", || load.served() > 200);
    assert_eq!(load.wrong(""), 0);
    tidegate.leaks_not_asked();
    tidegate.signal(Signal::KILL);
    tidegate.wait();
    eventually("it is noticed", || load.wrong("of a stream") == 20 && load.wrong("connect") > 20);
    assert!(!load.finish().wrong.is_empty());
}

/// Of short connections a second, and of long streams.
const RATE: u32 = 1_100;
const STREAMS: usize = 500;

/// Two listeners for the storm and one for the streams, at ports that don't change; all else does.
struct Scene {
    echoes: Echoes,
    ports: [u16; 5],
}

impl Scene {
    fn new() -> Self {
        Self { echoes: Echoes::new(8), ports: std::array::from_fn(|_| free_port()) }
    }

    fn start(&self) -> Tidegate {
        Tidegate::start(self.config(0))
    }

    fn address(&self, index: usize) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports[index]).into()
    }

    fn load(&self) -> Load {
        Load::start(vec![self.address(0), self.address(1)], RATE, &[self.address(2)], STREAMS)
    }

    /// The config of step `step`: never the same as the one before in listeners, pools, weights, limits and backends.
    fn config(&self, step: usize) -> String {
        const BALANCE: [&str; 6] =
            ["round_robin", "random", "least_connections", "power_of_two", "peak_ewma", "source_hash"];
        let backends = |from: usize, count: usize| -> String {
            let list: Vec<String> = (from..from + count)
                .map(|index| {
                    let address = self.echoes.addresses[index % self.echoes.addresses.len()];
                    format!("{{ address = \"{address}\", weight = {} }}", 1 + (index + step) % 5)
                })
                .collect();
            list.join(", ")
        };
        let [one, two, streams, three, four] = self.ports;
        let (name, balance) = (["web", "www"][step / 2 % 2], BALANCE[step % BALANCE.len()]);
        let mut text = format!(
            "[runtime]\nworkers = 2\ndrain_timeout = \"{}s\"\nmax_connections = {}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [limits.all]\nmax_connections = {}\n\
             [listeners.{name}]\nbind = [\"127.0.0.1:{one}\", \"127.0.0.1:{two}\"]\npool = \"short\"\nlimits = [\"all\"]\n\
             max_connections = {}\nidle_timeout = \"{}s\"\nbacklog = {}\n\
             [listeners.streams]\nbind = \"127.0.0.1:{streams}\"\npool = \"{}\"\nlimits = [\"all\"]\n\
             [pools.short]\nbalance = \"{balance}\"\nbackends = [{}]\n[pools.short.health]\n{}\n",
            30 + step % 7,
            5_000 + step % 11,
            4_500 + step % 13,
            4_000 + step % 17,
            60 + step % 5,
            1_000 + step % 3,
            ["long", "short"][step / 3 % 2],
            backends(step, 3 + step % 5),
            ["probe = \"none\"", "interval = \"300ms\""][step / 5 % 2],
        );
        if (step / 3).is_multiple_of(2) {
            write!(
                text,
                "[pools.long]\nbackends = [{}]\n[pools.long.health]\nprobe = \"none\"\n",
                backends(step + 4, 2)
            )
            .unwrap();
        }
        if step % 2 == 1 {
            let port = [three, four][step / 2 % 2];
            write!(text, "[listeners.spare]\nbind = \"127.0.0.1:{port}\"\npool = \"spare\"\n").unwrap();
            write!(text, "[pools.spare]\nbackends = [{}]\n", backends(step, 1 + step % 3)).unwrap();
        }
        if step % 4 == 3 {
            write!(text, "[[listeners.{name}.routes]]\nshare = \"{}%\"\npool = \"spare\"\n", 10 + step % 50).unwrap();
        }
        text
    }

    /// Has the next config taken, and waits until it is.
    fn reload(&self, tidegate: &Tidegate, step: usize) {
        std::fs::write(tidegate.dir().join("lb.toml"), self.config(step)).unwrap();
        let wanted = tidegate.generation() + 1;
        tidegate.signal(Signal::HUP);
        eventually_eq("the reload is done", &wanted, || tidegate.generation());
    }
}

#[test]
fn f41_three_hundred_reloads_of_everything_cost_nobody_a_connection() {
    const RELOADS: usize = 300;
    let scene = Scene::new();
    let mut tidegate = scene.start();
    let load = scene.load();
    eventually("the load has begun", || load.served() > u64::from(RATE));
    let (begun, mut sizes) = (Instant::now(), Vec::new());
    for step in 1..=RELOADS {
        pace((begun + Duration::from_millis(100) * step as u32).saturating_duration_since(Instant::now()));
        scene.reload(&tidegate, step);
        assert_eq!(load.wrong(""), 0, "at step {step}: {:?}", load.finish());
        if step % 100 == 0 {
            sizes.push(kernel::resident(tidegate.pid) >> 20);
        }
    }
    let report = load.finish();
    println!("{RELOADS} reloads in {:?}; MiB at each third: {sizes:?}; {report:?}", begun.elapsed());
    assert!(report.wrong.is_empty(), "{report:?}");
    assert!(sizes[2] <= sizes[0] + 16, "{sizes:?}");
    // The first config again, so that the kit finds as many descriptors as at the start.
    scene.reload(&tidegate, RELOADS + 1);
    std::fs::write(tidegate.dir().join("lb.toml"), scene.config(0)).unwrap();
    tidegate.signal(Signal::HUP);
    eventually_eq("the reload is done", &(RELOADS as u64 + 3), || tidegate.generation());
    eventually_eq("nobody is left", &0, || tidegate.sessions());
    assert!(tidegate.lives());
}

#[test]
fn f55_ten_upgrades_in_a_row_cost_nobody_a_connection() {
    const UPGRADES: usize = 10;
    let scene = Scene::new();
    let mut tidegate = scene.start();
    let load = scene.load();
    eventually("the load has begun", || load.served() > u64::from(RATE));
    let (begun, sockets) = (Instant::now(), tidegate.sockets());
    let (mut predecessors, mut sizes) = (Vec::new(), Vec::new());
    for step in 1..=UPGRADES {
        pace((begun + Duration::from_secs(1) * step as u32).saturating_duration_since(Instant::now()));
        // The last one is as the first was.
        let config = scene.config(if step == UPGRADES { 0 } else { step });
        let workers = format!("workers = {}", if step == UPGRADES { 2 } else { 1 + step % 3 });
        std::fs::write(tidegate.dir().join("lb.toml"), config.replace("workers = 2", &workers)).unwrap();
        tidegate.signal(Signal::USR2);
        predecessors.push(tidegate.follow());
        assert_eq!(load.wrong(""), 0, "at step {step}: {:?}", load.finish());
        sizes.push(kernel::resident(tidegate.pid) >> 20);
    }
    // Those without long streams have nothing left to do, and none of them is waited for.
    for predecessor in &mut predecessors[1..] {
        eventually("it has ended", || predecessor.has_ended());
        // The second one's end is the first one's to see, which tells of it.
        assert!(predecessor.try_wait().is_none_or(|status| status.success()), "{}", tidegate.log());
    }
    assert!(predecessors[0].try_wait().is_none(), "the first one has all the streams");
    let report = load.finish();
    println!("{UPGRADES} upgrades in {:?}; MiB of each: {sizes:?}; {report:?}", begun.elapsed());
    assert!(report.wrong.is_empty(), "{report:?}");
    assert_eq!(predecessors[0].end().map(|status| status.code()), Some(Some(0)), "{}", tidegate.log());
    assert_eq!(tidegate.count_logged(&["ERROR"]), 0, "{}", tidegate.log());
    assert_eq!(tidegate.generation(), UPGRADES as u64 + 1);
    assert!(sizes[UPGRADES - 1] <= sizes[0] + 16, "{sizes:?}");
    eventually("its sockets are as many as the first one's", || tidegate.sockets() <= sockets);
}
