//! The real binary as a child process: started in a folder of its own, asked where it bound, watched to its end.
//!
//! Invariant: nothing leaks. When a [`Tidegate`] goes out of scope in a test that hasn't failed, the gauges of sessions
//! and slots must return to zero, its fds to their number after the start, SIGTERM must end it with 0, and its log must
//! hold no panic that the test didn't ask for. When the test has failed, config, log, access log and metrics are
//! printed instead.

use super::conn::{Addr, Conn};
use super::files;
pub use super::files::file;
use super::http::{self, Answer};
use super::kernel;
use super::output::{Output, keep, keep_telling};
use super::running::Running;
use super::wait::{PATIENCE, eventually, eventually_some};
use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Display;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use tempfile::TempDir;

/// How to start the binary.
pub struct Launch {
    config: String,
    dir: TempDir,
    wrapper: Vec<OsString>,
    environment: Vec<(String, String)>,
    stdin: Stdio,
    subcommand: &'static str,
    binary: PathBuf,
    stdout: Sink,
    stderr: Sink,
}

/// Where one of the output streams goes.
enum Sink {
    Kept,
    To(Stdio),
}

impl Launch {
    /// With this config; `$DIR` in it stands for the folder of this launch.
    pub fn new(config: impl Display) -> Self {
        let dir = tempfile::Builder::new().prefix("tidegate-test-").tempdir().unwrap();
        let config = config.to_string().replace("$DIR", dir.path().to_str().unwrap());
        file(dir.path(), "lb.toml", &config);
        files::token(dir.path());
        Self {
            config,
            dir,
            wrapper: Vec::new(),
            environment: Vec::new(),
            stdin: Stdio::null(),
            subcommand: "run",
            binary: env!("CARGO_BIN_EXE_tidegate").into(),
            stdout: Sink::Kept,
            stderr: Sink::Kept,
        }
    }

    /// The built-in demonstration instead of a config file.
    pub fn demo() -> Self {
        Self { subcommand: "demo", ..Self::new("") }
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it by `$DIR/tidegate`, a link that [`Tidegate::replace_binary`] can lead elsewhere.
    pub fn linked(mut self) -> Self {
        let link = self.dir.path().join("tidegate");
        std::os::unix::fs::symlink(&self.binary, &link).unwrap();
        self.binary = link;
        self
    }

    /// Soft and hard limit of file descriptors.
    pub fn nofile(self, limit: u64) -> Self {
        self.wrapped(["prlimit".to_owned(), format!("--nofile={limit}:{limit}")])
    }

    /// Starts the binary by this command, which must become it (exec), so that the process id stays.
    pub fn wrapped<T: Into<OsString>>(mut self, words: impl IntoIterator<Item = T>) -> Self {
        self.wrapper = words.into_iter().map(Into::into).collect();
        self
    }

    /// Passes a listening socket on as a service manager does, by this name.
    pub fn given(mut self, name: &str, socket: OwnedFd) -> Self {
        // As standard input and not by its number: other tests start processes at the same time, which would get it
        // too.
        self.stdin = Stdio::from(socket);
        let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=$1; shift; exec \"$@\"";
        self.wrapped(["sh", "-c", script, "sh", name])
    }

    pub fn stderr_to(mut self, target: impl Into<Stdio>) -> Self {
        self.stderr = Sink::To(target.into());
        self
    }

    fn command(&mut self) -> Command {
        let mut words = self.wrapper.clone();
        words.push(self.binary.clone().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(self.subcommand);
        if self.subcommand == "demo" {
            command.arg("--announce");
        } else {
            command.arg("--config").arg(self.dir.path().join("lb.toml")).arg("--announce");
        }
        command.envs(self.environment.iter().cloned());
        command.stdin(std::mem::replace(&mut self.stdin, Stdio::null()));
        let stream = |sink: &mut Sink| match std::mem::replace(sink, Sink::Kept) {
            Sink::Kept => Stdio::piped(),
            Sink::To(target) => target,
        };
        command.stdout(stream(&mut self.stdout)).stderr(stream(&mut self.stderr));
        command
    }

    /// Starts it and waits until it's ready.
    ///
    /// # Panics
    /// When it ends instead, or says nothing.
    pub fn start(mut self) -> Tidegate {
        // A successor whose predecessor has ended becomes this process's child.
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
        let mut command = self.command();
        let mut child = command.spawn().unwrap_or_else(|error| panic!("can't start {command:?}: {error}"));
        let stderr = child.stderr.take().map(keep).unwrap_or_default();
        let (first, announced) = mpsc::channel();
        let stdout = keep_telling(child.stdout.take().unwrap(), first);
        let Ok(line) = announced.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            let status = child.wait();
            panic!("it was never ready ({status:?}).\n{}", said(&self.config, &stderr));
        };
        let announced: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("not an announcement: {line}"));
        assert_eq!(announced["ready"], true, "{line}");
        let pid = announced["pid"].as_u64().unwrap_or_else(|| panic!("no pid: {line}")) as u32;
        assert_eq!(pid, child.id(), "another process than the one that was started");
        let mut tidegate = Tidegate {
            running: Running::Child(child),
            pid,
            followed: 0,
            admin: announced["admin"].as_str().map(Addr::parse),
            listeners: listeners(&announced),
            dir: self.dir,
            config: self.config,
            stdout,
            stderr,
            fds_at_start: Vec::new(),
            ended: None,
            at_end: AtEnd { leaks: Leaks::Forbidden, panics: Panics::Forbidden },
        };
        tidegate.fds_at_start = kernel::fds(pid);
        tidegate
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// When it goes on.
    pub fn run_to_end(mut self) -> Exit {
        let mut child = self.command().spawn().unwrap();
        let stdout = child.stdout.take().map(keep).unwrap_or_default();
        let stderr = child.stderr.take().map(keep).unwrap_or_default();
        let mut running = Running::Child(child);
        let status = running.end().unwrap_or_else(|| {
            running.kill();
            panic!("it didn't end.\n{}", said(&self.config, &stderr));
        });
        // The threads that keep the output see its end only now.
        eventually("its output has ended", || stdout.has_ended() && stderr.has_ended());
        Exit::of(status, &stdout, &stderr)
    }
}

/// Runs the binary with these arguments to its end.
pub fn run(arguments: &[&str]) -> Exit {
    let output = Command::new(env!("CARGO_BIN_EXE_tidegate")).args(arguments).stdin(Stdio::null()).output().unwrap();
    Exit {
        code: output.status.code(),
        signal: output.status.signal(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// How the process ended, and all it said.
#[derive(Clone, Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Exit {
    fn of(status: ExitStatus, stdout: &Output, stderr: &Output) -> Self {
        Self { code: status.code(), signal: status.signal(), stdout: stdout.all(), stderr: stderr.all() }
    }
}

/// What must hold when a [`Tidegate`] goes out of scope.
struct AtEnd {
    leaks: Leaks,
    panics: Panics,
}

#[derive(PartialEq, Eq)]
enum Leaks {
    Forbidden,
    NotAsked,
}

#[derive(PartialEq, Eq)]
enum Panics {
    Forbidden,
    Wanted,
}

/// A running balancer.
pub struct Tidegate {
    running: Running,
    pub pid: u32,
    /// How many successors it is away from the process that the test has started.
    followed: usize,
    pub admin: Option<Addr>,
    pub listeners: BTreeMap<String, Vec<Addr>>,
    dir: TempDir,
    config: String,
    stdout: Output,
    stderr: Output,
    fds_at_start: Vec<String>,
    ended: Option<Exit>,
    at_end: AtEnd,
}

impl Tidegate {
    /// With this config and nothing special.
    pub fn start(config: impl Display) -> Self {
        Launch::new(config).start()
    }

    /// The folder of its own that `$DIR` stands for.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The first address of the listener `web`.
    pub fn addr(&self) -> Addr {
        self.addr_of("web", 0)
    }

    pub fn addr_of(&self, listener: &str, index: usize) -> Addr {
        self.listeners.get(listener).and_then(|addresses| addresses.get(index)).unwrap().clone()
    }

    /// A client's connection to the first address of `web`.
    pub fn connect(&self) -> Conn {
        Conn::to(&self.addr())
    }

    /// A session that an echo has answered.
    pub fn echoed(&self) -> Conn {
        let mut client = self.connect();
        client.speak();
        client
    }

    pub fn admin(&self) -> &Addr {
        self.admin.as_ref().unwrap()
    }

    /// Asks there from now on: a reload has moved the endpoint.
    pub fn move_admin(&mut self, address: &Addr) {
        self.admin = Some(address.clone());
    }

    pub fn get(&self, path: &str) -> Answer {
        http::get(self.admin(), path)
    }

    /// Asks for a change, with the token; an empty body is none.
    pub fn post(&self, path: &str, body: &str) -> Answer {
        http::post(self.admin(), path, body)
    }

    pub fn fds(&self) -> Vec<String> {
        kernel::fds(self.pid)
    }

    /// How many of its fds are sockets.
    pub fn sockets(&self) -> usize {
        self.fds().iter().filter(|target| target.starts_with("socket:")).count()
    }

    /// Waits until nothing is going on any more.
    pub fn until_idle(&self) {
        eventually("all sessions have ended", || self.sessions() == 0);
        eventually("all slots are free", || self.slots() == 0);
    }

    /// What it said on stderr so far.
    pub fn log(&self) -> String {
        self.stderr.all()
    }

    pub fn stdout(&self) -> String {
        self.stdout.all()
    }

    /// Waits until the log holds a line with all of these words, and returns it.
    pub fn logged(&self, words: &[&str]) -> String {
        eventually_some(&format!("the log has a line with {words:?}"), || {
            let log = self.log();
            log.lines().find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        })
    }

    /// How many lines of the log have all of these words.
    pub fn count_logged(&self, words: &[&str]) -> usize {
        self.log().lines().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.kernel_pid(), signal).unwrap();
        if signal == Signal::STOP {
            // The call returns before all threads stand still.
            eventually("it stands still", || kernel::all_stopped(self.pid));
        }
    }

    /// The soft limit of fds from now on; the hard one stays.
    pub fn limit_fds(&self, soft: u64) {
        let (pid, resource) = (Some(self.kernel_pid()), Resource::Nofile);
        let maximum = rustix::process::getrlimit(resource).maximum;
        prlimit(pid, resource, Rlimit { current: Some(soft), maximum }).unwrap();
    }

    /// Makes the link that it was started by lead to another program.
    pub fn replace_binary(&self, program: &Path) {
        let (link, new) = (self.dir.path().join("tidegate"), self.dir.path().join("tidegate.new"));
        std::os::unix::fs::symlink(program, &new).unwrap();
        fs::rename(new, link).unwrap();
    }

    /// Waits until a successor serves in its place, and is that one from now on; the old process, which may go on with
    /// its sessions.
    pub fn follow(&mut self) -> Running {
        self.followed += 1;
        let line =
            eventually_some("a successor says that it is ready", || self.announced().into_iter().nth(self.followed));
        self.pid = line["pid"].as_u64().unwrap() as u32;
        self.listeners = listeners(&line);
        self.admin = line["admin"].as_str().map(Addr::parse);
        // Its endpoint keeps a descriptor in reserve as soon as it answers.
        self.admin.is_some().then(|| self.get("/livez"));
        self.fds_at_start = kernel::fds(self.pid);
        std::mem::replace(&mut self.running, Running::Follower { pid: self.pid, status: None })
    }

    /// As [`follow`](Self::follow), for a process whose old self has nothing left to do: it has ended with 0.
    pub fn follow_alone(&mut self) {
        let mut before = self.follow();
        assert_eq!(before.end().map(|status| status.code()), Some(Some(0)), "{}", self.log());
    }

    /// All lines that it and its successors have said on stdout.
    fn announced(&self) -> Vec<Value> {
        self.stdout.all().lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Of successors that the test hasn't followed, none outlives it.
    fn kill_followers(&mut self) {
        for line in self.announced() {
            if line["pid"] != self.pid
                && let Some(pid) = line["pid"].as_u64()
            {
                Running::Follower { pid: pid as u32, status: None }.kill();
            }
        }
    }

    fn kernel_pid(&self) -> Pid {
        Pid::from_raw(self.pid as i32).unwrap()
    }

    /// True while the process lives.
    pub fn lives(&mut self) -> bool {
        self.running.try_wait().is_none()
    }

    /// Waits for the end that the test brought about.
    ///
    /// # Panics
    /// When it goes on.
    pub fn wait(&mut self) -> Exit {
        if self.ended.is_none() {
            let status = self.running.end().expect("the process goes on");
            // The threads that keep the output see its end only now.
            eventually("its output has ended", || self.stdout.has_ended() && self.stderr.has_ended());
            self.ended = Some(Exit::of(status, &self.stdout, &self.stderr));
        }
        self.ended.clone().unwrap()
    }

    /// For a test that ends it in a way which leaves things open.
    pub fn leaks_not_asked(&mut self) {
        self.at_end.leaks = Leaks::NotAsked;
    }

    /// For a test that makes it panic.
    pub fn panics_wanted(&mut self) {
        self.at_end.panics = Panics::Wanted;
    }

    fn assert_no_leak(&mut self) {
        if self.at_end.leaks == Leaks::Forbidden && self.admin.is_some() {
            self.until_idle();
            let before = outside(&self.fds_at_start);
            eventually("its fds are as many as after the start", || outside(&self.fds()) <= before);
        }
        self.signal(Signal::TERM);
        let exit = self.wait();
        assert_eq!((exit.code, exit.signal), (Some(0), None), "exit code and signal after SIGTERM");
    }

    fn print(&self) {
        eprintln!("{}", said(&self.config, &self.stderr));
        eprintln!("--- stdout\n{}", self.stdout.all());
        let access = fs::read_to_string(self.dir.path().join("access.log")).unwrap_or_default();
        eprintln!("--- access log\n{access}");
        eprintln!("--- fds at start\n{:?}\n--- fds now\n{:?}", self.fds_at_start, self.fds());
        if let Some(Ok(mut conn)) = self.admin.as_ref().map(Conn::try_to) {
            conn.read_timeout(std::time::Duration::from_secs(2));
            let _ = conn.try_send("GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
            let (mut text, mut buffer) = (Vec::new(), [0; 4_096]);
            while let Ok(count @ 1..) = conn.read(&mut buffer) {
                text.extend_from_slice(&buffer[..count]);
            }
            eprintln!("--- metrics\n{}", String::from_utf8_lossy(&text));
        }
    }
}

impl Drop for Tidegate {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print();
        } else if self.ended.is_none() {
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.assert_no_leak()));
            if let Err(payload) = checked {
                self.print();
                self.running.kill();
                self.kill_followers();
                std::panic::resume_unwind(payload);
            }
        }
        self.running.kill();
        self.kill_followers();
        if !std::thread::panicking() && self.at_end.panics == Panics::Forbidden {
            assert!(!self.log().contains("panicked"), "it panicked:\n{}", self.log());
        }
    }
}

/// How many of the fds reach out of the process. What a runtime makes for itself (epoll, eventfd) may come after the
/// announcement.
fn outside(fds: &[String]) -> usize {
    fds.iter().filter(|target| !target.starts_with("anon_inode:")).count()
}

fn listeners(announced: &Value) -> BTreeMap<String, Vec<Addr>> {
    let table = announced["listeners"].as_object().unwrap_or_else(|| panic!("no listeners: {announced}"));
    let addresses = |list: &Value| {
        list.as_array().unwrap().iter().flat_map(|text| Addr::parse_all(text.as_str().unwrap())).collect()
    };
    table.iter().map(|(name, list)| (name.clone(), addresses(list))).collect()
}

fn said(config: &str, stderr: &Output) -> String {
    format!("--- config\n{config}\n--- log\n{}", stderr.all())
}
