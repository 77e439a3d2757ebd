//! Sessions from the shell: listed in every phase, in order and by pages, and ended one by one.

use super::cli::{ask, row, told};
use crate::kit::backend::Silent;
use crate::kit::{Backend, Conn, End, Launch, Refusing, Tidegate, eventually, eventually_some};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// A listener for each phase that a session can wait in, and `web` for those that are relayed. Changes are asked for
/// over a unix socket, where this user may.
fn launch(echo: &Backend, refusing: &Refusing, silent: &Silent, workers: usize) -> Launch {
    let config = format!(
        "[runtime]\nworkers = {workers}\n[admin]\nlisten = \"unix:$DIR/admin.sock\"\n\
         [log]\naccess = \"$DIR/access.log\"\nformat = \"json\"\n\
         [listeners.web]\nbind = \"127.0.0.1:0\"\npool = \"app\"\n\
         [listeners.held]\nbind = \"127.0.0.1:0\"\npool = \"lost\"\n\
         [listeners.slow]\nbind = \"127.0.0.1:0\"\npool = \"silent\"\n\
         [listeners.full]\nbind = \"127.0.0.1:0\"\npool = \"full\"\n\
         [listeners.proxied]\nbind = \"127.0.0.1:0\"\npool = \"app\"\n\
         accept_proxy_protocol = {{ from = [\"127.0.0.0/8\"], timeout = \"60s\" }}\n\
         [listeners.routed]\nbind = \"127.0.0.1:0\"\npool = \"app\"\npreread_timeout = \"60s\"\n\
         [[listeners.routed.routes]]\nname = \"named\"\nsni = [\"a.example\"]\npool = \"app\"\n\
         [pools.app]\nbackends = [{{ address = \"{echo}\", name = \"echo\" }}]\nhealth.probe = \"none\"\n\
         [pools.lost]\nbackends = [\"{refusing}\"]\nhealth.probe = \"none\"\nhold = {{ max_wait = \"60s\" }}\n\
         [pools.silent]\nbackends = [\"{}\"]\nhealth.probe = \"none\"\n\
         connect = {{ timeout = \"60s\", budget = \"60s\" }}\n\
         [pools.full]\nbackends = [\"{echo}\"]\nhealth.probe = \"none\"\nbackend_max_connections = 1\n\
         queue = {{ max_wait = \"60s\" }}\n",
        silent.addr
    );
    Launch::new(config)
}

fn page(tidegate: &Tidegate, arguments: &[&str]) -> Value {
    serde_json::from_str(&told(tidegate, &[&["connections", "--json"], arguments].concat())).unwrap()
}

fn rows(tidegate: &Tidegate, arguments: &[&str]) -> Vec<Value> {
    page(tidegate, arguments)["connections"].as_array().unwrap().clone()
}

/// The row of the only session of a listener, once it is in this phase.
fn only(tidegate: &Tidegate, listener: &str, phase: &str) -> Value {
    eventually_some("it is in its phase", || {
        let rows = rows(tidegate, &["--listener", listener]);
        rows.into_iter().find(|row| row["phase"] == phase)
    })
}

/// Whoever waits can be seen and sent away, wherever it waits, and its record says by whom.
#[test]
fn a_session_is_listed_and_ended_in_every_phase() {
    let (echo, refusing, silent) = (Backend::echo(), Refusing::new(), Silent::new());
    let tidegate = launch(&echo, &refusing, &silent, 2).start();
    let first = Conn::to(&tidegate.addr_of("full", 0));
    only(&tidegate, "full", "relay");
    let phases = [
        ("web", "relay", "app", "echo"),
        ("held", "hold", "lost", ""),
        ("slow", "connect", "silent", &silent.addr.to_string()),
        ("full", "queue", "full", ""),
        ("proxied", "preread", "", ""),
        ("routed", "preread", "", ""),
    ];
    let clients: Vec<Conn> = phases.iter().map(|(listener, ..)| Conn::to(&tidegate.addr_of(listener, 0))).collect();
    let mut ids = BTreeSet::new();
    for ((listener, phase, pool, backend), mut client) in phases.into_iter().zip(clients) {
        let row = only(&tidegate, listener, phase);
        let text = |field: &str| row[field].as_str().unwrap_or_default().to_owned();
        assert_eq!((text("pool").as_str(), text("backend").as_str()), (pool, backend), "{row}");
        assert_eq!(text("client"), client.local().to_string(), "{row}");
        assert!(row["age_ms"].as_u64() >= row["idle_ms"].as_u64(), "{row}");
        let id = text("id");
        assert_eq!(told(&tidegate, &["close", &id]), format!("connection {id} is closed\n"));
        assert_eq!(client.rest().end, End::Rst, "{listener}");
        assert!(ids.insert(id));
    }
    drop(first);
    let records = tidegate.records(7);
    for record in records.iter().filter(|record| record["reason"] != "complete") {
        assert_eq!(record["reason"], "closed_by_operator", "{record}");
        assert!(ids.remove(record["id"].as_str().unwrap()), "{record}");
        let expected = phases.iter().find(|(listener, ..)| record["listener"] == **listener).unwrap();
        assert_eq!(record["phase"], expected.1, "{record}");
    }
    assert!(ids.is_empty(), "{ids:?} left no record");
    tidegate.logged(&["changed", "close", "uid"]);
    assert_eq!(tidegate.closed("closed_by_operator"), 6);
}

#[test]
fn a_session_that_is_not_there_is_not_closed() {
    let (echo, refusing, silent) = (Backend::echo(), Refusing::new(), Silent::new());
    let tidegate = launch(&echo, &refusing, &silent, 2).start();
    for id in ["0-4711", "9-1", "nobody"] {
        let exit = ask(&tidegate, &["close", id]);
        assert_eq!((exit.code, exit.stdout.as_str()), (Some(1), ""), "{id}: {exit:?}");
        assert!(exit.stderr.contains("there is no "), "{}", exit.stderr);
    }
}

#[test]
fn sessions_are_listed_in_order_and_by_pages() {
    let (echo, refusing, silent) = (Backend::echo(), Refusing::new(), Silent::new());
    let tidegate = launch(&echo, &refusing, &silent, 2).start();
    let web = tidegate.addr();
    let mut clients: Vec<Conn> = (0..12).map(|_| Conn::to(&web)).collect();
    for (index, client) in clients.iter_mut().enumerate().rev() {
        // The later it came, the more it has moved, and the earlier it has moved its last byte.
        client.send(vec![b'x'; 100 * (index + 1)]);
        client.receive(100 * (index + 1));
    }
    let ids = |rows: &[Value]| rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    eventually("all bytes are counted", || {
        let rows = rows(&tidegate, &["--sort", "bytes"]);
        rows.len() == 12 && rows[11]["bytes"]["to_client"] == 100
    });
    for sort in ["age", "bytes", "idle"] {
        let all = rows(&tidegate, &["--sort", sort]);
        let by = |row: &Value| match sort {
            "age" => row["age_ms"].as_u64(),
            "idle" => row["idle_ms"].as_u64(),
            _ => row["bytes"]["to_backend"].as_u64(),
        };
        // Ages are of the moment of the answer, which each worker gives for itself.
        assert!(sort != "bytes" || all.is_sorted_by(|a, b| by(a) >= by(b)), "{sort}: {all:?}");
        let own: BTreeSet<_> = all.iter().map(|row| row["client"].as_str().unwrap().to_owned()).collect();
        assert_eq!(own, clients.iter().map(|client| client.local().to_string()).collect(), "{sort}");
        let (mut paged, mut after) = (Vec::new(), None::<String>);
        loop {
            let mut arguments = vec!["--sort", sort, "--limit", "5"];
            if let Some(after) = &after {
                arguments.extend(["--after", after]);
            }
            let page = page(&tidegate, &arguments);
            let rows = page["connections"].as_array().unwrap();
            assert!(rows.len() <= 5);
            paged.extend(ids(rows));
            match page["next"].as_str() {
                Some(next) => after = Some(next.to_owned()),
                None => break,
            }
        }
        assert_eq!(paged, ids(&all), "{sort}");
    }
    let mut by_client = rows(&tidegate, &["--sort", "bytes"]);
    by_client.reverse();
    let order: Vec<String> = by_client.iter().map(|row| row["client"].as_str().unwrap().to_owned()).collect();
    assert_eq!(order, clients.iter().map(|client| client.local().to_string()).collect::<Vec<_>>());

    assert_eq!(rows(&tidegate, &["--backend", "echo"]).len(), 12);
    assert_eq!(rows(&tidegate, &["--pool", "app", "--backend", "echo", "--listener", "web"]).len(), 12);
    for none in [["--pool", "lost"], ["--backend", "other"], ["--listener", "held"]] {
        assert!(rows(&tidegate, &none).is_empty(), "{none:?}");
    }
    let table = told(&tidegate, &["connections"]);
    let id = ids(&by_client)[0].clone();
    let shown = row(&table, &id);
    assert_eq!(
        shown[1..7],
        [clients[0].local().to_string().as_str(), "web", "default", "app", "echo", "relay"],
        "{table}"
    );
    let more = ask(&tidegate, &["connections", "--limit", "2"]);
    assert!(more.stdout.lines().count() == 3 && more.stderr.starts_with("there are more: --after "), "{more:?}");
    drop(clients);
}

/// A worker that stands still costs an answer its part and no more.
#[test]
fn a_worker_that_is_stuck_is_left_out() {
    let (echo, refusing, silent) = (Backend::echo(), Refusing::new(), Silent::new());
    let launch = launch(&echo, &refusing, &silent, 4);
    let stall = launch.dir().join("stall");
    let hook = format!("1:{}", stall.display());
    let tidegate = launch.env("TIDEGATE_TEST_STALL", &hook).start();
    let web = tidegate.addr();
    let mut clients: Vec<Conn> = (0..40).map(|_| Conn::to(&web)).collect();
    clients.iter_mut().for_each(Conn::speak);
    let on_one = |row: &&Value| row["id"].as_str().unwrap().starts_with("1-");
    let before = rows(&tidegate, &[]);
    let theirs = before.iter().filter(on_one).count();
    assert!(before.len() == 40 && theirs > 0, "{before:?}");
    fs::write(&stall, "").unwrap();
    eventually("worker 1 stands still", || stall.with_extension("begun").exists());
    let exit = ask(&tidegate, &["connections", "--json"]);
    let page: Value = serde_json::from_str(&exit.stdout).unwrap();
    assert_eq!(page["silent_workers"], serde_json::json!([1]), "{page}");
    assert_eq!(page["connections"].as_array().unwrap().len(), 40 - theirs);
    let told = ask(&tidegate, &["connections"]).stderr;
    assert!(told.contains("worker 1 has not answered"), "{told}");
    let victim = before.iter().find(on_one).unwrap()["id"].as_str().unwrap().to_owned();
    let exit = ask(&tidegate, &["close", &victim]);
    assert_eq!(exit.code, Some(1));
    let why = format!("the worker of connection {victim} doesn't answer; try again");
    assert!(exit.stderr.contains(&why), "{}", exit.stderr);
    fs::remove_file(&stall).unwrap();
    eventually("it has done what it was asked for", || rows(&tidegate, &[]).len() == 39);
    assert_eq!(clients.iter().filter(|client| client.is_over()).count(), 1);
    drop(clients);
}
