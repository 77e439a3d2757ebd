//! Memory that runs short in the process's cgroup, which the test makes, fills and removes.

use crate::kit::{Backend, Config, Conn, End, Launch, eventually};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

const LIMIT: u64 = 64 << 20;

/// Groups made so far, so that each has a name of its own.
static MADE: AtomicUsize = AtomicUsize::new(0);

/// A group of the test's own, below the one that it runs in; it goes with it.
struct Group {
    folder: PathBuf,
    limit: &'static str,
}

impl Group {
    /// # Panics
    /// Without root, if nobody said that this is meant; and where the kernel has no memory controller for us.
    fn make() -> Option<Self> {
        if !crate::net::is_root("this test makes a cgroup") {
            return None;
        }
        let name = format!("tidegate-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let folder = |root: &str, own: &str| Path::new(root).join(own.trim_start_matches('/')).join(&name);
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let place = |wanted: &str| {
            own.lines().find_map(|line| {
                let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
                (controllers == wanted).then(|| path.to_owned())
            })
        };
        let (folder, limit) = match place("memory") {
            Some(own) => (folder("/sys/fs/cgroup/memory", &own), "memory.limit_in_bytes"),
            None => (folder("/sys/fs/cgroup", &place("").expect("a cgroup of ours")), "memory.max"),
        };
        fs::create_dir(&folder).unwrap_or_else(|error| panic!("can't make {}: {error}", folder.display()));
        let group = Self { folder, limit };
        assert!(group.folder.join(limit).exists(), "{} has no memory controller", group.folder.display());
        group.allow(LIMIT);
        Some(group)
    }

    fn allow(&self, bytes: u64) {
        fs::write(self.folder.join(self.limit), bytes.to_string()).unwrap();
    }

    /// Words that run a command in this group.
    fn words(&self) -> [String; 3] {
        let procs = self.folder.join("cgroup.procs");
        ["sh".to_owned(), "-c".to_owned(), format!("echo $$ >{} && exec \"$0\" \"$@\"", procs.display())]
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel gives a group up a moment after its last process has gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            crate::kit::wait::pace(std::time::Duration::from_millis(20));
        }
        eprintln!("can't remove {}", self.folder.display());
    }
}

/// A file in memory that is charged to the group, until it is dropped.
struct Ballast(PathBuf);

impl Ballast {
    fn of(group: &Group, bytes: u64) -> Self {
        let ballast = Self(Path::new("/dev/shm").join(group.folder.file_name().unwrap()));
        let script = format!("head -c {bytes} /dev/zero >{}", ballast.0.display());
        let [sh, dash, entry] = group.words();
        let status = Command::new(sh).args([dash, entry]).args(["sh", "-c", &script]).status().unwrap();
        assert!(status.success());
        ballast
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[test]
fn f39_new_clients_are_shed_before_the_kernel_kills_for_want_of_memory() {
    let Some(group) = Group::make() else { return };
    let backend = Backend::echo();
    let mut tidegate = Launch::new(Config::over([&backend]).logged()).wrapped(group.words()).start();
    let value = |name: &str| tidegate.metrics().sum(name, &[]) as u64;
    eventually("it has found its group", || value("tidegate_cgroup_memory_limit_bytes") == LIMIT);
    assert!(value("tidegate_cgroup_memory_used_bytes") < LIMIT / 2);
    let mut before = tidegate.echoed();

    let ballast = Ballast::of(&group, LIMIT * 8 / 10);
    tidegate.logged(&["memory is short"]);
    assert!(value("tidegate_cgroup_memory_used_bytes") >= LIMIT * 8 / 10);
    for _ in 0..20 {
        tidegate.connect().expect_end(End::Rst);
    }
    // Who is served already goes on, and so does the admin endpoint.
    before.speak();
    eventually("each for that reason", || tidegate.closed("low_memory") == 20);

    drop(ballast);
    tidegate.logged(&["memory is no longer short"]);
    before.speak();
    let mut after: Conn = tidegate.echoed();
    after.speak();
    drop((before, after));
    assert!(tidegate.lives());
    let shed = tidegate.records(22).iter().filter(|record| record["reason"] == "low_memory").count();
    assert_eq!(shed, 20);
}

#[test]
fn f39_without_a_mark_nobody_is_shed() {
    let Some(group) = Group::make() else { return };
    let backend = Backend::echo();
    let config = Config::over([&backend]).runtime("memory_high = \"off\"");
    let tidegate = Launch::new(config).wrapped(group.words()).start();
    let _ballast = Ballast::of(&group, LIMIT * 8 / 10);
    let used = || tidegate.metrics().sum("tidegate_cgroup_memory_used_bytes", &[]) as u64;
    eventually("it sees the use", || used() >= LIMIT * 8 / 10);
    tidegate.echoed();
}
