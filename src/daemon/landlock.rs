//! Keeping the process to the files that it needs, by landlock(7).
//!
//! Owns the rules: what of the file system a balancer needs besides what its config names. They hold for this process
//! and for whatever it starts, such as the successor of an upgrade, and can never be widened. Sockets aren't
//! restricted, nor are unix sockets of others connected to. Happens before any thread is there: a thread has them from
//! its parent.
//!
//! A rule is for a directory and what is below it. A file that is replaced is another file, for which a rule of its own
//! wouldn't hold any more, so there are none.

use super::files::{Needed, Purpose};
use crate::config::Landlock;
use landlock::{
    ABI, Access, AccessFs, BitFlags, PathBeneath, PathFd, RestrictSelfError, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, make_bitflags,
};
use std::path::{Path, PathBuf};

/// The newest set of rights that is known here: Linux 6.10. Older kernels enforce what they know of it.
const KNOWN: ABI = ABI::V5;
/// So many sets of rules may apply at once: each upgrade adds one. Source: `LANDLOCK_MAX_NUM_LAYERS` in Linux.
const MOST_LAYERS: u32 = 16;

/// What the system itself may read whatever the config says: the resolver and its modules, libraries, time zones,
/// certificates, and what the kernel tells of this machine and process.
const READ: [&str; 9] = [
    "/etc",
    "/usr",
    "/lib",
    "/lib64",
    "/proc",
    "/sys/fs/cgroup",
    "/sys/devices/system",
    "/run/systemd/resolve",
    "/run/resolvconf",
];
/// Where a program's loader and libraries are.
const LIBRARIES: [&str; 4] = ["/lib", "/lib64", "/usr/lib", "/usr/lib64"];
/// What any program may want to read or write.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/urandom", "/dev/random"];

/// A directory, or a device, and what may be done below it.
type Rule = (PathBuf, BitFlags<AccessFs>);

/// Restricts the process as far as the config wants and the kernel can; a sentence if that isn't enough.
pub fn enforce(wanted: Landlock, needed: &[Needed]) -> Result<(), String> {
    if wanted == Landlock::Off {
        return Ok(());
    }
    match restrict(&rules(needed)) {
        Ok(Outcome::Full) => tracing::info!("landlock restricts what files can be used"),
        Ok(Outcome::Partial) => tracing::warn!(
            "landlock restricts what files can be used, but this kernel doesn't know all of its rights yet (Linux 6.10 does)"
        ),
        Ok(Outcome::Inherited) => tracing::warn!(
            "{MOST_LAYERS} upgrades have each added their rules of landlock, and there is no room for more: those hold; \
             restart to begin anew"
        ),
        Ok(Outcome::None) => {
            let text = "runtime.landlock: this kernel has no landlock (since Linux 5.13, with CONFIG_SECURITY_LANDLOCK and \
                        \"landlock\" among lsm= of the kernel's command line)";
            if wanted == Landlock::Required {
                return Err(format!("{text}; enable it, or set \"on\" to go on without"));
            }
            tracing::warn!("{text}: all files that the user may use can be used");
        }
        Err(error) => return Err(format!("runtime.landlock: {error}")),
    }
    Ok(())
}

/// How far the rules hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Full,
    Partial,
    /// Only those of the processes before this one.
    Inherited,
    None,
}

/// What is there of all these; the kernel takes no rules for what isn't.
fn rules(needed: &[Needed]) -> Vec<Rule> {
    let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
    let run = read | AccessFs::Execute;
    let write = make_bitflags!(AccessFs::{WriteFile | ReadFile});
    let mut rules: Vec<Rule> = READ.iter().map(|path| (path.into(), read)).collect();
    rules.extend(LIBRARIES.iter().map(|path| (path.into(), run)));
    rules.extend(DEVICES.iter().map(|path| (path.into(), write)));
    rules.extend(own_directories().into_iter().map(|path| (path, run)));
    // What a service manager gives to the process is for it to read.
    rules.extend(std::env::var_os("CREDENTIALS_DIRECTORY").map(|path| (path.into(), read)));
    rules.extend(needed.iter().flat_map(|needed| {
        let rights = match needed.purpose {
            Purpose::Read => read,
            Purpose::Log => write | AccessFs::MakeReg,
            Purpose::State => read | write | AccessFs::MakeReg | AccessFs::RemoveFile,
            Purpose::Listen => make_bitflags!(AccessFs::{MakeSock | RemoveFile}),
        };
        // What a symbolic link leads to now is needed where it is, too.
        let target = needed.path.canonicalize().ok().and_then(|path| Some(path.parent()?.to_owned()));
        [Some(needed.directory().to_owned()), target].into_iter().flatten().map(move |path| (path, rights))
    }));
    rules
}

/// Where this program is, and where it was called, from which an upgrade starts the next one.
fn own_directories() -> Vec<PathBuf> {
    let called = std::env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    let programs = [std::env::current_exe().ok(), called];
    programs.into_iter().flatten().filter_map(|program| program.parent().map(Path::to_owned)).collect()
}

fn restrict(rules: &[Rule]) -> Result<Outcome, RulesetError> {
    let mut ruleset = Ruleset::default().handle_access(AccessFs::from_all(KNOWN))?.create()?;
    for (path, rights) in rules {
        if let Ok(directory) = PathFd::new(path) {
            ruleset = ruleset.add_rule(PathBeneath::new(directory, *rights))?;
        }
    }
    match ruleset.restrict_self() {
        Ok(done) => Ok(match done.ruleset {
            RulesetStatus::FullyEnforced => Outcome::Full,
            RulesetStatus::PartiallyEnforced => Outcome::Partial,
            RulesetStatus::NotEnforced => Outcome::None,
        }),
        Err(RulesetError::RestrictSelf(RestrictSelfError::RestrictSelfCall { source, .. }))
            if source.raw_os_error() == Some(libc::E2BIG) =>
        {
            Ok(Outcome::Inherited)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;

    fn needed(path: PathBuf, purpose: Purpose) -> Needed {
        Needed { key: "test".to_owned(), path, purpose }
    }

    /// In a thread of its own, which alone is restricted; `false` where the kernel has no landlock.
    fn restricted(needed: &[Needed], look: impl FnOnce() + Send + 'static) -> bool {
        let rules = rules(needed);
        let thread = std::thread::spawn(move || {
            let outcome = restrict(&rules).unwrap();
            if outcome != Outcome::None {
                look();
            }
            outcome != Outcome::None
        });
        thread.join().unwrap()
    }

    #[test]
    fn what_the_config_names_can_be_used_and_nothing_beside_it() {
        let (logs, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (log, secret) = (logs.path().join("access.log"), other.path().join("secret"));
        fs::write(&secret, "secret").unwrap();
        let rules = [needed(log.clone(), Purpose::Log)];
        let done = restricted(&rules, move || {
            fs::write(&log, "").unwrap_or_else(|error| panic!("{error}"));
            fs::write(log.with_extension("new"), "moved").unwrap();
            assert!(fs::read_to_string("/etc/hosts").is_ok() && fs::read("/proc/self/status").is_ok());
            assert_eq!(fs::read(&secret).unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::write("/etc/hosts", "").unwrap_err().kind(), ErrorKind::PermissionDenied);
            assert_eq!(fs::remove_file(&log).unwrap_err().kind(), ErrorKind::PermissionDenied);
            let run = std::process::Command::new("/bin/true").status();
            assert_eq!(run.unwrap_err().kind(), ErrorKind::PermissionDenied, "no other program");
            let own = std::process::Command::new(std::env::current_exe().unwrap()).arg("--list").output();
            assert!(own.unwrap().status.success(), "the program itself");
        });
        if !done {
            eprintln!("this kernel has no landlock: not tried");
        }
    }

    #[test]
    fn a_seventeenth_upgrade_has_the_rules_of_those_before() {
        let done = restricted(&[], || {
            let outcomes: Vec<_> = (0..MOST_LAYERS).map(|_| restrict(&rules(&[])).unwrap()).collect();
            assert_eq!(outcomes.last(), Some(&Outcome::Inherited), "{outcomes:?}");
            assert_eq!(outcomes.iter().filter(|outcome| **outcome == Outcome::Inherited).count(), 1);
        });
        if !done {
            eprintln!("this kernel has no landlock: not tried");
        }
    }
}
