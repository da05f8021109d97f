//! `ovctl dns export`: the names of an overlay, for resolvers that are not ours.
//!
//! An entity is `NAME.NAMESPACE.OVERLAY.ov.internal`, one of the namespace `default` also
//! `NAME.OVERLAY.ov.internal`. So is a service, with all its instances; where both bear a name, it is
//! the service's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;

use super::Outcome;
use super::args::{DnsCommand, DnsExportArgs, DnsForm};
use super::client::{Answer, Client};
use super::output::Output;
use crate::api::admin::{Entity, List, Overlay};
use crate::api::policy::NamedService;
use crate::api::{Problem, ProblemCode};
use crate::types::{EntityName, Name, Protocol, Service};

/// Does what `ovctl dns …` asks.
///
/// # Errors
///
/// What the server says, or why it could not be asked; `Usage` when it is not clear which overlay is
/// meant.
pub async fn run(
    client: &Client,
    output: &mut Output,
    command: DnsCommand,
) -> Result<Outcome, Problem> {
    let DnsCommand::Export(DnsExportArgs { form, overlay }) = command;
    let overlay = choose(client, overlay).await?;
    let entities: Answer<List<Entity>> = client.read("/v1/entities", &[]).await?;
    let query = [("overlay", overlay.to_string())];
    let services: Answer<List<NamedService>> = client.read("/v1/services", &query).await?;
    let names = names(&overlay, &entities.value.items, &services.value.items);
    output.raw(&match form {
        DnsForm::Hosts => hosts(&overlay, &names),
        DnsForm::HeadlessServices => headless(&overlay, &names),
    });
    Ok(Outcome::Done)
}

/// The overlay that is meant: the one named, else the only one.
async fn choose(client: &Client, overlay: Option<Name>) -> Result<Name, Problem> {
    let answer: Answer<List<Overlay>> = client.read("/v1/overlays", &[]).await?;
    let all: Vec<Name> = answer.value.items.into_iter().map(|overlay| overlay.name).collect();
    let shown = all.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    match (overlay, all.as_slice()) {
        (Some(name), all) if all.contains(&name) => Ok(name),
        (Some(name), _) => {
            Err(Problem::new(ProblemCode::NotFound, format!("there is no overlay {name}"))
                .why(format!("there are: {shown}")))
        }
        (None, [only]) => Ok(only.clone()),
        (None, _) => Err(Problem::new(ProblemCode::Usage, "which overlay is meant?")
            .why(format!("there are: {shown}"))
            .fix("name it: --overlay NAME")),
    }
}

/// Ports by their names.
type Ports = BTreeMap<Name, (Protocol, u16)>;

/// What bears a name: addresses, each with its ports.
type Instances = BTreeMap<IpAddr, Ports>;

/// Entities and services of an overlay.
fn names(
    overlay: &Name,
    entities: &[Entity],
    services: &[NamedService],
) -> BTreeMap<EntityName, Instances> {
    let mut names = BTreeMap::new();
    for entity in entities {
        let ports = entity.ports.iter().filter_map(|(name, service)| match service {
            Service::Ports(protocol, range) => Some((name.clone(), (*protocol, range.first))),
            Service::Protocol(_) | Service::Named(..) => None,
        });
        let ports: Ports = ports.collect();
        let addresses = entity.members.iter().filter(|member| member.overlay == *overlay);
        let instances: Instances =
            addresses.map(|member| (member.address, ports.clone())).collect();
        if !instances.is_empty() {
            names.insert(entity.name.clone(), instances);
        }
    }
    let mut of_services = Vec::new();
    for service in services {
        let members = service.members.iter().filter_map(|member| names.get(member)).flatten();
        let instances: Instances =
            members.map(|(&address, ports): (&IpAddr, &Ports)| (address, ports.clone())).collect();
        if !instances.is_empty() {
            let name = EntityName { namespace: Name::default(), name: service.name.clone() };
            of_services.push((name, instances));
        }
    }
    names.extend(of_services);
    names
}

/// Lines for `/etc/hosts`.
fn hosts(overlay: &Name, names: &BTreeMap<EntityName, Instances>) -> String {
    let mut text = format!("# Overlay {overlay}, by `ovctl dns export hosts`.\n");
    for (name, instances) in names {
        let names = name.overlay_names(overlay).join(" ");
        for address in instances.keys() {
            let _ = writeln!(text, "{address} {names}");
        }
    }
    text
}

/// For each name a headless Service without selector, and its addresses in EndpointSlices: a cluster's
/// own DNS then answers with overlay addresses.
fn headless(overlay: &Name, names: &BTreeMap<EntityName, Instances>) -> String {
    let mut text = format!("# Overlay {overlay}, by `ovctl dns export headless-services`.\n");
    for (EntityName { namespace, name }, instances) in names {
        let metadata = |name: &str| {
            let (namespace, overlay) = (namespace.as_str(), overlay.as_str());
            format!(
                "metadata:\n  name: {name:?}\n  namespace: {namespace:?}\n  labels:\n    \
                 ovmesh/overlay: {overlay:?}\n"
            )
        };
        let all = instances.values().flatten();
        let all: Ports = all.map(|(name, &port)| (name.clone(), port)).collect();
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\n{}spec:\n  clusterIP: None\n{}",
            metadata(name.as_str()),
            ports_lines(&all, "  ")
        );
        // The ports of a slice are those of all its addresses.
        let mut slices: BTreeMap<(&str, &Ports), Vec<&IpAddr>> = BTreeMap::new();
        for (address, ports) in instances {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            slices.entry((family, ports)).or_default().push(address);
        }
        for (number, ((family, ports), addresses)) in slices.into_iter().enumerate() {
            let _ = write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{}    \
                 kubernetes.io/service-name: {:?}\naddressType: {family}\n{}endpoints:\n",
                metadata(&format!("{name}-ovmesh-{number}")),
                name.as_str(),
                ports_lines(ports, "")
            );
            for address in addresses {
                let _ = writeln!(text, "- addresses: [\"{address}\"]");
            }
        }
    }
    text
}

fn ports_lines(ports: &Ports, indent: &str) -> String {
    let mut text = String::new();
    for (name, (protocol, port)) in ports {
        let protocol = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
            Protocol::Icmp | Protocol::Number(_) => continue,
        };
        if text.is_empty() {
            let _ = writeln!(text, "{indent}ports:");
        }
        let name = name.as_str();
        let _ = writeln!(text, "{indent}- name: {name:?}\n{indent}  protocol: {protocol}");
        let _ = writeln!(text, "{indent}  port: {port}");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn fixture() -> BTreeMap<EntityName, Instances> {
        let entity = |name: &str, address: &str, port: u16| -> Entity {
            serde_json::from_value(json!({
                "id": 1, "name": name, "labels": [], "ports": {"http": format!("tcp/{port}")},
                "members": [{"overlay": "prod", "address": address}], "endpoints": [],
                "ephemeral": false, "joined": "2026-11-23T12:00:00Z",
                "health": {"online": true, "version": "0", "seen": null, "serial": 1,
                           "acknowledged": 1, "problems": []},
            }))
            .unwrap()
        };
        let service: NamedService = serde_json::from_value(json!({
            "overlay": "prod", "name": "b", "labels": ["app=b"], "rules": [],
            "members": ["b-1", "shop/b-2", "gone"],
        }))
        .unwrap();
        let entities = [
            entity("b-1", "100.71.0.1", 80),
            entity("shop/b-2", "100.71.0.2", 8080),
            entity("six", "fd00::1", 80),
        ];
        names(&"prod".parse().unwrap(), &entities, &[service])
    }

    #[test]
    fn hosts_have_every_name_and_a_service_has_every_instance() {
        let text = hosts(&"prod".parse().unwrap(), &fixture());

        for line in [
            "100.71.0.1 b-1.prod.ov.internal b-1.default.prod.ov.internal",
            "100.71.0.2 b-2.shop.prod.ov.internal",
            "100.71.0.1 b.prod.ov.internal b.default.prod.ov.internal",
            "100.71.0.2 b.prod.ov.internal b.default.prod.ov.internal",
            "fd00::1 six.prod.ov.internal six.default.prod.ov.internal",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.lines().count(), 6, "{text}");
    }

    #[test]
    fn headless_services_point_at_overlay_addresses() {
        let text = headless(&"prod".parse().unwrap(), &fixture());

        let objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        let of = |name: &str| -> Vec<&Value> {
            let slices = objects.iter().filter(|object| object["kind"] == "EndpointSlice");
            let label = |slice: &Value| {
                slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() == Some(name)
            };
            slices.filter(|slice| label(slice)).collect()
        };
        let slices = of("b");
        assert_eq!(slices.len(), 2, "their ports differ: {text}");
        let all = slices.iter().map(|slice| (&slice["endpoints"], &slice["ports"][0]["port"]));
        let all: Vec<_> = all.collect();
        assert!(all.contains(&(&json!([{"addresses": ["100.71.0.1"]}]), &json!(80))), "{text}");
        assert!(all.contains(&(&json!([{"addresses": ["100.71.0.2"]}]), &json!(8080))), "{text}");
        assert_eq!(of("six")[0]["addressType"], "IPv6");
        let service = objects.iter().find(|object| object["metadata"]["name"] == "b-2").unwrap();
        assert_eq!(service["spec"]["clusterIP"], "None");
        assert_eq!(service["metadata"]["namespace"], "shop");
        assert_eq!(service["spec"]["selector"], Value::Null);
    }
}
