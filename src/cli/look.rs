//! The subcommands that look at the running process: its state, and its sessions.
//!
//! Owns the tables; what is in them is `/status` and `/connections`. What an answer lacks, because the process is of
//! another version, is shown as a dash. What `/readyz` says is passed on.

use super::client::{Remote, Shape, wait_for, with_query};
use super::table::{Table, bytes, clean, count, span};
use super::{Exit, print, say};
use clap::{Subcommand, ValueEnum};
use serde_json::Value;
use std::fmt::Write;
use std::time::SystemTime;

/// So many of the things that operators have changed are named.
const NAMED: usize = 10;

#[derive(Subcommand)]
pub(super) enum Look {
    /// Show the listeners, pools and backends of the running process.
    Status {
        /// This pool alone.
        pool: Option<String>,
        #[command(flatten)]
        remote: Remote,
        #[command(flatten)]
        shape: Shape,
    },
    /// Say whether traffic may come: exit code 0, or 1 and a line for each reason.
    Ready {
        #[command(flatten)]
        remote: Remote,
    },
    /// Show the sessions of the running process, the oldest first.
    Connections {
        /// Of this pool alone.
        #[arg(long, value_name = "NAME")]
        pool: Option<String>,
        /// Of this backend alone.
        #[arg(long, value_name = "NAME")]
        backend: Option<String>,
        /// Of this listener alone.
        #[arg(long, value_name = "NAME")]
        listener: Option<String>,
        /// What comes first. Default: age
        #[arg(long)]
        sort: Option<Sort>,
        /// How many, up to 1000. Default: 100
        #[arg(long, value_name = "N")]
        limit: Option<usize>,
        /// Those behind a page that ended here.
        #[arg(long, value_name = "PLACE")]
        after: Option<String>,
        #[command(flatten)]
        remote: Remote,
        #[command(flatten)]
        shape: Shape,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub(super) enum Sort {
    /// The oldest.
    Age,
    /// What has moved the most bytes.
    Bytes,
    /// What has moved none for the longest time.
    Idle,
}

pub(super) fn run(look: Look) -> Result<(), Exit> {
    match look {
        Look::Status { pool, remote, shape } => status(pool.as_deref(), &remote, &shape),
        Look::Ready { remote } => print(&wait_for(remote.client()?.get("/readyz"))??.good()?.body),
        Look::Connections { pool, backend, listener, sort, limit, after, remote, shape } => {
            let sort = sort.and_then(|sort| Some(sort.to_possible_value()?.get_name().to_owned()));
            let limit = limit.map(|limit| limit.to_string());
            let given = [
                ("pool", pool),
                ("backend", backend),
                ("listener", listener),
                ("sort", sort),
                ("limit", limit),
                ("after", after),
            ];
            let query: Vec<_> = given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
            connections(&with_query("/connections", &query), &remote, &shape)
        }
    }
}

fn status(pool: Option<&str>, remote: &Remote, shape: &Shape) -> Result<(), Exit> {
    let client = remote.client()?;
    let (body, status) = wait_for(client.look("/status"))??;
    let Some(name) = pool else {
        if shape.json {
            print(&body)?;
        } else {
            let pools = list(&status, "pools").iter().map(pool_text);
            print((head(&status) + "\n" + &listeners(&status) + &pools.collect::<String>()).as_bytes())?;
        }
        return Ok(());
    };
    let pools = list(&status, "pools");
    let Some(pool) = pools.iter().find(|pool| pool["name"] == name) else {
        let names: Vec<String> = pools.iter().map(|pool| text(pool, "name")).collect();
        return Err(Exit::refused(format!("there is no pool {name:?}; there is {}", names.join(", "))));
    };
    let shown = if shape.json { pool.to_string() } else { pool_text(pool).trim_start().to_owned() };
    print(shown.as_bytes())
}

fn connections(path: &str, remote: &Remote, shape: &Shape) -> Result<(), Exit> {
    let client = remote.client()?;
    let (body, page) = wait_for(client.look(path))??;
    if shape.json {
        return print(&body);
    }
    print(sessions(&page).as_bytes())?;
    for worker in list(&page, "silent_workers") {
        say(&format!("worker {worker} has not answered: its sessions are missing"));
    }
    if let Some(next) = page["next"].as_str() {
        say(&format!("there are more: --after {}", clean(next)));
    }
    Ok(())
}

/// What it is, whether traffic may come, and since when it runs.
pub(super) fn head(status: &Value) -> String {
    let phase = text(status, "phase");
    let phase = if phase == "ready" && status["ready"] == false { "not ready".to_owned() } else { phase };
    let mut head = format!("tidegate {}: {phase}", text(status, "version"));
    let up = span(since(status, "started", status));
    let _ = write!(head, "; generation {}, pid {}", text(status, "generation"), text(status, "pid"));
    let _ = writeln!(head, ", {} workers, up {up}", text(status, "workers"));
    for gate in list(status, "gates").iter().filter_map(Value::as_str) {
        let _ = writeln!(head, "not ready: {}", clean(gate));
    }
    let upgrade = list(status, "needs_upgrade").iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ");
    if !upgrade.is_empty() {
        let _ = writeln!(head, "waits for an upgrade: {}", clean(&upgrade));
    }
    if let Some(text) = status["config"]["last_refused"]["text"].as_str() {
        let _ = writeln!(head, "the last reload was refused: {}", clean(text.lines().next().unwrap_or_default()));
    }
    let changed = adjusted(&status["adjustments"]);
    if !changed.is_empty() {
        let _ = writeln!(head, "changed at run time: {}", clean(&changed));
    }
    head
}

/// What operators have changed, by name.
fn adjusted(adjustments: &Value) -> String {
    let names = |field: &str, what: &str| {
        let all = adjustments[field].as_object().into_iter().flatten();
        all.map(|(name, _)| format!("{what} {name}")).collect::<Vec<_>>()
    };
    let level = adjustments["log_level"].as_str().map(|level| format!("log {level}"));
    let mut all = names("listeners", "listener");
    all.extend(names("pools", "pool"));
    all.extend(level);
    let more = all.len().saturating_sub(NAMED);
    all.truncate(NAMED);
    all.extend((more > 0).then(|| format!("and {more} more")));
    all.join(", ")
}

pub(super) fn listeners(status: &Value) -> String {
    let mut table = Table::new(&["LISTENER", "BIND", "STATE", ">ACTIVE", ">TOTAL"]);
    for listener in list(status, "listeners") {
        let bind: Vec<&str> = list(listener, "bind").iter().filter_map(Value::as_str).collect();
        table.row(&[
            text(listener, "name"),
            bind.join(" "),
            text(listener, "state"),
            number(listener, "active"),
            number(listener, "total"),
        ]);
    }
    table.text("")
}

fn pool_text(pool: &Value) -> String {
    let backends = list(pool, "backends");
    let mut title = format!(
        "\npool {}: {}, {} of {} available",
        text(pool, "name"),
        text(pool, "balance"),
        text(pool, "available"),
        backends.len()
    );
    if pool["panic"] == true {
        title += ", in panic";
    }
    if pool["tier"].as_u64().is_some_and(|tier| tier > 0) {
        let _ = write!(title, ", down to tier {}", text(pool, "tier"));
    }
    for (part, field, what) in [("queue", "waiting", "wait"), ("hold", "held", "are held")] {
        if let Some(count) = pool[part][field].as_u64().filter(|count| *count > 0) {
            let _ = write!(title, ", {count} {what}");
        }
    }
    format!("\n{}\n{}", clean(title.trim_start()), backends_table(pool, "  "))
}

fn backends_table(pool: &Value, indent: &str) -> String {
    let titles = [
        "BACKEND",
        "ADDRESS",
        "STATE",
        ">SINCE",
        ">WEIGHT",
        ">ACTIVE",
        ">TOTAL",
        ">SENT",
        ">RECEIVED",
        ">CONNECT",
        ">ANSWER",
        "LAST ERROR",
    ];
    let mut table = Table::new(&titles);
    for backend in list(pool, "backends") {
        let share = backend["share"].as_f64().filter(|share| *share < 1.0);
        let weight = text(backend, "weight") + &share.map_or_else(String::new, |share| format!("×{share:.2}"));
        let moved = |way: &str| backend["bytes"][way].as_u64().map_or_else(String::new, bytes);
        let error = &backend["last_error"];
        let overridden = backend["health_override"].as_str().is_some_and(|word| word != "auto");
        let by_file = &backend["weight_configured"];
        let by_hand = if by_file.is_null() || *by_file == backend["weight"] {
            String::new()
        } else {
            format!(" (file: {by_file})")
        };
        table.row(&[
            text(backend, "name"),
            text(backend, "address"),
            text(backend, "state") + if overridden { " (overridden)" } else { "" },
            ago(backend, "since"),
            weight + &by_hand,
            number(backend, "active"),
            number(backend, "total"),
            moved("to_backend"),
            moved("to_client"),
            millis(&backend["load"]["connect_ms"]),
            millis(&backend["load"]["answer_ms"]),
            error["text"].as_str().map_or_else(String::new, |why| format!("{why} ({} ago)", ago(error, "at"))),
        ]);
    }
    table.text(indent)
}

/// The rows of a page.
pub(super) fn sessions(page: &Value) -> String {
    let titles =
        ["ID", "CLIENT", "LISTENER", "RULE", "POOL", "BACKEND", "PHASE", ">AGE", ">IDLE", ">SENT", ">RECEIVED"];
    let mut table = Table::new(&titles);
    for row in list(page, "connections") {
        let time = |field: &str| row[field].as_u64().map_or_else(String::new, span);
        let moved = |way: &str| row["bytes"][way].as_u64().map_or_else(String::new, bytes);
        table.row(&[
            text(row, "id"),
            text(row, "client"),
            text(row, "listener"),
            text(row, "rule"),
            text(row, "pool"),
            text(row, "backend"),
            text(row, "phase"),
            time("age_ms"),
            time("idle_ms"),
            moved("to_backend"),
            moved("to_client"),
        ]);
    }
    table.text("")
}

pub(super) fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// A text or a number as it stands; nothing for anything else.
pub(super) fn text(value: &Value, field: &str) -> String {
    match &value[field] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

pub(super) fn number(value: &Value, field: &str) -> String {
    value[field].as_u64().map_or_else(String::new, count)
}

pub(super) fn millis(value: &Value) -> String {
    value.as_f64().map_or_else(String::new, |ms| format!("{ms:.1}ms"))
}

/// Milliseconds from the moment in `field` to the `now` of `status`, or of this host.
fn since(value: &Value, field: &str, status: &Value) -> u64 {
    let moment = |text: &str| humantime::parse_rfc3339(text).ok();
    let now = status["now"].as_str().and_then(moment).unwrap_or_else(SystemTime::now);
    let then = value[field].as_str().and_then(moment);
    then.and_then(|then| now.duration_since(then).ok()).unwrap_or_default().as_millis() as u64
}

fn ago(value: &Value, field: &str) -> String {
    if value[field].is_string() { span(since(value, field, &Value::Null)) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_of_sessions_is_a_table() {
        let page = json!({"connections": [
            {"id": "0-1", "client": "192.0.2.1:4711", "listener": "web", "rule": null, "pool": "app", "backend": null,
             "phase": "connect", "age_ms": 61_000, "idle_ms": 1_500, "bytes": {"to_backend": 2_048, "to_client": 0}},
        ]});
        let expected = "\
ID   CLIENT          LISTENER  RULE  POOL  BACKEND  PHASE     AGE  IDLE  SENT  RECEIVED
0-1  192.0.2.1:4711  web       -     app   -        connect  1m1s  1.5s  2.0K         0
";
        assert_eq!(sessions(&page), expected);
    }

    #[test]
    fn what_an_answer_lacks_is_a_dash() {
        assert_eq!(
            listeners(&json!({"listeners": [{}]})),
            "LISTENER  BIND  STATE  ACTIVE  TOTAL\n-         -     -           -      -\n"
        );
        assert_eq!(sessions(&json!({})).lines().count(), 1);
        assert!(pool_text(&json!({"backends": [{}]})).contains('-'));
        assert!(head(&json!({})).starts_with("tidegate "));
    }

    #[test]
    fn what_is_not_as_the_file_has_it_is_said_at_the_top() {
        let status = json!({
            "config": {"last_refused": {"text": "lb.toml:3:1: no\nlb.toml:4:1: no", "by": "SIGHUP"}},
            "adjustments": {"listeners": {"api": "draining"}, "pools": {"web": {}}, "log_level": "debug"},
        });
        let text = head(&status);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        let expected =
            ["the last reload was refused: lb.toml:3:1: no", "changed at run time: listener api, pool web, log debug"];
        assert_eq!(lines, expected);
        let pools: serde_json::Map<_, _> = (0..12).map(|pool| (format!("p{pool:02}"), json!({}))).collect();
        assert!(adjusted(&json!({"pools": pools})).ends_with("pool p09, and 2 more"));
        assert_eq!(head(&json!({"adjustments": {}, "config": {"last_refused": null}})).lines().count(), 1);
    }

    #[test]
    fn the_state_of_a_pool_is_said_in_words() {
        let pool = json!({
            "name": "app", "balance": "round_robin", "available": 1, "panic": true, "tier": 1,
            "queue": {"waiting": 3}, "hold": {"held": 0},
            "backends": [{"name": "a", "address": "10.0.0.1:80", "state": "up", "weight": 4, "share": 0.25, "active": 1,
                "total": 1_200, "bytes": {"to_backend": 1, "to_client": 2}, "load": {"connect_ms": 0.25, "answer_ms": null},
                "last_error": {"text": "connection refused\u{1b}[2J", "at": "2020-01-01T00:00:00Z"}}],
        });
        let text = pool_text(&pool);
        let mut lines = text.trim_start().lines();
        assert_eq!(lines.next(), Some("pool app: round_robin, 1 of 1 available, in panic, down to tier 1, 3 wait"));
        let row = lines.nth(1).unwrap();
        assert!(row.contains("4×0.25") && row.contains("1.2k") && row.contains("connection refused?[2J ("), "{row}");
    }
}
