//! The configs that a process has had, over an upgrade: they are the successor's to go back to.

use crate::kit::{Backend, Config, Launch, Tidegate};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Makes this its config file.
fn write(tidegate: &Tidegate, config: &Config) {
    let text = config.to_string().replace("$DIR", tidegate.dir().to_str().unwrap());
    std::fs::write(tidegate.dir().join("lb.toml"), text).unwrap();
}

fn done(tidegate: &Tidegate, path: &str) -> String {
    let answer = tidegate.post(path, "");
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["summary"].as_str().unwrap().to_owned()
}

fn upgrade(tidegate: &mut Tidegate) {
    tidegate.signal(Signal::USR2);
    tidegate.follow_alone();
}

/// What `/status` says of the configs, with what of it agrees with itself.
fn config(tidegate: &Tidegate) -> Value {
    let status = tidegate.status();
    let config = status["config"].clone();
    let last = &config["generations"][0];
    assert_eq!(last["generation"], status["generation"], "{config:#}");
    for key in ["hash", "loaded", "by"] {
        assert_eq!(last[key], config[key], "{config:#}");
    }
    config
}

#[test]
fn after_an_upgrade_the_configs_before_it_are_there_to_go_back_to() {
    let [one, two, three] = ["one", "two", "three"].map(Backend::named);
    let mut tidegate = Launch::new(Config::over([&one])).linked().start();
    write(&tidegate, &Config::over([&two]));
    done(&tidegate, "/reload");
    let before = config(&tidegate);

    // With the same file, the same generation goes on.
    upgrade(&mut tidegate);
    assert_eq!(config(&tidegate), before);
    assert_eq!(done(&tidegate, "/rollback"), "generation 3 runs, which is generation 1 again");
    assert_eq!(tidegate.connect().line(), "one");

    // The file says what it said before the way back: one generation more.
    upgrade(&mut tidegate);
    assert_eq!(tidegate.connect().line(), "two");
    let all = config(&tidegate);
    let seen = |key: &str| -> Vec<Value> {
        all["generations"].as_array().unwrap().iter().map(|generation| generation[key].clone()).collect()
    };
    assert_eq!(seen("generation"), [4, 3, 2, 1]);
    assert_eq!(seen("rollback_to"), [Value::Null, json!(1), Value::Null, Value::Null]);
    assert_eq!(seen("by")[0], "upgrade");
    assert_eq!((&seen("by")[2], &seen("by")[3]), (&before["by"], &json!("start")));
    assert_eq!(tidegate.status()["needs_upgrade"], json!([]));

    // A config that comes with the upgrade is the last one, too.
    write(&tidegate, &Config::over([&three]));
    upgrade(&mut tidegate);
    assert_eq!(tidegate.connect().line(), "three");
    assert_eq!(done(&tidegate, "/rollback"), "generation 6 runs, which is generation 4 again");
    assert_eq!(tidegate.connect().line(), "two");
}
