//! Reads NetworkPolicies, with the defaults and the validation of the Kubernetes API server
//! (`pkg/apis/networking`). Looser in one point, by design section 11: protocols in any case.

use super::{Direction, NetworkPolicy, Peer, PolicyRule};
use crate::api::{Problem, ProblemCode};
use crate::policy::expression::{LabelSelector, read_labels};
use crate::policy::tree::{At, Cursor, Fields, Node, shown};
use crate::types::{CidrBlock, Name, PortRange, Protocol, Service};

const API_VERSION: &str = "networking.k8s.io/v1";

/// The fields of `metadata`; only name, namespace and labels mean anything here.
const METADATA: &[&str] = &[
    "name",
    "namespace",
    "generateName",
    "labels",
    "annotations",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "ownerReferences",
    "finalizers",
    "managedFields",
    "selfLink",
];

/// Reads one document of Kubernetes, which may be a list; each policy with `FILE:LINE`. `implied` is the
/// kind of what does not say its own.
///
/// # Errors
///
/// `Usage`, with the file, the line and the name of the policy.
pub(in crate::policy) fn read(
    document: &Cursor<'_>,
    implied: Option<&str>,
) -> Result<Vec<(NetworkPolicy, String)>, Problem> {
    let fields = document.any_fields()?;
    let text = |name: &str| fields.field(name).map(|field| field.text()).transpose();
    let kind = text("kind")?.or(implied);
    let version = text("apiVersion")?;
    match (version, kind) {
        (Some(API_VERSION), Some("NetworkPolicy")) | (None, Some("NetworkPolicy"))
            if version.is_some() || implied.is_some() =>
        {
            read_policy(document).map(|policy| vec![(policy, document.place())])
        }
        (Some("v1"), Some("List")) => read_list(document, None),
        (Some(API_VERSION), Some("NetworkPolicyList")) => {
            read_list(document, Some("NetworkPolicy"))
        }
        _ => {
            let (version, kind) = (version.unwrap_or("nothing"), kind.unwrap_or("nothing"));
            let name = title(document, "");
            Err(document
                .wrong(format!(
                    "apiVersion {}, kind {}{name} is no policy that is known here",
                    shown(version),
                    shown(kind)
                ))
                .fix(format!(
                    "give ovmesh/v1 Policy, {API_VERSION} NetworkPolicy, NetworkPolicyList, or a \
                     v1 List of them; leave other kinds out"
                )))
        }
    }
}

fn read_list(
    document: &Cursor<'_>,
    implied: Option<&str>,
) -> Result<Vec<(NetworkPolicy, String)>, Problem> {
    let fields = document.fields(&["apiVersion", "kind", "metadata", "items"])?;
    let mut policies = Vec::new();
    for item in fields.items("items")? {
        policies.extend(read(&item, implied)?);
    }
    Ok(policies)
}

/// The name as far as it can be told, for messages: ` shop/web`.
fn title(document: &Cursor<'_>, lead: &str) -> String {
    let metadata = document.any_fields().ok().and_then(|fields| fields.field("metadata"));
    let Some(fields) = metadata.and_then(|metadata| metadata.any_fields().ok()) else {
        return lead.to_owned();
    };
    let text = |name: &str| {
        fields.field(name).and_then(|field| field.text().ok()).map(shown).filter(|t| !t.is_empty())
    };
    match text("name").or_else(|| text("generateName")) {
        Some(name) => {
            let namespace = text("namespace").unwrap_or_else(|| "default".to_owned());
            format!("{lead} {namespace}/{name}")
        }
        None => lead.to_owned(),
    }
}

fn read_policy(document: &Cursor<'_>) -> Result<NetworkPolicy, Problem> {
    let title = title(document, "NetworkPolicy");
    let at = At { source: document.at.source, thing: &title };
    let named = Cursor { at, tree: document.tree, path: document.path.clone() };
    let refused = || format!("Kubernetes would refuse {title}");
    read_named(&named).map_err(|problem| {
        let fix = if problem.fix.is_empty() { refused() } else { problem.fix.clone() };
        Problem { fix, code: ProblemCode::Usage, ..problem }
    })
}

fn read_named(document: &Cursor<'_>) -> Result<NetworkPolicy, Problem> {
    let fields = document.fields(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    let metadata = fields.needed("metadata")?;
    let (namespace, name) = read_metadata(&metadata)?;
    let empty = Cursor { at: document.at, tree: &EMPTY, path: "spec".to_owned() };
    let spec = fields.field("spec").unwrap_or(empty);
    let spec = spec.fields(&["podSelector", "ingress", "egress", "policyTypes"])?;
    let pods = spec
        .field("podSelector")
        .map(|selector| LabelSelector::read(&selector))
        .transpose()?
        .unwrap_or_default();
    let ingress = read_rules(&spec, Direction::Ingress)?;
    let egress = read_rules(&spec, Direction::Egress)?;
    let (speaks_of_ingress, speaks_of_egress) = policy_types(&spec, !egress.is_empty())?;
    Ok(NetworkPolicy {
        namespace,
        name,
        pods,
        ingress: speaks_of_ingress.then_some(ingress),
        egress: speaks_of_egress.then_some(egress),
    })
}

/// What stands for a part that is left out.
static EMPTY: crate::policy::tree::Tree = crate::policy::tree::Tree { line: 0, node: Node::Null };

fn read_metadata(metadata: &Cursor<'_>) -> Result<(Name, String), Problem> {
    let fields = metadata.fields(METADATA)?;
    let namespace = match fields.field("namespace") {
        Some(field) if field.text()?.is_empty() => Name::default(),
        Some(field) => field.parsed()?,
        None => Name::default(),
    };
    let given = fields.field("name").filter(|field| field.text().is_ok_and(|t| !t.is_empty()));
    if let Some(field) = fields.field("name") {
        field.text()?;
    }
    let name = match (given, fields.field("generateName")) {
        (Some(field), _) => {
            let name = field.text()?;
            if !is_subdomain(name) {
                return Err(field.wrong(format!(
                    "`{}` is no name: a-z, 0-9, `-` and `.`, at most 253, each part starting and \
                     ending with a letter or digit",
                    shown(name)
                )));
            }
            name.to_owned()
        }
        (None, Some(prefix)) if !prefix.text()?.is_empty() => {
            let prefix_text = prefix.text()?;
            // The server puts five characters behind it.
            if !is_subdomain(&format!("{prefix_text}00000")) {
                return Err(prefix.wrong(format!("`{}` starts no name", shown(prefix_text))));
            }
            format!("{prefix_text}*")
        }
        (None, _) => return Err(metadata.wrong("`name` is missing")),
    };
    if let Some(labels) = fields.field("labels") {
        read_labels(&labels)?;
    }
    if let Some(annotations) = fields.field("annotations") {
        for (key, value) in annotations.any_fields()?.each() {
            value.text()?;
            let as_label: Result<crate::types::Label, _> =
                format!("{}=", key.to_ascii_lowercase()).parse();
            if as_label.is_err() {
                return Err(value.wrong(format!("`{}` is no annotation key", shown(key))));
            }
        }
    }
    Ok((namespace, name))
}

/// RFC 1123 as Kubernetes reads it.
fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().copied().is_some_and(inner)
            && bytes.last().copied().is_some_and(inner)
            && bytes.iter().all(|&b| inner(b) || b == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// Whether the policy speaks of ingress, and of egress.
fn policy_types(spec: &Fields<'_>, has_egress: bool) -> Result<(bool, bool), Problem> {
    let types = spec.items("policyTypes")?;
    if types.len() > 2 {
        return Err(types[2].wrong("there are only two policy types"));
    }
    let (mut ingress, mut egress) = (false, false);
    for item in &types {
        match item.text()? {
            "Ingress" => ingress = true,
            "Egress" => egress = true,
            other => {
                return Err(
                    item.wrong(format!("`{}` is no policy type: Ingress or Egress", shown(other)))
                );
            }
        }
    }
    // Left out: always ingress, and egress when there is a rule for it.
    if types.is_empty() { Ok((true, has_egress)) } else { Ok((ingress, egress)) }
}

fn read_rules(spec: &Fields<'_>, direction: Direction) -> Result<Vec<PolicyRule>, Problem> {
    let peers_field = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    let read_rule = |item: Cursor<'_>| {
        let fields = item.fields(&[peers_field, "ports"])?;
        let peers = fields.items(peers_field)?.iter().map(read_peer).collect::<Result<_, _>>()?;
        let ports = fields.items("ports")?.iter().map(read_port).collect::<Result<_, _>>()?;
        Ok(PolicyRule { peers, ports })
    };
    spec.items(direction.field())?.into_iter().map(read_rule).collect()
}

fn read_peer(from: &Cursor<'_>) -> Result<Peer, Problem> {
    let fields = from.fields(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let selector =
        |name: &str| fields.field(name).map(|selector| LabelSelector::read(&selector)).transpose();
    let (pods, namespaces) = (selector("podSelector")?, selector("namespaceSelector")?);
    match (fields.field("ipBlock"), pods, namespaces) {
        (Some(block), None, None) => read_block(&block).map(Peer::Block),
        (Some(_), _, _) => Err(from
            .wrong("`ipBlock` stands alone: it cannot be with a podSelector or namespaceSelector")),
        (None, None, None) => {
            Err(from.wrong("one of podSelector, namespaceSelector and ipBlock is needed"))
        }
        (None, pods, namespaces) => Ok(Peer::Pods { namespaces, pods: pods.unwrap_or_default() }),
    }
}

fn read_block(from: &Cursor<'_>) -> Result<CidrBlock, Problem> {
    let fields = from.fields(&["cidr", "except"])?;
    let cidr_field = fields.needed("cidr")?;
    let prefix = |field: &Cursor<'_>| {
        let text = field.text()?;
        CidrBlock::prefix(text).ok_or_else(|| field.wrong(format!("`{}` is no CIDR", shown(text))))
    };
    let cidr = prefix(&cidr_field)?;
    let mut except = Vec::new();
    for item in fields.items("except")? {
        let inner = prefix(&item)?;
        if let Err(error) = CidrBlock::new(cidr, vec![inner]) {
            return Err(item.wrong(error.to_string()));
        }
        except.push(inner);
    }
    CidrBlock::new(cidr, except).map_err(|error| from.wrong(error.to_string()))
}

fn read_port(from: &Cursor<'_>) -> Result<Service, Problem> {
    let fields = from.fields(&["protocol", "port", "endPort"])?;
    let protocol = match fields.field("protocol") {
        None => Protocol::Tcp,
        Some(field) => match field.text()?.to_ascii_uppercase().as_str() {
            "TCP" => Protocol::Tcp,
            "UDP" => Protocol::Udp,
            "SCTP" => Protocol::Sctp,
            other => {
                return Err(field.wrong(format!(
                    "`{}` is no protocol of a NetworkPolicy: TCP, UDP or SCTP",
                    shown(other)
                )));
            }
        },
    };
    let end = fields.field("endPort");
    let Some(port) = fields.field("port") else {
        return match end {
            Some(end) => Err(end.wrong("`endPort` needs `port`")),
            None => Ok(Service::Protocol(protocol)),
        };
    };
    if let Node::Text(name) = &port.tree.node {
        if let Some(end) = end {
            return Err(end.wrong("`endPort` cannot be with a port that has a name"));
        }
        if !is_port_name(name) {
            return Err(port.wrong(format!(
                "`{}` is no name of a port: at most 15 of a-z, 0-9 and single `-`, with a letter; \
                 numbers are written without quotes",
                shown(name)
            )));
        }
        let name = Name::new(name).map_err(|error| port.wrong(error.to_string()))?;
        return Ok(Service::Named(protocol, name));
    }
    let first = port.port()?;
    let last = match end {
        None => first,
        Some(end) => {
            let last = end.port()?;
            if last < first {
                return Err(end.wrong(format!("`endPort` {last} is below `port` {first}")));
            }
            last
        }
    };
    Ok(Service::Ports(protocol, PortRange { first, last }))
}

/// RFC 6335 section 5.1, lower case, as Kubernetes reads it.
fn is_port_name(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=15).contains(&bytes.len())
        && bytes.iter().all(|&b| inner(b) || b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && !text.contains("--")
        && !text.starts_with('-')
        && !text.ends_with('-')
}
