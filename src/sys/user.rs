//! The databases of users and groups, as the system's resolver has them.
//!
//! Owns one safe function for each question; no policy. An answer may come from the network, where the system is made
//! so. Sources: getpwnam(3), getgrnam(3), getgrouplist(3).

use rustix::io::Errno;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::ptr;

/// What one entry may need: enough for a group of thousands.
const MOST: usize = 1 << 20;

/// Where a user or group is looked for by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Database {
    Users,
    Groups,
}

/// What the database says of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    pub name: CString,
    pub user: u32,
    /// Its own group.
    pub group: u32,
}

impl Account {
    /// `Ok(None)` if there is no user of that name.
    pub fn named(name: &str) -> Result<Option<Self>, Errno> {
        let Ok(name) = CString::new(name) else { return Ok(None) };
        // SAFETY: `name` ends in NUL; for the rest see `look_up`.
        look_up(|entry, buffer, room, found| unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, room, found) })
    }

    /// `Ok(None)` if no user has that number.
    pub fn numbered(user: u32) -> Result<Option<Self>, Errno> {
        // SAFETY: see `look_up`.
        look_up(|entry, buffer, room, found| unsafe { libc::getpwuid_r(user, entry, buffer, room, found) })
    }

    /// The numbers of the groups that the user is in, `group` included.
    #[must_use]
    pub fn groups(&self, group: u32) -> Vec<u32> {
        let mut groups = vec![0; 32];
        loop {
            let mut count = groups.len() as c_int;
            // SAFETY: `name` ends in NUL, and the call writes at most `count` numbers to `groups`, which has as many.
            let fits = unsafe { libc::getgrouplist(self.name.as_ptr(), group, groups.as_mut_ptr(), &raw mut count) };
            let wanted = count.max(0) as usize;
            if fits >= 0 {
                groups.truncate(wanted);
                return groups;
            }
            // As many as there are, or twice as many where it doesn't say.
            groups.resize(wanted.max(groups.len() * 2), 0);
        }
    }
}

impl Source for libc::passwd {
    type Found = Account;

    unsafe fn read(&self) -> Account {
        // SAFETY: the caller's promise.
        let name = unsafe { CStr::from_ptr(self.pw_name) }.to_owned();
        Account { name, user: self.pw_uid, group: self.pw_gid }
    }
}

impl Source for libc::group {
    type Found = u32;

    unsafe fn read(&self) -> u32 {
        self.gr_gid
    }
}

/// The number of a user or group; `Ok(None)` if there is none of that name.
pub fn number_of(database: Database, name: &str) -> Result<Option<u32>, Errno> {
    match database {
        Database::Users => Ok(Account::named(name)?.map(|account| account.user)),
        Database::Groups => {
            let Ok(name) = CString::new(name) else { return Ok(None) };
            // SAFETY: `name` ends in NUL; for the rest see `look_up`.
            look_up(|entry: *mut libc::group, buffer, room, found| unsafe {
                libc::getgrnam_r(name.as_ptr(), entry, buffer, room, found)
            })
        }
    }
}

/// An entry of a database.
trait Source {
    type Found;

    /// What we want of it.
    ///
    /// # Safety
    /// The pointers of the entry lead to texts that end in NUL, as the database's functions fill them in.
    unsafe fn read(&self) -> Self::Found;
}

/// Asks with more and more room. `ask` gets where to write the entry, the texts that it points to, how much room there
/// is for these, and where to say whether one was found; it writes to nothing else.
fn look_up<T: Source>(
    ask: impl Fn(*mut T, *mut c_char, usize, *mut *mut T) -> c_int,
) -> Result<Option<T::Found>, Errno> {
    let mut room = 1 << 10;
    loop {
        let mut buffer: Vec<c_char> = vec![0; room];
        let mut entry = MaybeUninit::<T>::zeroed();
        let mut found = ptr::null_mut();
        match ask(entry.as_mut_ptr(), buffer.as_mut_ptr(), buffer.len(), &raw mut found) {
            libc::ERANGE if room < MOST => room *= 4,
            // SAFETY: `found` is null or points to `entry`, which is filled in then, with texts in `buffer`.
            0 => return Ok(unsafe { found.as_ref().map(|entry| entry.read()) }),
            // The manual names all of these for "not found".
            libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM => return Ok(None),
            libc::EINTR => {}
            error => return Err(Errno::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_groups_have_numbers_and_strangers_have_none() {
        for database in [Database::Users, Database::Groups] {
            assert_eq!(number_of(database, "root"), Ok(Some(0)));
            assert_eq!(number_of(database, "no-such-one"), Ok(None));
            assert_eq!(number_of(database, "a\0b"), Ok(None));
        }
    }

    #[test]
    fn an_account_is_found_both_ways_and_is_in_its_own_group() {
        let root = Account::named("root").unwrap().unwrap();
        assert_eq!((root.name.to_str(), root.user, root.group), (Ok("root"), 0, 0));
        assert_eq!(Account::numbered(0), Ok(Some(root.clone())));
        assert_eq!(Account::numbered(4_000_000_000), Ok(None));
        assert!(root.groups(0).contains(&0));
        assert!(root.groups(77).contains(&77), "another one than its own");
    }
}
