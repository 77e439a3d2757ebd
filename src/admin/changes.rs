//! What can be changed: each path that takes a POST, the fields of its body, and the command that it becomes.
//!
//! Owns that list, and with it what has to be said together or not at all. Carries nothing out.

use super::body;
use super::command::Command;
use super::fields::{Field, Given, Kind};
use crate::config::limits::{MAX_FILE, MAX_TIER, MAX_WEIGHT};
use crate::config::{Adjustment, AdminState, Level};
use crate::name::{ListenerName, PoolName, SessionId};

/// One path that takes a POST.
pub struct Change {
    /// With a name in braces for each part that the client fills in.
    pub path: &'static str,
    pub says: &'static str,
    pub fields: &'static [Field],
    /// The largest body, in bytes.
    pub most: u64,
    /// From the parts of the path and the body. Fails with what is wrong with them together.
    pub act: fn(&[String], Given) -> Result<Act, String>,
}

/// What is done.
#[derive(Debug, PartialEq)]
pub enum Act {
    Command(Command),
    Close(SessionId),
    /// The path names what can't be there.
    Nothing(String),
}

const STATES: Kind = Kind::Word(&["enabled", "draining", "disabled"]);

const STATE: Field = Field {
    name: "state",
    kind: STATES,
    is_required: false,
    says: "enabled, draining (no new sessions; those that it has go on) or disabled (the same, and not probed either)",
};
const DEADLINE: Field = Field {
    name: "deadline",
    kind: Kind::Deadline,
    is_required: false,
    says: "after how long the sessions that it still has are ended, such as 30s; without it never",
};

pub const CHANGES: &[Change] = &[
    Change {
        path: "/reload",
        says: "Takes the config file as it is now, or refuses it as a whole.",
        fields: &[],
        most: body::MAX,
        act: |_, _| Ok(Act::Command(Command::Reload)),
    },
    Change {
        path: "/plan",
        says: "Says what a reload would change, and what becomes of that which was changed at run time; changes nothing.",
        fields: &[Field {
            name: "config",
            kind: Kind::Text,
            is_required: false,
            says: "the text of a config; without it the config file as it is now",
        }],
        most: MAX_FILE,
        act: |_, mut given| Ok(Act::Command(Command::Plan(given.text("config")))),
    },
    Change {
        path: "/rollback",
        says: "Goes back to an earlier generation of the config.",
        fields: &[Field {
            name: "generation",
            kind: Kind::Number(1, 1 << 53),
            is_required: false,
            says: "which; without it the one before",
        }],
        most: body::MAX,
        act: |_, mut given| Ok(Act::Command(Command::Rollback(given.number("generation")))),
    },
    Change {
        path: "/upgrade",
        says: "Starts the binary that is there now and hands everything over to it.",
        fields: &[],
        most: body::MAX,
        act: |_, _| Ok(Act::Command(Command::Upgrade)),
    },
    Change {
        path: "/drain",
        says: "Stops the process as SIGTERM does.",
        fields: &[],
        most: body::MAX,
        act: |_, _| Ok(Act::Command(Command::Drain)),
    },
    Change {
        path: "/log",
        says: "Sets what is worth a line in the log.",
        fields: &[Field {
            name: "level",
            kind: Kind::Word(&["error", "warn", "info", "debug", "trace"]),
            is_required: true,
            says: "error, warn, info, debug or trace",
        }],
        most: body::MAX,
        act: |_, mut given| {
            let level: Level = given.word("level").ok_or("level: it is missing")?;
            Ok(Act::Command(Command::LogLevel(level)))
        },
    },
    Change {
        path: "/listeners/{listener}",
        says: "Takes a listener out of service, or puts it back.",
        fields: &[Field { is_required: true, ..STATE }, DEADLINE],
        most: body::MAX,
        act: |names, mut given| {
            let state: AdminState = given.word("state").ok_or("state: it is missing")?;
            let deadline = given.deadline("deadline");
            let name = ListenerName::new(&names[0]);
            Ok(Act::Command(Command::Listener { name, state, deadline }))
        },
    },
    Change {
        path: "/pools/{pool}/backends",
        says: "Adds a backend that isn't in the file.",
        fields: &[
            Field { name: "address", kind: Kind::Address, is_required: true, says: "such as 10.0.0.1:80" },
            Field {
                name: "name",
                kind: Kind::Name,
                is_required: false,
                says: "what it is called; by default its address",
            },
            Field {
                name: "weight",
                kind: Kind::Number(1, MAX_WEIGHT as u64),
                is_required: false,
                says: "its share in relation to the others; by default 1",
            },
            Field {
                name: "tier",
                kind: Kind::Number(0, MAX_TIER as u64),
                is_required: false,
                says: "0, by default, is used first",
            },
        ],
        most: body::MAX,
        act: |names, mut given| {
            Ok(Act::Command(Command::AddBackend {
                pool: PoolName::new(&names[0]),
                address: given.address("address").ok_or("address: it is missing")?,
                name: given.text("name"),
                weight: given.number("weight").unwrap_or(1),
                tier: given.number("tier").unwrap_or(0),
            }))
        },
    },
    Change {
        path: "/pools/{pool}/backends/{backend}",
        says: "Takes a backend out of service or puts it back, sets its weight, or overrides its health.",
        fields: &[
            STATE,
            Field {
                name: "weight",
                kind: Kind::Number(1, MAX_WEIGHT as u64),
                is_required: false,
                says: "its share in relation to the others",
            },
            Field {
                name: "health",
                kind: Kind::Word(&["auto", "up", "down"]),
                is_required: false,
                says: "auto is what the probes say",
            },
            DEADLINE,
        ],
        most: body::MAX,
        act: |names, mut given| {
            let (state, weight, health) = (given.word("state"), given.number("weight"), given.word("health"));
            let deadline = given.deadline("deadline");
            if (state, weight, health) == (None, None, None) {
                return Err("nothing is to be changed; give state, weight or health".to_owned());
            }
            if deadline.is_some() && !matches!(state, Some(AdminState::Draining | AdminState::Disabled)) {
                return Err("deadline: it is for a backend that is taken out; add \"state\": \"draining\"".to_owned());
            }
            let (pool, backend) = (PoolName::new(&names[0]), names[1].as_str().into());
            let change = Adjustment { state, weight, health };
            Ok(Act::Command(Command::Backend { pool, backend, change, deadline }))
        },
    },
    Change {
        path: "/pools/{pool}/backends/{backend}/remove",
        says: "Removes a backend; its sessions go on, until the deadline if there is one.",
        fields: &[DEADLINE],
        most: body::MAX,
        act: |names, mut given| {
            let (pool, backend) = (PoolName::new(&names[0]), names[1].as_str().into());
            Ok(Act::Command(Command::RemoveBackend { pool, backend, deadline: given.deadline("deadline") }))
        },
    },
    Change {
        path: "/connections/{id}/close",
        says: "Ends a session by a reset to both sides.",
        fields: &[],
        most: body::MAX,
        act: |names, _| {
            let id = names[0].parse();
            Ok(id.map_or_else(
                |()| Act::Nothing("there is no such connection; ids are like 1-4711".to_owned()),
                Act::Close,
            ))
        },
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::fields;
    use crate::config::HealthOverride;
    use std::time::Duration;

    fn act(path: &str, names: &[&str], body: &str) -> Result<Act, String> {
        let change = CHANGES.iter().find(|change| change.path == path).unwrap();
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let given = fields::read(body.as_bytes(), change.fields).map_err(|(_, text)| text)?;
        (change.act)(&names, given)
    }

    #[test]
    fn each_body_becomes_its_command() {
        let backend = || (PoolName::new("app"), "10.0.0.1:80".into());
        let named = ["app", "10.0.0.1:80"];
        let second = Some(Duration::from_secs(1));
        for (path, names, body, expected) in [
            ("/reload", &[][..], "", Command::Reload),
            ("/plan", &[], "{}", Command::Plan(None)),
            ("/plan", &[], r#"{"config": "x"}"#, Command::Plan(Some("x".to_owned()))),
            ("/rollback", &[], "", Command::Rollback(None)),
            ("/rollback", &[], r#"{"generation": 3}"#, Command::Rollback(Some(3))),
            ("/upgrade", &[], "", Command::Upgrade),
            ("/drain", &[], "{}", Command::Drain),
            (
                "/listeners/{listener}",
                &["web"],
                r#"{"state": "disabled", "deadline": "1s"}"#,
                Command::Listener { name: ListenerName::new("web"), state: AdminState::Disabled, deadline: second },
            ),
            (
                "/pools/{pool}/backends",
                &["app"],
                r#"{"address": "10.0.0.9:80", "name": "nine", "weight": 256, "tier": 15}"#,
                Command::AddBackend {
                    pool: PoolName::new("app"),
                    address: crate::config::values::backend("10.0.0.9:80").unwrap(),
                    name: Some("nine".to_owned()),
                    weight: 256,
                    tier: 15,
                },
            ),
            (
                "/pools/{pool}/backends/{backend}/remove",
                &named,
                r#"{"deadline": "1s"}"#,
                Command::RemoveBackend { pool: backend().0, backend: backend().1, deadline: second },
            ),
        ] {
            assert_eq!(act(path, names, body), Ok(Act::Command(expected)), "{path} {body}");
        }
        let changed = |body: &str| match act("/pools/{pool}/backends/{backend}", &named, body) {
            Ok(Act::Command(Command::Backend { change, deadline, .. })) => (change, deadline),
            other => panic!("{other:?}"),
        };
        for (word, state) in
            [("enabled", AdminState::Enabled), ("draining", AdminState::Draining), ("disabled", AdminState::Disabled)]
        {
            let expected = Adjustment { state: Some(state), ..Adjustment::default() };
            assert_eq!(changed(&format!("{{\"state\": \"{word}\"}}")), (expected, None));
        }
        for (word, health) in
            [("auto", HealthOverride::Auto), ("up", HealthOverride::Up), ("down", HealthOverride::Down)]
        {
            let expected = Adjustment { health: Some(health), weight: Some(7), state: None };
            assert_eq!(changed(&format!("{{\"health\": \"{word}\", \"weight\": 7}}")), (expected, None));
        }
        assert_eq!(changed(r#"{"state": "draining", "deadline": "1s"}"#).1, second);
        for (word, level) in [
            ("error", Level::Error),
            ("warn", Level::Warn),
            ("info", Level::Info),
            ("debug", Level::Debug),
            ("trace", Level::Trace),
        ] {
            let body = format!("{{\"level\": \"{word}\"}}");
            assert_eq!(act("/log", &[], &body), Ok(Act::Command(Command::LogLevel(level))));
        }
        let close = |id| act("/connections/{id}/close", &[id], "");
        assert_eq!(close("1-4711"), Ok(Act::Close(SessionId::new(1, 4_711))));
        assert!(matches!(close("all"), Ok(Act::Nothing(_))));
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        let named = ["app", "one"];
        let refused = |body| act("/pools/{pool}/backends/{backend}", &named, body).unwrap_err();
        assert_eq!(refused("{}"), "nothing is to be changed; give state, weight or health");
        let deadline = "deadline: it is for a backend that is taken out; add \"state\": \"draining\"";
        assert_eq!(refused(r#"{"weight": 1, "deadline": "1s"}"#), deadline);
        assert_eq!(refused(r#"{"state": "enabled", "deadline": "1s"}"#), deadline);
        assert!(act("/drain", &[], r#"{"deadline": "1s"}"#).unwrap_err().contains("there are no keys here"));
    }

    #[test]
    fn every_path_has_as_many_names_as_its_command_takes() {
        for change in CHANGES {
            let names = vec!["1-1".to_owned(); change.path.matches('{').count()];
            // It must not look for a name that isn't there.
            _ = (change.act)(&names, Given::default());
        }
    }
}
