//! What is said about a file that is no TOML, and about the rest of it.

use super::{Case, assert_said, with_listener, with_top};

#[test]
fn mistakes_of_syntax() {
    let cases: &[Case] = &[
        ("log.level = \"info", &["6:18: the string is not closed; put the missing quotes"]),
        ("log.level = info", &["6:13: info is not a value; write \"info\""]),
        ("log.level = web", &["6:13: web is not a value; write \"web\""]),
        ("log.level = truee", &["6:13: truee is not a value; write \"truee\""]),
        ("runtime.lame_duck = 10s", &["6:21: 10s is not a value; write \"10s\""]),
        ("admin.listen = 127.0.0.1:9900", &["6:16: 127.0.0.1:9900 is not a value; write \"127.0.0.1:9900\""]),
        ("runtime.workers = 08", &["6:19: unexpected leading zero at \"0\"; remove it"]),
        (
            "runtime.workers = = 8",
            &["6:19: extra `=`; remove it", "6:21: unexpected key or value; expected newline, `#`"],
        ),
        ("log.level = \"\"\"info\n", &["7:1: the string is not closed; put the missing quotes"]),
        ("log.level =", &["6:12: the value is missing; write it behind the ="]),
        ("log.level", &["6:10: key with no value; expected `=`"]),
        ("log.level = \"info\" \"warn\"", &["6:20: unexpected key or value; expected newline, `#`"]),
        ("log.level = \"info\"\nlog.level = \"warn\"", &["7:5: \"level\" is defined twice; keep one of the two"]),
        ("[log]\n[log]", &["7:2: \"log\" is defined twice; keep one of the two"]),
        ("[log", &["6:5: unclosed table; expected `]`"]),
        ("log = { level = \"info\"", &["6:23: unclosed inline table; expected `}`"]),
    ];
    for (top, expected) in cases {
        assert_said(&with_top(top), expected);
    }
}

#[test]
fn a_syntax_mistake_hides_no_other_and_brings_no_false_one() {
    // The line with the mistake is not judged, and nothing is missing because of it.
    assert_said(
        &with_listener("bind = \"[::]:80\npool = \"nowhere\"\nbacklog = 0"),
        &[
            "4:16: the string is not closed; put the missing quotes",
            "6:11: listeners.web.backlog: 0 is out of range; use 1 to 1048576",
        ],
    );
    assert_said(
        &with_top("\"key\"\n[log]\n[log]\nlevel = 1"),
        &[
            "6:6: key with no value; expected `=`",
            "8:2: \"log\" is defined twice; keep one of the two",
            "9:9: log.level: \"1\" is not known here; use \"error\", \"warn\", \"info\", \"debug\" or \"trace\"",
        ],
    );
    // A key that is there twice hides nothing at all.
    assert_said(
        &with_listener("pool = \"web\"\npool = \"web\""),
        &[
            "3:1: listeners.web: bind is missing; write bind = \"0.0.0.0:8080\"",
            "5:1: \"pool\" is defined twice; keep one of the two",
        ],
    );
    // A header that can't be read leaves open what its keys belong to.
    assert_said(&with_listener("pol = 1\n[pools.db\nbackends = []"), &["5:10: unclosed table; expected `]`"]);
    assert_said(&with_listener("pools.db]\nbackends = []\nfoo = 1"), &["4:9: key with no value; expected `=`"]);
}
