//! Two network namespaces with a cable between them, and packets that vanish on it.
//!
//! The thread of the test moves into the near one, so that everything that it starts is there; a far peer runs on a
//! thread that moves into the other. Both are the test's own and go with it.

use crate::kit::program::succeed;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;

const WAY_OUT: &str = "Install it: apt-get install iproute2 nftables";

/// The addresses of the two ends: of the block that is set aside for tests of network devices.
pub const NEAR: &str = "198.18.0.1";
pub const FAR: &str = "198.18.0.2";

/// Two namespaces, the near one entered by the thread that made them.
pub struct Cable {
    near: String,
    far: String,
}

/// A third namespace, behind another cable to the near one, in which it is called `rope` on both sides.
pub struct Branch {
    name: String,
}

/// `None` where the tests were told that they can't have the rights.
///
/// # Panics
/// Without the rights, if nobody said that this is meant.
pub fn cable() -> Option<Cable> {
    is_root("this test makes network namespaces").then(Cable::new)
}

/// False where the tests were told that they can't have the rights for what this one does.
///
/// # Panics
/// Without the rights, if nobody said that this is meant.
pub fn is_root(what: &str) -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    let told = std::env::var_os("TIDEGATE_TESTS_UNPRIVILEGED").is_some_and(|value| value == "1");
    assert!(told, "{what} and needs root; TIDEGATE_TESTS_UNPRIVILEGED=1 leaves it out");
    eprintln!("left out, as TIDEGATE_TESTS_UNPRIVILEGED=1 says: {what} and needs root");
    false
}

/// In the namespace of the calling thread.
pub fn ip(arguments: &str) {
    succeed(Command::new("ip").args(arguments.split(' ')), WAY_OUT);
}

/// In the namespace of the calling thread.
pub fn nft(rule: &str) {
    succeed(Command::new("nft").arg(rule), WAY_OUT);
}

/// A setting below /proc/sys/net of the namespace of the calling thread.
pub fn set(setting: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{setting}"), value).unwrap_or_else(|error| panic!("{setting}: {error}"));
}

fn enter(namespace: &str) {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
}

impl Cable {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("tg{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let cable = Self { near: format!("{id}n"), far: format!("{id}f") };
        let (near, far) = (&cable.near, &cable.far);
        ip(&format!("netns add {near}"));
        ip(&format!("netns add {far}"));
        ip(&format!("-n {near} link add cable type veth peer name cable netns {far}"));
        for (namespace, address) in [(near, NEAR), (far, FAR)] {
            ip(&format!("-n {namespace} address add {address}/24 dev cable"));
            ip(&format!("-n {namespace} link set cable up"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        enter(near);
        cable
    }

    /// Runs this in the far namespace, on a thread of its own.
    pub fn beyond<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let far = self.far.clone();
        std::thread::spawn(move || {
            enter(&far);
            work()
        })
    }

    /// Another namespace, whose way to everywhere is the near one. There are no addresses on its cable yet.
    pub fn branch(&self) -> Branch {
        let branch = Branch { name: self.near.replace('n', "b") };
        ip(&format!("netns add {}", branch.name));
        ip(&format!("link add rope type veth peer name rope netns {}", branch.name));
        ip("link set rope up");
        branch.ip("link set rope up");
        branch.ip("link set lo up");
        branch
    }

    /// In the far namespace.
    pub fn far_ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.far));
    }

    /// From now on these packets vanish when they arrive at the far end, and nobody is told.
    pub fn lose_far(&self, what: &str) {
        Self::nft(&self.far, "add table inet loss");
        Self::nft(&self.far, "add chain inet loss in { type filter hook input priority 0 ; }");
        Self::nft(&self.far, &format!("add rule inet loss in iifname cable {what} drop"));
    }

    /// Nothing vanishes any more.
    pub fn mend(&self) {
        Self::nft(&self.far, "delete table inet loss");
    }

    fn nft(namespace: &str, rule: &str) {
        succeed(Command::new("ip").args(["netns", "exec", namespace, "nft", rule]), WAY_OUT);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        // The thread that is in it keeps the near one until it ends.
        for namespace in [&self.near, &self.far] {
            let _ = Command::new("ip").args(["netns", "delete", namespace]).status();
        }
    }
}

impl Branch {
    pub fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.name));
    }

    /// Runs this in it, on a thread of its own.
    pub fn beyond<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let name = self.name.clone();
        std::thread::spawn(move || {
            enter(&name);
            work()
        })
    }
}

impl Drop for Branch {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
