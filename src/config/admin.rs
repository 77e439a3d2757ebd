//! `[admin]`: where the admin endpoint listens, and who may read and change things there.
//!
//! Owns the keys, their values and what is wrong with them. A token itself never stands in the config, only the place
//! that it is read from: what is no secret can't be shown by mistake. Next: `admin::who`.

use super::findings::{At, Complaint, Findings, Given, Placed};
use super::section::{Section, Value, wrong_type};
use super::socket::owner;
use super::{Owner, address, limits, words};
use crate::name::{BindAddr, Endpoint};
use std::net::IpAddr;
use std::path::PathBuf;
use toml::de::DeValue;

/// The keys of `[admin]`.
pub(super) const ADMIN: &[&str] = &["listen", "token_file", "token_credential", "allow_uids", "allowed_hosts"];

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admin {
    /// Empty (`listen = "off"`) is no admin endpoint at all. One that other machines reach comes only with a token.
    pub listen: Vec<BindAddr>,
    /// Where the token is read from: one of these two, or neither.
    pub token_file: Option<PathBuf>,
    /// A file of the folder that `$CREDENTIALS_DIRECTORY` names, as systemd makes it.
    pub token_credential: Option<String>,
    /// Who may change things over a unix socket; `None` is the process's own user and root.
    pub allow_uids: Option<Vec<Owner>>,
    /// What a request's `Host` may be, in lower case, besides addresses that are ours and loopback names.
    pub allowed_hosts: Vec<String>,
}

pub(super) struct GivenAdmin {
    pub listen: Given<Vec<Placed<String>>>,
    token_file: Given<PathBuf>,
    token_credential: Given<String>,
    allow_uids: Given<Vec<Owner>>,
    allowed_hosts: Given<Vec<Placed<String>>>,
}

impl GivenAdmin {
    pub fn read(findings: &Findings, section: &Section) -> Self {
        Self {
            listen: section.texts("listen"),
            token_file: section.parsed("token_file", path),
            token_credential: section.parsed("token_credential", credential),
            allow_uids: uids(findings, section),
            allowed_hosts: section.texts("allowed_hosts"),
        }
    }

    /// The table's data, and its addresses with their places.
    pub fn judged(self, findings: &Findings) -> (Admin, Given<Vec<Placed<BindAddr>>>) {
        if let (Some(_), Some(credential)) = (self.token_file.good(), self.token_credential.good()) {
            let hint = "keep token_credential with systemd's LoadCredential=, or token_file without";
            findings.mistake(&credential.at, "there is a token_file already", hint);
        }
        let has_token = !self.token_file.is_absent() || !self.token_credential.is_absent();
        let listen = listen(findings, self.listen, has_token);
        let default = || address::bind(limits::DEFAULT_ADMIN).into_iter().collect();
        let addresses = listen.good().map(|list| list.value.iter().map(|bind| bind.value.clone()).collect());
        let is_unix = |bind: &BindAddr| matches!(bind.0, Endpoint::Unix(_));
        let addresses: Vec<BindAddr> = addresses.unwrap_or_else(default);
        if let Some(uids) = self.allow_uids.good().filter(|_| !addresses.iter().any(is_unix)) {
            let message = "this has no effect: users are known by their number on unix sockets only";
            findings.warning(&uids.at, message, "add one to admin.listen, such as \"unix:/run/tidegate/admin.sock\"");
        }
        let admin = Admin {
            listen: addresses,
            token_file: self.token_file.into_good().map(|file| file.value),
            token_credential: self.token_credential.into_good().map(|name| name.value),
            allow_uids: self.allow_uids.into_good().map(|uids| uids.value),
            allowed_hosts: hosts(findings, self.allowed_hosts),
        };
        (admin, listen)
    }
}

/// The good addresses; none for `"off"`.
fn listen(findings: &Findings, given: Given<Vec<Placed<String>>>, has_token: bool) -> Given<Vec<Placed<BindAddr>>> {
    let Placed { at, value: texts } = match given {
        Given::Absent => return Given::Absent,
        Given::Bad => return Given::Bad,
        Given::Good(placed) => placed,
    };
    if let [only] = texts.as_slice()
        && only.value == "off"
    {
        return Given::Good(Placed { at, value: Vec::new() });
    }
    if texts.is_empty() {
        findings.mistake(&at, "the list is empty", "name an address, or write listen = \"off\"");
    }
    if texts.len() > limits::MAX_ADMIN_BINDS {
        let message = format!("these are {} addresses", texts.len());
        findings.mistake(&at, message, format!("use up to {}", limits::MAX_ADMIN_BINDS));
        return Given::Bad;
    }
    let (count, mut binds) = (texts.len(), Vec::new());
    for Placed { at, value: text } in texts {
        let judged = match text.as_str() {
            "off" => Err(Complaint::new("\"off\" is no address beside others", "write listen = \"off\" alone")),
            text => address::bind(text).and_then(|bind| not_open_to_all(bind, has_token)),
        };
        match judged {
            Ok(value) => binds.push(Placed { at, value }),
            Err(complaint) => findings.complaint(&at, complaint),
        }
    }
    if binds.len() < count || count == 0 { Given::Bad } else { Given::Good(Placed { at, value: binds }) }
}

fn not_open_to_all(bind: BindAddr, has_token: bool) -> Result<BindAddr, Complaint> {
    match bind.0 {
        Endpoint::Tcp(address) if !address.ip().is_loopback() && !has_token => Err(Complaint::new(
            format!("{address} can be reached from other machines"),
            "add a token_file, or use a loopback address such as 127.0.0.1:9900, or unix:/run/tidegate/admin.sock",
        )),
        _ => Ok(bind),
    }
}

fn path(text: &str) -> Result<PathBuf, Complaint> {
    if text.starts_with('/') && !text.ends_with('/') && !text.contains(words::is_unsafe) {
        return Ok(text.into());
    }
    let message = format!("{} is not the absolute path of a file", words::quoted(text));
    Err(Complaint::new(message, "write one such as \"/etc/tidegate/token\""))
}

/// What systemd takes for the name of a credential: that of a file, and ASCII.
fn credential(text: &str) -> Result<String, Complaint> {
    let is_name = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/') && !matches!(text, "" | "." | "..");
    if is_name && text.len() <= limits::MAX_NAME {
        return Ok(text.to_owned());
    }
    let message = format!("{} is not the name of a credential", words::quoted(text));
    Err(Complaint::new(message, "write that of LoadCredential= in the unit, such as \"admin-token\""))
}

/// Numbers and names of users, one or several.
fn uids(findings: &Findings, section: &Section) -> Given<Vec<Owner>> {
    let given = section.one_or_more("allow_uids");
    let (all, at) = match given {
        Given::Absent => return Given::Absent,
        Given::Bad => return Given::Bad,
        Given::Good(placed) => (placed.value, placed.at),
    };
    let count = all.len();
    let good: Vec<Owner> = all.into_iter().filter_map(|one| uid(findings, one.value, &one.at)).collect();
    if good.len() < count { Given::Bad } else { Given::Good(Placed { at, value: good }) }
}

fn uid(findings: &Findings, value: &Value<'_>, at: &At) -> Option<Owner> {
    let judged = match value.get_ref() {
        // The highest number means nobody to the kernel.
        DeValue::Integer(digits) => {
            let number = u32::from_str_radix(digits.as_str(), digits.radix()).ok().filter(|&number| number < u32::MAX);
            let message = || format!("{} is not the number of a user", words::escaped(&digits.to_string()));
            number.map(Owner::Number).ok_or_else(|| Complaint::new(message(), "use 0 to 4294967294"))
        }
        DeValue::String(text) => owner(text, "the name or number of a user"),
        _ => Err(Complaint { hint: "write its name or its number".into(), ..wrong_type(value, "a user") }),
    };
    judged.map_err(|complaint| findings.complaint(at, complaint)).ok()
}

fn hosts(findings: &Findings, given: Given<Vec<Placed<String>>>) -> Vec<String> {
    let judged = given
        .value_or(Vec::new())
        .into_iter()
        .filter_map(|text| host(&text.value).map_err(|complaint| findings.complaint(&text.at, complaint)).ok());
    judged.collect()
}

fn host(text: &str) -> Result<String, Complaint> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(ip.to_string());
    }
    if let Some((name, port)) = text.rsplit_once(':')
        && port.bytes().all(|byte| byte.is_ascii_digit())
    {
        let hint = format!("write {}: every port is allowed", words::quoted(name));
        return Err(Complaint::new(format!("{} has a port", words::quoted(text)), hint));
    }
    address::check_name(text)?;
    Ok(text.trim_end_matches('.').to_ascii_lowercase())
}
