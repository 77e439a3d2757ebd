//! `tidegate explain`: what would become of a client.

use super::client::{Remote, wait_for, with_query};
use super::table::clean_lines;
use super::{Exit, print};
use crate::admin::explain::{Complaint, Explanation, Question, Standpoint};
use crate::clock::Now;
use crate::daemon::{self, Failure};
use clap::Args;

/// A client that there might be; the names are those of [`crate::admin::explain::PARAMETERS`].
#[derive(Args)]
pub(super) struct Client {
    /// The listener that it connects to.
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// Its address, such as 10.1.2.3 or 10.1.2.3:4711, or unix.
    #[arg(long, value_name = "ADDRESS")]
    from: String,
    /// Where it connects to, for rules that ask for that: 192.0.2.1:443.
    #[arg(long, value_name = "ADDRESS:PORT")]
    to: Option<String>,
    /// It begins with TLS, and names this server; "" names none.
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// It begins with TLS, and offers this protocol; may be given several times.
    #[arg(long, value_name = "PROTOCOL")]
    alpn: Vec<String>,
    /// It begins with a request of HTTP/1, with this method. Default: GET
    #[arg(long)]
    method: Option<String>,
    /// The same, of this host.
    #[arg(long)]
    host: Option<String>,
    /// The same, of this path. Default: /
    #[arg(id = "request_path", long = "path", value_name = "PATH")]
    path: Option<String>,
    /// The same, with this header; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// It begins with these bytes: text, or hex:160301.
    #[arg(long, value_name = "TEXT")]
    first_bytes: Option<String>,
}

impl Client {
    fn parameters(self) -> Vec<(String, String)> {
        let Self { listener, from, to, sni, alpn, method, host, path, header, first_bytes } = self;
        let once = [
            ("listener", Some(listener)),
            ("from", Some(from)),
            ("to", to),
            ("sni", sni),
            ("method", method),
            ("host", host),
            ("path", path),
            ("first_bytes", first_bytes),
        ];
        let once = once.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let more =
            alpn.into_iter().map(|value| ("alpn", value)).chain(header.into_iter().map(|value| ("header", value)));
        once.chain(more).map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// Answers from the config alone, or has the running process answer.
pub(super) fn explain(remote: &Remote, live: bool, client: Client, json: bool) -> Result<(), Exit> {
    let parameters = client.parameters();
    if live {
        let asked = remote.client()?;
        let (body, explanation) = wait_for(asked.look(&with_query("/explain", &parameters)))??;
        if json {
            return print(&body);
        }
        let explanation: Explanation = serde_json::from_value(explanation).map_err(|error| {
            Exit::refused(format!("the answer is that of another version ({error}); look at it with --json"))
        })?;
        return print(clean_lines(&explanation.to_string()).as_bytes());
    }
    let usage = |mut complaint: Complaint| {
        complaint.parameter = format!("--{}", complaint.parameter.replace('_', "-"));
        Exit::usage(complaint.to_string())
    };
    let question = Question::parse(&parameters).map_err(usage)?;
    let table = daemon::offline_table(&remote.file().load()?)?;
    let explanation = Explanation::of(&table, &question, Standpoint::Config, Now::read()).map_err(usage)?;
    let text = if json {
        serde_json::to_string_pretty(&explanation).map_err(|error| Failure::Internal(error.to_string()))?
    } else {
        explanation.to_string()
    };
    print(text.as_bytes())
}
