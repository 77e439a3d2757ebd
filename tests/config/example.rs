//! `lb.toml.example` is a good config, shows every key, and what it says of defaults is true.

use super::{EXAMPLE, good, said};
use std::collections::BTreeSet;
use std::sync::Arc;
use tidegate::config::{Health, Limits, Origin, Probe, Socket, StateFile, TABLES};
use toml::Value;

/// The example with the lines that show defaults put in force.
fn with_defaults_in_force() -> String {
    let is_shown = |line: &str| line.starts_with('#') && line[1..].starts_with(|char: char| char.is_ascii_lowercase());
    EXAMPLE.lines().map(|line| if is_shown(line) { &line[1..] } else { line }).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_example_is_good_and_tells_the_defaults_as_they_are() {
    let mut short = good(EXAMPLE);
    // The file must be there; the example's isn't.
    let ca = self_signed();
    let long = with_defaults_in_force().replace("/etc/tidegate/ca.pem", ca.path().to_str().unwrap());
    // Instead of another key, and of no effect without a unix socket.
    let beside = ["token_credential = \"admin-token\"\n", "allow_uids = [0, \"deploy\"]\n"];
    assert!(beside.iter().all(|line| long.contains(line)));
    let mut long = good(&beside.iter().fold(long, |long, line| long.replace(line, "")));
    assert_eq!(long.admin.token_file.take(), Some("/etc/tidegate/token".into()));
    assert_eq!(std::mem::take(&mut long.admin.allowed_hosts), ["lb.example.com"]);
    assert_eq!((long.runtime.workers.take(), long.runtime.max_connections.take()), (Some(4), Some(100_000)));
    assert_eq!(std::mem::take(&mut long.runtime.state_file), StateFile::At("/var/lib/tidegate/state.json".into()));
    // The lines are the same but for the missing marks, so that columns differ nowhere else.
    for config in [&mut short, &mut long] {
        config.pools.iter_mut().flat_map(|pool| &mut pool.members).for_each(|member| member.place.clear());
    }
    let mut without_defaults = 0;
    for pool in &mut long.pools {
        without_defaults += take_what_has_no_default(&mut pool.health);
    }
    for limits in long.limits.iter_mut().map(|shared| &mut shared.limits) {
        without_defaults += take_limits(limits);
    }
    for admission in long.listeners.iter_mut().map(|listener| &mut listener.admission) {
        without_defaults += take_limits(&mut admission.limits) + usize::from(admission.overload.take().is_some());
        without_defaults += admission.allow.drain(..).count().min(1) + admission.deny.drain(..).count();
    }
    for socket in long.listeners.iter_mut().map(|listener| &mut listener.socket) {
        without_defaults += take_socket(socket);
    }
    for origin in long.pools.iter_mut().map(|pool| &mut pool.origin) {
        without_defaults += take_origin(origin);
    }
    for limits in short.limits.iter_mut().map(|shared| &mut shared.limits) {
        limits.max_connections_per_client = None;
    }
    assert_eq!(without_defaults, 30, "keys whose lines show a value to begin with");
    assert_eq!(long, short);
}

/// Takes out the bounds, which have no default, and says how many there were.
fn take_limits(limits: &mut Limits) -> usize {
    usize::from(limits.max_connections.take().is_some())
        + usize::from(limits.max_connections_per_client.take().is_some())
        + usize::from(limits.accept_rate.take().is_some())
        + usize::from(limits.burst.take().is_some())
        + usize::from(limits.accept_rate_per_client.take().is_some())
        + usize::from(limits.burst_per_client.take().is_some())
}

fn take_socket(socket: &mut Socket) -> usize {
    usize::from(socket.interface.take().is_some())
        + usize::from(socket.mode.take().is_some())
        + usize::from(socket.owner.take().is_some())
        + usize::from(socket.group.take().is_some())
}

fn take_origin(origin: &mut Origin) -> usize {
    origin.source_address.drain(..).count().min(1)
        + usize::from(origin.interface.take().is_some())
        + usize::from(origin.mark.take().is_some())
}

/// Takes out the values of keys that have no default, and says how many there were.
fn take_what_has_no_default(health: &mut Health) -> usize {
    let mut taken = usize::from(health.port.take().is_some()) + usize::from(health.address.take().is_some());
    if let Some(agent) = &mut health.agent {
        taken += usize::from(!std::mem::take(&mut Arc::make_mut(agent).send).is_empty());
    }
    match &mut health.probe {
        Probe::Http(spec) => {
            let spec = Arc::make_mut(spec);
            taken += usize::from(spec.host.take().is_some()) + usize::from(spec.body.take().is_some());
            taken += std::mem::take(&mut spec.headers).len();
        }
        Probe::Tls(spec) => {
            let spec = Arc::make_mut(spec);
            taken += usize::from(spec.name.take().is_some()) + usize::from(spec.ca.take().is_some());
        }
        _ => {}
    }
    taken
}

/// A PEM file with one certificate.
pub fn self_signed() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    let certified = rcgen::generate_simple_self_signed(["api.example".to_owned()]).expect("a certificate");
    std::fs::write(file.path(), certified.cert.pem()).expect("a file that takes it");
    file
}

/// What a newcomer uncomments to change things from the shell, in the folder that the unit makes; and the answer to
/// whoever has not done so names the same line.
#[test]
fn one_line_of_the_example_lets_root_change_things() {
    let line = EXAMPLE.lines().find(|line| line.starts_with("# listen = ")).expect("the line");
    let listen = good(&EXAMPLE.replace(line, &line[2..])).admin.listen;
    assert_eq!(
        listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["127.0.0.1:9900", "unix:/run/tidegate/admin.sock"]
    );
    let unit = include_str!("../../systemd/tidegate.service");
    assert!(unit.lines().any(|line| line == "RuntimeDirectory=tidegate"));
    let readme = include_str!("../../README.md");
    assert!(readme.contains(&line[2..]), "README.md");
}

#[test]
fn the_example_shows_every_key_that_the_reader_knows() {
    let example: Value = toml::from_str(&with_defaults_in_force()).unwrap();
    for (table, keys) in TABLES {
        let shown = keys_of(&example, table);
        for key in keys {
            assert!(shown.contains(key), "lb.toml.example doesn't show {key} of [{table}]");
        }
    }
}

/// The keys of all the tables that match a path of `TABLES`.
fn keys_of<'e>(example: &'e Value, path: &str) -> BTreeSet<&'e str> {
    let mut tables = vec![example];
    for part in path.split('.').filter(|part| !part.is_empty()) {
        tables = tables.into_iter().flat_map(|table| below(table, part)).collect();
    }
    tables.into_iter().filter_map(Value::as_table).flat_map(|table| table.keys().map(String::as_str)).collect()
}

fn below<'e>(table: &'e Value, part: &str) -> Vec<&'e Value> {
    match part.strip_suffix("[]") {
        Some(list) => table.get(list).and_then(Value::as_array).into_iter().flatten().collect(),
        None if part == "NAME" => table.as_table().into_iter().flat_map(|table| table.values()).collect(),
        None => table.get(part).into_iter().collect(),
    }
}

/// A config with this value for a key of `TABLES`, and the key's path.
fn with_key(table: &str, key: &str, value: &str) -> (String, String) {
    let path = format!("{table}.{key}").trim_start_matches('.').replace("NAME", "x");
    let mut lists = path.rsplit("[].");
    let text = lists.next().map(|key| format!("{key} = {value}")).unwrap_or_default();
    let text = lists.fold(text, |text, list| format!("{list} = [{{ {text} }}]"));
    (text, path.replace("[].", "[0]."))
}

#[test]
fn every_key_that_is_listed_is_read() {
    // No key takes a date. One that is listed but not read would pass with it.
    for (table, key) in TABLES.into_iter().flat_map(|(table, keys)| keys.iter().map(move |key| (table, key))) {
        let (text, path) = with_key(table, key, "2026-01-01");
        let place = format!(": {path}: this is a date, but ");
        assert!(said(&text).iter().any(|line| line.contains(&place)), "{path}: {:#?}", said(&text));
    }
}

#[test]
fn every_key_that_is_not_listed_is_unknown() {
    for (table, _) in TABLES {
        let (text, path) = with_key(table, "nonsense", "1");
        let place = format!(": {path}: unknown key; ");
        assert!(said(&text).iter().any(|line| line.contains(&place)), "{path}: {:#?}", said(&text));
    }
}

#[test]
fn the_example_fits_the_width_of_the_code() {
    for line in EXAMPLE.lines() {
        assert!(line.chars().count() <= 120, "{line}");
    }
}
