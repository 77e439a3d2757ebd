//! The files that a config needs while the process serves, and what it does with them.
//!
//! Owns the list, and the sentences about what the process's user may not do there. What was opened at the start stays
//! open whatever the user may: these are about reloads, log rotation and the end, so they are warnings.

use super::state_file;
use crate::admin;
use crate::config::{Access, Config, Probe};
use crate::name::Endpoint;
use rustix::fs::{Access as May, AtFlags, CWD, accessat};
use std::path::{Path, PathBuf};

/// A place in the file system that the config names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needed {
    /// Of the config; `--config` for its own file.
    pub key: String,
    pub path: PathBuf,
    pub purpose: Purpose,
}

/// What it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A file that is read again by a reload.
    Read,
    /// A file that is appended to, and made again after a rotation.
    Log,
    /// A file that another one beside it takes the place of, again and again.
    State,
    /// A unix socket that is made, and removed in the end.
    Listen,
}

impl Needed {
    /// The directory that the file is in.
    pub fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }

    /// What the process's user may not do, and what comes of it.
    fn lack(&self) -> Option<String> {
        let Self { key, path, purpose } = self;
        let may = |path: &Path, access| accessat(CWD, path, access, AtFlags::EACCESS).is_ok();
        let (path, directory) = (path.display(), self.directory());
        match purpose {
            Purpose::Read if !may(&self.path, May::READ_OK) => Some(format!(
                "{key}: runtime.user may not read {path}, so that reloads will be refused; let it read the file"
            )),
            Purpose::Log if !may(directory, May::WRITE_OK | May::EXEC_OK) => Some(format!(
                "{key}: runtime.user may not make files in {}, so that a log that is moved away stays the one that is \
                 written; give it a directory of its own",
                directory.display()
            )),
            Purpose::State if !may(directory, May::WRITE_OK | May::EXEC_OK) => Some(format!(
                "{key}: runtime.user may not make files in {}, so that a restart forgets what operators have changed; \
                 give it a directory of its own",
                directory.display()
            )),
            Purpose::Listen if !may(directory, May::WRITE_OK | May::EXEC_OK) => Some(format!(
                "{key}: runtime.user may not make or remove files in {}, so that {path} stays behind in the end, and a \
                 reload can't make another; give it a directory of its own",
                directory.display()
            )),
            _ => None,
        }
    }
}

/// All that the config names, in its order; its own file first.
pub fn needed(config: &Config, file: Option<&Path>) -> Vec<Needed> {
    let mut all = Vec::new();
    let mut add = |key: &str, path: &Path, purpose| {
        let (key, path) = (key.to_owned(), path.to_owned());
        let needed = Needed { key, path, purpose };
        if !all.contains(&needed) {
            all.push(needed);
        }
    };
    if let Some(file) = file {
        add("--config", file, Purpose::Read);
    }
    for bind in &config.admin.listen {
        if let Endpoint::Unix(path) = &bind.0 {
            add("admin.listen", path, Purpose::Listen);
        }
    }
    if let Some(path) = &config.admin.token_file {
        add("admin.token_file", path, Purpose::Read);
    }
    if let Some(Ok(path)) = config.admin.token_credential.as_deref().map(admin::credential) {
        add("admin.token_credential", &path, Purpose::Read);
    }
    if let Access::File(path) = &config.log.access {
        add("log.access", path, Purpose::Log);
    }
    if let Some(path) = state_file::path_of(config) {
        add("runtime.state_file", &path, Purpose::State);
    }
    for listener in &config.listeners {
        for bind in &listener.bind {
            if let Endpoint::Unix(path) = &bind.0 {
                add(&format!("listeners.{}.bind", listener.name), path, Purpose::Listen);
            }
        }
    }
    for pool in &config.pools {
        if let Probe::Tls(tls) = &pool.health.probe
            && let Some(ca) = &tls.ca
        {
            add(&format!("pools.{}.health.tls.ca", pool.name), &ca.path, Purpose::Read);
        }
    }
    all
}

/// Says what the process's user will not be able to do.
pub fn warn_of_lacks(needed: &[Needed]) {
    for text in needed.iter().filter_map(Needed::lack) {
        tracing::warn!("{text}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needed_by(admin: &str, rest: &str) -> Vec<(String, String, Purpose)> {
        let text = format!(
            "[admin]\n{admin}\n[log]\naccess = \"/var/log/t/access\"\n[listeners.web]\nbind = \"unix:/run/t/web\"\n\
             pool = \"web\"\n[pools.web]\nbackends = [\"10.0.0.1:80\"]\n{rest}"
        );
        let loaded = Config::parse("lb.toml", text.as_bytes()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let needed = needed(&loaded.config, Some(Path::new("/etc/t/lb.toml")));
        needed.into_iter().map(|Needed { key, path, purpose }| (key, path.display().to_string(), purpose)).collect()
    }

    #[test]
    fn every_file_that_the_config_names_is_needed_for_what_becomes_of_it() {
        let found = needed_by(
            "listen = \"unix:/run/t/admin\"\ntoken_file = \"/etc/secret/token\"",
            "[runtime]\nstate_file = \"/var/lib/t/state\"",
        );
        let expected = [
            ("--config", "/etc/t/lb.toml", Purpose::Read),
            ("admin.listen", "/run/t/admin", Purpose::Listen),
            ("admin.token_file", "/etc/secret/token", Purpose::Read),
            ("log.access", "/var/log/t/access", Purpose::Log),
            ("runtime.state_file", "/var/lib/t/state", Purpose::State),
            ("listeners.web.bind", "/run/t/web", Purpose::Listen),
        ];
        let shown: Vec<_> = found.iter().map(|(key, path, purpose)| (key.as_str(), path.as_str(), *purpose)).collect();
        assert_eq!(shown, expected);
        let without = needed_by("listen = \"127.0.0.1:9900\"", "");
        let keys: Vec<&str> = without.iter().map(|(key, ..)| key.as_str()).collect();
        assert_eq!(keys, ["--config", "log.access", "listeners.web.bind"]);
    }
}
