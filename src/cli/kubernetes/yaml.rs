//! YAML as a tree that keeps what it does not understand: scalars stay the text that they were, plain
//! or quoted, so that `0644`, `yes` and `1e3` mean afterwards what they meant before. Keys keep their
//! order. Comments are lost; anchors become what they stand for.

use std::collections::HashMap;
use std::fmt::Write as _;

use granit_parser::{Event, Parser, ScalarStyle};

/// Most nodes of all documents, with what anchors stand for: nobody's manifests are longer.
const NODES_MAX: usize = 200_000;

/// Deepest nesting.
const DEPTH_MAX: usize = 64;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Node {
    /// A word, a number, a text, or nothing.
    Scalar(Scalar),
    /// `- a`
    List(Vec<Self>),
    /// `a: b`, in order.
    Map(Vec<(Scalar, Self)>),
}

/// A text, and whether it was in quotes: `"8080"` is a text and `8080` a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scalar {
    pub(super) text: String,
    pub(super) is_quoted: bool,
}

impl Node {
    /// The value under `key`.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter().find(|(name, _)| name.text == key).map(|(_, value)| value)
    }

    /// As [`Self::get`], to change it.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Self::Map(fields) = self else { return None };
        fields.iter_mut().find(|(name, _)| name.text == key).map(|(_, value)| value)
    }

    /// The value under `key`, which becomes `new` when there is none.
    pub(super) fn get_or(&mut self, key: &str, new: Self) -> Option<&mut Self> {
        let Self::Map(fields) = self else { return None };
        let at = fields.iter().position(|(name, _)| name.text == key).unwrap_or_else(|| {
            fields.push((Scalar::plain(key), new.clone()));
            fields.len() - 1
        });
        let value = &mut fields.get_mut(at)?.1;
        if value.is_null() {
            *value = new;
        }
        Some(value)
    }

    /// Nothing, in one of the ways to say so; where nothing stands, the parser says `~`.
    pub(super) fn is_null(&self) -> bool {
        let Self::Scalar(Scalar { text, is_quoted: false }) = self else { return false };
        ["~", "null", "Null", "NULL"].contains(&text.as_str())
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Scalar(scalar) => Some(&scalar.text),
            Self::List(_) | Self::Map(_) => None,
        }
    }

    /// The text of the scalar under `key`.
    pub(super) fn text_of(&self, key: &str) -> Option<&str> {
        self.get(key)?.text()
    }

    /// The items of a list; none of anything else.
    pub(super) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            Self::Scalar(_) | Self::Map(_) => &[],
        }
    }
}

impl Scalar {
    pub(super) fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_quoted: false }
    }
}

/// Reads all documents; empty ones are left out.
///
/// # Errors
///
/// What is no YAML, or none of the kind that manifests are of, with the line.
pub(super) fn read(text: &str) -> Result<Vec<Node>, String> {
    let mut reader = Reader::default();
    for next in Parser::new_from_str(text) {
        let (event, span) = next.map_err(|error| error.to_string())?;
        reader.take(event).map_err(|why| format!("line {}: {why}", span.start.line()))?;
    }
    reader.documents.retain(|node| !node.is_null());
    Ok(reader.documents)
}

#[derive(Default)]
struct Reader {
    documents: Vec<Node>,
    /// What is begun, outermost first, with its anchor.
    open: Vec<(Open, usize)>,
    anchors: HashMap<usize, Node>,
    nodes: usize,
}

enum Open {
    List(Vec<Node>),
    /// With a key that waits for its value.
    Map(Vec<(Scalar, Node)>, Option<Scalar>),
}

impl Reader {
    #[expect(clippy::wildcard_enum_match_arm, reason = "events of later parsers are no data")]
    fn take(&mut self, event: Event<'_>) -> Result<(), String> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                // Several lines are a text, however they stand there.
                let is_quoted = style != ScalarStyle::Plain || text.contains('\n');
                self.put(Node::Scalar(Scalar { text: text.into_owned(), is_quoted }), anchor, 1)
            }
            Event::SequenceStart(_, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                self.begin(Open::List(Vec::new()), anchor)
            }
            Event::MappingStart(_, anchor, tag) => {
                refuse_tag(tag.is_some())?;
                self.begin(Open::Map(Vec::new(), None), anchor)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some((Open::List(items), anchor)) => self.put(Node::List(items), anchor, 1),
                Some((Open::Map(fields, _), anchor)) => self.put(Node::Map(fields), anchor, 1),
                None => Ok(()),
            },
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned();
                let node = node.ok_or("an alias stands inside of what it stands for")?;
                let size = size(&node);
                self.put(node, 0, size)
            }
            Event::DocumentStart(..) => {
                self.anchors.clear();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn begin(&mut self, open: Open, anchor: usize) -> Result<(), String> {
        if self.open.len() >= DEPTH_MAX {
            return Err(format!("it is nested more than {DEPTH_MAX} deep"));
        }
        if matches!(self.open.last(), Some((Open::Map(_, None), _))) {
            return Err("a key is a list or a map".to_owned());
        }
        self.open.push((open, anchor));
        Ok(())
    }

    /// Adds a node that is whole.
    fn put(&mut self, node: Node, anchor: usize, size: usize) -> Result<(), String> {
        self.nodes += size;
        if self.nodes > NODES_MAX {
            return Err(format!("there are more than {NODES_MAX} values"));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.documents.push(node),
            Some((Open::List(items), _)) => items.push(node),
            Some((Open::Map(fields, key), _)) => match key.take() {
                Some(key) => fields.push((key, node)),
                None => {
                    let Node::Scalar(name) = node else {
                        return Err("a key is a list or a map".to_owned());
                    };
                    if fields.iter().any(|(other, _)| other.text == name.text) {
                        return Err(format!("the key {} is there twice", name.text.escape_debug()));
                    }
                    *key = Some(name);
                }
            },
        }
        Ok(())
    }
}

fn refuse_tag(is_there: bool) -> Result<(), String> {
    if is_there { Err("tags such as !!str are not understood".to_owned()) } else { Ok(()) }
}

fn size(node: &Node) -> usize {
    match node {
        Node::Scalar(_) => 1,
        Node::List(items) => 1 + items.iter().map(size).sum::<usize>(),
        Node::Map(fields) => 1 + fields.iter().map(|(_, value)| 1 + size(value)).sum::<usize>(),
    }
}

/// Writes documents in block style, each but the first behind `---`.
pub(super) fn write(documents: &[Node]) -> String {
    let mut text = String::new();
    for (number, document) in documents.iter().enumerate() {
        if number > 0 {
            text.push_str("---\n");
        }
        match document {
            Node::Map(fields) if !fields.is_empty() => write_fields(&mut text, fields, 0),
            Node::List(items) if !items.is_empty() => write_items(&mut text, items, 0),
            other @ (Node::Scalar(_) | Node::List(_) | Node::Map(_)) => {
                write_short(&mut text, other, 2);
                text.push('\n');
            }
        }
    }
    text
}

fn write_fields(text: &mut String, fields: &[(Scalar, Node)], indent: usize) {
    for (number, (key, value)) in fields.iter().enumerate() {
        // The first one stands where the caller has written up to.
        if number > 0 || text.is_empty() || text.ends_with('\n') {
            text.extend(std::iter::repeat_n(' ', indent));
        }
        write_scalar(text, key, None);
        text.push(':');
        match value {
            Node::Map(fields) if !fields.is_empty() => {
                text.push('\n');
                write_fields(text, fields, indent + 2);
            }
            Node::List(items) if !items.is_empty() => {
                text.push('\n');
                write_items(text, items, indent);
            }
            short @ (Node::Scalar(_) | Node::List(_) | Node::Map(_)) => {
                text.push(' ');
                write_short(text, short, indent + 2);
                text.push('\n');
            }
        }
    }
}

fn write_items(text: &mut String, items: &[Node], indent: usize) {
    for (number, item) in items.iter().enumerate() {
        if number > 0 || text.is_empty() || text.ends_with('\n') {
            text.extend(std::iter::repeat_n(' ', indent));
        }
        text.push_str("- ");
        match item {
            Node::Map(fields) if !fields.is_empty() => write_fields(text, fields, indent + 2),
            Node::List(items) if !items.is_empty() => write_items(text, items, indent + 2),
            short @ (Node::Scalar(_) | Node::List(_) | Node::Map(_)) => {
                write_short(text, short, indent + 2);
                text.push('\n');
            }
        }
    }
}

/// What fits behind a key or a dash.
fn write_short(text: &mut String, node: &Node, indent: usize) {
    match node {
        Node::Scalar(scalar) => write_scalar(text, scalar, Some(indent)),
        Node::List(_) => text.push_str("[]"),
        Node::Map(_) => text.push_str("{}"),
    }
}

/// Writes a scalar. With an `indent` a text of several lines stands as a block of that indent.
fn write_scalar(text: &mut String, scalar: &Scalar, indent: Option<usize>) {
    let content = scalar.text.as_str();
    if !scalar.is_quoted {
        // Plain once is plain again.
        text.push_str(content);
        return;
    }
    match indent {
        Some(indent) if is_fit_for_block(content) => {
            let end = content.len() - content.trim_end_matches('\n').len();
            text.push_str(match end {
                0 => "|-",
                1 => "|",
                _ => "|+",
            });
            let lines = content.strip_suffix('\n').unwrap_or(content);
            for line in lines.split('\n') {
                text.push('\n');
                if !line.is_empty() {
                    text.extend(std::iter::repeat_n(' ', indent));
                    text.push_str(line);
                }
            }
        }
        _ => {
            text.push('"');
            for c in content.chars() {
                match c {
                    '"' => text.push_str("\\\""),
                    '\\' => text.push_str("\\\\"),
                    '\n' => text.push_str("\\n"),
                    '\t' => text.push_str("\\t"),
                    c if is_printable(c) => text.push(c),
                    c => {
                        let _ = write!(text, "\\U{:08x}", u32::from(c));
                    }
                }
            }
            text.push('"');
        }
    }
}

/// Several lines that a block can hold as they are.
fn is_fit_for_block(content: &str) -> bool {
    content.trim_end_matches('\n').contains('\n')
        && !content.starts_with([' ', '\n', '\t'])
        && content.chars().all(|c| c == '\n' || c == '\t' || is_printable(c))
        && content.lines().all(|line| line.is_empty() || !line.trim().is_empty())
}

/// What YAML lets stand as it is, less what editors hide.
fn is_printable(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{85}')
}
