//! The shell's side of a running process: what it shows, how it finds it, and what is generated of the command line.

use crate::kit::{Backend, Config, Launch, Tidegate, daemon};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::process::{Command, Stdio};

/// Has the shell's side ask this process.
pub fn ask(tidegate: &Tidegate, arguments: &[&str]) -> daemon::Exit {
    let admin = tidegate.admin().to_string();
    daemon::run(&[arguments, &["--admin", &admin]].concat())
}

/// What it says where all goes well.
#[track_caller]
pub fn told(tidegate: &Tidegate, arguments: &[&str]) -> String {
    let exit = ask(tidegate, arguments);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""), "{arguments:?}");
    exit.stdout
}

/// The words of the line that begins with this one.
#[track_caller]
pub fn row(text: &str, first: &str) -> Vec<String> {
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(first));
    line.unwrap_or_else(|| panic!("no line begins with {first}:\n{text}"))
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_state_of_a_process_is_a_table_for_people_and_its_own_json_for_programs() {
    let (up, down) = (Backend::echo(), "127.0.0.1:1");
    let tidegate = Tidegate::start(Config::over([up.addr.to_string(), down.to_owned()]));
    let session = tidegate.echoed();
    let text = told(&tidegate, &["status"]);
    assert!(text.starts_with(&format!("tidegate {}: ready; generation 1, pid ", env!("CARGO_PKG_VERSION"))), "{text}");
    let listener = row(&text, "web");
    assert_eq!(listener, ["web", &tidegate.addr().to_string(), "up", "1", "1"]);
    assert!(text.contains("\npool web: round_robin, 2 of 2 available\n"), "{text}");
    assert_eq!(row(&text, &up.addr.to_string())[2], "up");
    assert!(!text.contains('\x1b'), "{text:?}");

    // But for what time alone changes.
    let timeless = |mut status: serde_json::Value| {
        status["now"].take();
        status["pools"][0]["backends"]
            .as_array_mut()
            .unwrap()
            .iter_mut()
            .for_each(|backend| drop(backend["load"].take()));
        status
    };
    let json = serde_json::from_str(&told(&tidegate, &["status", "--json"])).unwrap();
    assert_eq!(timeless(json), timeless(tidegate.status()));

    let one = told(&tidegate, &["status", "web"]);
    assert!(one.starts_with("pool web: ") && one.contains(down), "{one}");
    let none = ask(&tidegate, &["status", "nope"]);
    assert_eq!((none.code, none.stderr.as_str()), (Some(1), "there is no pool \"nope\"; there is web\n"));
    drop(session);
}

#[test]
fn one_look_of_top_needs_no_terminal() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let session = tidegate.echoed();
    let text = told(&tidegate, &["top", "--once"]);
    assert!(text.contains("NEW/S") && !text.contains('\x1b'), "{text:?}");
    assert_eq!(row(&text, "web"), ["web", "up", "1", "0", "1"]);
    drop(session);
}

/// A line for each look, the first one after a second.
#[test]
fn top_is_a_line_of_json_a_look_for_programs() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let session = tidegate.echoed();
    let text = told(&tidegate, &["top", "--once", "--json"]);
    assert_eq!(text.lines().count(), 1, "{text}");
    let look: Value = serde_json::from_str(&text).unwrap();
    let (listener, backends) = (&look["listeners"][0], look["backends"].as_array().unwrap());
    assert_eq!(
        (&listener["name"], &listener["active"], &listener["new_per_second"]),
        (&json!("web"), &json!(1), &json!(0))
    );
    assert_eq!((backends.len(), &backends[0]["pool"], &backends[0]["active"]), (1, &json!("web"), &json!(1)));
    assert!(backends[0]["to_client_per_second"].is_u64(), "{text}");
    assert_eq!((look["connections"].as_array().unwrap().len(), &look["ready"]), (1, &json!(true)));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .args(["top", "--json", "--admin", &tidegate.admin().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut top = command.spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines().map(Result::unwrap);
    for _ in 0..2 {
        let look: Value = serde_json::from_str(&lines.next().unwrap()).unwrap();
        assert_eq!(look["pid"], tidegate.pid);
    }
    drop(lines);
    assert_eq!(top.wait().unwrap().code(), Some(0));
    drop(session);
}

/// As in `tidegate top | head`: it goes on until nobody reads any more.
#[test]
fn top_is_one_look_beneath_the_other_where_there_is_no_terminal() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command.args(["top", "--admin", &tidegate.admin().to_string()]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut top = command.spawn().unwrap();
    let mut lines = BufReader::new(top.stdout.take().unwrap()).lines().map(Result::unwrap);
    for look in ["first", "second"] {
        let line = lines.find(|line| line.starts_with("tidegate ")).unwrap();
        assert!(line.contains(": ready; generation 1"), "{look}: {line}");
    }
    drop(lines);
    assert_eq!(top.wait().unwrap().code(), Some(0));
}

/// A daemon that isn't there is told apart from one that refuses, with a way out.
#[test]
fn an_answer_that_cannot_be_written_is_no_success() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let admin = tidegate.admin().to_string();
    for arguments in [&["status"][..], &["status", "--json"], &["connections"], &["top", "--once"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.args(arguments).args(["--admin", &admin]).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(74), "{arguments:?}: {said}");
        assert!(said.starts_with("the answer can't be written: No space left"), "{said}");
    }
}

#[test]
fn where_nobody_answers_the_exit_code_is_69() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for arguments in [&["status"][..], &["connections"], &["top", "--once"], &["reload"], &["drain", "web"]] {
        let exit = daemon::run(&[arguments, &["--admin", &free]].concat());
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(69), ""), "{arguments:?}");
        assert!(exit.stderr.contains(&format!("can't reach tidegate at {free}")), "{}", exit.stderr);
        assert!(exit.stderr.contains("name its admin endpoint with --admin"), "{}", exit.stderr);
    }
    // What answers and doesn't speak HTTP is not it either.
    let other = Backend::named("other");
    let exit = daemon::run(&["status", "--admin", &other.addr.to_string()]);
    assert_eq!(exit.code, Some(69), "{exit:?}");
}

/// Also while the file has a mistake: it is then that one wants to look.
#[test]
fn the_endpoint_is_found_by_the_config() {
    let backend = Backend::echo();
    let config = format!(
        "[runtime]\nworkers = 1\n[admin]\nlisten = \"unix:$DIR/admin.sock\"\n\
         [listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"app\"\n[pools.app]\nbackends = [\"{}\"]\n",
        backend.addr
    );
    let tidegate = Launch::new(config).start();
    let path = tidegate.dir().join("lb.toml");
    let found = |path: &std::path::Path| daemon::run(&["status", "-c", path.to_str().unwrap()]);
    assert!(found(&path).stdout.contains("pool app: "), "{:?}", found(&path));
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text + "nonsense = true\n").unwrap();
    assert!(found(&path).stdout.contains("pool app: "), "{:?}", found(&path));
    let off = daemon::file(tidegate.dir(), "off.toml", "[admin]\nlisten = \"off\"\n");
    let exit = found(&off);
    assert_eq!(exit.code, Some(69));
    assert!(exit.stderr.contains("turns the admin endpoint off"), "{}", exit.stderr);
}

#[test]
fn the_running_process_explains_as_its_endpoint_does() {
    let backend = Backend::echo();
    let tidegate = Tidegate::start(Config::over([&backend.addr]));
    let asked = ["explain", "--live", "--listener", "web", "--from", "10.1.2.3"];
    let text = told(&tidegate, &asked);
    assert!(text.contains("\nstate: live\n") && text.contains("\nrule default: yes, leads to web\n"), "{text}");
    let json = told(&tidegate, &[&asked[..], &["--json"]].concat());
    assert_eq!(json, tidegate.get("/explain?listener=web&from=10.1.2.3").body);
    let wrong = ask(&tidegate, &["explain", "--live", "--listener", "web", "--from", "nobody"]);
    assert_eq!(wrong.code, Some(65));
    assert!(wrong.stderr.starts_with("from: "), "{}", wrong.stderr);
}

/// Feeds `script` to a bash without startup files.
fn bash(script: &str) -> std::process::Output {
    let mut command = Command::new("bash");
    command.args(["--norc", "--noprofile", "-s"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut bash = command.spawn().unwrap();
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    bash.wait_with_output().unwrap()
}

#[test]
fn bash_completes_our_command_lines() {
    let completion = daemon::run(&["completions", "bash"]).stdout;
    let complete = |words: &str, index: usize| {
        let asked = format!(
            "{completion}\ncomplete -p tidegate >/dev/null || exit 1\nCOMP_WORDS=({words}) COMP_CWORD={index}\n\
             _tidegate tidegate \"${{COMP_WORDS[$COMP_CWORD]}}\" \"${{COMP_WORDS[$COMP_CWORD-1]}}\"\n\
             printf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
        );
        let output = bash(&asked);
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete("tidegate conn", 1), ["connections"]);
    assert_eq!(complete("tidegate connections --so", 2), ["--sort"]);
    assert_eq!(complete("tidegate connections --sort by", 3), ["bytes"]);
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let exit = daemon::run(&["completions", shell]);
        assert_eq!(exit.code, Some(0), "{shell}");
        assert!(exit.stdout.contains("connections") && exit.stdout.contains("token-file"), "{shell}");
    }
}

/// That they render without a warning is seen in tests/run.
#[test]
fn there_is_a_manual_page_for_each_subcommand() {
    let dir = tempfile::tempdir().unwrap();
    let man = dir.path().join("man1");
    let exit = daemon::run(&["man", man.to_str().unwrap()]);
    assert_eq!((exit.code, exit.stderr.as_str()), (Some(0), ""));
    let help = daemon::run(&["--help"]).stdout;
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let commands: Vec<&str> =
        listed.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 15, "{help}");
    for command in commands.into_iter().filter(|command| *command != "help") {
        let page = fs::read_to_string(man.join(format!("tidegate-{command}.1"))).unwrap();
        assert!(page.contains(".SH NAME\n") && page.contains(".SH OPTIONS\n"), "{command}:\n{page}");
    }
    assert!(fs::read_to_string(man.join("tidegate.1")).unwrap().contains("tidegate\\-connections(1)"));
    let nowhere = daemon::run(&["man", "/dev/null/man1"]);
    assert_eq!(nowhere.code, Some(71));
    assert!(nowhere.stderr.starts_with("can't write manual pages to /dev/null/man1: "), "{}", nowhere.stderr);
}
