//! Inventories: who is there, for questions that are answered without a server.
//!
//! Also reads the bundles of the conformance cases, `{namespaces, pods, policies, expect}`, which
//! are an inventory with policies and tests in one file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::document::{Document, read_document};
use super::examine::{Test, read_tests};
use super::expression::read_labels;
use super::kubernetes::METADATA_NAME;
use super::span::NamedPorts;
use super::tree::{At, Cursor, Fields, documents, shown};
use crate::api::admin::Semantics;
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Label, Name, PortRange, Protocol, Service, Timestamp};

/// An inventory, with what else its file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// What unspoken traffic means.
    pub semantics: Option<Semantics>,
    /// Namespaces by name, with their labels. Kubernetes' `kubernetes.io/metadata.name` is added.
    pub namespaces: BTreeMap<Name, BTreeSet<Label>>,
    /// Entities, in the order of the file.
    pub entities: Vec<InventoryEntity>,
    /// Policies in the file.
    pub policies: Vec<Document>,
    /// Tests in the file.
    pub tests: Vec<Test>,
}

/// One entity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InventoryEntity {
    /// Its full name.
    pub name: EntityName,
    /// Its labels.
    pub labels: BTreeSet<Label>,
    /// Its overlay address; without one no CIDR means it.
    pub address: Option<IpAddr>,
    /// Its named ports; those without a name mean nothing to a policy.
    pub ports: NamedPorts,
}

/// Reads an inventory.
///
/// # Errors
///
/// `Usage`, with file, line and field.
pub fn read_inventory(source: &str, text: &str, now: Timestamp) -> Result<Inventory, Problem> {
    let trees = documents(source, text)?;
    let [tree] = trees.as_slice() else {
        let why = format!("an inventory is one document, and this has {}", trees.len());
        return Err(Problem::new(ProblemCode::Usage, source).why(why));
    };
    let cursor = Cursor::new(At { source, thing: "" }, tree);
    let is_case = cursor.any_fields()?.each().any(|(name, _)| name == "pods");
    let fields = if is_case {
        cursor.fields(&[
            "name",
            "source",
            "truth",
            "tags",
            "note",
            "sequence",
            "step",
            "semantics",
            "namespaces",
            "pods",
            "policies",
            "expect",
            "tests",
        ])?
    } else {
        cursor.fields(&["apiVersion", "kind", "semantics", "namespaces", "entities", "tests"])?
    };
    let mut inventory = Inventory {
        semantics: fields.field("semantics").map(|field| read_semantics(&field)).transpose()?,
        ..Inventory::default()
    };
    if is_case && inventory.semantics.is_none() {
        inventory.semantics = Some(Semantics::Kubernetes);
    }
    read_namespaces(&fields, is_case, &mut inventory)?;
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    let list = if is_case { "pods" } else { "entities" };
    for item in fields.items(list)? {
        let entity = read_entity(&item, is_case)?;
        if !names.insert(entity.name.clone()) {
            return Err(item.wrong(format!("there is another {}", entity.name)));
        }
        if let Some(address) = entity.address
            && !addresses.insert(address)
        {
            return Err(item.wrong(format!("another entity has the address {address} already")));
        }
        inventory.namespaces.entry(entity.name.namespace.clone()).or_default();
        inventory.entities.push(entity);
    }
    for (name, labels) in &mut inventory.namespaces {
        // The Kubernetes API server sets it on every namespace, whatever was asked for.
        labels.retain(|label| label.key != METADATA_NAME);
        labels.insert(Label { key: METADATA_NAME.to_owned(), value: name.to_string() });
    }
    for item in fields.items("policies")? {
        inventory.policies.extend(read_document(&item, Some("NetworkPolicy"), now)?);
    }
    for list in ["tests", "expect"] {
        if let Some(tests) = fields.field(list) {
            inventory.tests.extend(read_tests(&tests)?);
        }
    }
    Ok(inventory)
}

fn read_semantics(field: &Cursor<'_>) -> Result<Semantics, Problem> {
    match field.text()? {
        "kubernetes" => Ok(Semantics::Kubernetes),
        "default-deny" => Ok(Semantics::DefaultDeny),
        other => {
            Err(field
                .wrong(format!("`{}` are no semantics: kubernetes or default-deny", shown(other))))
        }
    }
}

fn read_namespaces(
    fields: &Fields<'_>,
    is_case: bool,
    inventory: &mut Inventory,
) -> Result<(), Problem> {
    let Some(namespaces) = fields.field("namespaces") else { return Ok(()) };
    for (name, facts) in namespaces.any_fields()?.each() {
        let name = Name::new(name).map_err(|error| facts.wrong(error.to_string()))?;
        let labels = if is_case {
            read_labels(&facts)?
        } else {
            let labels = facts.fields(&["labels"])?.field("labels");
            labels.map(|labels| read_labels(&labels)).transpose()?.unwrap_or_default()
        };
        inventory.namespaces.insert(name, labels);
    }
    Ok(())
}

fn read_entity(item: &Cursor<'_>, is_case: bool) -> Result<InventoryEntity, Problem> {
    let (namespace, address) = if is_case { ("ns", "ip") } else { ("namespace", "address") };
    let fields = item.fields(&[namespace, "name", "labels", address, "ports"])?;
    let namespace =
        fields.field(namespace).map(|field| field.parsed()).transpose()?.unwrap_or_default();
    let name = EntityName { namespace, name: fields.needed("name")?.parsed()? };
    let labels =
        fields.field("labels").map(|field| read_labels(&field)).transpose()?.unwrap_or_default();
    let address: Option<IpAddr> = fields.field(address).map(|field| field.parsed()).transpose()?;
    let mut ports = NamedPorts::new();
    for port in fields.items("ports")? {
        let port = port.fields(&["name", "port", "protocol"])?;
        let number = port.needed("port")?.port()?;
        let protocol = match port.field("protocol") {
            None => Protocol::Tcp,
            Some(field) => {
                let protocol: Protocol = field.parsed()?;
                if !protocol.has_ports() {
                    return Err(field.wrong(format!("{protocol} has no ports")));
                }
                protocol
            }
        };
        if let Some(name) = port.field("name") {
            let range = PortRange { first: number, last: number };
            let named: &mut BTreeSet<Service> = ports.entry(name.parsed()?).or_default();
            named.insert(Service::Ports(protocol, range));
        }
    }
    Ok(InventoryEntity { name, labels, address, ports })
}
