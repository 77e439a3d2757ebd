//! One table of the file, read key by key: types, units, ranges and unknown keys are judged here.
//!
//! Owns the words for a value of the wrong type. A table is opened with the list of the keys that it may have, and
//! only those can be asked for; the rest are unknown keys. Next: `file`, which says what the tables are.

use super::findings::{At, Complaint, Findings, Given, Placed};
use super::{Percent, Rate, unit, words};
use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Where a table is wanted that has no more keys than this, all of them are named.
const FEW_KEYS: usize = 10;

/// A value as the parser hands it out.
pub(super) type Value<'t> = Spanned<DeValue<'t>>;

/// A table of the file, or the place where it would be.
pub(super) struct Section<'t, 'f> {
    findings: &'f Findings<'f>,
    table: Option<&'t DeTable<'t>>,
    pub at: At,
    keys: &'static [&'static str],
}

impl<'t, 'f> Section<'t, 'f> {
    /// The whole file.
    pub fn root(findings: &'f Findings<'f>, table: &'t DeTable<'t>, keys: &'static [&'static str]) -> Self {
        Self { findings, table: Some(table), at: At { span: 0..0, key: String::new() }, keys }.checked()
    }

    /// The table that `value` is. Reports if it isn't one.
    pub fn of_value(
        findings: &'f Findings<'f>,
        value: &'t Value<'t>,
        key: String,
        keys: &'static [&'static str],
    ) -> Option<Self> {
        let at = At { span: value.span(), key };
        if let DeValue::Table(table) = value.get_ref() {
            return Some(Self { findings, table: Some(table), at, keys }.checked());
        }
        let mut complaint = wrong_type(value, "a table");
        if !value.get_ref().is_array() && keys.len() <= FEW_KEYS {
            complaint.hint = format!("write {{ {} = ... }}; the keys here are {}", keys[0], keys.join(", "));
        }
        findings.complaint(&at, complaint);
        None
    }

    /// The table under `key`; an empty one if there is none.
    pub fn section(&self, key: &'static str, keys: &'static [&'static str]) -> Section<'t, 'f> {
        let absent = || Section { findings: self.findings, table: None, at: self.at_key(key), keys };
        match self.value(key) {
            None => absent(),
            Some(value) => Self::of_value(self.findings, value, self.path(key), keys).unwrap_or_else(absent),
        }
    }

    /// Itself, if the table is there.
    pub fn given(self) -> Option<Self> {
        self.table.is_some().then_some(self)
    }

    /// The tables under `key` that are named as the user likes, in the order of the file, each with its name's place.
    pub fn named(&self, key: &'static str, keys: &'static [&'static str]) -> Given<Vec<(Placed<String>, Self)>> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let at = At { span: value.span(), key: self.path(key) };
        let DeValue::Table(table) = value.get_ref() else {
            self.findings.complaint(&at, wrong_type(value, "a table"));
            return Given::Bad;
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let sections = entries.into_iter().filter_map(|(name, value)| {
            let path = format!("{}.{}", at.key, words::key(name.get_ref()));
            let section = Self::of_value(self.findings, value, path.clone(), keys)?;
            let at = At { span: name.span(), key: path };
            Some((Placed { at, value: name.get_ref().to_string() }, section))
        });
        match sections.collect::<Vec<_>>() {
            none if none.is_empty() && !table.is_empty() => Given::Bad,
            value => Given::Good(Placed { at, value }),
        }
    }

    pub fn text(&self, key: &'static str) -> Given<String> {
        let Some(value) = self.value(key) else { return Given::Absent };
        self.judged(self.at_value(key, value), self.text_of(value))
    }

    /// A text or a list of texts; one text is a list of one.
    pub fn texts(&self, key: &'static str) -> Given<Vec<Placed<String>>> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let at = self.at_value(key, value);
        let DeValue::Array(list) = value.get_ref() else {
            return match self.judged(at.clone(), self.text_of(value)) {
                Given::Good(text) => Given::Good(Placed { at, value: vec![text] }),
                _ => Given::Bad,
            };
        };
        let texts: Vec<_> = list
            .iter()
            .enumerate()
            .filter_map(|(index, value)| {
                let at = At { span: value.span(), key: format!("{}[{index}]", at.key) };
                self.judged(at, self.text_of(value)).into_good()
            })
            .collect();
        // What is left of the list is judged; an empty list is another thing than one of which nothing is left.
        if texts.is_empty() && !list.is_empty() { Given::Bad } else { Given::Good(Placed { at, value: texts }) }
    }

    /// Whether there is anything under `key`.
    pub fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Whether there is a key that this table must not have.
    pub fn has_unknown(&self) -> bool {
        self.table.is_some_and(|table| table.keys().any(|key| !self.keys.contains(&key.get_ref().as_ref())))
    }

    /// The texts under `key` that are named as the user likes, in the order of the file, with their names' places.
    pub fn named_texts(&self, key: &'static str) -> Given<Vec<(Placed<String>, Placed<String>)>> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let at = self.at_value(key, value);
        let DeValue::Table(table) = value.get_ref() else {
            self.findings.complaint(&at, wrong_type(value, "a table"));
            return Given::Bad;
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        let texts = entries.into_iter().filter_map(|(name, value)| {
            let key = format!("{}.{}", at.key, words::key(name.get_ref()));
            let text = self.judged(At { span: value.span(), key: key.clone() }, self.text_of(value)).into_good()?;
            Some((Placed { at: At { span: name.span(), key }, value: name.get_ref().to_string() }, text))
        });
        Given::Good(Placed { value: texts.collect(), at: at.clone() })
    }

    /// A list of anything, or one of its kind alone, each value with its place.
    pub fn one_or_more(&self, key: &'static str) -> Given<Vec<Placed<&'t Value<'t>>>> {
        match self.value(key) {
            Some(value) if !value.get_ref().is_array() => {
                let at = self.at_value(key, value);
                Given::Good(Placed { value: vec![Placed { at: at.clone(), value }], at })
            }
            _ => self.list(key),
        }
    }

    /// A list of anything, each value with its place.
    pub fn list(&self, key: &'static str) -> Given<Vec<Placed<&'t Value<'t>>>> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let at = self.at_value(key, value);
        let DeValue::Array(list) = value.get_ref() else {
            let mut complaint = wrong_type(value, "a list");
            if value.get_ref().is_str() || value.get_ref().is_table() {
                complaint.hint = format!("write {}", words::escaped(&format!("[{}]", self.raw(value))));
            }
            self.findings.complaint(&at, complaint);
            return Given::Bad;
        };
        let place = |(index, value): (usize, &'t Value<'t>)| {
            let at = At { span: value.span(), key: format!("{}[{index}]", at.key) };
            Placed { at, value }
        };
        Given::Good(Placed { value: list.iter().enumerate().map(place).collect(), at })
    }

    pub fn integer<N>(&self, key: &'static str, range: &RangeInclusive<N>) -> Given<N>
    where
        N: TryFrom<i128> + PartialOrd + Display,
    {
        let Some(value) = self.value(key) else { return Given::Absent };
        self.judged(self.at_value(key, value), integer_of(value, range))
    }

    pub fn duration(&self, key: &'static str, range: &RangeInclusive<Duration>) -> Given<Duration> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let duration = match value.get_ref() {
            DeValue::String(text) => unit::duration(text, range),
            DeValue::Integer(_) | DeValue::Float(_) => {
                let number = words::escaped(self.raw(value));
                Err(Complaint::new(format!("{number} has no unit"), format!("write \"{number}s\"")))
            }
            _ => Err(wrong_type(value, "a duration")),
        };
        self.judged(self.at_value(key, value), duration)
    }

    /// As [`duration`](Self::duration), or `"off"`, which is `None`.
    pub fn duration_or_off(&self, key: &'static str, range: &RangeInclusive<Duration>) -> Given<Option<Duration>> {
        match self.off(key) {
            Some(at) => Given::Good(Placed { at, value: None }),
            None => self.duration(key, range).map(Some),
        }
    }

    /// An integer, or `"off"`, which is `None`.
    pub fn integer_or_off<N>(&self, key: &'static str, range: &RangeInclusive<N>) -> Given<Option<N>>
    where
        N: TryFrom<i128> + PartialOrd + Display,
    {
        match self.off(key) {
            Some(at) => Given::Good(Placed { at, value: None }),
            None => self.integer(key, range).map(Some),
        }
    }

    /// A number that `fits`, with a fraction or without, or `"off"`, which is `None`.
    pub fn number_or_off(
        &self,
        key: &'static str,
        fits: impl FnOnce(f64) -> bool,
        hint: &'static str,
    ) -> Given<Option<f64>> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let number = match value.get_ref() {
            DeValue::String(text) if text == "off" => return self.judged(self.at_value(key, value), Ok(None)),
            DeValue::Integer(digits) => i128::from_str_radix(digits.as_str(), digits.radix()).ok().map(|n| n as f64),
            DeValue::Float(digits) => digits.as_str().parse().ok(),
            _ => {
                let complaint = Complaint { hint: hint.into(), ..wrong_type(value, "a number") };
                return self.judged(self.at_value(key, value), Err(complaint));
            }
        };
        let out_of_range = || Complaint::new(format!("{} is out of range", words::escaped(self.raw(value))), hint);
        self.judged(self.at_value(key, value), number.filter(|&number| fits(number)).map(Some).ok_or_else(out_of_range))
    }

    /// A text that means something else, or `"off"`, which is `None`.
    pub fn parsed_or_off<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Complaint>,
    ) -> Given<Option<T>> {
        match self.off(key) {
            Some(at) => Given::Good(Placed { at, value: None }),
            None => self.parsed(key, parse).map(Some),
        }
    }

    pub fn boolean(&self, key: &'static str) -> Given<bool> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let boolean = match value.get_ref() {
            DeValue::Boolean(value) => Ok(*value),
            _ => Err(Complaint { hint: "write true or false".into(), ..wrong_type(value, "a boolean") }),
        };
        self.judged(self.at_value(key, value), boolean)
    }

    /// A share, as in `"10%"`.
    pub fn percent(&self, key: &'static str) -> Given<Percent> {
        match self.value(key) {
            Some(value) if matches!(value.get_ref(), DeValue::Integer(_) | DeValue::Float(_)) => {
                let number = words::escaped(self.raw(value));
                let complaint = Complaint::new(format!("{number} has no sign"), format!("write \"{number}%\""));
                self.judged(self.at_value(key, value), Err(complaint))
            }
            _ => self.parsed(key, unit::percent),
        }
    }

    /// A rate, as in `"100/s"`.
    pub fn rate(&self, key: &'static str) -> Given<Rate> {
        match self.value(key) {
            Some(value) if matches!(value.get_ref(), DeValue::Integer(_)) => {
                let number = words::escaped(self.raw(value));
                let complaint = Complaint::new(format!("{number} has no span"), format!("write \"{number}/s\""));
                self.judged(self.at_value(key, value), Err(complaint))
            }
            _ => self.parsed(key, unit::rate),
        }
    }

    /// As [`rate`](Self::rate), or `"off"`, which is `None`.
    pub fn rate_or_off(&self, key: &'static str) -> Given<Option<Rate>> {
        match self.off(key) {
            Some(at) => Given::Good(Placed { at, value: None }),
            None => self.rate(key).map(Some),
        }
    }

    /// As [`percent`](Self::percent), or `"off"`, which is `None`.
    pub fn percent_or_off(&self, key: &'static str) -> Given<Option<Percent>> {
        match self.off(key) {
            Some(at) => Given::Good(Placed { at, value: None }),
            None => self.percent(key).map(Some),
        }
    }

    /// Where `key` says `"off"`.
    fn off(&self, key: &'static str) -> Option<At> {
        self.value(key).filter(|value| value.get_ref().as_str() == Some("off")).map(|value| self.at_value(key, value))
    }

    /// A text that means something else.
    pub fn parsed<T>(&self, key: &'static str, parse: impl FnOnce(&str) -> Result<T, Complaint>) -> Given<T> {
        let Some(value) = self.value(key) else { return Given::Absent };
        let verdict = match (self.text_of(value), value.get_ref()) {
            (Ok(text), _) => parse(&text),
            // What is said of the text with that number is nearer to what should be there.
            (Err(complaint), DeValue::Integer(_) | DeValue::Float(_)) => {
                Err(parse(self.raw(value)).err().unwrap_or(complaint))
            }
            (Err(complaint), _) => Err(complaint),
        };
        self.judged(self.at_value(key, value), verdict)
    }

    /// One of a few words.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Given<T> {
        let hint = || {
            let words: Vec<_> = choices.iter().map(|(word, _)| words::quoted(word)).collect();
            format!("use {}", words::any_of(&words))
        };
        if let Some(value) = self.value(key).filter(|value| value.get_ref().is_bool()) {
            let complaint = Complaint { hint: hint(), ..wrong_type(value, "a string") };
            return self.judged(self.at_value(key, value), Err(complaint));
        }
        self.parsed(key, |text| {
            let chosen = choices.iter().find(|(word, _)| *word == text).map(|&(_, choice)| choice);
            chosen.ok_or_else(|| Complaint::new(format!("{} is not known here", words::quoted(text)), hint()))
        })
    }

    /// Where the value of `key` is, or would be.
    fn at_key(&self, key: &'static str) -> At {
        self.value(key)
            .map_or_else(|| At { span: self.at.span.clone(), key: self.path(key) }, |value| self.at_value(key, value))
    }

    fn value(&self, key: &'static str) -> Option<&'t Value<'t>> {
        debug_assert!(self.keys.contains(&key), "{key} is read but not listed");
        self.table?.get(key)
    }

    fn at_value(&self, key: &str, value: &Value) -> At {
        At { span: value.span(), key: self.path(key) }
    }

    fn path(&self, key: &str) -> String {
        if self.at.key.is_empty() { words::key(key) } else { format!("{}.{}", self.at.key, words::key(key)) }
    }

    fn raw(&self, value: &Value) -> &'f str {
        self.findings.source.text.get(value.span()).unwrap_or_default()
    }

    fn text_of(&self, value: &Value) -> Result<String, Complaint> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Datetime(_) => {
                let hint = format!("write {}", words::quoted(self.raw(value)));
                Err(Complaint { hint, ..wrong_type(value, "a string") })
            }
            _ => Err(wrong_type(value, "a string")),
        }
    }

    pub fn judged<T>(&self, at: At, verdict: Result<T, Complaint>) -> Given<T> {
        match verdict {
            Ok(value) => Given::Good(Placed { at, value }),
            Err(complaint) => {
                self.findings.complaint(&at, complaint);
                Given::Bad
            }
        }
    }

    /// Reports the keys that this table must not have.
    fn checked(self) -> Self {
        let Some(table) = self.table else { return self };
        for (key, value) in table {
            let name: &str = key.get_ref();
            if self.keys.contains(&name) {
                continue;
            }
            if self.findings.is_full() {
                self.findings.mistake_at(key.span(), "", "", "");
                continue;
            }
            let hint = match words::nearest(name, self.keys.iter().copied()) {
                Some(meant) => format!("did you mean {}?", words::quoted(meant)),
                None if value.get_ref().is_table() && self.at.key.contains('.') => {
                    format!("the keys here are {}; a name with a dot needs quotes", self.keys.join(", "))
                }
                None => format!("the keys here are {}", self.keys.join(", ")),
            };
            self.findings.mistake_at(key.span(), &self.path(name), "unknown key", hint);
        }
        self
    }
}

fn integer_of<N>(value: &Value, range: &RangeInclusive<N>) -> Result<N, Complaint>
where
    N: TryFrom<i128> + PartialOrd + Display,
{
    let DeValue::Integer(digits) = value.get_ref() else {
        let mut complaint = wrong_type(value, "an integer");
        let is_number = |text: &str| match text.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).is_ok(),
            None => text.parse::<i64>().is_ok(),
        };
        complaint.hint = match value.get_ref().as_str() {
            Some(text) if is_number(text) => "leave out the quotes".into(),
            _ => format!("use {} to {}", range.start(), range.end()),
        };
        return Err(complaint);
    };
    let number = i128::from_str_radix(digits.as_str(), digits.radix()).ok().and_then(|number| N::try_from(number).ok());
    number.filter(|number| range.contains(number)).ok_or_else(|| {
        let message = format!("{} is out of range", words::escaped(&digits.to_string()));
        Complaint::new(message, format!("use {} to {}", range.start(), range.end()))
    })
}

/// `5 is an integer, but a string is wanted`.
pub(super) fn wrong_type(value: &Value, wanted: &str) -> Complaint {
    let found = match value.get_ref() {
        DeValue::String(text) => format!("{} is a string", words::quoted(text)),
        DeValue::Integer(digits) => format!("{} is an integer", words::escaped(&digits.to_string())),
        DeValue::Float(digits) => format!("{} is a float", words::escaped(digits.as_str())),
        DeValue::Boolean(value) => format!("{value} is a boolean"),
        DeValue::Datetime(_) => "this is a date".into(),
        DeValue::Array(_) => "this is a list".into(),
        DeValue::Table(_) => "this is a table".into(),
    };
    Complaint::new(format!("{found}, but {wanted} is wanted"), "")
}
