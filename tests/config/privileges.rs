//! The keys that say what the process may do while it serves.

use super::{Case, assert_said, good, with_top};
use tidegate::config::{Capability, Landlock, Owner, Privileges};

fn privileges(keys: &str) -> Privileges {
    good(&with_top(&format!("[runtime]\n{keys}"))).runtime.privileges
}

#[test]
fn privileges_mean_what_they_say() {
    assert_eq!(privileges(""), Privileges::default());
    assert_eq!(privileges("user = \"off\"\ngroup = \"off\"\nkeep_capabilities = []"), Privileges::default());
    let keys = "user = \"tidegate\"\ngroup = \"33\"\nkeep_capabilities = [\"net_bind_service\", \"net_raw\", \
                \"net_admin\"]\nlandlock = \"required\"";
    assert_eq!(
        privileges(keys),
        Privileges {
            user: Some(Owner::Name("tidegate".into())),
            group: Some(Owner::Number(33)),
            keep_capabilities: vec![Capability::NetBindService, Capability::NetRaw, Capability::NetAdmin],
            landlock: Landlock::Required,
        }
    );
    assert_eq!(privileges("user = \"0\"\nkeep_capabilities = \"net_raw\"").keep_capabilities, [Capability::NetRaw]);
    assert_eq!(privileges("landlock = \"on\"").landlock, Landlock::On);
}

#[test]
fn what_is_wrong_with_privileges_is_said() {
    let cases: &[Case] = &[
        ("group = \"www\"", &["7:9: runtime.group: a group alone changes nothing; name a user too, or remove it"]),
        (
            "keep_capabilities = [\"net_raw\"]",
            &[
                "7:21: runtime.keep_capabilities: warning: this has no effect: without a user, nothing is dropped; name a user, \
               or remove it",
            ],
        ),
        (
            "user = \"a\"\nkeep_capabilities = [\"net_raw\", \"net_raw\"]",
            &["8:33: runtime.keep_capabilities[1]: warning: the same capability is named twice; remove one"],
        ),
        (
            "user = \"a\"\nkeep_capabilities = [\"CAP_NET_BIND_SERVICE\", \"chown\"]",
            &[
                "8:22: runtime.keep_capabilities[0]: \"CAP_NET_BIND_SERVICE\" is not a capability that can be kept; did \
                 you mean \"net_bind_service\"?",
                "8:46: runtime.keep_capabilities[1]: \"chown\" is not a capability that can be kept; use \
                 \"net_bind_service\", \"net_raw\" or \"net_admin\"",
            ],
        ),
        (
            "landlock = \"yes\"",
            &["7:12: runtime.landlock: \"yes\" is not known here; use \"off\", \"on\" or \"required\""],
        ),
        ("user = \"a b\"", &["7:8: runtime.user: \"a b\" is not a user; write its name or its number"]),
    ];
    for (keys, expected) in cases {
        assert_said(&with_top(&format!("[runtime]\n{keys}")), expected);
    }
}
