//! Puts `ovd` beside the containers of one pod, and has it answer their probes.

use super::super::args::InjectArgs;
use super::yaml::{self, Node, Scalar};
use crate::api::{Problem, ProblemCode};
use crate::types::{HealthQuestion, HealthTarget};

/// Marks a pod that has `ovd`.
const MARK: &str = "ovmesh/injected";

/// The container's name.
const SIDECAR: &str = "ovd";

/// Kinds of probes, and what they are called at the health port.
const PROBES: [(&str, &str); 3] =
    [("startupProbe", "startup"), ("livenessProbe", "liveness"), ("readinessProbe", "readiness")];

/// Adds `ovd` to a pod (or its template); `false` when it has it already.
pub(super) fn inject(pod: &mut Node, name: &str, args: &InjectArgs) -> Result<bool, Problem> {
    let spec = pod.get("spec").ok_or_else(|| refuse(name, "its pod has no spec"))?;
    let annotations = pod.get("metadata").and_then(|metadata| metadata.get("annotations"));
    if annotations.is_some_and(|annotations| annotations.get(MARK).is_some()) {
        return Ok(false);
    }
    check(spec, name)?;
    let mut targets = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in spec.get(list).map_or(&[][..], Node::items) {
            targets.extend(probes(container, name)?);
        }
    }

    if !targets.is_empty() {
        check_port(spec, name, args.health_port)?;
    }

    let new = |text: &str| parsed(text, name);
    let map = || Node::Map(Vec::new());
    let mark = new("\"true\"")?;
    let metadata = pod.get_or("metadata", map()).and_then(|node| node.get_or("annotations", map()));
    metadata
        .and_then(|annotations| annotations.get_or(MARK, mark))
        .ok_or_else(|| refuse(name, "its metadata or its annotations are no map"))?;
    let spec = pod.get_mut("spec").ok_or_else(|| refuse(name, "its pod has no spec"))?;
    for list in ["initContainers", "containers"] {
        let Some(Node::List(containers)) = spec.get_mut(list) else { continue };
        for container in containers {
            redirect(container, args.health_port, name)?;
        }
    }
    let sidecar = new(&sidecar(args, &targets))?;
    match spec.get_or("initContainers", Node::List(Vec::new())) {
        // First of all: what starts after it is in the overlay.
        Some(Node::List(containers)) => containers.insert(0, sidecar),
        _ => return Err(refuse(name, "its initContainers are no list")),
    }
    let Node::List(more) = new(&volumes(args))? else { return Ok(true) };
    match spec.get_or("volumes", Node::List(Vec::new())) {
        Some(Node::List(volumes)) => volumes.extend(more),
        _ => return Err(refuse(name, "its volumes are no list")),
    }
    Ok(true)
}

fn refuse(name: &str, why: impl Into<String>) -> Problem {
    Problem::new(ProblemCode::Usage, format!("{name} cannot have ovd")).why(why)
}

fn parsed(text: &str, name: &str) -> Result<Node, Problem> {
    let mut nodes = yaml::read(text).map_err(|why| refuse(name, why))?;
    nodes.pop().ok_or_else(|| refuse(name, "a template is empty"))
}

/// Refuses what would not work, or would not be what it looks like.
fn check(spec: &Node, name: &str) -> Result<(), Problem> {
    let is_true = |key| spec.text_of(key) == Some("true");
    if is_true("hostNetwork") {
        return Err(refuse(
            name,
            "hostNetwork: the pod has no network of its own, only its node's",
        )
        .fix("run ovd on the node"));
    }
    if spec.get("os").and_then(|os| os.text_of("name")) == Some("windows") {
        return Err(refuse(name, "os: windows: ovd needs Linux"));
    }
    if spec.get("containers").map_or(&[][..], Node::items).is_empty() {
        return Err(refuse(name, "it has no containers"));
    }
    if has_merge_key(spec) {
        return Err(refuse(name, "merge keys (<<) hide what a container has").fix(
            "write it out, or pass it through `kubectl create --dry-run=client -o yaml -f -`",
        ));
    }
    for list in ["initContainers", "containers"] {
        for container in spec.get(list).map_or(&[][..], Node::items) {
            if container.text_of("name") == Some(SIDECAR) {
                return Err(refuse(name, format!("a container is called {SIDECAR}"))
                    .fix("rename it, or take it out and inject again"));
            }
            check_hooks(container, name)?;
        }
    }
    for volume in spec.get("volumes").map_or(&[][..], Node::items) {
        if let Some(taken) = volume.text_of("name").filter(|name| name.starts_with("ovmesh-")) {
            return Err(refuse(name, format!("a volume is called {taken}")).fix("rename it"));
        }
    }
    Ok(())
}

/// The port of `ovd` must be nobody else's.
fn check_port(spec: &Node, name: &str, port: u16) -> Result<(), Problem> {
    let containers = ["initContainers", "containers"].map(|list| spec.get(list));
    for container in containers.into_iter().flatten().flat_map(Node::items) {
        let ports = container.get("ports").map_or(&[][..], Node::items);
        if ports.iter().any(|row| row.text_of("containerPort") == Some(&port.to_string())) {
            let container = container.text_of("name").unwrap_or("?");
            return Err(refuse(name, format!("container {container} has the port {port} already"))
                .fix("give ovd another one: --health-port PORT"));
        }
    }
    Ok(())
}

fn has_merge_key(node: &Node) -> bool {
    match node {
        Node::Scalar(_) => false,
        Node::List(items) => items.iter().any(has_merge_key),
        Node::Map(fields) => fields
            .iter()
            .any(|(key, value)| (key.text == "<<" && !key.is_quoted) || has_merge_key(value)),
    }
}

/// Hooks are asked by the node, too, and each once only: there is no verdict to pass on.
fn check_hooks(container: &Node, name: &str) -> Result<(), Problem> {
    let Some(hooks) = container.get("lifecycle") else { return Ok(()) };
    for hook in ["postStart", "preStop"] {
        for action in ["httpGet", "tcpSocket"] {
            if hooks.get(hook).is_some_and(|hook| hook.get(action).is_some()) {
                let container = container.text_of("name").unwrap_or("?");
                return Err(refuse(
                    name,
                    format!(
                        "container {container}: kubelet would ask its lifecycle.{hook}.{action} \
                             from outside of the overlay"
                    ),
                )
                .fix("use exec"));
            }
        }
    }
    Ok(())
}

/// What `ovd` has to ask for the probes of a container.
fn probes(container: &Node, name: &str) -> Result<Vec<HealthTarget>, Problem> {
    let called = container.text_of("name").unwrap_or("?");
    let mut targets = Vec::new();
    for (key, word) in PROBES {
        let Some(probe) = container.get(key) else { continue };
        let cannot = |why: String| refuse(name, format!("container {called}: its {key} {why}"));
        if probe.get("grpc").is_some() {
            return Err(cannot("is grpc, which ovd does not ask".to_owned())
                .fix("use httpGet, tcpSocket or exec"));
        }
        let (question, action) = match (probe.get("httpGet"), probe.get("tcpSocket")) {
            (Some(http), _) => {
                if http.text_of("scheme").is_some_and(|scheme| scheme != "HTTP") {
                    return Err(cannot("is HTTPS, which ovd does not ask".to_owned())
                        .fix("use HTTP, tcpSocket or exec"));
                }
                let path = http.text_of("path").unwrap_or_default();
                (HealthQuestion::Http(format!("/{}", path.trim_start_matches('/'))), http)
            }
            (None, Some(tcp)) => (HealthQuestion::Tcp, tcp),
            (None, None) => continue,
        };
        if action.text_of("host").is_some_and(|host| !host.is_empty()) {
            return Err(cannot("names a host: ovd asks localhost".to_owned())
                .fix("leave host out; for a Host header use httpHeaders"));
        }
        let port = action.text_of("port").unwrap_or_default();
        let port = find_port(container, port).ok_or_else(|| {
            cannot(format!("asks the port `{}`, which it has not", printable(port)))
        })?;
        // The text is what ovd will read, so it is read here too.
        let target = HealthTarget { name: format!("{called}/{word}"), question, port }.to_string();
        let target =
            target.parse().map_err(|_| cannot("has a path that ovd cannot ask".to_owned()));
        targets.push(target?);
    }
    Ok(targets)
}

fn printable(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// A port by its number, or by the name that the container gives it.
fn find_port(container: &Node, port: &str) -> Option<u16> {
    if let Ok(number) = port.parse() {
        return (number != 0).then_some(number);
    }
    let ports = container.get("ports").map_or(&[][..], Node::items);
    let named = ports.iter().find(|row| row.text_of("name") == Some(port));
    named?.text_of("containerPort")?.parse().ok()
}

/// Sends the probes of a container to `ovd`. Periods, thresholds and headers stay.
fn redirect(container: &mut Node, health_port: u16, name: &str) -> Result<(), Problem> {
    let called = container.text_of("name").unwrap_or("?").to_owned();
    for (key, word) in PROBES {
        let Some(Node::Map(fields)) = container.get_mut(key) else { continue };
        let action =
            fields.iter_mut().find(|(key, _)| ["httpGet", "tcpSocket"].contains(&&*key.text));
        let Some((kind, action)) = action else { continue };
        let text = format!("path: /{called}/{word}\nport: {health_port}\n");
        let mut asked = parsed(&text, name)?;
        if let (Some(headers), Node::Map(fields)) = (action.get("httpHeaders"), &mut asked) {
            fields.push((Scalar::plain("httpHeaders"), headers.clone()));
        }
        *kind = Scalar::plain("httpGet");
        *action = asked;
    }
    Ok(())
}

/// Words as they stand in the template: quoted, whatever is in them.
fn quoted(text: &str) -> String {
    let scalar = Scalar { text: text.to_owned(), is_quoted: true };
    yaml::write(&[Node::Scalar(scalar)]).trim_end().to_owned()
}

fn sidecar(args: &InjectArgs, targets: &[HealthTarget]) -> String {
    let mut health = String::new();
    if !targets.is_empty() {
        let listen = format!("--health-listen=[::]:{}", args.health_port);
        let asked = targets.iter().map(|target| format!("--health-target={target}"));
        for argument in std::iter::once(listen).chain(asked) {
            health.push_str(&format!("- {}\n", quoted(&argument)));
        }
    }
    let image = quoted(&args.image);
    format!(
        "\
name: {SIDECAR}
image: {image}
restartPolicy: Always
command: [ovd, run]
args:
- --state-dir=/var/lib/ovmesh/ovd
- --socket=/run/ovmesh/ovd.sock
- --join=@/run/secrets/ovmesh/token
{health}startupProbe:
  exec:
    command: [ovd, status, --check=ready, --socket=/run/ovmesh/ovd.sock]
  periodSeconds: 1
  timeoutSeconds: 5
  failureThreshold: 120
livenessProbe:
  exec:
    command: [ovd, status, --check=live, --socket=/run/ovmesh/ovd.sock]
  periodSeconds: 10
  timeoutSeconds: 5
resources:
  requests:
    cpu: 20m
    memory: 32Mi
securityContext:
  runAsUser: 0
  runAsNonRoot: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN]
  seccompProfile:
    type: RuntimeDefault
volumeMounts:
- name: ovmesh-state
  mountPath: /var/lib/ovmesh
- name: ovmesh-run
  mountPath: /run/ovmesh
- name: ovmesh-token
  mountPath: /run/secrets/ovmesh
  readOnly: true
- name: ovmesh-tun
  mountPath: /dev/net/tun
"
    )
}

/// Keys are in memory alone, and go with the pod.
fn volumes(args: &InjectArgs) -> String {
    let secret = quoted(&args.token_secret);
    format!(
        "\
- name: ovmesh-state
  emptyDir:
    medium: Memory
- name: ovmesh-run
  emptyDir:
    medium: Memory
- name: ovmesh-token
  secret:
    secretName: {secret}
- name: ovmesh-tun
  hostPath:
    path: /dev/net/tun
    type: CharDevice
"
    )
}
