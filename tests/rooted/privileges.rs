//! What the process may do once it serves: of every thread who it is, which capabilities it has and whether it can get
//! more; which files it can use; and what is said where something can't be had.

use crate::kit::files::copy_program;
use crate::kit::port::free_port;
use crate::kit::{Addr, Backend, Config, Conn, Launch, Tidegate, eventually, http};
use crate::net;
use landlock::{AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

const NOBODY: u32 = 65_534;
const NET_BIND_SERVICE: u64 = 1 << 10;

/// As the binary is started by somebody who isn't root and has no capability.
fn as_nobody(config: impl Display) -> Launch {
    let launch = Launch::new(config);
    let copy = launch.dir().join("tidegate");
    copy_program(env!("CARGO_BIN_EXE_tidegate"), &copy);
    for path in [launch.dir(), &launch.dir().join("lb.toml")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    // What follows is the binary, which nobody might not reach where it was built, and its arguments.
    let script = format!("exec {} \"$@\"", copy.display());
    let who = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"];
    launch.wrapped(who.into_iter().chain(["sh", "-c", &script]))
}

/// The user's own folder for its log and its sockets, in one that others may pass.
fn with_own_folder(config: Config) -> Launch {
    let launch = Launch::new(config);
    let own = launch.dir().join("own");
    fs::create_dir(&own).unwrap();
    chown(&own, Some(NOBODY), Some(NOBODY)).unwrap();
    fs::set_permissions(launch.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    // It is read again at each reload.
    chown(launch.dir().join("token"), Some(NOBODY), Some(NOBODY)).unwrap();
    launch
}

/// What the kernel says of a thread, by the names of `/proc/PID/status`.
struct Thread {
    name: String,
    status: String,
}

impl Thread {
    fn all(pid: u32) -> Vec<Self> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let thread = |status: String| Self { name: field(&status, "Name"), status };
        tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).map(thread).collect()
    }

    fn numbers(&self, name: &str) -> Vec<u32> {
        field(&self.status, name).split_ascii_whitespace().map(|number| number.parse().unwrap()).collect()
    }

    fn set(&self, name: &str) -> u64 {
        u64::from_str_radix(&field(&self.status, name), 16).unwrap()
    }
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

/// The threads that there are at least: the control thread is called like the program.
const NAMES: [&str; 5] = ["tidegate", "worker-0", "worker-1", "log", "access-log"];

/// Asserts that every thread of the process is nobody, in no group but this, with these capabilities and never more.
fn assert_dropped(tidegate: &Tidegate, group: u32, capabilities: u64) {
    // A thread is called by its own name once it has run for the first time, which may be after the process is ready.
    eventually("each thread has its name", || {
        let names: BTreeSet<String> = Thread::all(tidegate.pid).into_iter().map(|thread| thread.name).collect();
        NAMES.iter().all(|name| names.contains(*name))
    });
    let threads = Thread::all(tidegate.pid);
    assert!(threads.len() >= NAMES.len(), "{:?}", threads.iter().map(|thread| &thread.name).collect::<Vec<_>>());
    for thread in threads {
        let Thread { name, status } = &thread;
        assert_eq!(thread.numbers("Uid"), [NOBODY; 4], "{name}: {status}");
        assert_eq!(thread.numbers("Gid"), [group; 4], "{name}: {status}");
        assert_eq!(thread.numbers("Groups"), [group], "{name}: {status}");
        assert_eq!(thread.numbers("NoNewPrivs"), [1], "{name}: {status}");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(thread.set(set), capabilities, "{set} of {name}: {status}");
        }
    }
}

/// Whether the kernel can restrict processes by landlock(7).
fn has_landlock() -> bool {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    ruleset.handle_access(AccessFs::Execute).is_ok()
}

#[test]
fn f84_every_thread_is_who_the_config_says_and_may_what_it_says() {
    let Some(_cable) = net::cable() else { return };
    let backend = Backend::echo();
    let config = |keys: &str| {
        let config = Config::over([&backend]).bind("127.0.0.1:81").runtime(keys);
        config.log("access = \"$DIR/own/access.log\"\nformat = \"json\"")
    };
    for (keys, group, capabilities) in [
        ("user = \"nobody\"", NOBODY, 0),
        ("user = \"65534\"\ngroup = \"daemon\"\nkeep_capabilities = [\"net_bind_service\"]", 1, NET_BIND_SERVICE),
        ("user = \"65534\"\nkeep_capabilities = [\"net_raw\", \"net_admin\"]\nlandlock = \"on\"", NOBODY, 3 << 12),
    ] {
        let tidegate = with_own_folder(config(keys)).start();
        assert_dropped(&tidegate, group, capabilities);
        // And it works: below port 1024, where nobody may bind.
        drop(tidegate.echoed());
        tidegate.until_idle();
        assert_dropped(&tidegate, group, capabilities);
    }
}

#[test]
fn f84_a_user_without_an_entry_needs_a_group_and_has_it_alone() {
    if !net::is_root("this test becomes another user") {
        return;
    }
    let backend = Backend::echo();
    let config = |keys: &str| Config::over([&backend]).runtime(keys);
    let exit = Launch::new(config("user = \"4000000\"")).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    assert!(exit.stderr.contains("runtime.user") && exit.stderr.contains("set runtime.group"), "{}", exit.stderr);
    let tidegate = Tidegate::start(config("user = \"4000000\"\ngroup = \"4000001\""));
    for thread in Thread::all(tidegate.pid) {
        assert_eq!((thread.numbers("Uid"), thread.numbers("Gid")), (vec![4_000_000; 4], vec![4_000_001; 4]));
        assert_eq!(thread.numbers("Groups"), [4_000_001]);
    }
    drop(tidegate.echoed());
}

#[test]
fn f84_who_may_not_become_another_is_told_so_and_who_is_it_already_goes_on() {
    if !net::is_root("this test becomes another user") {
        return;
    }
    let backend = Backend::echo();
    // Whose the token would have to be is another question.
    let config =
        |keys: &str| Config::over([&backend]).runtime(keys).to_string().replace("token_file = \"$DIR/token\"\n", "");
    let refused = |keys: &str, words: &[&str]| {
        let exit = as_nobody(config(keys)).run_to_end();
        assert_eq!(exit.code, Some(71), "{keys}: {exit:?}");
        assert!(words.iter().all(|word| exit.stderr.contains(word)), "{keys}: {}", exit.stderr);
    };
    refused("user = \"daemon\"", &["runtime.user", "user 65534", "may not become daemon", "start it as root"]);
    refused("user = \"nobody\"\ngroup = \"daemon\"", &["may not become nobody (group 1)"]);
    let keep = "keep_capabilities = [\"net_bind_service\"]";
    refused(
        &format!("user = \"nobody\"\n{keep}"),
        &["runtime.keep_capabilities", "no net_bind_service", "CAP_NET_BIND_SERVICE", "AmbientCapabilities="],
    );
    refused("user = \"no-such-one\"", &["runtime.user", "doesn't know no-such-one", "useradd --system"]);

    let tidegate = as_nobody(config("user = \"nobody\"")).start();
    assert!(Thread::all(tidegate.pid).iter().all(|thread| thread.numbers("NoNewPrivs") == [1]));
    drop(tidegate.echoed());
}

#[test]
fn f84_what_sockets_need_while_they_serve_must_be_kept() {
    let Some(_cable) = net::cable() else { return };
    let backend = Backend::echo();
    let config = |keys: &str| Config::over([&backend]).runtime(keys).connect("mark = 7");
    let exit = Launch::new(config("user = \"nobody\"")).run_to_end();
    assert_eq!(exit.code, Some(71), "{exit:?}");
    let said = &exit.stderr;
    assert!(said.contains("pools.web.connect.mark") && said.contains("runtime.keep_capabilities"), "{said}");
    let tidegate = Tidegate::start(config("user = \"nobody\"\nkeep_capabilities = [\"net_admin\"]"));
    drop(tidegate.echoed());
}

#[test]
fn f84_the_log_and_the_sockets_are_the_users_own() {
    if !net::is_root("this test becomes another user") {
        return;
    }
    for landlock in ["off", "on"] {
        let backend = Backend::echo();
        let keys = format!("user = \"nobody\"\nlandlock = \"{landlock}\"");
        let config = Config::over([&backend]).runtime(&keys).bind("unix:$DIR/own/web.sock");
        let mut tidegate = with_own_folder(config.log("access = \"$DIR/own/access.log\"\nformat = \"json\"")).start();
        let own = tidegate.dir().join("own");
        let (log, moved, socket) = (own.join("access.log"), own.join("access.log.1"), own.join("web.sock"));
        let owner = |path: &Path| {
            let metadata = fs::metadata(path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        for path in [&log, &socket] {
            assert_eq!(owner(path), (NOBODY, NOBODY), "{}", path.display());
        }
        // The way of log rotation: what comes later is in a file that the process, as nobody, has made itself.
        fs::rename(&log, &moved).unwrap();
        eventually("it writes to a new file", || {
            drop(tidegate.echoed());
            log.exists()
        });
        assert_eq!(owner(&log), (NOBODY, NOBODY));
        assert_eq!(tidegate.count_logged(&["runtime.user may not make"]), 0, "{}", tidegate.log());
        tidegate.signal(rustix::process::Signal::TERM);
        assert_eq!(tidegate.wait().code, Some(0));
        assert!(!socket.exists(), "it is removed");
    }
}

#[test]
fn f84_what_cannot_be_done_after_the_drop_is_said_at_the_start() {
    if !net::is_root("this test becomes another user") {
        return;
    }
    let backend = Backend::echo();
    let config = Config::over([&backend]).runtime("user = \"nobody\"").bind("unix:$DIR/web.sock").logged();
    let launch = Launch::new(config);
    fs::set_permissions(launch.dir().join("lb.toml"), fs::Permissions::from_mode(0o600)).unwrap();
    let tidegate = launch.start();
    tidegate.logged(&["--config", "may not read", "reloads will be refused"]);
    tidegate.logged(&["admin.token_file", "may not read", "reloads will be refused"]);
    tidegate.logged(&["log.access", "may not make files", "give it a directory of its own"]);
    tidegate.logged(&["listeners.web.bind", "web.sock", "stays behind"]);
    // It serves all the same; root alone passes the folder.
    drop(Conn::to(&tidegate.addr()));
    tidegate.records(1);
}

#[test]
fn f84_landlock_is_there_or_the_start_says_that_it_is_not() {
    if !net::is_root("this test looks into processes of another user") {
        return;
    }
    let backend = Backend::echo();
    let launch = Launch::new(Config::over([&backend]).runtime("landlock = \"required\"").logged());
    if !has_landlock() {
        let exit = launch.run_to_end();
        assert_eq!(exit.code, Some(71), "{exit:?}");
        assert!(exit.stderr.contains("runtime.landlock: this kernel has no landlock"), "{}", exit.stderr);
        return;
    }
    let tidegate = launch.start();
    tidegate.logged(&["landlock restricts"]);
    drop(tidegate.echoed());
    tidegate.records(1);
    // Root as it is, it may not enter a folder that the config doesn't name: its log can't follow to there.
    let elsewhere = tempfile::tempdir().unwrap();
    let (log, target) = (tidegate.dir().join("access.log"), elsewhere.path().join("access.log"));
    fs::rename(&log, log.with_extension("old")).unwrap();
    std::os::unix::fs::symlink(&target, &log).unwrap();
    eventually("the log can't be opened", || {
        drop(tidegate.echoed());
        tidegate.count_logged(&["the access log can't be written", "Permission denied"]) > 0
    });
    assert!(!target.exists());
}

/// Puts another config in place and asks for it.
fn ask_for(tidegate: &Tidegate, config: &Config) {
    put(tidegate, &config.to_string());
}

fn text_of(tidegate: &Tidegate, config: &Config) -> String {
    config.to_string().replace("$DIR", tidegate.dir().to_str().unwrap())
}

fn put(tidegate: &Tidegate, text: &str) {
    let text = text.replace("$DIR", tidegate.dir().to_str().unwrap());
    let new = tidegate.dir().join("lb.toml.new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o644)).unwrap();
    fs::rename(&new, tidegate.dir().join("lb.toml")).unwrap();
    tidegate.signal(rustix::process::Signal::HUP);
}

fn generation(tidegate: &Tidegate) -> u64 {
    tidegate.status()["generation"].as_u64().unwrap()
}

#[test]
fn f50_after_the_drop_a_reload_has_low_ports_by_the_capability_and_is_refused_without() {
    let Some(_cable) = net::cable() else { return };
    let (backend, second) = (Backend::echo(), Backend::echo());
    let both = ["127.0.0.1:81", "127.0.0.1:82"];
    for keep in [true, false] {
        let kept = if keep { "keep_capabilities = [\"net_bind_service\"]" } else { "" };
        let config = Config::over([&backend]).runtime("user = \"nobody\"").runtime(kept);
        let tidegate = with_own_folder(config.clone().bind(both[0])).start();
        // What is bound stays so, whatever the process may: another backend of the same listener.
        let other = Config::over([&second, &backend]).runtime("user = \"nobody\"").runtime(kept);
        ask_for(&tidegate, &other.clone().bind(both[0]));
        eventually("the second config runs", || generation(&tidegate) == 2);
        let mut client = tidegate.echoed();

        ask_for(&tidegate, &config.clone().binds(both));
        if keep {
            eventually("the third config runs", || generation(&tidegate) == 3);
            Conn::to(&Addr::parse(both[1])).speak();
        } else {
            let line = tidegate.logged(&["refused", "127.0.0.1:82", "Permission denied", "CAP_NET_BIND_SERVICE"]);
            assert!(line.contains("runtime.keep_capabilities"), "{line}");
            assert_eq!(generation(&tidegate), 2);
            assert!(Conn::try_to(&Addr::parse(both[1])).is_err());
            drop(tidegate.echoed());
        }
        client.speak();
        drop(client);
        // Both go as they came.
        ask_for(&tidegate, &other.bind(both[0]).pool("balance = \"random\""));
        eventually("the last config runs", || generation(&tidegate) == if keep { 4 } else { 3 });
    }
}

#[test]
fn f50_landlock_lets_a_reload_have_what_is_beside_what_was_named_and_nothing_else() {
    if !net::is_root("this test becomes another user") || !has_landlock() {
        return;
    }
    let backend = Backend::echo();
    let elsewhere = tempfile::tempdir().unwrap();
    chown(elsewhere.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    let config = |binds: &[&str]| {
        let config = Config::over([&backend]).runtime("user = \"nobody\"\nlandlock = \"required\"");
        config.binds(binds.iter().chain(&["127.0.0.1:0"]))
    };
    let tidegate = with_own_folder(config(&["unix:$DIR/own/web.sock"])).start();
    drop(tidegate.echoed());
    ask_for(&tidegate, &config(&["unix:$DIR/own/web.sock", "unix:$DIR/own/more.sock"]));
    eventually("the second config runs", || generation(&tidegate) == 2);
    Conn::to(&Addr::parse(&format!("unix:{}/own/more.sock", tidegate.dir().display()))).speak();
    let outside = format!("unix:{}/web.sock", elsewhere.path().display());
    ask_for(&tidegate, &config(&["unix:$DIR/own/web.sock", &outside]));
    tidegate.logged(&["refused", &outside, "Permission denied"]);
    assert_eq!(generation(&tidegate), 2);
    drop(tidegate.echoed());
    ask_for(&tidegate, &config(&["unix:$DIR/own/web.sock"]));
    eventually("the first config runs again", || generation(&tidegate) == 3);
}

#[test]
fn f50_after_the_drop_a_reload_and_an_upgrade_can_bind_beside_what_was_bound_before_it() {
    if !net::is_root("this test becomes another user") {
        return;
    }
    let backend = Backend::echo();
    let bind = format!("127.0.0.1:{}", free_port());
    let config = |lines: &str| Config::over([&backend]).runtime("user = \"nobody\"").bind(&bind).listener(lines);
    let mut tidegate = with_own_folder(config("")).linked().start();
    ask_for(&tidegate, &config("socket.interface = \"lo\""));
    eventually("the second config runs", || generation(&tidegate) == 2);
    drop(tidegate.echoed());
    fs::write(tidegate.dir().join("lb.toml"), text_of(&tidegate, &config(""))).unwrap();
    tidegate.signal(rustix::process::Signal::USR2);
    tidegate.follow_alone();
    assert_eq!(generation(&tidegate), 3);
    assert!(Thread::all(tidegate.pid).iter().all(|thread| thread.numbers("Uid") == [NOBODY; 4]));
    drop(tidegate.echoed());
}

/// On a disk with room for two small files.
#[test]
fn f56_on_a_full_disk_the_state_file_stays_as_it_was_and_is_written_when_there_is_room() {
    if !net::is_root("this test mounts a file system") {
        return;
    }
    let backend = Backend::echo();
    let required = if has_landlock() { "required" } else { "off" };
    let keys = format!("user = \"nobody\"\nlandlock = \"{required}\"\nstate_file = \"$DIR/own/state.json\"");
    let launch = with_own_folder(Config::over([&backend]).runtime(&keys));
    let mount = format!("mount -t tmpfs -o size=8k,mode=777 none {}/own && exec \"$@\"", launch.dir().display());
    let mut tidegate = launch.wrapped(["unshare", "--mount", "sh", "-c", &mount, "sh"]).start();
    let own = format!("/proc/{}/root{}/own", tidegate.pid, tidegate.dir().display());
    let (state, filler) = (format!("{own}/state.json"), format!("{own}/filler"));
    let weigh = |weight: u32| {
        let answer = tidegate.post(&format!("/pools/web/backends/{backend}"), &format!("{{\"weight\": {weight}}}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let kept =
        |weight: u32| fs::read_to_string(&state).is_ok_and(|text| text.contains(&format!("\"weight\": {weight}\n")));
    weigh(2);
    eventually("it is written", || kept(2));
    assert!(fs::write(&filler, [0; 8 << 10]).is_err(), "the disk is full");
    weigh(3);
    tidegate.logged(&["WARN", "can't be written", "No space left", "it is tried again"]);
    assert!(kept(2), "the whole file of before");
    assert!(!Path::new(&format!("{state}.new")).exists());
    fs::remove_file(&filler).unwrap();
    eventually("there is room again", || kept(3));
    tidegate.logged(&["the state file is written again"]);
    drop(tidegate.echoed());
    tidegate.leaks_not_asked();
}

#[test]
fn f50_landlock_lets_a_reload_read_what_a_link_leads_to() {
    if !net::is_root("this test becomes another user") || !has_landlock() {
        return;
    }
    let backend = Backend::echo();
    let elsewhere = tempfile::tempdir().unwrap();
    let config = |lines: &str| Config::over([&backend]).runtime("landlock = \"required\"").pool(lines);
    let launch = Launch::new(config(""));
    let (link, target) = (launch.dir().join("lb.toml"), elsewhere.path().join("lb.toml"));
    fs::copy(&link, &target).unwrap();
    fs::remove_file(&link).unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let tidegate = launch.start();
    fs::write(&target, text_of(&tidegate, &config("balance = \"random\""))).unwrap();
    tidegate.signal(rustix::process::Signal::HUP);
    eventually("the second config runs", || generation(&tidegate) == 2);
}

/// Wherever the token is, and without becoming another user.
#[test]
fn f50_landlock_lets_a_reload_read_another_token_in_the_same_place() {
    if !net::is_root("this test has files of root's own") || !has_landlock() {
        return;
    }
    let backend = Backend::echo();
    let (tokens, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let token_in = |directory: &tempfile::TempDir, text: &str| {
        let (path, new) = (directory.path().join("token"), directory.path().join("token.new"));
        fs::write(&new, text).unwrap();
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    };
    let config = |path: &Path, more: &str| {
        let text = Config::over([&backend]).runtime("landlock = \"required\"").pool(more).to_string();
        text.replace("$DIR/token", path.to_str().unwrap())
    };
    let path = token_in(&tokens, "the-first-of-the-two-tokens");
    let tidegate = Launch::new(config(&path, "")).start();
    let may = |token: &str| {
        let header = format!("Authorization: Bearer {token}\r\n");
        http::post_with(tidegate.admin(), "/log", &header, "{\"level\": \"info\"}").status
    };
    assert_eq!((may("the-first-of-the-two-tokens"), may("the-second-of-the-two-tokens")), (200, 401));
    token_in(&tokens, "the-second-of-the-two-tokens");
    put(&tidegate, &config(&path, "balance = \"random\""));
    eventually("the second config runs", || generation(&tidegate) == 2);
    assert_eq!((may("the-first-of-the-two-tokens"), may("the-second-of-the-two-tokens")), (401, 200));

    // One that the config did not name when the process began is out of its reach.
    let outside = token_in(&elsewhere, "a-third-token-in-another-place");
    put(&tidegate, &config(&outside, ""));
    tidegate.logged(&["refused", "admin.token_file", outside.to_str().unwrap(), "Permission denied"]);
    assert_eq!((generation(&tidegate), may("the-second-of-the-two-tokens")), (2, 200));
}
