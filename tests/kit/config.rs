//! The config file of a test: one listener `web` over one pool `web`, plus whatever lines the test adds to each table.

use std::fmt::{self, Display, Write};

/// Builds the text of a config file. Without more words it listens on 127.0.0.1:0 with two workers and doesn't probe.
#[derive(Clone, Debug)]
pub struct Config {
    runtime: String,
    admin: String,
    log: String,
    listener: String,
    bind: String,
    pool: String,
    connect: String,
    ejection: String,
    health: String,
    more: String,
}

impl Config {
    /// Over these backends, in this order.
    pub fn over<T: Display>(backends: impl IntoIterator<Item = T>) -> Self {
        let list: Vec<String> = backends.into_iter().map(|backend| format!("\"{backend}\"")).collect();
        Self::with_pool(&format!("backends = [{}]", list.join(", ")))
    }

    /// With these lines in the pool's table.
    pub fn with_pool(lines: &str) -> Self {
        Self {
            runtime: "workers = 2\n".to_owned(),
            admin: String::new(),
            log: String::new(),
            listener: String::new(),
            bind: "\"127.0.0.1:0\"".to_owned(),
            pool: format!("{lines}\n"),
            connect: String::new(),
            ejection: String::new(),
            health: "probe = \"none\"\n".to_owned(),
            more: String::new(),
        }
    }

    pub fn bind(mut self, address: impl Display) -> Self {
        self.bind = format!("\"{address}\"");
        self
    }

    pub fn binds<T: Display>(mut self, addresses: impl IntoIterator<Item = T>) -> Self {
        let list: Vec<String> = addresses.into_iter().map(|address| format!("\"{address}\"")).collect();
        self.bind = format!("[{}]", list.join(", "));
        self
    }

    /// Replaces the runtime's lines, `workers = 2` too.
    pub fn only_runtime(mut self, lines: &str) -> Self {
        self.runtime = format!("{lines}\n");
        self
    }

    pub fn runtime(mut self, line: &str) -> Self {
        writeln!(self.runtime, "{line}").unwrap();
        self
    }

    /// Besides a port of the kernel's choice and the token of [`super::http::TOKEN`].
    pub fn admin(mut self, line: &str) -> Self {
        writeln!(self.admin, "{line}").unwrap();
        self
    }

    pub fn log(mut self, line: &str) -> Self {
        writeln!(self.log, "{line}").unwrap();
        self
    }

    pub fn listener(mut self, line: &str) -> Self {
        writeln!(self.listener, "{line}").unwrap();
        self
    }

    pub fn pool(mut self, line: &str) -> Self {
        writeln!(self.pool, "{line}").unwrap();
        self
    }

    pub fn connect(mut self, line: &str) -> Self {
        writeln!(self.connect, "{line}").unwrap();
        self
    }

    pub fn ejection(mut self, line: &str) -> Self {
        writeln!(self.ejection, "{line}").unwrap();
        self
    }

    /// Replaces `probe = "none"` by these lines.
    pub fn health(mut self, lines: &str) -> Self {
        self.health = format!("{lines}\n");
        self
    }

    /// An access log in JSON, for [`super::Tidegate::records`].
    pub fn logged(self) -> Self {
        self.log("access = \"$DIR/access.log\"\nformat = \"json\"")
    }

    /// Whole tables after the others.
    pub fn more(mut self, tables: &str) -> Self {
        writeln!(self.more, "{tables}").unwrap();
        self
    }
}

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { runtime, admin, log, listener, bind, pool, connect, ejection, health, more } = self;
        write!(
            f,
            "[runtime]\n{runtime}\n[admin]\nlisten = \"127.0.0.1:0\"\ntoken_file = \"$DIR/token\"\n{admin}\n[log]\n{log}\n\
             [listeners.web]\nbind = {bind}\npool = \"web\"\n{listener}\n\
             [pools.web]\n{pool}\n[pools.web.connect]\n{connect}\n[pools.web.ejection]\n{ejection}\n\
             [pools.web.health]\n{health}\n{more}"
        )
    }
}
