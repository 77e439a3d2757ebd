//! `tidegate top`: the running process at a glance, once a second.
//!
//! Owns the screen, which is as it was before whatever ends this, and the lines of JSON that programs get instead. A
//! rate is the difference of two looks. A process that can't be reached for a while (it is restarted) is asked again.

use super::client::{Client, Remote, wait_for};
use super::look::{head, list, millis, number, sessions, text};
use super::table::{Table, bytes, clean_lines, count};
use super::{Exit, print, say};
use crate::daemon::Failure;
use crate::sys;
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::future::pending;
use std::io::{IsTerminal, Write as _, stdin, stdout};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep_until};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Sessions that are asked for: more than a large terminal shows.
const SESSIONS: &str = "/connections?sort=bytes&limit=100";

/// Sessions in a look that isn't bounded by a terminal.
const FEW: usize = 20;

/// Another screen without a cursor, and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

#[derive(Args)]
pub(super) struct Top {
    /// One look, of one second, and no more.
    #[arg(long)]
    once: bool,
    /// One look beneath the other, as where the output is no terminal.
    #[arg(long, conflicts_with = "once")]
    batch: bool,
    #[command(flatten)]
    remote: Remote,
    /// Each look as a line of JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// What is known at one moment.
struct Seen {
    status: Value,
    /// `None` where the process doesn't tell.
    page: Option<Value>,
    at: Instant,
}

pub(super) fn run(top: &Top) -> Result<(), Exit> {
    let client = top.remote.client()?;
    wait_for(async {
        let first = see(&client).await?;
        if top.once {
            sleep_until(first.at + PAUSE).await;
            return print(shown(top, &first, &see(&client).await?).as_bytes());
        }
        let is_screen = stdout().is_terminal() && !top.batch && !top.json;
        let screen = if is_screen { Some(Screen::enter()) } else { None };
        watch(&client, first, screen.as_ref(), |last, now| shown(top, last, now)).await
    })?
}

/// A look where there is no screen.
fn shown(top: &Top, last: &Seen, now: &Seen) -> String {
    match (top.json, top.once) {
        (true, _) => format!("{}\n", json_of(last, now)),
        (false, true) => frame(Some(last), now, FEW),
        // An empty line between it and the next one.
        (false, false) => frame(Some(last), now, FEW) + "\n",
    }
}

/// Looks until `q`, or a signal. Without a screen, `shown` is what is written.
async fn watch(
    client: &Client,
    first: Seen,
    screen: Option<&Screen>,
    shown: impl Fn(&Seen, &Seen) -> String,
) -> Result<(), Exit> {
    let heard = |kind| signal(kind).map_err(|error| Failure::System(format!("can't watch signals: {error}")));
    let mut interrupt = heard(SignalKind::interrupt())?;
    let mut terminate = heard(SignalKind::terminate())?;
    let keys = stdin();
    // What can't be watched (a file) has no keys.
    let keys = screen.and_then(|_| sys::watch(keys.as_fd(), Interest::READABLE).ok());
    if screen.is_some() {
        show(|rows| frame(None, &first, rows));
    }
    let mut last = first;
    let mut next = last.at + PAUSE;
    loop {
        let look = async {
            sleep_until(next).await;
            see(client).await
        };
        let seen = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            () = quit(keys.as_ref()) => return Ok(()),
            seen = look => seen,
        };
        next = Instant::now() + PAUSE;
        match seen {
            Ok(now) => {
                match screen {
                    Some(_) => show(|rows| frame(Some(&last), &now, rows)),
                    // Nobody reads any more: `| head`.
                    None if !put(&shown(&last, &now)) => return Ok(()),
                    None => {}
                }
                last = now;
            }
            Err(exit) => match screen {
                Some(_) => show(|_| exit.text.clone() + "\n"),
                None => say(&exit.text),
            },
        }
    }
}

async fn see(client: &Client) -> Result<Seen, Exit> {
    let (_, status) = client.look("/status").await?;
    let at = Instant::now();
    let page = client.look(SESSIONS).await.ok().map(|(_, page)| page);
    Ok(Seen { status, page, at })
}

/// Completes with the key that ends it.
async fn quit(keys: Option<&AsyncFd<BorrowedFd<'_>>>) {
    if let Some(keys) = keys {
        while let Ok(mut ready) = keys.readable().await {
            ready.clear_ready();
            let mut typed = [0; 16];
            match rustix::io::read(keys.get_ref(), &mut typed) {
                Ok(0) => break,
                Ok(count) if typed[..count].iter().any(|key| b"qQ\x04".contains(key)) => return,
                _ => {}
            }
        }
    }
    // Nobody types.
    pending::<()>().await;
}

/// A terminal, until it is dropped.
struct Screen {
    before: Option<Termios>,
}

impl Screen {
    fn enter() -> Self {
        let before = tcgetattr(stdin()).ok();
        if let Some(mut modes) = before.clone() {
            modes.local_modes -= LocalModes::ICANON | LocalModes::ECHO;
            // Then the keys come with the next line.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &modes);
        }
        put(ENTER);
        Self { before }
    }
}

/// Shows what `text` makes for so many rows, on the screen.
fn show(text: impl Fn(usize) -> String) {
    let size = tcgetwinsize(stdout()).ok().filter(|size| size.ws_row > 0 && size.ws_col > 0);
    let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()));
    put(&painted(&text(rows), rows, columns));
}

impl Drop for Screen {
    fn drop(&mut self) {
        put(LEAVE);
        if let Some(before) = &self.before {
            // Nothing is left to be done if the terminal is gone.
            let _ = tcsetattr(stdin(), OptionalActions::Now, before);
        }
    }
}

/// Whether somebody still reads.
fn put(text: &str) -> bool {
    let mut stdout = stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).is_ok()
}

/// From the upper left corner on, and nothing of the look before beside or beneath it.
fn painted(text: &str, rows: usize, columns: usize) -> String {
    let mut painted = "\x1b[H".to_owned();
    for (number, line) in text.lines().take(rows).enumerate() {
        let end = if number > 0 { "\r\n" } else { "" };
        // Writing to a string can't fail.
        let _ = write!(painted, "{end}{}\x1b[K", line.chars().take(columns).collect::<String>());
    }
    painted + "\x1b[J"
}

/// As many lines as fit into `rows`: the process, its listeners, its backends, and the sessions that have moved most.
fn frame(before: Option<&Seen>, now: &Seen, rows: usize) -> String {
    let empty = Value::Null;
    let (old, elapsed) = match before {
        Some(before) => (&before.status, (now.at - before.at).as_secs_f64()),
        None => (&empty, 0.0),
    };
    let mut all = head(&now.status) + "\n" + &listeners(old, &now.status, elapsed) + "\n";
    all += &backends(old, &now.status, elapsed);
    if let Some(page) = &now.page {
        let table = sessions(page);
        let room = rows.saturating_sub(all.lines().count() + 1).max(2);
        let lines: Vec<&str> = table.lines().take(room).collect();
        all += "\n";
        all += &(lines.join("\n") + "\n");
    }
    clean_lines(&all) + "\n"
}

/// What has come in a second, if both looks know.
fn per_second(old: &Value, new: &Value, elapsed: f64) -> Option<u64> {
    match (old.as_u64(), new.as_u64()) {
        // A process that was started anew counts from the start.
        (Some(old), Some(new)) if elapsed > 0.0 && new >= old => Some(((new - old) as f64 / elapsed).round() as u64),
        _ => None,
    }
}

fn rate(old: &Value, new: &Value, elapsed: f64, shown: fn(u64) -> String) -> String {
    per_second(old, new, elapsed).map_or_else(String::new, shown)
}

/// What a frame shows, for programs; the sessions as the process tells of them.
fn json_of(before: &Seen, now: &Seen) -> Value {
    let (old, new, elapsed) = (&before.status, &now.status, (now.at - before.at).as_secs_f64());
    let listener = |listener: &Value| {
        let before = same(list(old, "listeners"), listener);
        json!({
            "name": listener["name"], "state": listener["state"], "active": listener["active"],
            "total": listener["total"], "new_per_second": per_second(&before["total"], &listener["total"], elapsed),
        })
    };
    let backend = |pool: &Value, backend: &Value| {
        let before = same(list(same(list(old, "pools"), pool), "backends"), backend);
        let moved = |way: &str| per_second(&before["bytes"][way], &backend["bytes"][way], elapsed);
        json!({
            "pool": pool["name"], "name": backend["name"], "state": backend["state"], "active": backend["active"],
            "total": backend["total"], "new_per_second": per_second(&before["total"], &backend["total"], elapsed),
            "to_backend_per_second": moved("to_backend"), "to_client_per_second": moved("to_client"),
            "connect_ms": backend["load"]["connect_ms"], "answer_ms": backend["load"]["answer_ms"],
        })
    };
    let pools = list(new, "pools").iter();
    let backends = pools.flat_map(|pool| list(pool, "backends").iter().map(move |one| backend(pool, one)));
    json!({
        "now": new["now"], "phase": new["phase"], "ready": new["ready"], "generation": new["generation"],
        "pid": new["pid"], "seconds": elapsed,
        "listeners": list(new, "listeners").iter().map(listener).collect::<Vec<_>>(),
        "backends": backends.collect::<Vec<_>>(),
        "connections": now.page.as_ref().map(|page| &page["connections"]),
    })
}

/// The one of the same name.
fn same<'a>(list: &'a [Value], one: &Value) -> &'a Value {
    list.iter().find(|other| other["name"] == one["name"]).unwrap_or(&Value::Null)
}

fn listeners(old: &Value, new: &Value, elapsed: f64) -> String {
    let mut table = Table::new(&["LISTENER", "STATE", ">ACTIVE", ">NEW/S", ">TOTAL"]);
    for listener in list(new, "listeners") {
        let before = same(list(old, "listeners"), listener);
        table.row(&[
            text(listener, "name"),
            text(listener, "state"),
            number(listener, "active"),
            rate(&before["total"], &listener["total"], elapsed, count),
            number(listener, "total"),
        ]);
    }
    table.text("")
}

fn backends(old: &Value, new: &Value, elapsed: f64) -> String {
    let titles = ["POOL", "BACKEND", "STATE", ">ACTIVE", ">NEW/S", ">SENT/S", ">RECEIVED/S", ">CONNECT", ">ANSWER"];
    let mut table = Table::new(&titles);
    for pool in list(new, "pools") {
        let old_pool = same(list(old, "pools"), pool);
        for backend in list(pool, "backends") {
            let before = same(list(old_pool, "backends"), backend);
            let moved = |way: &str| rate(&before["bytes"][way], &backend["bytes"][way], elapsed, bytes);
            table.row(&[
                text(pool, "name"),
                text(backend, "name"),
                text(backend, "state"),
                number(backend, "active"),
                rate(&before["total"], &backend["total"], elapsed, count),
                moved("to_backend"),
                moved("to_client"),
                millis(&backend["load"]["connect_ms"]),
                millis(&backend["load"]["answer_ms"]),
            ]);
        }
    }
    table.text("")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(total: u64, at: Instant) -> Seen {
        let status = json!({
            "listeners": [{"name": "web", "state": "up", "active": 3, "total": total}],
            "pools": [{"name": "app", "backends": [{"name": "a", "state": "up", "active": 3, "total": total,
                "bytes": {"to_backend": total * 1_024, "to_client": 0}}]}],
        });
        let row = json!({"id": "0-1", "client": "192.0.2.1:5", "listener": "web"});
        Seen { status, page: Some(json!({"connections": vec![row; 50]})), at }
    }

    #[test]
    fn rates_are_of_one_second() {
        let begun = Instant::now();
        let (old, new) = (seen(100, begun), seen(300, begun + Duration::from_secs(2)));
        let text = frame(Some(&old), &new, 30);
        assert!(
            text.contains("LISTENER  STATE  ACTIVE  NEW/S  TOTAL\nweb       up          3    100    300\n"),
            "{text}"
        );
        assert!(text.contains("app   a        up          3    100    100K           0"), "{text}");
        assert!(text.lines().count() <= 30, "{text}");
        assert!(frame(Some(&new), &old, 30).contains("web       up          3      -    100\n"));
    }

    #[test]
    fn programs_get_what_people_see() {
        let begun = Instant::now();
        let (old, new) = (seen(100, begun), seen(300, begun + Duration::from_secs(2)));
        let seen = json_of(&old, &new);
        let (listener, backend) = (&seen["listeners"][0], &seen["backends"][0]);
        assert_eq!((&listener["name"], &listener["new_per_second"]), (&json!("web"), &json!(100)));
        assert_eq!(
            (&backend["pool"], &backend["name"], &backend["new_per_second"]),
            (&json!("app"), &json!("a"), &json!(100))
        );
        assert_eq!((&backend["to_backend_per_second"], &backend["to_client_per_second"]), (&json!(102_400), &json!(0)));
        assert_eq!((&seen["seconds"], seen["connections"].as_array().unwrap().len()), (&json!(2.0), 50));
        assert_eq!(json_of(&new, &old)["listeners"][0]["new_per_second"], Value::Null);
    }

    #[test]
    fn a_look_fits_its_terminal() {
        assert_eq!(painted("abcdef\ng\nh\n", 2, 3), "\x1b[Habc\x1b[K\r\ng\x1b[K\x1b[J");
    }
}
