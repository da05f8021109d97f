//! YAML and JSON documents as trees that know their lines, and strict readers of them.
//!
//! A document is at most 1 MiB; depth, nodes and what aliases expand to are bounded, so that no
//! file can eat the memory. Nothing is guessed: a field that is not known, is there twice, or has
//! another type is an error that names file, line and field. `null` is as good as left out.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::did_you_mean;
use crate::api::{Problem, ProblemCode};

/// Longest file, in bytes; requests have the same limit (design section 6).
pub const DOCUMENT_BYTES_MAX: usize = 1 << 20;

/// Most nodes in all documents of a file, aliases expanded: a file of the longest length that holds
/// nothing but one-letter items has half as many.
const NODES_MAX: usize = 600_000;

/// Deepest nesting. A NetworkPolicy in a list needs 11.
const DEPTH_MAX: usize = 48;

/// Most events that aliases may add to a file.
const ALIAS_EVENTS_MAX: usize = 20_000;

/// One value, with the line that it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tree {
    /// From 1; 0 where it is not known.
    pub(super) line: u64,
    pub(super) node: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Null,
    Bool(bool),
    Number(i64),
    /// A number that is no whole one, or too large to be anything here.
    OtherNumber(f64),
    Text(String),
    List(Vec<Tree>),
    /// In the order of the file.
    Map(Vec<(String, Tree)>),
}

impl Node {
    /// What it is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Number(_) | Self::OtherNumber(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Node>::deserialize(deserializer)?;
        Ok(Self { line: spanned.defined.line(), node: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        Node::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Number(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Number(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Node, E> {
        Ok(Node::Number(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Node, E> {
        Ok(Node::Number(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::OtherNumber(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Node::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Node>()? {
            let key = match key {
                Node::Text(text) => text,
                Node::Number(number) => number.to_string(),
                Node::Bool(value) => value.to_string(),
                Node::Null | Node::OtherNumber(_) | Node::List(_) | Node::Map(_) => {
                    return Err(A::Error::custom("the name of a field is a text"));
                }
            };
            map.push((key, entries.next_value()?));
        }
        Ok(Node::Map(map))
    }
}

/// The documents of a file; empty ones are left out. `source` is its name, for messages.
///
/// # Errors
///
/// `Usage`, with file and line, when it is too large or no YAML (JSON is YAML too).
pub(super) fn documents(source: &str, text: &str) -> Result<Vec<Tree>, Problem> {
    if text.len() > DOCUMENT_BYTES_MAX {
        return Err(Problem::new(ProblemCode::Usage, format!("{source} is too large"))
            .why(format!("it has {} bytes, and at most {DOCUMENT_BYTES_MAX} are read", text.len()))
            .fix("split it into several files"));
    }
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH_MAX,
            max_nodes: NODES_MAX,
            max_events: 3 * NODES_MAX,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: ALIAS_EVENTS_MAX,
            max_replay_stack_depth: 16,
        },
        // `y`, `n`, `yes`, `on` are names of people's namespaces, not truth values (YAML 1.2).
        strict_booleans: true,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options::<Tree>(text, options).map_err(|error| {
        let place = match error.location() {
            Some(location) if location.line() > 0 => format!("{source}:{}", location.line()),
            Some(_) | None => source.to_owned(),
        };
        Problem::new(ProblemCode::Usage, format!("{place}: not a document that can be read"))
            .why(why_unreadable(&error.to_string()))
    })
}

/// The reader's words, without those that only its callers understand.
fn why_unreadable(text: &str) -> String {
    let first = text.lines().next().unwrap_or_default();
    if let Some((_, rest)) = first.split_once("duplicate mapping key: ") {
        let key = rest.split(", set ").next().unwrap_or(rest);
        return format!("`{}` is there twice", shown(key));
    }
    if first.contains("recursion limit") || first.contains("budget") {
        return "it is nested too deeply, or holds too many values".to_owned();
    }
    if first.contains("alias replay limit") {
        return "its aliases stand for too many values".to_owned();
    }
    first.chars().take(300).collect()
}

/// Where in which file a value stands, and what is read from it.
#[derive(Clone, Copy, Debug)]
pub(super) struct At<'a> {
    /// The file.
    pub(super) source: &'a str,
    /// What is read, such as `NetworkPolicy shop/web`; may be empty.
    pub(super) thing: &'a str,
}

impl At<'_> {
    /// A `Usage` problem that names file, line, thing and field.
    pub(super) fn wrong(&self, line: u64, field: &str, why: impl Into<String>) -> Problem {
        let mut what = self.source.to_owned();
        if line > 0 {
            what.push_str(&format!(":{line}"));
        }
        for part in [self.thing, field] {
            if !part.is_empty() {
                what.push_str(": ");
                what.push_str(part);
            }
        }
        Problem::new(ProblemCode::Usage, what).why(why)
    }
}

/// One value with the path that leads to it.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    pub(super) at: At<'a>,
    pub(super) tree: &'a Tree,
    pub(super) path: String,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(at: At<'a>, tree: &'a Tree) -> Self {
        Self { at, tree, path: String::new() }
    }

    /// `FILE:LINE`.
    pub(super) fn place(&self) -> String {
        match self.tree.line {
            0 => format!("{}: {}", self.at.source, self.path),
            line => format!("{}:{line}", self.at.source),
        }
    }

    /// The problem that this value has.
    pub(super) fn wrong(&self, why: impl Into<String>) -> Problem {
        self.at.wrong(self.tree.line, &self.path, why)
    }

    fn mistaken(&self, wanted: &str) -> Problem {
        self.wrong(format!("{wanted} is wanted here, and this is {}", self.tree.node.kind()))
    }

    /// Its fields, when it is a mapping that has no others than `known`.
    pub(super) fn fields(&self, known: &[&str]) -> Result<Fields<'a>, Problem> {
        let fields = self.any_fields()?;
        for (key, tree) in fields.entries {
            if !known.contains(&key.as_str()) {
                let shown = shown(key);
                let problem = self.at.wrong(
                    tree.line,
                    &self.path,
                    format!("unknown field `{shown}`; known are {}", known.join(", ")),
                );
                return Err(match did_you_mean(key, known) {
                    Some(meant) => problem.fix(format!("did you mean {meant}?")),
                    None => problem,
                });
            }
        }
        Ok(fields)
    }

    /// Its fields, when it is a mapping.
    pub(super) fn any_fields(&self) -> Result<Fields<'a>, Problem> {
        match &self.tree.node {
            Node::Map(entries) => Ok(Fields { of: self.clone(), entries }),
            Node::Null => Ok(Fields { of: self.clone(), entries: &[] }),
            Node::Bool(_)
            | Node::Number(_)
            | Node::OtherNumber(_)
            | Node::Text(_)
            | Node::List(_) => Err(self.mistaken("a mapping")),
        }
    }

    /// Its items, when it is a list.
    pub(super) fn items(&self) -> Result<Vec<Self>, Problem> {
        let Node::List(items) = &self.tree.node else { return Err(self.mistaken("a list")) };
        let item =
            |(index, tree)| Self { at: self.at, tree, path: format!("{}[{index}]", self.path) };
        Ok(items.iter().enumerate().map(item).collect())
    }

    pub(super) fn text(&self) -> Result<&'a str, Problem> {
        match &self.tree.node {
            Node::Text(text) => Ok(text),
            Node::Null
            | Node::Bool(_)
            | Node::Number(_)
            | Node::OtherNumber(_)
            | Node::List(_)
            | Node::Map(_) => Err(self.mistaken("a text")),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, Problem> {
        match &self.tree.node {
            Node::Bool(value) => Ok(*value),
            Node::Null
            | Node::Text(_)
            | Node::Number(_)
            | Node::OtherNumber(_)
            | Node::List(_)
            | Node::Map(_) => Err(self.mistaken("true or false")),
        }
    }

    /// A text that parses, or the reason why it does not.
    pub(super) fn parsed<T>(&self) -> Result<T, Problem>
    where
        T: std::str::FromStr,
        T::Err: fmt::Display,
    {
        self.text()?.parse().map_err(|error: T::Err| self.wrong(error.to_string()))
    }

    /// A port: 1 to 65535.
    pub(super) fn port(&self) -> Result<u16, Problem> {
        match &self.tree.node {
            Node::Number(number) => u16::try_from(*number)
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| self.wrong(format!("{number} is no port: ports are 1-65535"))),
            Node::Null
            | Node::Text(_)
            | Node::Bool(_)
            | Node::OtherNumber(_)
            | Node::List(_)
            | Node::Map(_) => Err(self.mistaken("a port (a whole number)")),
        }
    }
}

/// The fields of a mapping.
#[derive(Clone, Debug)]
pub(super) struct Fields<'a> {
    pub(super) of: Cursor<'a>,
    pub(super) entries: &'a [(String, Tree)],
}

impl<'a> Fields<'a> {
    /// The field of that name; none when it is left out or `null`.
    pub(super) fn field(&self, name: &str) -> Option<Cursor<'a>> {
        let (key, tree) = self.entries.iter().find(|(key, _)| key == name)?;
        (tree.node != Node::Null).then(|| self.at(key, tree))
    }

    /// As [`Self::field`], for one that must be there.
    pub(super) fn needed(&self, name: &str) -> Result<Cursor<'a>, Problem> {
        self.field(name).ok_or_else(|| self.of.wrong(format!("`{name}` is missing")))
    }

    /// The items of a list; none when it is left out.
    pub(super) fn items(&self, name: &str) -> Result<Vec<Cursor<'a>>, Problem> {
        self.field(name).map_or_else(|| Ok(Vec::new()), |list| list.items())
    }

    /// Each field with its name.
    pub(super) fn each(&self) -> impl Iterator<Item = (&'a str, Cursor<'a>)> + '_ {
        self.entries.iter().map(|(key, tree)| (key.as_str(), self.at(key, tree)))
    }

    fn at(&self, key: &str, tree: &'a Tree) -> Cursor<'a> {
        let key = shown(key);
        let path = if self.of.path.is_empty() { key } else { format!("{}.{key}", self.of.path) };
        Cursor { at: self.of.at, tree, path }
    }
}

/// A foreign text, escaped and cut, as messages show it.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_know_their_lines_and_types() {
        let trees = documents("f", "a: 1\nb:\n  - x\n  - \"80\"\n---\n---\nc: null\n").unwrap();

        assert_eq!(trees.len(), 2, "the empty document is left out");
        let fields =
            Cursor::new(At { source: "f", thing: "" }, &trees[0]).fields(&["a", "b"]).unwrap();
        let items = fields.items("b").unwrap();
        assert_eq!(fields.field("a").unwrap().port().unwrap(), 1);
        assert_eq!((items[1].text().unwrap(), items[1].tree.line), ("80", 4));
        assert_eq!(items[0].port().unwrap_err().what, "f:3: b[0]");
    }

    #[test]
    fn only_true_and_false_are_truth_values() {
        for text in ["y", "n", "yes", "no", "on", "off", "10.0.0.1", "2026-01-01"] {
            let trees = documents("f", &format!("a: {text}")).unwrap();
            let fields =
                Cursor::new(At { source: "f", thing: "" }, &trees[0]).any_fields().unwrap();
            assert_eq!(fields.field("a").unwrap().text().unwrap(), text);
        }
        let trees = documents("f", "true").unwrap();
        assert_eq!(trees[0].node, Node::Bool(true));
    }

    #[test]
    fn json_is_read_too() {
        let text = "{\n\t\"a\": [1, \"x\\u00e9\\/\", null, true, 1.5],\n\t\"b\": {}\n}\n";
        let trees = documents("f", text).unwrap();

        let Node::Map(entries) = &trees[0].node else { panic!("{trees:?}") };
        assert_eq!(entries.len(), 2);
    }

    #[test]
    fn unknown_and_repeated_fields_are_refused_with_line_and_nearest_name() {
        let trees = documents("f", "a: 1\nrulse: 2\n").unwrap();
        let problem = Cursor::new(At { source: "f", thing: "T" }, &trees[0])
            .fields(&["a", "rules"])
            .unwrap_err();

        assert_eq!(problem.what, "f:2: T");
        assert_eq!(problem.fix, "did you mean rules?");
        assert!(documents("f", "a: 1\na: 2\n").is_err());
    }

    #[test]
    fn hostile_documents_are_refused_and_do_not_eat_memory() {
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n\
                    c: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n\
                    e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        for text in [
            bomb.to_owned(),
            "[".repeat(100_000),
            "a: ".repeat(1_000),
            "- ".repeat(10_000),
            "{a: *unknown}".to_owned(),
            "\u{0}".to_owned(),
            "a: b: c".to_owned(),
            "? [a]\n: b".to_owned(),
            "x".repeat(DOCUMENT_BYTES_MAX + 1),
        ] {
            assert!(documents("f", &text).is_err(), "{}", shown(&text));
        }
        assert!(documents("f", "a: &a [x]\nb: *a\n").is_ok(), "an honest alias is fine");
        assert!(documents("f", "a: &a {x: 1}\nb: {<<: *a, y: 2}\n").is_ok(), "so is a merge");
    }
}
