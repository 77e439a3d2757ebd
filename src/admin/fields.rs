//! The body of a change as JSON: an object, its fields one by one, and whatever is wrong with them.
//!
//! Owns the kinds of fields and the words for what doesn't fit. Of one body all mistakes are told, a line each. The
//! same list of fields is what `openapi` describes.

use crate::config::limits;
use crate::config::values::{self, any_of, nearest, quoted};
use crate::name::BackendAddr;
use hyper::StatusCode;
use serde::de::value::StrDeserializer;
use serde::de::{Deserialize, Deserializer, IgnoredAny, IntoDeserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;
use serde_json::error::Category;
use std::fmt;
use std::time::Duration;

/// Keys of one body, at most: more than any has, so that mistakes are told as what they are.
const MAX_KEYS: usize = 64;

/// One key of a body.
#[derive(Debug)]
pub struct Field {
    pub name: &'static str,
    pub kind: Kind,
    pub is_required: bool,
    pub says: &'static str,
}

/// What a field's value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// What a backend is called.
    Name,
    /// Where a backend is reached.
    Address,
    /// A duration as the config writes it.
    Deadline,
    Word(&'static [&'static str]),
    /// From and to.
    Number(u64, u64),
}

/// A value that is what its field wants.
#[derive(Debug)]
enum Value {
    Text(String),
    Address(BackendAddr),
    Deadline(Duration),
    Number(u64),
}

/// The fields that were given.
#[derive(Debug, Default)]
pub struct Given(Vec<(&'static str, Value)>);

impl Given {
    fn take(&mut self, name: &str) -> Option<Value> {
        let at = self.0.iter().position(|(given, _)| *given == name)?;
        Some(self.0.swap_remove(at).1)
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        match self.take(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub fn address(&mut self, name: &str) -> Option<BackendAddr> {
        match self.take(name)? {
            Value::Address(address) => Some(address),
            _ => None,
        }
    }

    pub fn deadline(&mut self, name: &str) -> Option<Duration> {
        match self.take(name)? {
            Value::Deadline(deadline) => Some(deadline),
            _ => None,
        }
    }

    /// Within the bounds of its field, which the type must hold.
    pub fn number<N: TryFrom<u64>>(&mut self, name: &str) -> Option<N> {
        match self.take(name)? {
            Value::Number(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// One of the words of its field, which are those that the type is written with.
    pub fn word<T: for<'de> Deserialize<'de>>(&mut self, name: &str) -> Option<T> {
        let text = self.text(name)?;
        let word: StrDeserializer<'_, serde::de::value::Error> = text.as_str().into_deserializer();
        T::deserialize(word).ok()
    }
}

/// A body that is refused: how, and the lines that say why.
pub type Refused = (StatusCode, String);

/// Reads a body; one of no bytes has no fields. What is no JSON is a bad request, what is another JSON than these
/// fields can't be processed.
pub fn read(body: &[u8], fields: &'static [Field]) -> Result<Given, Refused> {
    let top = if body.is_empty() {
        Top::Object(Vec::new())
    } else {
        serde_json::from_slice(body).map_err(|error| match error.classify() {
            Category::Data => (StatusCode::UNPROCESSABLE_ENTITY, format!("the body: {error}")),
            _ => (StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}")),
        })?
    };
    let invalid = |text: String| (StatusCode::UNPROCESSABLE_ENTITY, text);
    let pairs = match top {
        Top::Object(pairs) => Ok(pairs),
        Top::Other(other) => Err(other),
    };
    let pairs = pairs.map_err(|other| {
        let example = fields.first().map_or("{}".to_owned(), |field| format!("{{\"{}\": ...}}", field.name));
        invalid(format!("the body is {}, but an object is wanted; write {example}", other.describe()))
    })?;
    let (mut given, mut mistakes) = (Given::default(), Vec::new());
    let mut seen: Vec<String> = Vec::new();
    for (key, value) in pairs {
        let field = fields.iter().find(|field| field.name == key);
        match field {
            None => mistakes.push(format!("{}: unknown key; {}", quoted(&key), instead(&key, fields))),
            Some(_) if seen.contains(&key) => mistakes.push(format!("{key}: it is given twice; give it once")),
            Some(field) => match field.kind.judge(value) {
                Ok(value) => given.0.push((field.name, value)),
                Err(text) => mistakes.push(format!("{key}: {text}")),
            },
        }
        seen.push(key);
    }
    let is_missing = |field: &&Field| field.is_required && !seen.iter().any(|key| key == field.name);
    let missing = |field: &Field| format!("{}: it is missing; {}", field.name, field.says);
    mistakes.extend(fields.iter().filter(is_missing).map(missing));
    if mistakes.is_empty() { Ok(given) } else { Err(invalid(mistakes.join("\n"))) }
}

fn instead(key: &str, fields: &[Field]) -> String {
    let names: Vec<&str> = fields.iter().map(|field| field.name).collect();
    match nearest(key, names.iter().copied()) {
        Some(meant) => format!("did you mean {}?", quoted(meant)),
        None if names.is_empty() => "there are no keys here".to_owned(),
        None => format!("the keys here are {}", names.join(", ")),
    }
}

impl Kind {
    fn judge(self, value: Json) -> Result<Value, String> {
        match (self, value) {
            (Self::Text, Json::Text(text)) => Ok(Value::Text(text)),
            (Self::Name, Json::Text(text)) => values::backend_name(&text).map(|()| Value::Text(text)),
            (Self::Address, Json::Text(text)) => values::backend(&text).map(Value::Address),
            (Self::Deadline, Json::Text(text)) => values::deadline(&text).map(Value::Deadline),
            (Self::Deadline, Json::Whole(number)) => Err(format!("{number} has no unit; write \"{number}s\"")),
            (Self::Word(words), Json::Text(text)) if words.contains(&text.as_str()) => Ok(Value::Text(text)),
            (Self::Word(words), Json::Text(text)) => Err(match nearest(&text, words.iter().copied()) {
                Some(meant) => format!("{} is not known here; did you mean {}?", quoted(&text), quoted(meant)),
                None => format!("{} is not known here; write {}", quoted(&text), self.wanted()),
            }),
            (Self::Number(least, most), Json::Whole(number)) if (least..=most).contains(&number) => {
                Ok(Value::Number(number))
            }
            (Self::Number(least, most), number @ (Json::Whole(_) | Json::Number(_))) => {
                let whole = if let Json::Number(number) = &number { number.as_f64().and_then(whole) } else { None };
                let fits = whole.filter(|number| (least..=most).contains(number)).map(Value::Number);
                fits.ok_or_else(|| format!("{} is out of range; write {}", number.describe(), self.wanted()))
            }
            (_, other) => Err(format!("{} is not what is wanted; write {}", other.describe(), self.wanted())),
        }
    }

    fn wanted(self) -> String {
        match self {
            Self::Text => "a text".to_owned(),
            Self::Name => format!("a text of up to {} bytes", limits::MAX_NAME),
            Self::Address => "an address such as \"10.0.0.1:80\" or \"unix:/run/app.sock\"".to_owned(),
            Self::Deadline => "a duration such as \"30s\"".to_owned(),
            Self::Word(words) => any_of(&words.iter().map(|word| quoted(word)).collect::<Vec<_>>()),
            Self::Number(least, most) => format!("a whole number from {least} to {most}"),
        }
    }
}

/// `1.0` is a whole number too.
fn whole(number: f64) -> Option<u64> {
    // Beyond it not every whole number is a float.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && (0.0..=EXACT).contains(&number)).then_some(number as u64)
}

/// A JSON value. What is inside lists and objects is looked through and forgotten, so that a body takes no more memory
/// than its bytes, however it nests.
#[derive(Debug)]
enum Json {
    Null,
    Bool(bool),
    Whole(u64),
    /// Any other number, as it is shown.
    Number(Number),
    Text(String),
    List,
    Object,
}

/// The outermost value. Of an object every pair is kept: a key that comes twice is no key to overwrite.
enum Top {
    Object(Vec<(String, Json)>),
    Other(Json),
}

impl Json {
    fn describe(&self) -> String {
        match self {
            Self::Null => "null".to_owned(),
            Self::Bool(value) => value.to_string(),
            Self::Whole(number) => number.to_string(),
            Self::Number(number) => number.to_string(),
            Self::Text(text) => quoted(text),
            Self::List => "a list".to_owned(),
            Self::Object => "an object".to_owned(),
        }
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Plain)
    }
}

impl<'de> Deserialize<'de> for Top {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Outermost)
    }
}

struct Plain;
struct Outermost;

/// A visitor's ways for what is neither list nor object.
macro_rules! scalars {
    ($type:ty, $wrap:expr) => {
        type Value = $type;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("JSON")
        }

        fn visit_unit<E>(self) -> Result<$type, E> {
            Ok($wrap(Json::Null))
        }

        fn visit_bool<E>(self, value: bool) -> Result<$type, E> {
            Ok($wrap(Json::Bool(value)))
        }

        fn visit_u64<E>(self, value: u64) -> Result<$type, E> {
            Ok($wrap(Json::Whole(value)))
        }

        fn visit_i64<E>(self, value: i64) -> Result<$type, E> {
            Ok($wrap(Json::Number(value.into())))
        }

        fn visit_f64<E>(self, value: f64) -> Result<$type, E> {
            Ok($wrap(Number::from_f64(value).map_or(Json::Null, Json::Number)))
        }

        fn visit_str<E>(self, text: &str) -> Result<$type, E> {
            Ok($wrap(Json::Text(text.to_owned())))
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<$type, A::Error> {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            Ok($wrap(Json::List))
        }
    };
}

impl<'de> Visitor<'de> for Plain {
    scalars!(Json, std::convert::identity);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Json, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Json::Object)
    }
}

impl<'de> Visitor<'de> for Outermost {
    scalars!(Top, Top::Other);

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Top, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            if pairs.len() == MAX_KEYS {
                return Err(serde::de::Error::custom(format!("there are more than {MAX_KEYS} keys")));
            }
            pairs.push(pair);
        }
        Ok(Top::Object(pairs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIELDS: &[Field] = &[
        Field { name: "state", kind: Kind::Word(&["enabled", "draining"]), is_required: true, says: "say which" },
        Field { name: "weight", kind: Kind::Number(1, 256), is_required: false, says: "" },
        Field { name: "deadline", kind: Kind::Deadline, is_required: false, says: "" },
        Field { name: "address", kind: Kind::Address, is_required: false, says: "" },
        Field { name: "name", kind: Kind::Name, is_required: false, says: "" },
        Field { name: "config", kind: Kind::Text, is_required: false, says: "" },
    ];

    fn refused(body: &str) -> (u16, String) {
        let (status, text) = read(body.as_bytes(), FIELDS).unwrap_err();
        (status.as_u16(), text)
    }

    #[test]
    fn every_kind_is_read() {
        let body = r#"{"state": "draining", "weight": 7.0, "deadline": "1m 30s", "address": "[::1]:80",
                       "name": "<b>", "config": "\u0000"}"#;
        let mut given = read(body.as_bytes(), FIELDS).unwrap();
        assert_eq!(given.text("state").as_deref(), Some("draining"));
        assert_eq!(given.number::<u16>("weight"), Some(7));
        assert_eq!(given.deadline("deadline"), Some(Duration::from_secs(90)));
        assert_eq!(given.address("address").map(|address| address.to_string()).as_deref(), Some("[::1]:80"));
        assert_eq!((given.text("name").as_deref(), given.text("config").as_deref()), (Some("<b>"), Some("\0")));
        assert_eq!(given.text("name"), None, "it was taken");
        assert!(read(b"", &FIELDS[1..]).unwrap().0.is_empty());
    }

    #[test]
    fn every_mistake_is_told_with_its_way_out() {
        for (body, expected) in [
            ("", "state: it is missing; say which"),
            ("{}", "state: it is missing; say which"),
            ("[1, [2]]", "the body is a list, but an object is wanted; write {\"state\": ...}"),
            ("null", "the body is null, but an object is wanted; write {\"state\": ...}"),
            ("\"state\"", "the body is \"state\", but an object is wanted; write {\"state\": ...}"),
            ("-1", "the body is -1, but an object is wanted; write {\"state\": ...}"),
            (r#"{"state": "enabld"}"#, "state: \"enabld\" is not known here; did you mean \"enabled\"?"),
            (r#"{"state": "x"}"#, "state: \"x\" is not known here; write \"enabled\" or \"draining\""),
            (r#"{"state": true}"#, "state: true is not what is wanted; write \"enabled\" or \"draining\""),
            (r#"{"state": null}"#, "state: null is not what is wanted; write \"enabled\" or \"draining\""),
        ] {
            assert_eq!(refused(body), (422, expected.to_owned()), "{body}");
        }
        let with = |more: &str| refused(&format!("{{\"state\": \"enabled\", {more}}}")).1;
        for (more, expected) in [
            (r#""stat": 1"#, "\"stat\": unknown key; did you mean \"state\"?"),
            (r#""x": 1"#, "\"x\": unknown key; the keys here are state, weight, deadline, address, name, config"),
            (r#""state": "enabled""#, "state: it is given twice; give it once"),
            (r#""weight": 0"#, "weight: 0 is out of range; write a whole number from 1 to 256"),
            (r#""weight": -1"#, "weight: -1 is out of range; write a whole number from 1 to 256"),
            (r#""weight": 1.5"#, "weight: 1.5 is out of range; write a whole number from 1 to 256"),
            (r#""weight": "7""#, "weight: \"7\" is not what is wanted; write a whole number from 1 to 256"),
            (r#""deadline": 30"#, "deadline: 30 has no unit; write \"30s\""),
            (r#""deadline": "30""#, "deadline: \"30\" has no unit; write \"30s\""),
            (r#""deadline": {}"#, "deadline: an object is not what is wanted; write a duration such as \"30s\""),
            (
                r#""address": "app:80""#,
                "address: \"app\" is a name; write the address that it stands for, such as \"10.0.0.1:80\"",
            ),
            (r#""address": "10.0.0.1""#, "address: \"10.0.0.1\" has no port; write \"10.0.0.1:80\""),
            (r#""name": """#, "name: the name is empty; use up to 128 bytes of printable text"),
            (
                r#""name": "\u001b[2J""#,
                "name: \"\\u{1b}[2J\" holds characters that can't be seen; use up to 128 bytes of printable text",
            ),
            (r#""config": ["a"]"#, "config: a list is not what is wanted; write a text"),
        ] {
            assert_eq!(with(more), expected, "{more}");
        }
        let all = refused(r#"{"sate": 1, "weight": 257, "deadline": []}"#).1;
        assert_eq!(all.lines().count(), 4, "{all}");
    }

    #[test]
    fn f80_what_is_no_json_is_a_bad_request_however_deep() {
        for body in
            [" \n", "\r", "{", "state=enabled", "{\"state\": \"enabled\",}", "{\"a\": \u{1}}", "\u{feff}{}", "{} {}"]
        {
            let (status, text) = refused(body);
            assert_eq!(status, 400, "{body}: {text}");
            assert!(text.starts_with("the body is not JSON: "), "{text}");
        }
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = open.repeat(1_000_000) + "1" + &close.repeat(1_000_000);
            assert_eq!(refused(&deep).0, 422);
            assert_eq!(refused(&deep[..deep.len() - 1]).0, 400);
        }
        let keys: Vec<String> = (0..=MAX_KEYS).map(|n| format!("\"{n}\": 1")).collect();
        let (status, text) = refused(&format!("{{{}}}", keys.join(", ")));
        assert_eq!(status, 422);
        assert!(text.starts_with("the body: there are more than 64 keys"), "{text}");
        assert_eq!(read(b"{\"state\": \"\xff\"}", FIELDS).unwrap_err().0, StatusCode::BAD_REQUEST);
    }
}
