//! Manifests through the whole command, and the tree that they become.

use std::io::Write;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::yaml::{Node, Scalar};
use super::*;
use crate::cli::args::Format;
use crate::types::Timestamp;

#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn args() -> InjectArgs {
    InjectArgs {
        image: "ovmesh:test".to_owned(),
        token_secret: "ovmesh-join".to_owned(),
        health_port: 6081,
    }
}

fn inject(manifest: &str) -> Result<String, Problem> {
    let page = Page::default();
    let notes = Box::new(Vec::new());
    let mut output = Output::new(Format::Table, Timestamp(0), Box::new(page.clone()), notes);
    run(&mut output, manifest.as_bytes(), &args())?;
    output.finish()?;
    Ok(String::from_utf8(page.0.lock().unwrap().clone()).unwrap())
}

/// As another reader of YAML understands it.
fn understood(manifest: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(manifest).unwrap()
}

const DEPLOYMENT: &str = "\
# A comment.
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web, \"on\": 'yes'}}
spec:
  replicas: 2
  somethingNew: {kept: [1, \"1\", 0644, 1e3, ~, null, true, 'it''s']}
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web}
    spec:
      initContainers:
      - name: migrate
        image: migrate
      - name: proxy
        image: proxy
        restartPolicy: Always
        livenessProbe: {tcpSocket: {port: 9000}}
      containers:
      - name: web
        image: web
        command: [\"sh\", \"-c\", \"exec web\"]
        env:
        - name: SCRIPT
          value: |
            line one
              line two

            line four
        ports:
        - {name: http, containerPort: 8080}
        readinessProbe:
          httpGet:
            path: /ready?full=1
            port: http
            httpHeaders: [{name: X-Probe, value: \"1\"}]
          periodSeconds: 7
        livenessProbe: {exec: {command: [\"true\"]}}
        startupProbe: {httpGet: {port: 8080}}
      volumes:
      - {name: data, emptyDir: {}}
";

#[test]
fn a_deployment_gets_a_sidecar_and_keeps_the_rest() {
    let text = inject(DEPLOYMENT).unwrap();

    let (before, after) = (understood(DEPLOYMENT).remove(0), understood(&text).remove(0));
    let pod = &after["spec"]["template"]["spec"];
    let sidecar = &pod["initContainers"][0];
    assert_eq!(sidecar["name"], "ovd");
    assert_eq!(sidecar["image"], "ovmesh:test");
    assert_eq!(sidecar["restartPolicy"], "Always");
    assert_eq!(
        sidecar["securityContext"]["capabilities"],
        json!({"drop": ["ALL"], "add": ["NET_ADMIN"]})
    );
    assert_eq!(
        sidecar["args"],
        json!([
            "--state-dir=/var/lib/ovmesh/ovd",
            "--socket=/run/ovmesh/ovd.sock",
            "--join=@/run/secrets/ovmesh/token",
            "--health-listen=[::]:6081",
            "--health-target=proxy/liveness=tcp:9000",
            "--health-target=web/startup=http:8080/",
            "--health-target=web/readiness=http:8080/ready?full=1",
        ])
    );
    assert_eq!(
        pod["containers"][0]["readinessProbe"],
        json!({
            "httpGet": {"path": "/web/readiness", "port": 6081,
                        "httpHeaders": [{"name": "X-Probe", "value": "1"}]},
            "periodSeconds": 7,
        })
    );
    assert_eq!(
        pod["initContainers"][2]["livenessProbe"],
        json!({"httpGet": {"path": "/proxy/liveness", "port": 6081}})
    );

    // Without what was added it is what it was.
    let mut rest = after.clone();
    let template = &mut rest["spec"]["template"];
    template["metadata"].as_object_mut().unwrap().remove("annotations").unwrap();
    let pod = &mut template["spec"];
    pod["initContainers"].as_array_mut().unwrap().remove(0);
    pod["volumes"].as_array_mut().unwrap().truncate(1);
    let was = &before["spec"]["template"]["spec"];
    pod["initContainers"][1]["livenessProbe"] = was["initContainers"][1]["livenessProbe"].clone();
    for probe in ["readinessProbe", "startupProbe"] {
        pod["containers"][0][probe] = was["containers"][0][probe].clone();
    }
    assert_eq!(rest, before);
    assert!(text.contains("- 0644\n"), "a number keeps its notation: {text}");
    assert!(text.contains("- \"1\"\n") && text.contains("\"yes\""), "a text stays one: {text}");
}

#[test]
fn injecting_twice_is_injecting_once() {
    let once = inject(DEPLOYMENT).unwrap();

    assert_eq!(inject(&once).unwrap(), once);
}

#[test]
fn every_kind_that_makes_pods_is_known_and_others_pass() {
    let pod = "{containers: [{name: a, image: a}]}";
    let template = format!("{{spec: {pod}}}");
    for kind in ["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"] {
        let manifest =
            format!("kind: {kind}\nmetadata: {{name: x}}\nspec: {{template: {template}}}\n");
        let after = understood(&inject(&manifest).unwrap()).remove(0);
        let spec = &after["spec"]["template"]["spec"];
        assert_eq!(spec["initContainers"][0]["name"], "ovd", "{kind}");
    }
    let manifest = format!(
        "kind: CronJob\nspec: {{jobTemplate: {{spec: {{template: {template}}}}}}}\n---\n\
         kind: List\nitems:\n- kind: Pod\n  spec: {pod}\n- kind: Service\n  metadata: {{name: s}}\n---\n\
         # nothing\n---\nkind: ConfigMap\ndata: {{a: \"\\u0001b\"}}\n"
    );
    let after = understood(&inject(&manifest).unwrap());
    assert_eq!(after.len(), 3);
    let spec = &after[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    assert_eq!(spec["initContainers"][0]["name"], "ovd");
    assert_eq!(after[1]["items"][0]["spec"]["initContainers"][0]["name"], "ovd");
    // A pod without probes needs no health port.
    assert_eq!(spec["initContainers"][0]["args"].as_array().unwrap().len(), 3);
    assert_eq!(after[1]["items"][1], json!({"kind": "Service", "metadata": {"name": "s"}}));
    assert_eq!(after[2], json!({"kind": "ConfigMap", "data": {"a": "\u{1}b"}}));
}

#[test]
fn what_cannot_be_injected_is_refused_by_name() {
    let pod = |spec: &str| format!("kind: Pod\nmetadata: {{name: web}}\nspec: {spec}\n");
    let with = |field: &str| pod(&format!("{{containers: [{{name: app, image: a, {field}}}]}}"));
    let accepted = with("livenessProbe: {httpGet: {port: 80}}");
    inject(&accepted).unwrap();

    for (manifest, words) in [
        (pod("{hostNetwork: true, containers: [{name: a}]}"), &["Pod web", "hostNetwork"][..]),
        (pod("{os: {name: windows}, containers: [{name: a}]}"), &["Pod web", "windows"]),
        (pod("{containers: []}"), &["Pod web", "no containers"]),
        (pod("{containers: [{name: ovd}]}"), &["Pod web", "called ovd"]),
        (pod("{containers: [{name: a}], volumes: [{name: ovmesh-x}]}"), &["ovmesh-x"]),
        (with("livenessProbe: {grpc: {port: 80}}"), &["Pod web", "app", "livenessProbe", "grpc"]),
        (
            with("readinessProbe: {httpGet: {port: 80, scheme: HTTPS}}"),
            &["Pod web", "app", "readinessProbe", "HTTPS"],
        ),
        (
            with("startupProbe: {tcpSocket: {port: 80, host: other}}"),
            &["app", "startupProbe", "host"],
        ),
        (with("livenessProbe: {httpGet: {port: nowhere}}"), &["app", "nowhere"]),
        (with("livenessProbe: {httpGet: {port: 80, path: /ä}}"), &["app", "path"]),
        (
            with("livenessProbe: {tcpSocket: {port: 6081}}, ports: [{containerPort: 6081}]"),
            &["app", "6081", "already"],
        ),
        (with("lifecycle: {preStop: {httpGet: {port: 80}}}"), &["app", "preStop"]),
        (with("<<: {ports: []}"), &["Pod web", "<<"]),
        (
            "kind: Deployment\nmetadata: {name: web}\n".to_owned(),
            &["Deployment web", "spec.template"],
        ),
        (
            "kind: Rollout\nmetadata: {name: web}\nspec: {template: {spec: {containers: []}}}\n"
                .to_owned(),
            &["Rollout web", "its own way"],
        ),
        ("kind: Service\n".to_owned(), &["no pod"]),
        ("a: 1\n".to_owned(), &["kind"]),
        (String::new(), &["no pod"]),
        ("kind: Pod\na: b: c\n".to_owned(), &["YAML"]),
        ("kind: Pod\nkind: Pod\n".to_owned(), &["line 2", "twice"]),
        ("kind: !!str Pod\n".to_owned(), &["line 1", "tags"]),
        ("? [a]\n: b\n".to_owned(), &["line 1", "key"]),
    ] {
        let problem = inject(&manifest).unwrap_err();
        let text = format!("{}: {}", problem.what, problem.why);
        assert!(words.iter().all(|word| text.contains(word)), "{manifest}: {text}");
    }
}

#[test]
fn null_is_nothing_anchors_are_what_they_stand_for_and_bombs_are_refused() {
    let nothing =
        "kind: Pod\nmetadata: ~\nspec: {containers: [{name: a, image: }], volumes: null}\n";
    let text = inject(nothing).unwrap();
    assert_eq!(inject(&text).unwrap(), text, "null is no place for a mark");
    assert!(text.contains("image: ~\n"), "{text}");

    let text = inject("kind: Pod\nspec:\n  containers:\n  - &a {name: a}\n  x: *a\n").unwrap();
    assert_eq!(understood(&text)[0]["spec"]["x"], json!({"name": "a"}));

    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..9 {
        let before = format!("*a{}, ", n - 1).repeat(10);
        bomb.push_str(&format!("a{n}: &a{n} [{}]\n", before.trim_end_matches(", ")));
    }
    assert!(inject(&bomb).unwrap_err().why.contains("more than"));
    let nested = |depth| yaml::read(&format!("{}a", "- ".repeat(depth)));
    assert!(nested(20).is_ok());
    assert!(nested(100).is_err() && yaml::read(&"[".repeat(10_000)).is_err());
    assert!(inject("a: &a [*a]\n").is_err());
}

fn trees() -> impl Strategy<Value = Node> {
    let quoted = any::<String>().prop_map(|text| Scalar { text, is_quoted: true });
    let lines =
        "[ -~]{0,9}(\n[ -~]{0,9}){0,4}\n{0,3}".prop_map(|text| Scalar { text, is_quoted: true });
    let plain = "[a-zA-Z0-9./_-]{1,9}"
        .prop_filter("a document mark, a list or a number's sign is another thing", |text| {
            !text.starts_with(['-', '.'])
        })
        .prop_map(Scalar::plain);
    let scalar = prop_oneof![quoted, lines, plain];
    let key = scalar.clone();
    scalar.prop_map(Node::Scalar).prop_recursive(5, 60, 6, move |inner| {
        let fields = prop::collection::vec((key.clone(), inner.clone()), 0..6);
        prop_oneof![
            prop::collection::vec(inner, 0..6).prop_map(Node::List),
            fields.prop_map(|mut fields| {
                let mut seen = std::collections::BTreeSet::new();
                fields.retain(|(key, _)| seen.insert(key.text.clone()));
                Node::Map(fields)
            }),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_written_is_read_as_it_was(
        tree in trees().prop_filter("an empty document is none", |tree| !tree.is_null()),
    ) {
        let text = yaml::write(std::slice::from_ref(&tree));
        prop_assert_eq!(yaml::read(&text), Ok(vec![tree]), "{}", text);
    }

    #[test]
    fn no_text_panics(text in "[-a: \n\\[\\]{}&*!|>'\"#%,?]{0,60}") {
        // What cannot be written as it was is refused by the command.
        if let Ok(documents) = yaml::read(&text) {
            let _ = yaml::read(&yaml::write(&documents));
        }
    }
}
