//! Tests of a policy: what must be allowed, and what must not.

use serde::Serialize;
use serde_json::Value;

use super::scene::Scene;
use super::tree::{Cursor, Node, shown};
use super::verdict::judge_in;
use crate::api::Problem;
use crate::types::{ApiVersion, Name, PortRange, Protocol, Service};

/// One expectation: may `from` open a connection to `to`?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The file and the line.
    pub place: String,
    /// As written: `namespace/name`, or an address with or without `ip:`.
    pub from: String,
    /// As written.
    pub to: String,
    /// As written; without one, whether anything at all may pass.
    pub protocol: Option<String>,
    /// A number or the name of a port of the destination.
    pub port: Option<TestPort>,
    /// What is asked.
    pub service: Option<Service>,
    /// Whether it must be allowed.
    pub expected: bool,
}

/// A port as a test writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TestPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(Name),
}

/// What became of one test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TestResult {
    /// As the test has it.
    pub from: String,
    /// As the test has it.
    pub to: String,
    /// As the test has it.
    pub protocol: Option<String>,
    /// As the test has it.
    pub port: Option<TestPort>,
    /// What the test wants.
    pub expected: bool,
    /// What the policy says.
    pub allowed: bool,
    /// The rule or policy that decided; none when none speaks of it.
    pub rule: Option<String>,
    /// The reason, for people.
    #[serde(skip)]
    pub why: String,
    /// Where the test stands.
    #[serde(skip)]
    pub place: String,
}

/// What became of all tests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Examination {
    /// `ovmesh/v1`
    pub api_version: ApiVersion,
    /// In the order of the tests.
    pub results: Vec<TestResult>,
    /// How many hold.
    pub passed: usize,
    /// How many do not.
    pub failed: usize,
}

impl Examination {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    /// What to say of each test that fails: where it stands and what it wants; and why not.
    #[must_use]
    pub fn failures(&self) -> Vec<(String, String)> {
        let failed = self.results.iter().filter(|result| result.expected != result.allowed);
        failed.map(TestResult::failure).collect()
    }
}

impl TestResult {
    fn failure(&self) -> (String, String) {
        let word = |allowed: bool| if allowed { "allowed" } else { "denied" };
        let port = match &self.port {
            Some(TestPort::Number(port)) => format!("/{port}"),
            Some(TestPort::Name(name)) => format!("/{name}"),
            None => String::new(),
        };
        let what = self.protocol.as_deref().unwrap_or(match self.port {
            Some(_) => "tcp",
            None => "anything",
        });
        let text = format!(
            "{}: {} → {} {what}{port} is {} and must be {}",
            self.place,
            self.from,
            self.to,
            word(self.allowed),
            word(self.expected)
        );
        (text, self.why.clone())
    }
}

impl Test {
    /// As a file writes it, in one line.
    #[must_use]
    pub fn written(&self) -> String {
        format!("{{{}}}", super::write::test_fields(self))
    }
}

/// Asks all tests.
///
/// # Errors
///
/// `Usage` for an end that is nobody, with the line of the test.
pub fn examine<'a>(
    scene: &Scene,
    tests: impl IntoIterator<Item = &'a Test>,
) -> Result<Examination, Problem> {
    let overview = scene.overview();
    let mut results = Vec::new();
    for test in tests {
        let wrong = |problem: Problem| Problem {
            what: format!("{}: {}", test.place, problem.what),
            ..problem
        };
        let (from, to) =
            (scene.end(&test.from).map_err(wrong)?, scene.end(&test.to).map_err(wrong)?);
        let verdict =
            judge_in(scene, &overview, &from, &to, test.service.as_ref()).map_err(wrong)?;
        results.push(TestResult {
            from: test.from.clone(),
            to: test.to.clone(),
            protocol: test.protocol.clone(),
            port: test.port.clone(),
            expected: test.expected,
            allowed: verdict.allowed,
            rule: verdict.rule,
            why: verdict.why,
            place: test.place.clone(),
        });
    }
    let passed = results.iter().filter(|result| result.expected == result.allowed).count();
    let failed = results.len() - passed;
    Ok(Examination { api_version: ApiVersion::V1, results, passed, failed })
}

/// Reads a file of tests: `tests:` with a list, or the list alone.
///
/// # Errors
///
/// `Usage`, with file, line and field.
pub fn read_test_file(source: &str, text: &str) -> Result<Vec<Test>, Problem> {
    let mut tests = Vec::new();
    for tree in super::tree::documents(source, text)? {
        let cursor = Cursor::new(super::tree::At { source, thing: "" }, &tree);
        if matches!(tree.node, Node::List(_)) {
            tests.extend(read_tests(&cursor)?);
            continue;
        }
        let fields = cursor.fields(&["apiVersion", "kind", "tests"])?;
        tests.extend(read_tests(&fields.needed("tests")?)?);
    }
    Ok(tests)
}

/// Reads one test, as [`Test::written`] writes it.
///
/// # Errors
///
/// `Usage` when it is none.
pub fn read_test(text: &str) -> Result<Test, Problem> {
    let trees = super::tree::documents("test", text)?;
    let at = super::tree::At { source: "test", thing: "" };
    match trees.as_slice() {
        [tree] => read_one(&Cursor::new(at, tree)),
        _ => Err(at.wrong(0, "", "one test is wanted here")),
    }
}

/// Reads a list of tests.
pub(super) fn read_tests(list: &Cursor<'_>) -> Result<Vec<Test>, Problem> {
    list.items()?.iter().map(read_one).collect()
}

fn read_one(item: &Cursor<'_>) -> Result<Test, Problem> {
    let fields = item.fields(&["from", "to", "protocol", "port", "allow", "allowed"])?;
    let expected = match (fields.field("allow"), fields.field("allowed")) {
        (Some(field), None) | (None, Some(field)) => field.bool()?,
        (Some(field), Some(_)) => return Err(field.wrong("`allow` and `allowed` are the same")),
        (None, None) => return Err(item.wrong("`allow` is missing")),
    };
    let (protocol, written) = match fields.field("protocol") {
        None => (None, None),
        Some(field) => match &field.tree.node {
            Node::Number(number) => {
                let text = number.to_string();
                let parsed = text.parse::<Protocol>();
                (Some(parsed.map_err(|error| field.wrong(error.to_string()))?), Some(text))
            }
            Node::Text(text) => (Some(field.parsed()?), Some(text.clone())),
            Node::Null | Node::Bool(_) | Node::OtherNumber(_) | Node::List(_) | Node::Map(_) => {
                return Err(field.wrong("a protocol is wanted here, such as tcp"));
            }
        },
    };
    let port = fields.field("port").map(|field| read_port(&field)).transpose()?;
    // A port without a protocol is one of TCP, as in Kubernetes.
    let asked = protocol.or(port.as_ref().map(|_| Protocol::Tcp));
    if let (Some(protocol), Some(_), Some(field)) = (asked, &port, fields.field("port"))
        && !protocol.has_ports()
    {
        return Err(field.wrong(format!("{protocol} has no ports")));
    }
    let service = asked.map(|protocol| match &port {
        None => Service::Protocol(protocol),
        Some(TestPort::Number(port)) => {
            Service::Ports(protocol, PortRange { first: *port, last: *port })
        }
        Some(TestPort::Name(name)) => Service::Named(protocol, name.clone()),
    });
    Ok(Test {
        place: item.place(),
        from: fields.needed("from")?.text()?.to_owned(),
        to: fields.needed("to")?.text()?.to_owned(),
        protocol: written,
        port,
        service,
        expected,
    })
}

fn read_port(field: &Cursor<'_>) -> Result<TestPort, Problem> {
    let Node::Text(text) = &field.tree.node else { return field.port().map(TestPort::Number) };
    if text.bytes().all(|b| b.is_ascii_digit()) {
        let number = text.parse::<u16>().ok().filter(|port| *port != 0);
        return number
            .map(TestPort::Number)
            .ok_or_else(|| field.wrong(format!("`{}` is no port: 1-65535", shown(text))));
    }
    // Without a letter it was meant to be a number, and nobody would have a port of that name.
    if !text.bytes().any(|b| b.is_ascii_alphabetic()) {
        return Err(field.wrong(format!("`{}` is no port: a number or a name", shown(text))));
    }
    field.parsed().map(TestPort::Name)
}
