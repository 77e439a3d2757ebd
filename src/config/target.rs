//! The syntax of `target`: one target, or a group that is tried in turn, and groups in groups.
//!
//! ```text
//! target = "failover:(" target { "|" target } ")"  |  "tcp://" host ":" port  |  "unix:" path
//! ```
//!
//! Owns the structure only; what a good address is says `address`. White space around parts is ignored.

use super::findings::Complaint;
use super::{Address, Group, address, limits, words};
use std::ops::Range;

/// A target's text, taken apart. The leaves are numbered from left to right, as the group refers to them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target<'t> {
    pub group: Group,
    pub leaves: Vec<Leaf<'t>>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Leaf<'t> {
    pub text: &'t str,
    /// Where in the text it is.
    pub span: Range<usize>,
}

/// Takes a target apart. The complaint comes with the place in `text` that it is about.
pub(super) fn parse(text: &str) -> Result<Target<'_>, (Range<usize>, Complaint)> {
    let mut parser = Parser { text, at: 0, leaves: Vec::new() };
    let group = parser.target(0)?;
    if parser.at < text.len() {
        return Err((parser.at..text.len(), parser.surplus()));
    }
    Ok(Target { group, leaves: parser.leaves })
}

impl Leaf<'_> {
    /// The address that it names.
    pub fn address(&self) -> Result<Address, Complaint> {
        match self.text.strip_prefix("tcp://") {
            Some(address) if !address.starts_with("unix:") => address::backend(address),
            None if self.text.starts_with("unix:") => address::backend(self.text),
            _ => {
                let plain = self.text.split_once("://").map_or(self.text, |(_, rest)| rest);
                let hint = match address::backend(plain) {
                    Ok(Address::Endpoint(crate::name::Endpoint::Unix(_))) => format!("write {}", words::escaped(plain)),
                    Ok(_) => format!("write tcp://{}", words::escaped(plain)),
                    Err(_) => "write it as in tcp://10.0.0.1:80 or unix:/run/app.sock".into(),
                };
                Err(Complaint::new(format!("{} is not a target", words::quoted(self.text)), hint))
            }
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    leaves: Vec<Leaf<'t>>,
}

const GROUP: &str = "failover:";

impl<'t> Parser<'t> {
    /// Reads a target and the white space around it.
    fn target(&mut self, depth: usize) -> Result<Group, (Range<usize>, Complaint)> {
        self.skip_space();
        let start = self.at;
        let word = self.take_until(['(', ')', '|']);
        if self.rest().starts_with('(') {
            if word.trim_end() != GROUP {
                return Err((start..self.at + 1, unknown_group(word.trim_end())));
            }
            return self.group(start, depth + 1);
        }
        let text = word.trim_end();
        if text.is_empty() || text == GROUP {
            return Err((start..self.at, empty_place(text)));
        }
        self.leaves.push(Leaf { text, span: start..start + text.len() });
        Ok(Group::Member(self.leaves.len() - 1))
    }

    /// Reads from the opening parenthesis to behind the closing one.
    fn group(&mut self, start: usize, depth: usize) -> Result<Group, (Range<usize>, Complaint)> {
        if depth > limits::MAX_GROUP_DEPTH {
            let message = format!("groups are nested more than {} deep", limits::MAX_GROUP_DEPTH);
            return Err((start..self.at + 1, Complaint::new(message, "one or two levels do")));
        }
        let open = self.at;
        let mut targets = Vec::new();
        loop {
            self.at += 1;
            targets.push(self.target(depth)?);
            match self.rest().as_bytes().first() {
                Some(b'|') => {}
                Some(b')') => {
                    self.at += 1;
                    self.skip_space();
                    return Ok(Group::Any(targets));
                }
                Some(_) => return Err((self.at..self.text.len(), self.surplus())),
                None => {
                    let complaint = Complaint::new("this parenthesis is not closed", "put the missing \")\"");
                    return Err((open..open + 1, complaint));
                }
            }
        }
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn take_until(&mut self, stops: [char; 3]) -> &'t str {
        let rest = self.rest();
        let length = rest.find(stops).unwrap_or(rest.len());
        self.at += length;
        &rest[..length]
    }

    fn surplus(&self) -> Complaint {
        let hint = match self.rest().as_bytes().first() {
            Some(b'|') => "put several targets in failover:(…)",
            _ => "the target ends before it",
        };
        Complaint::new(format!("{} is too much here", words::quoted(self.rest())), hint)
    }
}

fn unknown_group(word: &str) -> Complaint {
    let message = match word {
        "" => "the group has no kind".into(),
        word => format!("{} is not a kind of group", words::quoted(word)),
    };
    Complaint::new(message, "write failover:(tcp://a:1|tcp://b:2)")
}

fn empty_place(word: &str) -> Complaint {
    match word {
        "" => Complaint::new("a target is missing here", "write it as in tcp://10.0.0.1:80 or unix:/run/app.sock"),
        _ => Complaint::new("failover: has no group", "write failover:(tcp://a:1|tcp://b:2)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Group::{Any, Member};

    fn leaves<'t>(target: &Target<'t>) -> Vec<&'t str> {
        target.leaves.iter().map(|leaf| leaf.text).collect()
    }

    #[test]
    fn a_plain_target_is_its_own_group() {
        let target = parse(" tcp://a:1 ").unwrap();
        assert_eq!(target.group, Member(0));
        assert_eq!(target.leaves, [Leaf { text: "tcp://a:1", span: 1..10 }]);
    }

    #[test]
    fn a_group_keeps_the_order_of_its_targets() {
        let target = parse("failover:(tcp://a:1|tcp://b:2)").unwrap();
        assert_eq!(target.group, Any(vec![Member(0), Member(1)]));
        assert_eq!(leaves(&target), ["tcp://a:1", "tcp://b:2"]);
        let single = parse("failover:(unix:/run/a.sock)").unwrap();
        assert_eq!(single.group, Any(vec![Member(0)]));
        assert_eq!(leaves(&single), ["unix:/run/a.sock"]);
    }

    #[test]
    fn groups_nest_and_number_their_leaves_from_left_to_right() {
        let text = "failover:( tcp://a:1 | failover:(tcp://b:2|failover:(tcp://[::1]:3)) |\n unix:/d )";
        let target = parse(text).unwrap();
        let inner = Any(vec![Member(1), Any(vec![Member(2)])]);
        assert_eq!(target.group, Any(vec![Member(0), inner, Member(3)]));
        assert_eq!(leaves(&target), ["tcp://a:1", "tcp://b:2", "tcp://[::1]:3", "unix:/d"]);
        for leaf in &target.leaves {
            assert_eq!(&text[leaf.span.clone()], leaf.text);
            assert!(leaf.address().is_ok(), "{leaf:?}");
        }
    }

    #[test]
    fn a_bad_structure_is_placed() {
        let missing = "a target is missing here";
        let bad = [
            ("", 0..0, missing),
            ("failover:", 0..9, "failover: has no group"),
            ("failover:()", 10..10, missing),
            ("failover:(tcp://a:1|)", 20..20, missing),
            ("failover:(|tcp://a:1)", 10..10, missing),
            ("failover:(tcp://a:1", 9..10, "this parenthesis is not closed"),
            ("failover:(tcp://a:1))", 20..21, "\")\" is too much here"),
            ("failover:(tcp://a:1)x", 20..21, "\"x\" is too much here"),
            ("failover:(failover:(tcp://a:1)x)", 30..32, "\"x)\" is too much here"),
            ("tcp://a:1|tcp://b:2", 9..19, "\"|tcp://b:2\" is too much here"),
            ("(tcp://a:1|tcp://b:2)", 0..1, "the group has no kind"),
            ("random:(tcp://a:1)", 0..8, "\"random:\" is not a kind of group"),
            ("failover:(tcp://a:1(b))", 10..20, "\"tcp://a:1\" is not a kind of group"),
        ];
        for (text, span, message) in bad {
            let (place, complaint) = parse(text).unwrap_err();
            assert_eq!((place, complaint.message.as_str()), (span, message), "{text}");
        }
    }

    #[test]
    fn nesting_has_a_bound() {
        let nested = |depth: usize| format!("{}tcp://a:1{}", "failover:(".repeat(depth), ")".repeat(depth));
        assert!(parse(&nested(limits::MAX_GROUP_DEPTH)).is_ok());
        let (_, complaint) = parse(&nested(limits::MAX_GROUP_DEPTH + 1)).unwrap_err();
        assert_eq!(complaint.message, "groups are nested more than 16 deep");
        assert!(parse(&nested(100_000)).is_err());
    }

    #[test]
    fn leaves_say_what_they_are() {
        let words = |text: &str| {
            let leaf = Leaf { text, span: 0..text.len() };
            let complaint = leaf.address().unwrap_err();
            format!("{}; {}", complaint.message, complaint.hint)
        };
        assert_eq!(words("a:1"), "\"a:1\" is not a target; write tcp://a:1");
        assert_eq!(words("udp://a:1"), "\"udp://a:1\" is not a target; write tcp://a:1");
        assert_eq!(words("tcp://unix:/a"), "\"tcp://unix:/a\" is not a target; write unix:/a");
        assert_eq!(words("x"), "\"x\" is not a target; write it as in tcp://10.0.0.1:80 or unix:/run/app.sock");
        assert_eq!(words("tcp://a:0"), "port 0 is not a port; use 1 to 65535");
    }
}
