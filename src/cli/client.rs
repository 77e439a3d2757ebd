//! A small HTTP/1 client for the admin endpoint of a running process.
//!
//! Owns how the endpoint is found (what was typed, else the config's `[admin]`), the token that is sent, and what each
//! outcome is as an exit code: 69 where nobody answers, 77 where this user may not, 65 where what was asked for is
//! wrong, 1 where it can't be done now. Decides nothing about the process: what it says is passed on as it said it.

use super::{Exit, File, say};
use crate::admin::token;
use crate::config::Admin;
use crate::daemon::Failure;
use crate::drain;
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::fmt::{self, Write};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// Where the config has the endpoint if it says nothing.
const DEFAULT: &str = crate::config::limits::DEFAULT_ADMIN;

/// For the connection.
const CONNECT: Duration = Duration::from_secs(5);

/// For the answer to a look, and to a change: an upgrade waits for the new process.
const LOOK: Duration = Duration::from_secs(20);
const CHANGE: Duration = Duration::from_secs(600);

/// The largest answer that is taken, in bytes; a status with ten thousand backends has some five million.
const MAX_ANSWER: usize = 256 << 20;

/// `EX_DATAERR`, `EX_NOINPUT`, `EX_UNAVAILABLE` and `EX_NOPERM` of sysexits.h.
const WRONG: u8 = 65;
const NO_INPUT: u8 = 66;
const UNREACHABLE: u8 = 69;
const FORBIDDEN: u8 = 77;
const REFUSED: u8 = 1;

/// The status of an answer to a wrong token.
const UNAUTHORIZED: u16 = 401;

/// Where the running process is, and how to speak to it.
#[derive(Args)]
#[command(mut_arg("path", |file| file.help("The config whose admin.listen says where the process is")))]
pub(super) struct Remote {
    #[arg(long, value_name = "ADDRESS", env = "TIDEGATE_ADMIN")]
    #[arg(
        help = "The admin endpoint: an address such as 127.0.0.1:9900, or unix:/PATH. Default: what the config says"
    )]
    admin: Option<String>,
    #[arg(help = "A file with the token, for changes over TCP. Default: the config's token_file, if it can be read")]
    #[arg(long, value_name = "FILE", env = "TIDEGATE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    file: File,
}

/// How the answer is shown.
#[derive(Args)]
pub(super) struct Shape {
    /// Print the answer as the process gave it, in JSON.
    #[arg(long)]
    pub json: bool,
}

/// One of the addresses of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Unix(PathBuf),
    /// `HOST:PORT`.
    Tcp(String),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => f.write_str(address),
        }
    }
}

/// Unix sockets first: there a user counts, and no token is needed.
fn addresses(admin: &Admin) -> Vec<Address> {
    let mut addresses: Vec<Address> = admin.listen.iter().map(|bind| address(&bind.to_string())).collect();
    addresses.sort_by_key(|address| matches!(address, Address::Tcp(_)));
    addresses
}

/// What can be connected to: for every address of a machine, its own. A URL and a path are understood, too.
fn address(text: &str) -> Address {
    if let Some(path) = text.strip_prefix("unix:") {
        let path = path.strip_prefix("//").filter(|path| path.starts_with('/')).unwrap_or(path);
        return Address::Unix(path.into());
    }
    if text.starts_with('/') {
        return Address::Unix(text.into());
    }
    let text = text.strip_prefix("http://").map_or(text, |rest| rest.trim_end_matches('/'));
    match text.parse::<SocketAddr>() {
        Ok(SocketAddr::V4(any)) if any.ip().is_unspecified() => Address::Tcp(format!("127.0.0.1:{}", any.port())),
        Ok(SocketAddr::V6(any)) if any.ip().is_unspecified() => Address::Tcp(format!("[::1]:{}", any.port())),
        _ => Address::Tcp(text.to_owned()),
    }
}

/// Who is asked.
pub(super) struct Client {
    addresses: Vec<Address>,
    token: Option<Token>,
    /// Where the addresses come from.
    from: String,
}

struct Token {
    text: String,
    /// Somebody has named its file, and not only the config.
    is_typed: bool,
}

/// What was answered, whatever it says.
pub(super) struct Answer {
    pub status: u16,
    pub body: Bytes,
}

impl Remote {
    /// The config.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Finds the endpoint. Fails where nothing says where it is.
    pub(super) fn client(&self) -> Result<Client, Exit> {
        let path = self.file.path().display();
        // Whoever has a mistake in the file must still reach the process that serves with the one before.
        let (admin, from) = match Admin::of_file(self.file.path()) {
            Ok(admin) => (Some(admin), format!("{path}, admin.listen")),
            Err(why) => {
                let why = why.to_string();
                (None, format!("the default: {}", why.lines().next().unwrap_or_default()))
            }
        };
        // A variable that is set to nothing says nothing.
        let typed = self.admin.as_deref().filter(|typed| !typed.is_empty());
        let (addresses, from) = match (typed, &admin) {
            (Some(typed), _) => (vec![address(typed)], "--admin".to_owned()),
            (None, Some(admin)) => (addresses(admin), from),
            (None, None) => (vec![address(DEFAULT)], from),
        };
        if addresses.is_empty() {
            let text = format!("{path} turns the admin endpoint off; set admin.listen, or name another with --admin");
            return Err(Exit::new(UNREACHABLE, text));
        }
        let token = match (&self.token_file, admin.and_then(|admin| admin.token_file)) {
            (Some(typed), _) => {
                // Not only a file: a shell's <(command) is a pipe.
                let text = std::fs::File::open(typed).map_err(|error| error.to_string()).and_then(token::token);
                let wrong = |why| Exit::new(NO_INPUT, format!("{}: {why}", typed.display()));
                Some(Token { text: text.map_err(wrong)?, is_typed: true })
            }
            // Whoever may not read it may still be let in for who they are.
            (None, Some(file)) => token::in_file(&file).ok().map(|text| Token { text, is_typed: false }),
            (None, None) => None,
        };
        Ok(Client { addresses, token, from })
    }
}

/// Has `work` done on a runtime for this thread alone.
pub(super) fn wait_for<F: Future>(work: F) -> Result<F::Output, Exit> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::System(format!("can't start a runtime: {error}")))?;
    let done = runtime.block_on(work);
    // A name that is still being looked up is not waited for.
    runtime.shutdown_background();
    Ok(done)
}

impl Client {
    /// What is at this path.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Exit> {
        self.ask(&Asked { method: Method::GET, path, body: None, patience: LOOK }).await
    }

    /// As [`Self::get`], for an answer in JSON that is no refusal.
    pub(super) async fn look(&self, path: &str) -> Result<(Bytes, Value), Exit> {
        let answer = self.get(path).await?.good()?;
        let value = serde_json::from_slice(&answer.body);
        let value = value.map_err(|error| Exit::new(REFUSED, format!("{path}: the answer is not JSON: {error}")))?;
        Ok((answer.body, value))
    }

    /// Asks for a change.
    pub(super) async fn post(&self, path: &str, body: Option<&Value>) -> Result<Answer, Exit> {
        self.ask(&Asked { method: Method::POST, path, body, patience: CHANGE }).await
    }

    async fn ask(&self, asked: &Asked<'_>) -> Result<Answer, Exit> {
        let (address, stream) = self.connect().await?;
        let answer = asked.of(&address, stream, self.token.as_ref()).await?;
        let is_unix = matches!(address, Address::Unix(_));
        if answer.status == UNAUTHORIZED && is_unix && self.token.as_ref().is_some_and(|token| !token.is_typed) {
            // The file may hold another one already than the process has read. Here a user counts as well.
            let (address, stream) = self.connect().await?;
            return asked.of(&address, stream, None).await;
        }
        Ok(answer)
    }

    /// The first address that can be connected to.
    async fn connect(&self) -> Result<(Address, Stream), Exit> {
        let mut why = String::new();
        for address in &self.addresses {
            let connecting = timeout(CONNECT, connect(address)).await;
            match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok((address.clone(), stream)),
                Err(error) => {
                    // Writing to a string can't fail.
                    let _ = writeln!(why, "can't reach tidegate at {address} (from {}): {error}", self.from);
                }
            }
        }
        why.push_str(
            "is it running? name its admin endpoint with --admin ADDRESS or unix:/PATH, or its config with -c FILE",
        );
        Err(Exit::new(UNREACHABLE, why))
    }
}

/// One request.
struct Asked<'a> {
    method: Method,
    path: &'a str,
    body: Option<&'a Value>,
    /// For the answer.
    patience: Duration,
}

impl Asked<'_> {
    async fn of(&self, address: &Address, stream: Stream, token: Option<&Token>) -> Result<Answer, Exit> {
        let Self { method, path, body, patience } = self;
        let broken =
            |why: &dyn fmt::Display| Exit::new(UNREACHABLE, format!("{address}: {why}; is this its admin endpoint?"));
        let mut request = Request::builder().method(method).uri(*path).header(HOST, host(address));
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.text));
        }
        if body.is_some() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request.body(Full::new(body)).map_err(|error| broken(&error))?;
        let exchange = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            // It ends with the answer, or with this runtime.
            drop(drain::spawn(connection));
            let response = sender.send_request(request).await?;
            let status = response.status().as_u16();
            hyper::Result::Ok((status, response.into_body()))
        };
        let all = async {
            let (status, body) = exchange.await.map_err(|error| broken(&error))?;
            let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| broken(&error))?;
            Ok(Answer { status, body: body.to_bytes() })
        };
        let late = || broken(&format!("no answer within {} s", patience.as_secs()));
        timeout(*patience, all).await.map_err(|_| late())?
    }
}

type Stream = Box<dyn Duplex>;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

async fn connect(address: &Address) -> io::Result<Stream> {
    Ok(match address {
        Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        Address::Tcp(address) => Box::new(TcpStream::connect(address).await?),
    })
}

fn host(address: &Address) -> &str {
    match address {
        Address::Unix(_) => "localhost",
        Address::Tcp(address) => address,
    }
}

impl Answer {
    /// Fails if it is a refusal, with what the process said.
    pub(super) fn good(self) -> Result<Self, Exit> {
        let code = match self.status {
            200..=299 => return Ok(self),
            UNAUTHORIZED | 403 => FORBIDDEN,
            400 | 411 | 413 | 414 | 415 | 422 => WRONG,
            _ => REFUSED,
        };
        let text = match serde_json::from_slice::<Value>(&self.body) {
            Ok(Value::Object(object)) => object.get("error").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        let text = text.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim_end().to_owned());
        let mut text = if text.is_empty() { format!("refused with status {}", self.status) } else { text };
        if self.status == UNAUTHORIZED {
            text.push_str("\nfrom the shell: --token-file FILE, or --admin unix:/PATH as a user who may");
        }
        Err(Exit::new(code, super::table::clean_lines(&text)))
    }

    /// Says what came of a change: to people its summary, to programs all of it.
    pub(super) fn tell(self, shape: &Shape) -> Result<(), Exit> {
        if shape.json {
            super::print(&self.body)?;
        }
        let answer = self.good()?;
        if !shape.json {
            let done = serde_json::from_slice::<Value>(&answer.body).unwrap_or_default();
            super::print(super::table::clean_lines(done["summary"].as_str().unwrap_or("done")).as_bytes())?;
            for warning in done["details"]["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                say(&super::table::clean_lines(warning));
            }
        }
        Ok(())
    }
}

/// One piece of a path, or a name or value of a query.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            // Writing to a string can't fail.
            let _ = write!(escaped, "%{byte:02X}");
        }
    }
    escaped
}

/// A path with its query.
pub(super) fn with_query(path: &str, parameters: &[(String, String)]) -> String {
    let pairs: Vec<String> =
        parameters.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(config: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lb.toml");
        std::fs::write(&path, config).unwrap();
        addresses(&Admin::of_file(&path).unwrap()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_endpoint_is_where_the_config_has_it_with_unix_sockets_first() {
        assert_eq!(asked(""), [DEFAULT]);
        assert_eq!(asked("[listeners.web]\nbind = \"127.0.0.1:1\"\n[admin]\n"), [DEFAULT]);
        assert_eq!(asked("[admin]\nlisten = \"127.0.0.9:99\""), ["127.0.0.9:99"]);
        assert!(asked("[admin]\nlisten = \"off\"").is_empty());
        let several = "[admin]\ntoken_file = \"/t\"\n\
                       listen = [\"0.0.0.0:99\", \"unix:///run/a.sock\", \"[::]:98\", \"unix:/run/b.sock\"]";
        assert_eq!(asked(several), ["unix:/run/a.sock", "unix:/run/b.sock", "127.0.0.1:99", "[::1]:98"]);
    }

    #[test]
    fn a_file_with_mistakes_still_says_where_the_process_is() {
        let admin = "[admin]\nlisten = \"unix:/run/a.sock\"\n";
        for mistake in ["x", "x.y = ", "[listeners.web]\nbind = 3", "[listeners.web", "listen = \"again\"", "a = \"b"] {
            for text in [format!("{admin}{mistake}\n"), format!("{mistake}\n{admin}")] {
                assert_eq!(asked(&text), ["unix:/run/a.sock"], "{text}");
            }
        }
    }

    #[test]
    fn an_address_may_be_typed_as_people_do() {
        for (typed, meant) in [
            ("127.0.0.1:99", "127.0.0.1:99"),
            ("http://127.0.0.1:99/", "127.0.0.1:99"),
            ("http://lb.example.com:99", "lb.example.com:99"),
            ("/run/a.sock", "unix:/run/a.sock"),
            ("0.0.0.0:99", "127.0.0.1:99"),
        ] {
            assert_eq!(address(typed).to_string(), meant, "{typed}");
        }
    }

    #[test]
    fn a_refusal_has_its_exit_code_and_the_words_of_the_process() {
        let refusal = |status, body: &'static str| {
            let exit = Answer { status, body: Bytes::from_static(body.as_bytes()) }.good().map(drop).unwrap_err();
            (exit.code, exit.text)
        };
        let json = "{\"ok\": false, \"error\": \"line 3: no\\nline 4: no\"}";
        assert_eq!(refusal(422, json), (65, "line 3: no\nline 4: no".to_owned()));
        let way_out = "from the shell: --token-file FILE, or --admin unix:/PATH as a user who may";
        assert_eq!(refusal(401, "the token is missing\n"), (77, format!("the token is missing\n{way_out}")));
        assert_eq!(refusal(403, "{}").0, 77);
        assert_eq!(refusal(404, "{\"error\": \"no pool\"}"), (1, "no pool".to_owned()));
        assert_eq!(refusal(503, ""), (1, "refused with status 503".to_owned()));
        assert!(Answer { status: 200, body: Bytes::new() }.good().is_ok());
    }

    #[test]
    fn what_means_something_in_an_address_is_escaped() {
        assert_eq!(escaped("unix:/run/a b.sock"), "unix%3A%2Frun%2Fa%20b.sock");
        assert_eq!(escaped("[::1]:80"), "%5B%3A%3A1%5D%3A80");
        let query = [("pool".to_owned(), "a&b=ü".to_owned()), ("limit".to_owned(), "5".to_owned())];
        assert_eq!(with_query("/connections", &query), "/connections?pool=a%26b%3D%C3%BC&limit=5");
        assert_eq!(with_query("/status", &[]), "/status");
    }
}
