//! What the process may do while it serves: becoming another user, giving up what root may do, and all files but some.
//!
//! Owns the order of it, and the sentences about what doesn't work. Happens once, after the sockets are bound and
//! before any thread is there, since Linux keeps user, capabilities and no-new-privs for each thread by itself: later
//! threads inherit them. Invariant: it is all as the config says, or the start ends; nothing is given up by half.

use super::files;
use super::landlock;
use super::sockets::{self, Severity};
use crate::admin;
use crate::config::{Capability, Config, Landlock, Owner, Privileges};
use crate::net::listen::SocketAccess;
use crate::sys::user::{self, Account, Database};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, getegid, geteuid, getgid, getuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities, set_keep_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long threads that are about to end may take to do so.
const THREADS_END: Duration = Duration::from_secs(2);

/// Whom the process becomes, in numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: u32,
    pub group: u32,
    /// All groups that it is in.
    groups: Vec<u32>,
    /// As the config has it, for messages.
    shown: String,
}

impl Identity {
    /// Looks up whom the config names; `None` if nobody, a sentence if this host doesn't know one.
    pub fn of(privileges: &Privileges) -> Result<Option<Self>, String> {
        let Some(owner) = &privileges.user else { return Ok(None) };
        let shown = shown(owner);
        let account = match owner {
            Owner::Name(name) => Account::named(name),
            Owner::Number(number) => Account::numbered(*number),
        };
        let account = account.map_err(|error| format!("runtime.user: {shown}: {}", io::Error::from(error)))?;
        let user = match (owner, &account) {
            (_, Some(account)) => account.user,
            (Owner::Number(number), None) => *number,
            (Owner::Name(_), None) => return Err(unknown("user", &shown, "useradd --system")),
        };
        let group = match (&privileges.group, &account) {
            (Some(group), _) => group_number(group)?,
            (None, Some(account)) => account.group,
            (None, None) => {
                return Err(format!(
                    "runtime.user: this host knows no user {shown}, so that its group isn't known either; set \
                     runtime.group as well"
                ));
            }
        };
        let groups = account.map_or_else(|| vec![group], |account| account.groups(group));
        Ok(Some(Self { user, group, groups, shown }))
    }

    /// Whom the file of a unix socket belongs to, unless the config says another.
    pub fn fill_in(&self, access: SocketAccess) -> SocketAccess {
        SocketAccess {
            owner: access.owner.or(Some(self.user)),
            group: access.group.or(Some(self.group)),
            mode: access.mode,
        }
    }

    /// What the admin endpoint needs to know of it.
    pub fn own(&self) -> admin::Own {
        admin::Own { uid: self.user, groups: [&[self.group], self.groups.as_slice()].concat() }
    }

    /// Whether the process is that user and group already, for good.
    pub fn is_ours(&self) -> bool {
        let users = [getuid(), geteuid()].map(Uid::as_raw);
        let groups = [getgid(), getegid()].map(Gid::as_raw);
        users == [self.user; 2] && groups == [self.group; 2]
    }
}

fn group_number(owner: &Owner) -> Result<u32, String> {
    match owner {
        Owner::Number(number) => Ok(*number),
        Owner::Name(name) => match user::number_of(Database::Groups, name) {
            Ok(Some(number)) => Ok(number),
            Ok(None) => Err(unknown("group", name, "groupadd --system")),
            Err(error) => Err(format!("runtime.group: {name}: {}", io::Error::from(error))),
        },
    }
}

fn unknown(key: &str, name: &str, command: &str) -> String {
    format!("runtime.{key}: this host doesn't know {name}; create it (`{command} {name}`), or write a number")
}

fn shown(owner: &Owner) -> String {
    match owner {
        Owner::Name(name) => name.to_string(),
        Owner::Number(number) => number.to_string(),
    }
}

/// Becomes whom the config names, gives up all else, and keeps to the files that the config needs, as far as it asks
/// for that; a sentence if something can't be. `file` is the config's own.
pub fn drop_to(identity: Option<&Identity>, config: &Config, file: Option<&Path>) -> Result<(), String> {
    let privileges = &config.runtime.privileges;
    if identity.is_none() && privileges.landlock == Landlock::Off {
        return Ok(());
    }
    alone()?;
    let needed = files::needed(config, file);
    if let Some(identity) = identity {
        give_up(identity, &privileges.keep_capabilities)?;
        files::warn_of_lacks(&needed);
        check_what_is_left(config)?;
    }
    landlock::enforce(privileges.landlock, &needed)
}

/// What the config's sockets need while they serve must have been kept.
fn check_what_is_left(config: &Config) -> Result<(), String> {
    let lacks = sockets::lacks(config).into_iter().filter(|lack| lack.severity == Severity::Privilege);
    let texts: Vec<String> = lacks.map(|lack| lack.text).collect();
    if texts.is_empty() { Ok(()) } else { Err(texts.join("\n")) }
}

fn give_up(identity: &Identity, kept: &[Capability]) -> Result<(), String> {
    let keep = kept.iter().fold(CapabilitySet::empty(), |set, &one| set | in_kernel(one));
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error| format!("runtime.user: can't {what}: {}", io::Error::from(error))
    };
    let held = capabilities(None).map_err(refused("ask for the process's capabilities"))?.permitted;
    if let Some(lacking) = kept.iter().find(|&&one| !held.contains(in_kernel(one))) {
        return Err(lacks(*lacking));
    }
    shrink_bounding_set(keep).map_err(refused("give up capabilities"))?;
    if !identity.is_ours() {
        become_user(identity)?;
    }
    let sets = CapabilitySets { effective: keep, permitted: keep, inheritable: keep };
    set_capabilities(None, sets).map_err(refused("give up capabilities"))?;
    // So that a successor, which this process starts when it is upgraded, has them too.
    clear_ambient_capability_set().map_err(refused("give up capabilities"))?;
    for &one in kept {
        configure_capability_in_ambient_set(in_kernel(one), true).map_err(refused("hand on capabilities"))?;
    }
    set_keep_capabilities(false).map_err(refused("give up capabilities"))?;
    set_no_new_privs(true).map_err(refused("forbid new privileges"))?;
    let words: Vec<_> = kept.iter().map(|one| one.word()).collect();
    tracing::info!(user = identity.user, group = identity.group, kept = words.join(","), "privileges dropped");
    Ok(())
}

fn become_user(identity: &Identity) -> Result<(), String> {
    let (user, group) = (Uid::from_raw(identity.user), Gid::from_raw(identity.group));
    let groups: Vec<Gid> = identity.groups.iter().copied().map(Gid::from_raw).collect();
    let changed = set_keep_capabilities(true)
        .and_then(|()| set_thread_groups(&groups))
        .and_then(|()| set_thread_res_gid(group, group, group))
        .and_then(|()| set_thread_res_uid(user, user, user));
    changed.map_err(|error| {
        let shown = &identity.shown;
        if error == Errno::PERM {
            let now = geteuid().as_raw();
            return format!(
                "runtime.user: this process is user {now} and may not become {shown} (group {}): only root may \
                 (CAP_SETUID and CAP_SETGID); start it as root or as {shown}, or remove the key",
                identity.group
            );
        }
        format!("runtime.user: can't become {shown}: {}", io::Error::from(error))
    })
}

/// No program that this process or its children start can ever have more. Where the right to shrink the set is missing,
/// no-new-privs does the same.
fn shrink_bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    for bit in 0..u64::BITS {
        let one = CapabilitySet::from_bits_retain(1 << bit);
        if keep.contains(one) {
            continue;
        }
        match capability_is_in_bounding_set(one) {
            Ok(false) => {}
            Ok(true) => match remove_capability_from_bounding_set(one) {
                Ok(()) | Err(Errno::PERM) => {}
                Err(error) => return Err(error),
            },
            // The kernel knows no more.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits until this is the only thread; a sentence if others stay, which would keep what is given up here.
fn alone() -> Result<(), String> {
    let end = Instant::now() + THREADS_END;
    loop {
        // Where /proc can't be seen, nothing can be said against it.
        let others = fs::read_dir("/proc/self/task").map_or(0, |tasks| tasks.count().saturating_sub(1));
        if others == 0 {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(format!("runtime.user: {others} other threads run already and would keep their privileges"));
        }
        #[expect(clippy::disallowed_methods, reason = "nobody tells of a thread's end, and nothing else runs yet")]
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn in_kernel(capability: Capability) -> CapabilitySet {
    match capability {
        Capability::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        Capability::NetRaw => CapabilitySet::NET_RAW,
        Capability::NetAdmin => CapabilitySet::NET_ADMIN,
    }
}

fn lacks(capability: Capability) -> String {
    let word = capability.word();
    format!(
        "runtime.keep_capabilities: this process has no {word} that it could keep; start it as root, add \
         CAP_{} to AmbientCapabilities= and CapabilityBoundingSet= of the unit, or remove it",
        word.to_ascii_uppercase()
    )
}
