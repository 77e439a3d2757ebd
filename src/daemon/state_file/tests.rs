//! Files that are whole, and files that are not: truncated, flipped, of another version, or no file at all.

use super::*;
use crate::config::{AddedBackend, Adjustment, AdminState, HealthOverride, Level, PoolAdjustments};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

fn some() -> Adjustments {
    let backends = [
        ("a".to_owned(), Adjustment { state: Some(AdminState::Draining), weight: Some(7), health: None }),
        ("ü \"b\"".to_owned(), Adjustment { health: Some(HealthOverride::Down), ..Adjustment::default() }),
    ];
    let own = PoolAdjustments {
        backends: backends.into(),
        added: vec![AddedBackend { address: "10.0.0.9:80".into(), name: Some("new".into()), weight: 3, tier: 1 }],
        removed: vec!["c".into()],
    };
    Adjustments {
        listeners: [("web".to_owned(), AdminState::Disabled)].into(),
        pools: [("web".to_owned(), own)].into(),
        log_level: Some(Level::Debug),
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("state.json")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

/// Runs a keeper over the path for as long as `during` takes; what it read, and what it counted.
fn kept(path: &Path, during: impl FnOnce(&Keeper)) -> (Adjustments, u64) {
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut keeper, read) = Keeper::open(path.to_owned(), &metrics);
    keeper.start();
    during(&keeper);
    drop(keeper);
    (read, metrics.state_file_errors.get())
}

#[test]
fn what_is_kept_is_read_again_and_nobody_else_may_read_it() {
    let place = Place::new();
    assert_eq!(kept(&place.path(), |keeper| keeper.keep(some())), (Adjustments::default(), 0));
    assert_eq!(place.names(), ["state.json"]);
    assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(kept(&place.path(), |_| ()), (some(), 0));
    assert_eq!(kept(&place.path(), |keeper| keeper.keep(Adjustments::default())), (some(), 0));
    assert_eq!(kept(&place.path(), |_| ()), (Adjustments::default(), 0), "what was taken back is gone");
}

#[test]
fn of_many_changes_the_last_one_is_kept() {
    let place = Place::new();
    let nth = |n: u16| {
        let mut all = some();
        all.pools.get_mut("web").unwrap().backends.get_mut("a").unwrap().weight = Some(n);
        all
    };
    kept(&place.path(), |keeper| (1..=200).for_each(|n| keeper.keep(nth(n))));
    assert_eq!(kept(&place.path(), |_| ()).0, nth(200));
}

#[test]
fn f56_a_file_that_was_cut_anywhere_is_not_used() {
    let whole = text_of(&some()).unwrap();
    for length in 0..whole.trim_end().len() {
        assert!(parse(&whole.as_bytes()[..length]).is_err(), "{length} bytes of {}", whole.len());
    }
    assert_eq!(parse(whole.as_bytes()), Ok(some()));
}

#[test]
fn f56_a_flipped_bit_is_found_or_means_the_same() {
    let whole = text_of(&some()).unwrap().into_bytes();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << bit;
            if let Ok(adjustments) = parse(&flipped) {
                assert_eq!(adjustments, some(), "bit {bit} of byte {at}, in {:?}", whole[at] as char);
                assert!(whole[at].is_ascii_whitespace(), "bit {bit} of byte {at} makes no difference");
            }
        }
    }
}

#[test]
fn f56_other_versions_other_files_and_what_can_not_be_are_named() {
    let with = |change: &dyn Fn(&mut Value)| {
        let mut whole: Value = serde_json::from_str(&text_of(&some()).unwrap()).unwrap();
        change(&mut whole);
        parse(whole.to_string().as_bytes()).unwrap_err()
    };
    let sealed = |state: Value| {
        let (format, checksum) = (FORMAT, checksum(&state));
        let whole = json!({"format": format, "version": VERSION, "checksum": checksum, "state": state});
        parse(whole.to_string().as_bytes()).unwrap_err()
    };
    for (said, expected) in [
        (with(&|whole| whole["version"] = json!(2)), "it has version 2, of a newer tidegate; this one knows 1"),
        (with(&|whole| whole["version"] = json!(0)), "it has version 0; this tidegate knows 1"),
        (with(&|whole| whole["version"] = json!("1")), "it has no version; this tidegate knows 1"),
        (with(&|whole| whole["format"] = json!("other")), "it is no state file"),
        (with(&|whole| whole["more"] = json!(1)), "it is damaged (the checksum is another)"),
        (with(&|whole| whole["state"]["log_level"] = json!("info")), "it is damaged (the checksum is another)"),
        (parse(b"[]").unwrap_err(), "it is damaged (no object)"),
    ] {
        assert_eq!(said, expected);
    }
    // With the right checksum, as if somebody had written it by hand.
    let weight = json!({"pools": {"web": {"backends": {"a": {"weight": 0}}}}});
    assert!(sealed(weight).contains("of pool \"web\": weight 0"));
    assert!(
        sealed(json!({"pools": {"web": {"added": [{"address": "x", "weight": 1, "tier": 99}]}}})).contains("tier 99")
    );
    assert!(sealed(json!({"pulls": {}})).contains("unknown field `pulls`"));
    assert!(sealed(json!({"listeners": {"web": "asleep"}})).contains("unknown variant `asleep`"));
}

#[test]
fn f56_what_is_not_good_is_set_aside_and_kept_anew() {
    let place = Place::new();
    let good = text_of(&some()).unwrap();
    for (round, bad) in ["", "{", &good[..good.len() / 2], "\0\0\0\0"].into_iter().enumerate() {
        fs::write(place.path(), bad).unwrap();
        assert_eq!(kept(&place.path(), |_| ()), (Adjustments::default(), 1), "{round}");
        assert_eq!(place.names(), ["state.json.bad"]);
        assert_eq!(fs::read_to_string(place.0.path().join("state.json.bad")).unwrap(), bad, "as it was");
        assert_eq!(kept(&place.path(), |keeper| keeper.keep(some())), (Adjustments::default(), 0));
        assert_eq!(kept(&place.path(), |_| ()), (some(), 0));
    }
}

#[test]
fn f56_a_fifo_in_its_place_holds_nobody_up_and_is_set_aside() {
    let place = Place::new();
    rustix::fs::mknodat(rustix::fs::CWD, place.path(), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    assert_eq!(kept(&place.path(), |keeper| keeper.keep(some())), (Adjustments::default(), 1));
    assert_eq!(place.names(), ["state.json", "state.json.bad"]);
    assert_eq!(kept(&place.path(), |_| ()), (some(), 0));
}

#[test]
fn f56_a_directory_or_a_device_in_its_place_stays_and_is_told() {
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    fs::write(place.path().join("precious"), "x").unwrap();
    let (_, warning) = read(&place.path());
    let warning = warning.unwrap();
    assert!(warning.contains("state.json is not used") && warning.contains("it stays where it is"), "{warning}");
    assert!(obstacle(&place.path()).unwrap().contains("is a directory; name a file in it"));
    let (read_again, errors) = kept(&place.path(), |keeper| keeper.keep(some()));
    assert_eq!(read_again, Adjustments::default());
    assert!(errors >= 2, "reading, and writing: {errors}");
    assert_eq!(fs::read_to_string(place.path().join("precious")).unwrap(), "x");
    assert_eq!(place.names(), ["state.json"], "nothing is left beside it");
    let (adjustments, warning) = read(Path::new("/dev/full"));
    assert_eq!(adjustments, Adjustments::default());
    assert!(warning.unwrap().contains("it stays where it is") && Path::new("/dev/full").exists());
}

#[test]
fn f56_what_can_not_be_written_leaves_the_old_one_and_is_written_once_it_can_be() {
    let place = Place::new();
    kept(&place.path(), |keeper| keeper.keep(some()));
    let metrics = Arc::new(Metrics::new().unwrap());
    let (mut keeper, _) = Keeper::open(place.path(), &metrics);
    keeper.start();
    // Nobody, root neither, can remove a directory that isn't empty as if it were a file.
    let in_the_way = place.0.path().join("state.json.new");
    fs::create_dir(&in_the_way).unwrap();
    keeper.keep(Adjustments::default());
    let patience = Instant::now() + Duration::from_secs(60);
    while metrics.state_file_errors.get() < 2 {
        assert!(Instant::now() < patience, "it is tried again");
        thread::yield_now();
    }
    assert_eq!(read(&place.path()), (some(), None), "the old one is whole");
    fs::remove_dir(&in_the_way).unwrap();
    drop(keeper);
    assert_eq!(read(&place.path()), (Adjustments::default(), None), "the last word of a process is tried at once");
}

#[test]
fn what_stands_in_the_way_is_named_before_anything_is_lost() {
    let place = Place::new();
    assert_eq!(obstacle(&place.path()), None);
    let nowhere = obstacle(&place.0.path().join("no/state.json")).unwrap();
    assert!(nowhere.contains("there is no directory") && nowhere.ends_with("create it"), "{nowhere}");
}

fn states() -> impl Strategy<Value = AdminState> {
    prop_oneof![Just(AdminState::Enabled), Just(AdminState::Draining), Just(AdminState::Disabled)]
}

fn pools() -> impl Strategy<Value = PoolAdjustments> {
    let healths = prop_oneof![Just(HealthOverride::Auto), Just(HealthOverride::Up), Just(HealthOverride::Down)];
    let one = (proptest::option::of(states()), proptest::option::of(1..=256_u16), proptest::option::of(healths));
    let one = one.prop_map(|(state, weight, health)| Adjustment { state, weight, health });
    let added = (".{0,9}", proptest::option::of(".{0,9}"), 1..=256_u16, 0..=15_u8);
    let added = added.prop_map(|(address, name, weight, tier)| AddedBackend { address, name, weight, tier });
    (btree_map(".{0,9}", one, 0..5), vec(added, 0..4), vec(".{0,9}", 0..4))
        .prop_map(|(backends, added, removed)| PoolAdjustments { backends, added, removed })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_kept_comes_back_as_it_was(
        listeners in btree_map(".{0,9}", states(), 0..4),
        pools in btree_map(".{0,9}", pools(), 0..4),
    ) {
        let all = Adjustments { listeners, pools, log_level: None };
        prop_assert_eq!(parse(text_of(&all).unwrap().as_bytes()), Ok(all));
    }

    #[test]
    fn f56_no_bytes_make_it_panic(bytes in vec(any::<u8>(), 0..300)) {
        prop_assert!(parse(&bytes).is_err());
    }
}
