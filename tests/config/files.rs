//! Files that can't be read, that are no text, or that are built to hurt whoever reads them.

use super::{EXAMPLE, with_pool, with_top};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use tidegate::config::{Config, Mistakes, Severity, Style};

fn refused(path: &Path) -> String {
    let mistakes = Config::load(path).expect_err("the file must be refused");
    mistakes.to_string().replace(&*path.to_string_lossy(), "FILE")
}

fn mistakes(bytes: impl AsRef<[u8]>) -> Mistakes {
    Config::parse("lb.toml", bytes.as_ref()).expect_err("the config must be refused")
}

#[test]
fn a_file_is_loaded_under_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lb.toml");
    fs::write(&path, EXAMPLE).unwrap();
    let loaded = Config::load(&path).unwrap();
    assert!(loaded.config.pools[0].members[0].place.starts_with(&*path.to_string_lossy()));
    fs::write(&path, "x").unwrap();
    let shown = refused(&path);
    assert!(shown.starts_with("FILE:1:2: key with no value; expected `=`\n"), "{shown}");
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    rustix::fs::mknodat(rustix::fs::CWD, path("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let _socket = UnixListener::bind(path("socket")).unwrap();
    let hint = "name a regular file";
    assert_eq!(refused(&path("none")), "FILE: there is no such file; name the config with --config");
    assert_eq!(refused(directory.path()), format!("FILE: this is a directory, not a file; {hint}"));
    assert_eq!(refused(&path("fifo")), format!("FILE: this is a FIFO, not a file; {hint}"));
    assert_eq!(refused(&path("socket")), format!("FILE: this is a socket or device, not a file; {hint}"));
    assert_eq!(refused(Path::new("/dev/zero")), format!("FILE: this is a device, not a file; {hint}"));
    fs::write(path("file"), "").unwrap();
    let below = refused(&path("file/below"));
    assert!(below.starts_with("FILE: the file can't be read: Not a directory"), "{below}");
}

#[test]
fn a_file_that_may_not_be_read_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lb.toml");
    fs::write(&path, EXAMPLE).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o0)).unwrap();
    if Config::load(&path).is_ok() {
        // Root may read everything.
        assert!(rustix::process::geteuid().is_root());
        return;
    }
    let expected = "FILE: the file can't be read: permission denied; let the user that runs tidegate read it";
    assert_eq!(refused(&path), expected);
}

#[test]
fn a_file_that_is_too_large_is_not_read() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lb.toml");
    fs::File::create(&path).unwrap().set_len(100 << 20).unwrap();
    let expected = "the file is larger than 16.0 MiB; a config is smaller than that";
    assert_eq!(refused(&path), format!("FILE: {expected}"));
    assert_eq!(mistakes(vec![b' '; (16 << 20) + 1]).to_string(), format!("lb.toml: {expected}"));
}

#[test]
fn what_is_not_text_is_placed() {
    let first = |bytes: &[u8]| mistakes(bytes).iter().next().unwrap().first_line();
    assert_eq!(first(b"# \xc3\xbc\xc3\n"), "lb.toml:1:4: byte 0xc3 is not UTF-8; save the file as UTF-8 text");
    assert_eq!(
        first(b"a\0"),
        "lb.toml:1:2: the control character 0x00 has no place in a text file; save the file as UTF-8 text"
    );
    assert_eq!(
        first(b"a=1\r\nb\rc"),
        "lb.toml:2:2: the control character 0x0d has no place in a text file; save the file as UTF-8 text"
    );
    assert_eq!(first(b"\xfe\xff\0a"), "lb.toml:1:1: the file looks like UTF-16; save the file as UTF-8 text");
}

#[test]
fn a_byte_order_mark_and_dos_line_ends_are_fine() {
    let dos = format!("\u{feff}{}", EXAMPLE.replace('\n', "\r\n"));
    let loaded = Config::parse("lb.toml", dos.as_bytes()).unwrap();
    let plain = Config::parse("lb.toml", EXAMPLE.as_bytes()).unwrap();
    assert_eq!((loaded.config, loaded.warnings), (plain.config, plain.warnings), "with the same places, too");
}

#[test]
fn ten_thousand_levels_are_refused_within_a_small_stack() {
    let many = |text: &str| text.repeat(10_000);
    let deep = [
        format!("a = {}", many("[")),
        format!("a = {}{}", many("["), many("]")),
        format!("a = {}", many("{a = ")),
        format!("a = {}1{}", many("{a = "), many("}")),
        format!("a{} = 1", many(".a")),
        format!("a = {{ a{} = 1 }}", many(".\"a\"")),
        format!("[a{}]", many(" . 'a'")),
        format!("[[a{}]]", many(".a")),
        // Each key and each level as far as the parser lets it go by itself.
        format!("a = {}1{}", format!("{{a{}=", ".a".repeat(78)).repeat(79), "}".repeat(79)),
        format!("a = {}1{}", "{a.a.a.a.a.a.a.a=".repeat(79), "}".repeat(79)),
        format!("[a.a.a.a.a.a.a.a]\na.a.a.a.a.a.a.a = {}1{}", "{a.a.a.a.a.a.a.a=[".repeat(39), "]}".repeat(39)),
        with_pool(&format!("target = \"{}tcp://a:1\"", many("failover:("))),
        many("[") + &many("[a."),
        many("("),
    ];
    for text in deep {
        let read = move || Config::parse("lb.toml", text.as_bytes()).map(|_| ()).unwrap_err().to_string().len();
        let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(read).unwrap();
        assert!(thread.join().unwrap() < 10_000);
    }
}

#[test]
fn a_flood_of_mistakes_is_counted_and_the_first_are_listed() {
    let found = mistakes(with_top(&"x y\n".repeat(10_000)));
    assert_eq!(found.iter().count(), 200);
    assert!(found.unlisted() >= 9_800, "{}", found.unlisted());
    let text = found.to_string();
    assert!(text.ends_with(&format!("\nand {} more", found.unlisted())), "{}", &text[text.len() - 100..]);
}

#[test]
fn a_large_file_is_searched_for_one_syntax_mistake_only() {
    // Each costs more memory than text, so that the process could be killed for a bad config.
    let large = with_top(&"x = \n".repeat(300_000));
    assert_eq!(mistakes(&large).iter().count(), 1);
    assert!(mistakes(&large[..1 << 20]).iter().count() > 1);
}

#[test]
fn a_file_of_nothing_but_signs_is_not_parsed() {
    let found = mistakes("=".repeat(4_000_001));
    let line = found.iter().next().unwrap().first_line();
    assert_eq!(line, "lb.toml:1:4000001: the file has more than 4000000 words and signs; split it");
}

#[test]
fn a_pool_has_a_largest_size_which_takes_no_time_to_read() {
    let backends = |count: u32| {
        let list: Vec<_> = (0..count).map(|n| format!("\"10.{}.{}.{}:80\"", n >> 16, n >> 8 & 255, n & 255)).collect();
        with_pool(&format!("backends = [{}]", list.join(",")))
    };
    let loaded = Config::parse("lb.toml", backends(65_535).as_bytes()).unwrap();
    assert_eq!(loaded.config.pools[0].members.len(), 65_535);
    let found = mistakes(backends(65_536));
    let line = found.iter().next().unwrap().first_line();
    assert_eq!(line, "lb.toml:5:12: pools.web.backends: the pool has 65536 backends; a pool has up to 65535");
}

#[test]
fn the_line_is_shown_below_and_coloured_only_when_told() {
    let found = mistakes(with_pool("backends = [\"ü:1\", \"10.0.0.1:0\"]  # \u{9b}31m"));
    let plain = "\
lb.toml:5:13: pools.web.backends[0]: \"ü\" is not a host name; write it in its ASCII form, which begins with \"xn--\"
  |
5 | backends = [\"ü:1\", \"10.0.0.1:0\"]  # \u{fffd}31m
  |             ^^^^^
lb.toml:5:20: pools.web.backends[1]: port 0 is not a port; use 1 to 65535
  |
5 | backends = [\"ü:1\", \"10.0.0.1:0\"]  # \u{fffd}31m
  |                    ^^^^^^^^^^^^";
    assert_eq!(found.to_string(), plain);
    let coloured = found.render(Style::Colour);
    assert!(coloured.contains("\x1b["), "{coloured}");
}

#[test]
fn nothing_in_a_file_or_its_name_can_write_to_the_terminal() {
    let paths = "unix:/\\u202e";
    let evil = "\\u001b[2J\\r\\n\\u009b\\u202e";
    let text = format!(
        "\"{evil}\" = \"{evil}\"\n[listeners.\"{evil}\"]\nbind = \"{evil}\"\npool = \"{evil}\"\n[pools.\"{evil}\"]\n\
         balance = \"{evil}\"\nbackends = [\"{evil}\", {{ address = \"unix:/{evil}\", name = \"{evil}\" }}]\n[pools.b]\n\
         target = \"{evil}\"\n[log]\naccess = \"{evil}\"\nlevel = \"{evil}\"\n[runtime]\nlame_duck = \"{evil}\"\n\
         workers = 0 # \u{9b}\u{202e}\n[pools.\"\\u009b\"]\nbackends = [\"{paths}\", \"{paths}\"]\n\
         [listeners.a]\npool = \"\\u009b\"\nbind = [\"{paths}\", \"{paths}\"]"
    );
    let found = Config::parse("l\x1b\u{202e}b\n.toml", text.as_bytes()).unwrap_err();
    assert!(found.iter().filter(|mistake| mistake.severity == Severity::Error).count() >= 10, "{found}");
    let shown = found.to_string();
    let bad = |char: char| char != '\n' && (char.is_control() || char == '\u{202e}');
    assert!(!shown.contains(bad), "{shown:?}");
    for line in shown.lines() {
        let is_excerpt = line.trim_start().starts_with(|char: char| char == '|' || char.is_ascii_digit());
        assert!(is_excerpt || line.starts_with("l\\u{1b}\\u{202e}b\\n.toml:"), "{line}");
    }
}
