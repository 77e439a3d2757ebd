//! nginx with its stream module, tuned: a listening socket for each worker and a buffer of 64 KiB.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use super::{Launch, Setup, State};
use crate::process::{Ending, find_program, output_of};

/// Where distributions put the module, if the program itself does not say.
const MODULE_DIRECTORIES: [&str; 4] =
    ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules", "/usr/local/libexec/nginx"];
const MODULE: &str = "ngx_stream_module.so";

#[derive(Default)]
pub struct Nginx {
    path: PathBuf,
    /// `None`: the module is built in.
    module: Option<PathBuf>,
}

pub fn find() -> (Nginx, State) {
    let missing = |reason: &str| (Nginx::default(), State::Missing(reason.to_owned()));
    let Some(path) = find_program("nginx") else {
        return missing("no program nginx; Debian: apt-get install nginx libnginx-mod-stream");
    };
    let build = output_of(&path, &["-V"]).unwrap_or_default();
    let built_in = build.split_whitespace().any(|word| word == "--with-stream");
    let named = build.split_whitespace().find_map(|word| word.strip_prefix("--modules-path=")).map(PathBuf::from);
    let module = named
        .into_iter()
        .chain(MODULE_DIRECTORIES.map(PathBuf::from))
        .map(|directory| directory.join(MODULE))
        .find(|file| file.is_file());
    if !built_in && module.is_none() {
        return missing("nginx has no stream module; Debian: apt-get install libnginx-mod-stream");
    }
    let version = build.split_whitespace().find_map(|word| word.strip_prefix("nginx/"));
    let state = State::Present(version.unwrap_or("of an unknown version").to_owned());
    (Nginx { path, module: module.filter(|_| !built_in) }, state)
}

impl Nginx {
    pub fn launch(&self, setup: &Setup<'_>) -> Result<Launch> {
        let file = setup.directory.join("nginx.conf");
        fs::write(&file, self.config(setup)).with_context(|| format!("writing {}", file.display()))?;
        let directory = setup.directory.display().to_string();
        let log = setup.directory.join("nginx.log").display().to_string();
        let command =
            [&self.path.display().to_string(), "-p", &directory, "-c", &file.display().to_string(), "-e", &log]
                .map(str::to_owned)
                .to_vec();
        // A killed master would leave its workers behind.
        Ok(Launch { command, ending: Ending::Terminate, announces: None })
    }

    fn config(&self, setup: &Setup<'_>) -> String {
        let load_module =
            self.module.as_ref().map(|module| format!("load_module {};\n", module.display())).unwrap_or_default();
        // Started by root, nginx would change its workers' user, and that user can't reach a private directory.
        let user = if rustix::process::geteuid().is_root() { "user root;\n" } else { "" };
        let servers = setup.backends.iter().map(|backend| format!("        server {backend} max_fails=0;"));
        let servers = servers.collect::<Vec<_>>().join("\n");
        format!(
            "{load_module}{user}daemon off;\nworker_processes {workers};\nworker_rlimit_nofile {descriptors};\n\
             pid {directory}/nginx.pid;\nerror_log {directory}/nginx.log warn;\n\
             events {{\n    worker_connections {descriptors};\n    multi_accept on;\n}}\n\
             stream {{\n    access_log off;\n    upstream backends {{\n{servers}\n    }}\n\
             \x20   server {{\n        listen {listen} reuseport backlog=4096;\n        proxy_pass backends;\n\
             \x20       proxy_buffer_size 64k;\n        proxy_connect_timeout 5s;\n        proxy_timeout 10m;\n    }}\n}}\n",
            workers = setup.workers,
            descriptors = setup.connections * 2 + 100,
            directory = setup.directory.display(),
            listen = setup.listen,
        )
    }
}
