//! The service manager's watchdog: fed as long as every worker lives.

use crate::kit::{Backend, Config, Conn, Launch, PATIENCE, Tidegate, eventually, throughout};
use std::fs;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The manager's end of the socket.
struct Manager(UnixDatagram);

impl Manager {
    /// Whether this came among all that is there now.
    fn heard(&self, word: &str) -> bool {
        let (mut heard, mut buffer) = (false, [0; 512]);
        while let Ok(length) = self.0.recv(&mut buffer) {
            heard |= std::str::from_utf8(&buffer[..length]).unwrap().lines().any(|line| line == word);
        }
        heard
    }
}

/// With a manager that wants a sign of life in each span, and a file that makes worker 1 stand still.
fn managed(backend: &Backend, span: Option<Duration>) -> (Tidegate, Manager, std::path::PathBuf) {
    let launch = Launch::new(Config::over([backend]));
    let (path, file) = (launch.dir().join("notify"), launch.dir().join("stall"));
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_nonblocking(true).unwrap();
    let hook = format!("1:{}", file.display());
    let mut launch = launch.env("NOTIFY_SOCKET", path.to_str().unwrap()).env("TIDEGATE_TEST_STALL", &hook);
    if let Some(span) = span {
        launch = launch.env("WATCHDOG_USEC", &span.as_micros().to_string());
    }
    (launch.start(), Manager(socket), file)
}

#[test]
fn f40_a_worker_that_stands_still_leaves_the_watchdog_unfed_and_the_others_go_on() {
    let backend = Backend::echo();
    let (tidegate, manager, file) = managed(&backend, Some(Duration::from_millis(500)));
    eventually("it says that it is ready", || manager.heard("READY=1"));
    for _ in 0..3 {
        eventually("it feeds the watchdog", || manager.heard("WATCHDOG=1"));
    }

    fs::write(&file, "").unwrap();
    eventually("worker 1 stands still", || file.with_extension("begun").exists());
    // What was sent until then is taken out meanwhile: few messages fit into the socket, and the next would come late.
    eventually("it is told of", || {
        manager.heard("WATCHDOG=1");
        tidegate.count_logged(&["a worker is stuck", "watchdog is not fed", "worker=1"]) > 0
    });
    manager.heard("WATCHDOG=1");
    let address = tidegate.addr();
    // As long as it stands still nothing feeds it, and whoever comes is served by the other worker.
    throughout("the watchdog stays unfed", Duration::from_secs(10), || {
        Conn::to(&address).speak();
        !manager.heard("WATCHDOG=1")
    });

    fs::remove_file(&file).unwrap();
    eventually("it feeds the watchdog again", || manager.heard("WATCHDOG=1"));
    tidegate.logged(&["the service manager's watchdog is fed again"]);
    assert_eq!(tidegate.count_logged(&["watchdog is not fed"]), 1, "{}", tidegate.log());
}

#[test]
fn without_a_watchdog_in_the_unit_nothing_is_fed() {
    let backend = Backend::echo();
    let (tidegate, manager, _) = managed(&backend, None);
    let mut ready = false;
    throughout("there is no such word", PATIENCE / 10, || {
        let mut fed = false;
        let mut buffer = [0; 512];
        while let Ok(length) = manager.0.recv(&mut buffer) {
            let text = std::str::from_utf8(&buffer[..length]).unwrap();
            ready |= text.contains("READY=1");
            fed |= text.contains("WATCHDOG");
        }
        !fed
    });
    assert!(ready);
    tidegate.echoed();
}
