//! The fields of both logs, read back as a reader of logfmt does, with names that have blanks, quotes and `=` in them.

use crate::kit::{Addr, Backend, Config, Tidegate, http};
use serde_json::Value;

/// `key=value` pairs: a value is a string of JSON, or has nothing in it that could be misread.
fn pairs(mut rest: &str) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let (key, value) = rest.split_once('=').unwrap_or_else(|| panic!("no pair: {rest:?}"));
        assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{key:?} in {rest:?}");
        let (text, length) = if value.starts_with('"') {
            let mut strings = serde_json::Deserializer::from_str(value).into_iter::<String>();
            (strings.next().unwrap().unwrap(), strings.byte_offset())
        } else {
            let length = value.find(' ').unwrap_or(value.len());
            assert!(!value[..length].contains(['"', '\\', '=']), "{value:?}");
            (value[..length].to_owned(), length)
        };
        pairs.push((key.to_owned(), text));
        let after = &value[length..];
        assert!(after.is_empty() || after.starts_with(' '), "{after:?} behind {key}");
        rest = after.trim_start_matches(' ');
    }
    pairs
}

const NAME: &str = "my \"odd\" = name";

fn config(format: &str, backend: &Backend) -> String {
    let quoted = serde_json::to_string(NAME).unwrap();
    let pool = format!("backends = [{{ name = {quoted}, address = \"{backend}\" }}, \"unix:$DIR/no such.sock\"]\n");
    let config = Config::with_pool(&pool).pool("balance = \"round_robin\"");
    let config = config.log(&format!("format = \"{format}\"\naccess = \"$DIR/access.log\"")).to_string();
    config.replace("listen = \"127.0.0.1:0\"", "listen = [\"127.0.0.1:0\", \"unix:$DIR/ad min.sock\"]")
}

fn value<'p>(pairs: &'p [(String, String)], key: &str) -> &'p str {
    pairs.iter().find(|(known, _)| known == key).map_or_else(|| panic!("no {key} in {pairs:?}"), |(_, value)| value)
}

#[test]
fn every_field_of_both_logs_can_be_read_back_whatever_things_are_called() {
    let backend = Backend::named("it");
    for format in ["text", "json"] {
        let tidegate = Tidegate::start(config(format, &backend));
        // Each goes to the socket that isn't there first, or second.
        for _ in 0..2 {
            assert_eq!(tidegate.connect().rest().text(), "it\n");
        }
        let unix = Addr::Unix(tidegate.dir().join("ad min.sock"));
        let path = "/pools/web/backends/my%20%22odd%22%20%3D%20name";
        assert_eq!(http::post_with(&unix, path, "", "{\"weight\": 7}").status, 200);
        assert_eq!(http::post_with(&unix, "/nothing%20here%22=", "", "").status, 404);
        let uid = format!("uid {}", rustix::process::geteuid().as_raw());
        tidegate.logged(&["changed", "weight 7"]);
        let (changed, refused) = (tidegate.logged(&["changed", "weight 7"]), tidegate.logged(&["refused", "nothing"]));
        tidegate.until_idle();
        let fields = |line: &str, message: &str| match format {
            "json" => {
                let Value::Object(all) = serde_json::from_str(line).unwrap() else { panic!("{line}") };
                let text = |value: Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                all.into_iter().map(|(key, value)| (key, text(value))).collect()
            }
            _ => pairs(line.split_once(message).unwrap_or_else(|| panic!("{line}")).1),
        };
        let told = fields(&changed, " changed ");
        assert_eq!((value(&told, "by"), value(&told, "backend")), (&*uid, NAME), "{changed}");
        assert_eq!(value(&told, "to"), "enabled, weight 7");
        let told = fields(&refused, " refused ");
        assert_eq!(value(&told, "request"), "POST /nothing%20here%22=", "{refused}");
        let lines = || std::fs::read_to_string(tidegate.dir().join("access.log")).unwrap_or_default();
        crate::kit::eventually("both sessions are in the access log", || lines().lines().count() == 2);
        let (mut names, mut attempts) = (Vec::new(), String::new());
        for line in lines().lines() {
            let told = if format == "json" { fields(line, "") } else { pairs(line) };
            names.push(value(&told, "backend").to_owned());
            attempts += value(&told, "attempts");
        }
        assert_eq!(names, [NAME, NAME]);
        let missing = format!("unix:{}/no such.sock", tidegate.dir().display());
        assert!(attempts.contains(&missing) && attempts.contains(NAME), "{attempts}");
    }
}
