//! The keys of `[admin]`: what they mean, and what is said about those that are wrong or do nothing.

use super::{Case, assert_said, good, with_top};
use tidegate::config::Owner;

#[test]
fn the_endpoint_may_have_several_addresses_a_token_users_and_names() {
    let admin = good(&with_top(
        "admin.listen = [\"0.0.0.0:9900\", \"unix:/run/admin.sock\"]\nadmin.token_file = \"/etc/token\"\n\
         admin.allow_uids = [0, \"deploy\"]\nadmin.allowed_hosts = [\"LB.example.com.\", \"[2001:DB8::1]\"]",
    ))
    .admin;
    let shown: Vec<_> = admin.listen.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["0.0.0.0:9900", "unix:/run/admin.sock"]);
    assert_eq!(admin.token_file.as_deref(), Some("/etc/token".as_ref()));
    assert_eq!(admin.allow_uids, Some(vec![Owner::Number(0), Owner::Name("deploy".into())]));
    assert_eq!(admin.allowed_hosts, ["lb.example.com", "2001:db8::1"]);
    let other = good(&with_top("admin.token_credential = \"admin-token\"")).admin;
    assert_eq!((other.token_credential.as_deref(), other.allow_uids), (Some("admin-token"), None));
    assert!(good(&with_top("admin.listen = \"off\"")).admin.listen.is_empty());
    let nobody = good(&with_top("admin.listen = \"unix:/run/admin.sock\"\nadmin.allow_uids = []")).admin;
    assert_eq!(nobody.allow_uids, Some(Vec::new()));
}

#[test]
fn mistakes_have_a_way_out() {
    let cases: &[Case<'_>] = &[
        (
            "admin.listen = [\"127.0.0.1:1\", \"[::]:9900\"]",
            &[
                "6:32: admin.listen[1]: [::]:9900 can be reached from other machines; add a token_file, or use a loopback \
               address such as 127.0.0.1:9900, or unix:/run/tidegate/admin.sock",
            ],
        ),
        ("admin.listen = []", &["6:16: admin.listen: the list is empty; name an address, or write listen = \"off\""]),
        (
            "admin.listen = [\"127.0.0.1:1\", \"off\"]",
            &["6:32: admin.listen[1]: \"off\" is no address beside others; write listen = \"off\" alone"],
        ),
        (
            "admin.listen = [\"127.0.0.1:1\", \"127.0.0.1:1\"]",
            &[
                "6:32: admin.listen[1]: 127.0.0.1:1 overlaps 127.0.0.1:1, which is admin.listen[0] on line 6; use another \
               port or address",
            ],
        ),
        (
            "admin.token_file = \"token\"",
            &["6:20: admin.token_file: \"token\" is not the absolute path of a file; write one such as \
               \"/etc/tidegate/token\""],
        ),
        (
            "admin.token_credential = \"a/b\"",
            &[
                "6:26: admin.token_credential: \"a/b\" is not the name of a credential; write that of LoadCredential= in \
               the unit, such as \"admin-token\"",
            ],
        ),
        (
            "admin.token_file = \"/etc/token\"\nadmin.token_credential = \"token\"",
            &["7:26: admin.token_credential: there is a token_file already; keep token_credential with systemd's \
               LoadCredential=, or token_file without"],
        ),
        (
            "admin.allow_uids = 7",
            &[
                "6:20: admin.allow_uids: warning: this has no effect: users are known by their number on unix sockets only; add one \
               to admin.listen, such as \"unix:/run/tidegate/admin.sock\"",
            ],
        ),
        (
            "admin.listen = \"unix:/a\"\nadmin.allow_uids = [true, -1]",
            &[
                "7:21: admin.allow_uids[0]: true is a boolean, but a user is wanted; write its name or its number",
                "7:27: admin.allow_uids[1]: -1 is not the number of a user; use 0 to 4294967294",
            ],
        ),
        (
            "admin.allowed_hosts = [\"lb.example.com:9900\", \"a b\"]",
            &[
                "6:24: admin.allowed_hosts[0]: \"lb.example.com:9900\" has a port; write \"lb.example.com\": every port is \
                 allowed",
                "6:47: admin.allowed_hosts[1]: \"a b\" is not a host name; a name is made of letters, digits, hyphens and \
                 dots",
            ],
        ),
        (
            "admin.token = \"secret\"",
            &["6:7: admin.token: unknown key; the keys here are listen, token_file, token_credential, allow_uids, \
               allowed_hosts"],
        ),
    ];
    for (top, expected) in cases {
        assert_said(&with_top(top), expected);
    }
}
