//! Reads Rust source as text: which paths a file names, outside of comments, strings and tests.
//!
//! It sees `use a::{b, c::d}` over several lines and paths in code; it does not expand macros and
//! does not follow re-exports.

use std::path::Path;

/// A path as written, such as `["std", "fs", "read"]`, and its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamedPath {
    pub(super) segments: Vec<String>,
    pub(super) line: usize,
    /// How many inline modules stand around it: each takes one `super`.
    pub(super) inline_depth: usize,
}

impl NamedPath {
    /// Whether it is `path` or something in it.
    pub(super) fn leads_to(&self, path: &str) -> bool {
        let wanted: Vec<_> = path.split("::").collect();
        self.segments.len() >= wanted.len() && self.segments.iter().zip(wanted).all(|(a, b)| a == b)
    }
}

/// What a file says.
#[derive(Clone, Debug, Default)]
pub(super) struct Source {
    /// Relative to the root of the repository, with `/`.
    pub(super) path: String,
    /// Every path that code outside of tests names; single identifiers are left out.
    pub(super) paths: Vec<NamedPath>,
    /// Lines with the word `unsafe`, outside of tests.
    pub(super) unsafe_lines: Vec<usize>,
    /// Modules in files of their own that are built for tests only.
    pub(super) test_modules: Vec<String>,
    /// Files that `#[path]` names for such modules.
    pub(super) test_files: Vec<String>,
    /// All lines, tests included.
    pub(super) lines: usize,
}

impl Source {
    /// The room a file of `src/` is in: `src/wire/gue.rs` is in `wire`; none for `src/lib.rs` and the
    /// programs.
    pub(super) fn room(&self) -> Option<&str> {
        let (room, _) = self.path.strip_prefix("src/")?.split_once('/')?;
        (room != "bin").then_some(room)
    }

    /// How deep the file's module lies below the crate's root: 1 for `src/wire/mod.rs`, 2 for
    /// `src/wire/gue.rs`.
    pub(super) fn depth(&self) -> usize {
        let below = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let parts = below.trim_end_matches(".rs").split('/').filter(|part| *part != "mod");
        parts.count()
    }

    /// Reads a file's text.
    pub(super) fn parse(path: &str, text: &str) -> Self {
        let mut source =
            Self { path: path.to_owned(), lines: text.lines().count(), ..Self::default() };
        Reader { tokens: &lex(text), at: 0, modules: Vec::new(), braces: 0 }.read(&mut source);
        source
    }

    /// Reads every `.rs` file below `folder`, sorted by path.
    pub(super) fn tree(root: &Path, folder: &str) -> Vec<Self> {
        let mut found = Vec::new();
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    let relative = path.strip_prefix(root).unwrap().to_str().unwrap();
                    found.push(Self::parse(relative, &text));
                }
            }
        }
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

struct Reader<'a> {
    tokens: &'a [Token],
    at: usize,
    /// The brace depths at which inline modules opened.
    modules: Vec<usize>,
    braces: usize,
}

impl Reader<'_> {
    fn text(&self, ahead: usize) -> &str {
        self.tokens.get(self.at + ahead).map_or("", |token| &token.text)
    }

    fn starts(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(ahead, word)| self.text(ahead) == *word)
    }

    fn read(&mut self, source: &mut Source) {
        while self.at < self.tokens.len() {
            if self.starts(&["#", "[", "cfg", "(", "test", ")", "]"]) {
                self.at += 7;
                self.skip_item(source);
            } else if self.starts(&["use"]) && self.text(1) != "<" {
                // `use<'a>` in a type names lifetimes, no path.
                self.at += 1;
                self.use_tree(&[], source);
            } else if self.starts(&["mod"]) && self.text(2) == "{" {
                self.at += 3;
                self.braces += 1;
                self.modules.push(self.braces);
            } else {
                match self.text(0) {
                    "{" => self.braces += 1,
                    "}" => {
                        if self.modules.last() == Some(&self.braces) {
                            self.modules.pop();
                        }
                        self.braces = self.braces.saturating_sub(1);
                    }
                    "unsafe" => source.unsafe_lines.push(self.tokens[self.at].line),
                    _ => {}
                }
                if is_identifier(self.text(0)) {
                    self.path_in_code(source);
                } else {
                    self.at += 1;
                }
            }
        }
    }

    /// Passes over the item behind `#[cfg(test)]`.
    fn skip_item(&mut self, source: &mut Source) {
        while self.starts(&["#", "["]) {
            if self.starts(&["#", "[", "path", "="]) {
                source.test_files.push(self.text(4).trim_matches('"').to_owned());
            }
            self.at += 1;
            self.skip_group("[", "]");
        }
        let is_use = self.starts(&["use"]);
        while self.at < self.tokens.len() {
            match self.text(0) {
                "mod" if self.text(2) == ";" => source.test_modules.push(self.text(1).to_owned()),
                "{" if !is_use => return self.skip_group("{", "}"),
                ";" => {
                    self.at += 1;
                    return;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    fn skip_group(&mut self, open: &str, close: &str) {
        let mut depth = 0;
        while self.at < self.tokens.len() {
            if self.text(0) == open {
                depth += 1;
            } else if self.text(0) == close {
                depth -= 1;
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }

    /// Flattens one use tree, from behind `use` (or a `::{` or `,` within it).
    fn use_tree(&mut self, before: &[String], source: &mut Source) {
        let mut segments = before.to_vec();
        let line = self.tokens.get(self.at).map_or(0, |token| token.line);
        while self.at < self.tokens.len() {
            match self.text(0) {
                "{" => {
                    self.at += 1;
                    while self.at < self.tokens.len() && self.text(0) != "}" {
                        self.use_tree(&segments, source);
                        // Past the comma; past anything else too, so that no text stops us here.
                        if self.text(0) != "}" {
                            self.at += 1;
                        }
                    }
                    self.at += 1;
                    return;
                }
                "," | ";" | "}" => break,
                "as" => self.at += 2,
                "::" => self.at += 1,
                segment => {
                    segments.push(segment.to_owned());
                    self.at += 1;
                }
            }
        }
        self.push(segments, line, source);
    }

    /// `a::b::c` in code; what stands before it (`.a`, `x::<T>::a`) is no start of a path.
    fn path_in_code(&mut self, source: &mut Source) {
        let line = self.tokens[self.at].line;
        let before = self.at.checked_sub(1).map_or("", |before| &self.tokens[before].text);
        let is_start = before != "." && before != "::";
        let mut segments = vec![self.text(0).to_owned()];
        self.at += 1;
        while self.text(0) == "::" && is_identifier(self.text(1)) {
            segments.push(self.text(1).to_owned());
            self.at += 2;
        }
        if is_start && segments.len() > 1 {
            self.push(segments, line, source);
        }
    }

    fn push(&self, segments: Vec<String>, line: usize, source: &mut Source) {
        if segments.is_empty() {
            return;
        }
        let inline_depth = self.modules.len();
        source.paths.push(NamedPath { segments, line, inline_depth });
    }
}

fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Splits text into identifiers, `::`, plain strings and single signs; comments, other strings,
/// characters and lifetimes are left out.
fn lex(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let peek = |at: usize| chars.get(at).copied().unwrap_or('\0');
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < chars.len() {
        let start = at;
        match peek(at) {
            '/' if peek(at + 1) == '/' => {
                while at < chars.len() && peek(at) != '\n' {
                    at += 1;
                }
            }
            '/' if peek(at + 1) == '*' => {
                let mut depth = 0;
                loop {
                    match (peek(at), peek(at + 1)) {
                        ('/', '*') => (depth, at) = (depth + 1, at + 2),
                        ('*', '/') => (depth, at) = (depth - 1, at + 2),
                        _ => at += 1,
                    }
                    if depth == 0 || at >= chars.len() {
                        break;
                    }
                }
            }
            '"' => {
                at = string_end(&chars, at);
                let end = at.min(chars.len());
                // Kept with its quotes, for `#[path]`; no identifier starts so.
                tokens.push(Token { text: chars[start..end].iter().collect(), line });
            }
            '\'' if peek(at + 1) == '\\' || (peek(at + 2) == '\'' && peek(at + 1) != '\'') => {
                at += 2;
                while at < chars.len() && peek(at) != '\'' {
                    at += 1;
                }
                at += 1;
            }
            'r' | 'b' | 'c' if raw_or_prefixed(&chars, at).is_some() => {
                at = raw_or_prefixed(&chars, at).unwrap();
            }
            first if first.is_alphanumeric() || first == '_' => {
                while peek(at).is_alphanumeric() || peek(at) == '_' {
                    at += 1;
                }
                tokens.push(Token { text: chars[start..at].iter().collect(), line });
            }
            ':' if peek(at + 1) == ':' => {
                at += 2;
                tokens.push(Token { text: "::".to_owned(), line });
            }
            sign => {
                at += 1;
                if !sign.is_whitespace() {
                    tokens.push(Token { text: sign.to_string(), line });
                }
            }
        }
        let end = at.min(chars.len());
        line += chars[start..end].iter().filter(|&&sign| sign == '\n').count();
    }
    tokens
}

/// The end of the plain string that starts at `at`.
fn string_end(chars: &[char], mut at: usize) -> usize {
    at += 1;
    while at < chars.len() && chars[at] != '"' {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    at + 1
}

/// The end of a literal such as `r#"..."#`, `b"..."`, `br"..."` or `b'x'` that starts at `at`, if one
/// does.
fn raw_or_prefixed(chars: &[char], at: usize) -> Option<usize> {
    let mut next = at;
    while matches!(chars.get(next), Some('r' | 'b' | 'c')) && next < at + 2 {
        next += 1;
    }
    let is_raw = chars[at..next].contains(&'r');
    if chars.get(next) == Some(&'\'') && !is_raw {
        let escaped = usize::from(chars.get(next + 1) == Some(&'\\'));
        return (chars.get(next + 2 + escaped) == Some(&'\'')).then_some(next + 3 + escaped);
    }
    let hashes = chars[next..].iter().take_while(|&&sign| sign == '#').count();
    if chars.get(next + hashes) != Some(&'"') || (hashes > 0 && !is_raw) {
        return None;
    }
    if !is_raw {
        return Some(string_end(chars, next));
    }
    let mut end = next + hashes + 1;
    while end < chars.len() {
        let closes = chars[end] == '"'
            && chars[end + 1..].iter().take(hashes).filter(|&&sign| sign == '#').count() == hashes;
        end += 1;
        if closes {
            return Some(end + hashes);
        }
    }
    Some(end)
}
