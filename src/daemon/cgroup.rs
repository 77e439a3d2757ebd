//! The memory that this process's control group has used, and may use.
//!
//! Owns where it stands: the mount table and the process's place in the hierarchy, for the first and the second version
//! of cgroups (pure, from the text of two files), and the reading of the numbers. A limit may be set on any group above
//! the process's own, so each of them is asked, and the one with the least room counts. What is used is counted without
//! the file cache that the kernel gives up first. What can't be read is no limit.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The first version says "no limit" by a number that no machine has.
const NO_LIMIT: u64 = 1 << 62;

/// The two versions of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    pub used: u64,
    pub limit: u64,
}

/// The control groups that limit this process's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Groups {
    version: Version,
    /// The process's own first, then those above it, as far as they are mounted.
    folders: Vec<PathBuf>,
}

impl Groups {
    /// Asks the kernel; `None` without cgroups.
    pub fn of_this_process() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        Self::parse(&own, &mounts)
    }

    /// From the text of `/proc/self/cgroup` and of `/proc/self/mountinfo`. On a host with both versions the memory
    /// controller belongs to the one that names it.
    fn parse(own: &str, mounts: &str) -> Option<Self> {
        let first = own.lines().find_map(|line| place(line, |names| names.split(',').any(|name| name == "memory")));
        let mounted = |wanted: &str, option: Option<&str>| {
            mounts.lines().filter_map(Mount::parse).find(|mount| {
                mount.kind == wanted && option.is_none_or(|option| mount.options.split(',').any(|seen| seen == option))
            })
        };
        if let Some(path) = first
            && let Some(mount) = mounted("cgroup", Some("memory"))
        {
            return Some(Self { version: Version::One, folders: mount.folders(path) });
        }
        let path = own.lines().find_map(|line| place(line, str::is_empty))?;
        Some(Self { version: Version::Two, folders: mounted("cgroup2", None)?.folders(path) })
    }

    /// What is used and allowed where there is the least room; `None` where nothing limits it.
    pub fn read(&self) -> Option<Memory> {
        let least = |memory: &Memory| memory.used as f64 / memory.limit.max(1) as f64;
        self.folders.iter().filter_map(|folder| self.version.read(folder)).max_by(|a, b| least(a).total_cmp(&least(b)))
    }
}

impl Version {
    fn read(self, folder: &Path) -> Option<Memory> {
        let (limit, usage, cache) = match self {
            Self::One => ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
            Self::Two => ("memory.max", "memory.current", "inactive_file"),
        };
        let text = |name: &str| fs::read_to_string(folder.join(name)).ok();
        // "max" is no number.
        let limit = text(limit)?.trim().parse().ok().filter(|&limit| limit < NO_LIMIT)?;
        let usage: u64 = text(usage)?.trim().parse().ok()?;
        let cache = text("memory.stat").and_then(|stat| field(&stat, cache)).unwrap_or(0);
        Some(Memory { used: usage.saturating_sub(cache), limit })
    }
}

/// The value of a line `name value`.
fn field(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The path in a line `number:controllers:path`, if these are the controllers.
fn place(line: &str, wanted: impl Fn(&str) -> bool) -> Option<&str> {
    let (_, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    wanted(controllers).then_some(path)
}

/// A line of `/proc/self/mountinfo`, see `proc_pid_mountinfo(5)`.
struct Mount<'a> {
    /// What of the file system is seen at `point`.
    root: PathBuf,
    point: PathBuf,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        // There may be any number of optional fields before the dash.
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let mut after = after.split(' ');
        let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
        Some(Self { root: unescape(root), point: unescape(point), kind, options })
    }

    /// Where the group of this path is seen, and those above it. In a container the mount may show the container's
    /// own group only, or the path may lie outside of what is shown: then what is shown is all there is to ask.
    fn folders(&self, path: &str) -> Vec<PathBuf> {
        let below = Path::new(path).strip_prefix(&self.root).unwrap_or(Path::new(""));
        let below = if below.components().any(|part| part.as_os_str() == "..") { Path::new("") } else { below };
        // Joined with nothing, a path would end with a slash.
        let own = self.point.components().chain(below.components()).collect::<PathBuf>();
        own.ancestors().take_while(|folder| folder.starts_with(&self.point)).map(Path::to_owned).collect()
    }
}

/// Blanks and backslashes are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let digits =
            after.get(..3).filter(|digits| first == b'\\' && digits.iter().all(|digit| (b'0'..b'8').contains(digit)));
        if let Some(digits) = digits {
            bytes.push(digits.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
            rest = &after[3..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const V2: &str = "24 30 0:22 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
    const V1: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    fn folders(own: &str, mounts: &str) -> Option<(Version, Vec<String>)> {
        let groups = Groups::parse(own, mounts)?;
        let folders = groups.folders.iter().map(|folder| folder.to_str().unwrap().to_owned()).collect();
        Some((groups.version, folders))
    }

    #[test]
    fn a_service_of_the_second_version_is_found_with_the_slices_above_it() {
        let found = folders("0::/system.slice/tidegate.service\n", V2).unwrap();
        let expected =
            ["/sys/fs/cgroup/system.slice/tidegate.service", "/sys/fs/cgroup/system.slice", "/sys/fs/cgroup"];
        assert_eq!(found, (Version::Two, expected.map(str::to_owned).to_vec()));
    }

    #[test]
    fn on_a_host_with_both_the_first_version_has_the_memory() {
        let own = "9:name=systemd:/\n4:memory:/process_api/4abb\n3:cpuset:/\n1:cpu,cpuacct:/\n0::/\n";
        let (version, found) = folders(own, V1).unwrap();
        assert_eq!(version, Version::One);
        assert_eq!(found[0], "/sys/fs/cgroup/memory/process_api/4abb");
        assert_eq!(found.last().unwrap(), "/sys/fs/cgroup/memory");
        // The controller is not mounted here, but the second version is.
        assert_eq!(folders("4:memory:/x\n0::/y\n", V2).unwrap().0, Version::Two);
        // With systemd's hybrid layout both lists name several controllers.
        let joined = "30 29 0:26 / /sys/fs/cgroup/mem rw - cgroup cgroup rw,hugetlb,memory\n";
        assert_eq!(folders("4:hugetlb,memory:/x\n", joined).unwrap().1, ["/sys/fs/cgroup/mem/x", "/sys/fs/cgroup/mem"]);
    }

    #[test]
    fn in_a_container_the_mount_may_show_only_its_own_group() {
        let docker =
            "1036 1035 0:32 /docker/0a1b /sys/fs/cgroup/memory ro,nosuid master:15 - cgroup cgroup rw,memory\n";
        assert_eq!(folders("4:memory:/docker/0a1b\n", docker).unwrap().1, ["/sys/fs/cgroup/memory"]);
        // A namespace of its own: the path begins there.
        assert_eq!(folders("0::/\n", V2).unwrap().1, ["/sys/fs/cgroup"]);
        // Moved out of its namespace's root, or a path that the mount doesn't show.
        assert_eq!(folders("0::/../other\n", V2).unwrap().1, ["/sys/fs/cgroup"]);
        assert_eq!(folders("4:memory:/elsewhere\n", docker).unwrap().1, ["/sys/fs/cgroup/memory"]);
    }

    #[test]
    fn names_may_hold_colons_blanks_and_backslashes() {
        let mounts = "24 30 0:22 / /mnt/my\\040groups\\134 rw - cgroup2 cgroup2 rw\n";
        let found = folders("0::/a:b c.slice\n", mounts).unwrap().1;
        assert_eq!(found, ["/mnt/my groups\\/a:b c.slice", "/mnt/my groups\\"]);
    }

    #[test]
    fn without_cgroups_there_is_none() {
        for (own, mounts) in [("", ""), ("0::/x\n", ""), ("", V2), ("garbage\n4\n4:\n", V1), ("1:cpu:/\n", V2)] {
            assert_eq!(folders(own, mounts), None, "{own:?}");
        }
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(folder).unwrap();
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn the_group_with_the_least_room_counts_and_cache_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let (own, above) = (dir.path().join("slice/service"), dir.path().join("slice"));
        let groups = Groups { version: Version::Two, folders: vec![own.clone(), above.clone(), dir.path().into()] };
        assert_eq!(groups.read(), None);
        let stat = "anon 5\nfile 900\ninactive_file 300\nactive_file 7\nslab_inactive_file 1\n";
        write(&own, &[("memory.max", "max\n"), ("memory.current", "1000\n"), ("memory.stat", stat)]);
        assert_eq!(groups.read(), None, "no limit");
        write(&own, &[("memory.max", "2000\n")]);
        assert_eq!(groups.read(), Some(Memory { used: 700, limit: 2_000 }));
        write(&above, &[("memory.max", "4000\n"), ("memory.current", "3000\n")]);
        assert_eq!(groups.read(), Some(Memory { used: 3_000, limit: 4_000 }));

        let groups = Groups { version: Version::One, folders: vec![own.clone()] };
        write(&own, &[("memory.limit_in_bytes", "9223372036854771712\n"), ("memory.usage_in_bytes", "50\n")]);
        assert_eq!(groups.read(), None, "no limit");
        write(
            &own,
            &[("memory.limit_in_bytes", "100\n"), ("memory.stat", "inactive_file 1\ntotal_inactive_file 20\n")],
        );
        assert_eq!(groups.read(), Some(Memory { used: 30, limit: 100 }));
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_makes_it_leave_its_mount(own in "[0-9:a-z,/.\\n\\\\ ]{0,80}", mounts in "[0-9:a-z,/.\\n\\\\ -]{0,200}") {
            for mounts in [mounts.as_str(), V1, V2] {
                if let Some(groups) = Groups::parse(&own, mounts) {
                    prop_assert!(!groups.folders.is_empty());
                    prop_assert!(groups.folders.iter().all(|folder| !folder.to_string_lossy().contains("..")), "{:?}", groups);
                }
            }
        }
    }
}
