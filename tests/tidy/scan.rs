//! The scanner of the tidiness test: Rust as text, to tokens, to the paths that the code names.
//!
//! Owns no rule and no layer; those are in `tests/tidy.rs`, which also tests this file on snippets. It knows as much
//! of the grammar as the rules need: comments, literals, attributes, `use` trees, brackets.

#[derive(Clone, Copy, Debug)]
pub struct Token<'a> {
    /// A name or number, `::`, `"` for any literal string or character, or one character of anything else.
    pub text: &'a str,
    pub line: usize,
}

impl Token<'_> {
    pub fn is_name(&self) -> bool {
        self.text.starts_with(|c: char| c.is_alphabetic() || c == '_')
    }
}

/// Code without its comments and spaces. Literals become `"`, lifetimes vanish.
pub fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut found, mut rest, mut line) = (Vec::new(), text, 1);
    while let Some(first) = rest.chars().next() {
        let name = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let (length, token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), None)
        } else if rest.starts_with("/*") {
            (block_comment(rest), None)
        } else if let Some(length) = literal(rest) {
            (length, Some("\""))
        } else if first == '\'' {
            (1 + rest[1..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len() - 1), None)
        } else if first.is_whitespace() {
            (first.len_utf8(), None)
        } else if name > 0 {
            (name, Some(&rest[..name]))
        } else {
            let length = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            (length, Some(&rest[..length]))
        };
        found.extend(token.map(|text| Token { text, line }));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of the block comment that `text` begins with; they nest.
fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while let Some(next) = text[at..].find(['/', '*']) {
        at += next;
        let (step, change) = match &text.as_bytes()[at..(at + 2).min(text.len())] {
            b"/*" => (2, 1),
            b"*/" => (2, -1),
            _ => (1, 0),
        };
        at += step;
        depth = depth.saturating_add_signed(change);
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// The length of the string or character literal that `text` begins with, of whatever kind.
fn literal(text: &str) -> Option<usize> {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - body.len();
    let fence = body.len() - body.trim_start_matches('#').len();
    if prefix <= 2 && text[..prefix].ends_with('r') && body[fence..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(fence));
        let inside = prefix + fence + 1;
        return Some(text[inside..].find(&end).map_or(text.len(), |at| inside + at + end.len()));
    }
    let quote = body.chars().next().filter(|c| prefix <= 1 && matches!(c, '"' | '\''))?;
    let mut inside = body[1..].char_indices();
    if quote == '\'' {
        let mut ahead = inside.clone().map(|(_, c)| c);
        let (first, second) = (ahead.next()?, ahead.next()?);
        if first != '\\' && second != '\'' {
            return None; // a lifetime
        }
    }
    while let Some((at, c)) = inside.next() {
        if c == '\\' {
            inside.next();
        } else if c == quote {
            return Some(prefix + 1 + at + 1);
        }
    }
    Some(text.len())
}

/// The tokens outside of `#[cfg(test)]` items, and the names of the modules in other files that are test-only.
pub fn without_tests<'a>(all: &[Token<'a>]) -> (Vec<Token<'a>>, Vec<&'a str>) {
    let (mut code, mut modules, mut at) = (Vec::new(), Vec::new(), 0);
    while at < all.len() {
        let end = attribute_end(&all[at..]).map(|length| at + length);
        let Some(mut next) = end.filter(|end| is_cfg_test(&all[at..*end])) else {
            code.push(all[at]);
            at += 1;
            continue;
        };
        while let Some(length) = attribute_end(&all[next..]) {
            next += length;
        }
        at = next + item_length(&all[next..]);
        if let [.., keyword, name, end] = &all[next..at]
            && (keyword.text, end.text) == ("mod", ";")
        {
            modules.push(name.text);
        }
    }
    (code, modules)
}

/// The number of tokens of the `#[…]` that `tokens` begins with.
fn attribute_end(tokens: &[Token]) -> Option<usize> {
    (tokens.len() > 1 && tokens[0].text == "#" && tokens[1].text == "[").then(|| 1 + balanced(&tokens[1..]))
}

fn is_cfg_test(attribute: &[Token]) -> bool {
    let has = |word| attribute.iter().any(|token| token.text == word);
    attribute[2].text == "cfg" && has("test") && !has("not") && !has("any")
}

/// The number of tokens of the item that `tokens` begins with: to its `;`, or over its first braces.
fn item_length(tokens: &[Token]) -> usize {
    let mut at = 0;
    while at < tokens.len() {
        match tokens[at].text {
            ";" => return at + 1,
            "{" => return at + balanced(&tokens[at..]),
            "(" | "[" => at += balanced(&tokens[at..]),
            "}" => return at,
            _ => at += 1,
        }
    }
    at
}

/// The number of tokens from an opening bracket to the one that closes it.
fn balanced(tokens: &[Token]) -> usize {
    let mut depth = 0_usize;
    for (at, token) in tokens.iter().enumerate() {
        match token.text {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// A path that the code names, in full: `use a::{b, c::d}` is `a::b` and `a::c::d`. What is ours begins with `crate`.
pub struct Used {
    pub line: usize,
    pub segments: Vec<String>,
}

/// Every path of at least two segments, and every `use`.
pub fn paths(code: &[Token], file: &[String]) -> Vec<Used> {
    let (mut found, mut module, mut braces, mut at) = (Vec::new(), file.to_vec(), Vec::new(), 0);
    while at < code.len() {
        let next = |ahead: usize| code.get(at + ahead).map_or("", |token| token.text);
        let continues = at > 1 && code[at - 1].text == "::" && (code[at - 2].is_name() || code[at - 2].text == ">");
        let before = found.len();
        if code[at].text == "use" && next(1) != "<" {
            at += 1 + use_tree(&code[at + 1..], &[], &mut found);
        } else if code[at].is_name() && next(1) == "::" && !continues {
            let length = 1 + 2 * code[at + 1..].chunks(2).take_while(|c| is_step(c)).count();
            let segments = code[at..at + length].iter().step_by(2).map(|token| token.text.to_owned()).collect();
            found.push(Used { line: code[at].line, segments });
            at += length;
        } else {
            match code[at].text {
                "{" => {
                    let opens = at > 1 && code[at - 2].text == "mod";
                    module.extend(opens.then(|| code[at - 1].text.to_owned()));
                    braces.push(opens);
                }
                "}" if braces.pop() == Some(true) => drop(module.pop()),
                _ => {}
            }
            at += 1;
        }
        for used in &mut found[before..] {
            resolve(&mut used.segments, &module);
        }
    }
    found
}

/// `::` and a name.
fn is_step(pair: &[Token]) -> bool {
    pair.len() == 2 && pair[0].text == "::" && pair[1].is_name()
}

/// Adds the leaves of one tree of a `use` below `prefix`; answers the number of its tokens.
fn use_tree(tokens: &[Token], prefix: &[String], found: &mut Vec<Used>) -> usize {
    let (mut segments, mut at) = (prefix.to_vec(), 0);
    while let Some(token) = tokens.get(at) {
        match token.text {
            "::" => {}
            "{" => {
                let end = at + balanced(&tokens[at..]);
                at += 1;
                while at < end - 1 {
                    at += use_tree(&tokens[at..end - 1], &segments, found) + 1;
                }
                return end;
            }
            "as" => at += 1,
            name if token.is_name() || name == "*" => segments.push(name.to_owned()),
            _ => break,
        }
        at += 1;
    }
    found.extend(tokens.first().map(|token| Used { line: token.line, segments }));
    at
}

/// Writes a path that begins with `self`, `super` or the crate's own name as one that begins with `crate`.
fn resolve(segments: &mut Vec<String>, module: &[String]) {
    let skipped = segments.iter().take_while(|s| *s == "self" || *s == "super").count();
    let up = segments[..skipped].iter().filter(|s| *s == "super").count();
    if skipped > 0 {
        let base = &module[..module.len().saturating_sub(up)];
        segments.splice(..skipped, std::iter::once("crate").chain(base.iter().map(String::as_str)).map(str::to_owned));
    } else if segments.first().is_some_and(|first| first == "tidegate") {
        "crate".clone_into(&mut segments[0]);
    }
}
