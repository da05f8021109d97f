//! Policy files: ovmesh policies (`apiVersion: ovmesh/v1`, `kind: Policy`) and what Kubernetes
//! writes, in any mixture of documents. `docs/policy.md` shows every field.

use super::examine::{Test, read_tests};
use super::kubernetes::{self, NetworkPolicy};
use super::tree::{At, Cursor, Node, documents, shown};
use crate::api::table::Action;
use crate::api::{Problem, ProblemCode};
use crate::types::{ApiVersion, Label, Name, Selector, Service, Timestamp};

/// One document of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Document {
    /// An ovmesh policy.
    Policy(Box<PolicyDocument>),
    /// A NetworkPolicy, and where it stands: `FILE:LINE`.
    Network(Box<NetworkPolicy>, String),
}

/// An ovmesh policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyDocument {
    /// The file it comes from.
    pub source: String,
    /// The overlay it speaks of; none for the only one there is.
    pub overlay: Option<Name>,
    /// Groups: a name, who is in it, and the line.
    pub groups: Vec<(Name, Vec<Selector>, u64)>,
    /// Names for label selectors.
    pub services: Vec<(Name, Vec<Label>)>,
    /// The rules, in the order of the file.
    pub rules: Vec<DocumentRule>,
    /// What must hold of it.
    pub tests: Vec<Test>,
}

/// One rule of an ovmesh policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentRule {
    /// The line it starts on.
    pub line: u64,
    /// What the file calls it.
    pub name: Option<String>,
    /// Allow or deny.
    pub action: Action,
    /// Who starts flows: any of these.
    pub from: Vec<Selector>,
    /// Who is talked to: any of these.
    pub to: Vec<Selector>,
    /// Protocols and ports; empty means all.
    pub ports: Vec<Service>,
    /// Whether it holds in both directions.
    pub both: bool,
    /// The path it asks for.
    pub path: Option<DocumentPath>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// Recorded, and nothing enforced.
    pub audit: bool,
    /// Why it is there.
    pub reason: Option<String>,
}

/// The path that a rule asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentPath {
    /// No SaP between the two.
    Direct,
    /// Through these SaPs, in this order.
    Via(Vec<Name>),
}

/// Reads a policy file. `now` is what `expires` counts from.
///
/// # Errors
///
/// `Usage`, with file, line, and the nearest name that is known.
pub fn read_policies(source: &str, text: &str, now: Timestamp) -> Result<Vec<Document>, Problem> {
    let mut read = Vec::new();
    for tree in documents(source, text)? {
        let cursor = Cursor::new(At { source, thing: "" }, &tree);
        read.extend(read_document(&cursor, None, now)?);
    }
    Ok(read)
}

/// Refuses files (names and texts) that hold no document at all, if there are files: that is a mistake, and
/// no policy without rules. A list of no NetworkPolicies is a document.
///
/// # Errors
///
/// `Usage`, with the files.
pub fn refuse_nothing<'a>(
    files: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), Problem> {
    let mut empty = Vec::new();
    for (source, text) in files {
        if !documents(source, text)?.is_empty() {
            return Ok(());
        }
        empty.push(source);
    }
    if empty.is_empty() {
        return Ok(());
    }
    Err(Problem::new(ProblemCode::Usage, format!("{}: no policy", empty.join(", ")))
        .why("the files are empty, and as a policy they would have no rule")
        .fix("if that is meant, write: rules: []"))
}

/// Reads one document. `implied` is the Kubernetes kind of what does not say its own.
pub(super) fn read_document(
    cursor: &Cursor<'_>,
    implied: Option<&str>,
    now: Timestamp,
) -> Result<Vec<Document>, Problem> {
    let fields = cursor.any_fields()?;
    let version = fields.field("apiVersion").map(|field| field.text()).transpose()?;
    // What says nothing of itself is ours, unless it looks like what Kubernetes writes: so a typing
    // mistake in its only field is told as one.
    let is_theirs = |name: &str| matches!(name, "metadata" | "spec" | "items");
    let is_bare = version.is_none()
        && fields.field("kind").is_none()
        && implied.is_none()
        && fields.each().next().is_some()
        && !fields.each().any(|(name, _)| is_theirs(name));
    if is_bare || version.is_some_and(|version| version.starts_with("ovmesh/")) {
        return Ok(vec![Document::Policy(Box::new(read_policy(cursor, now)?))]);
    }
    let policies = kubernetes::read(cursor, implied)?;
    let network = |(policy, place)| Document::Network(Box::new(policy), place);
    Ok(policies.into_iter().map(network).collect())
}

fn read_policy(cursor: &Cursor<'_>, now: Timestamp) -> Result<PolicyDocument, Problem> {
    let fields = cursor.fields(&[
        "apiVersion",
        "kind",
        "overlay",
        "groups",
        "services",
        "rules",
        "tests",
    ])?;
    if let Some(version) = fields.field("apiVersion")
        && serde_json::from_value::<ApiVersion>(version.text()?.into()).is_err()
    {
        return Err(version.wrong("the only version is ovmesh/v1"));
    }
    if let Some(kind) = fields.field("kind")
        && kind.text()? != "Policy"
    {
        return Err(kind.wrong(format!("`{}`: the only kind is Policy", shown(kind.text()?))));
    }
    let overlay = fields.field("overlay").map(|field| field.parsed()).transpose()?;
    let mut document = PolicyDocument {
        source: cursor.at.source.to_owned(),
        overlay,
        ..PolicyDocument::default()
    };
    if let Some(groups) = fields.field("groups") {
        for (name, held) in groups.any_fields()?.each() {
            let group = Name::new(name).map_err(|error| held.wrong(error.to_string()))?;
            let selectors = one_or_more::<Selector>(&held)?;
            if selectors.iter().any(|selector| matches!(selector, Selector::Group(_))) {
                return Err(held
                    .wrong("a group holds no groups")
                    .fix("name the members of the inner group here too"));
            }
            document.groups.push((group, selectors, held.tree.line));
        }
    }
    if let Some(services) = fields.field("services") {
        for (name, labels) in services.any_fields()?.each() {
            let service = Name::new(name).map_err(|error| labels.wrong(error.to_string()))?;
            let Selector::Labels(selected) = labels.parsed()? else {
                return Err(labels.wrong("a service is a name for labels, such as role=web"));
            };
            document.services.push((service, selected.into_iter().collect()));
        }
    }
    for rule in fields.items("rules")? {
        document.rules.push(read_rule(&rule, now)?);
    }
    if let Some(tests) = fields.field("tests") {
        document.tests = read_tests(&tests)?;
    }
    Ok(document)
}

fn read_rule(cursor: &Cursor<'_>, now: Timestamp) -> Result<DocumentRule, Problem> {
    let fields = cursor.fields(&[
        "name", "action", "from", "to", "ports", "both", "path", "expires", "notAfter", "audit",
        "reason",
    ])?;
    let action = fields.needed("action")?;
    let action = match action.text()? {
        "allow" => Action::Allow,
        "deny" => Action::Deny,
        other => {
            return Err(action
                .wrong(format!("`{}` is no action", shown(other)))
                .fix("write allow or deny"));
        }
    };
    let text = |name: &str| -> Result<Option<String>, Problem> {
        fields.field(name).map(|field| field.text().map(str::to_owned)).transpose()
    };
    let flag = |name: &str| fields.field(name).map_or(Ok(false), |field| field.bool());
    let ports = fields.field("ports").map_or_else(|| Ok(Vec::new()), |field| one_or_more(&field));
    let not_after = match (fields.field("expires"), fields.field("notAfter")) {
        (Some(field), Some(_)) => {
            return Err(field.wrong("`expires` and `notAfter` say the same thing: give one"));
        }
        (Some(field), None) => {
            let duration: crate::types::HumanDuration = field.parsed()?;
            Some(now.after(duration.0))
        }
        (None, Some(field)) => Some(field.parsed()?),
        (None, None) => None,
    };
    let path = fields.field("path").map(|field| read_path(&field)).transpose()?;
    if let (Action::Deny, Some(_), Some(field)) = (action, &path, fields.field("path")) {
        return Err(field.wrong("a deny rule has no path, for nothing passes"));
    }
    Ok(DocumentRule {
        line: cursor.tree.line,
        name: text("name")?,
        action,
        from: one_or_more(&fields.needed("from")?)?,
        to: one_or_more(&fields.needed("to")?)?,
        ports: ports?,
        both: flag("both")?,
        path,
        not_after,
        audit: flag("audit")?,
        reason: text("reason")?,
    })
}

/// `direct`, or SaPs as a list or joined by commas.
fn read_path(field: &Cursor<'_>) -> Result<DocumentPath, Problem> {
    if let Node::Text(text) = &field.tree.node {
        if text == "direct" {
            return Ok(DocumentPath::Direct);
        }
        let names = text.split(',').map(Name::new).collect::<Result<_, _>>();
        return names.map(DocumentPath::Via).map_err(|error| {
            field.wrong(error.to_string()).fix("write direct, or [sap-1, sap-2]")
        });
    }
    let saps = field.items()?.iter().map(Cursor::parsed).collect::<Result<Vec<Name>, _>>()?;
    if saps.is_empty() {
        return Err(field.wrong("the path names no SaP").fix("write direct, or [sap-1, sap-2]"));
    }
    Ok(DocumentPath::Via(saps))
}

/// One text, or a list of them that is not empty. An empty list is refused, because it could be meant
/// as nobody and as everybody.
fn one_or_more<T>(field: &Cursor<'_>) -> Result<Vec<T>, Problem>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if let Node::List(items) = &field.tree.node {
        if items.is_empty() {
            return Err(field.wrong("an empty list: leave the field out, or name something"));
        }
        return field.items()?.iter().map(one).collect();
    }
    Ok(vec![one(field)?])
}

/// One text. A protocol number is a number, and reads like its text.
fn one<T>(field: &Cursor<'_>) -> Result<T, Problem>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    if let Node::Number(number) = &field.tree.node {
        let text = number.to_string();
        return text.parse().map_err(|error: T::Err| field.wrong(error.to_string()));
    }
    field.parsed()
}
