//! Joining: from a token to an identity on disk, or to nothing at all.

use std::net::SocketAddr;
use std::path::Path;

use rand::Rng as _;
use ring::digest;

use super::client::Client;
use super::state::{Identity, StateDir};
use super::sync::backoff;
use super::underlay::{self, HostRange};
use crate::api::node::{JoinAnswer, JoinCheck, JoinRequest, JoinToken, Membership};
use crate::api::{Problem, ProblemCode};
use crate::types::{ApiVersion, Name, NodeKind, Secret};

/// What to do with a `--join` when the node has an identity or has none.
#[derive(Debug)]
pub enum Start {
    /// No identity: join with this token.
    Join(JoinToken),
    /// Go on as this node. `ignored` says that there was a token for the same server.
    Resume {
        /// Who the node is.
        identity: Box<Identity>,
        /// Whether a token was given and not needed.
        ignored: bool,
    },
}

/// Decides what a start means (design section 6, second start).
///
/// # Errors
///
/// `Usage` when there is neither an identity nor a token; `Conflict` when the token is of another
/// server, or the identity of another program.
pub fn decide(
    identity: Option<Identity>,
    token: Option<JoinToken>,
    kind: NodeKind,
    state_dir: &Path,
) -> Result<Start, Problem> {
    match (identity, token) {
        (None, None) => Err(Problem::new(ProblemCode::Usage, "this node has not joined")
            .why(format!("there is no identity in {}", state_dir.display()))
            .fix("get a token with `ovctl token create` and start with --join TOKEN")),
        (None, Some(token)) => Ok(Start::Join(token)),
        (Some(identity), _) if identity.kind != kind => Err(Problem::new(
            ProblemCode::Conflict,
            format!("{} belongs to a node that runs as {}", state_dir.display(), identity.kind),
        )
        .why(format!("this program runs as {kind}"))
        .fix("give each program its own --state-dir")),
        (Some(identity), Some(token)) if token.pin != identity.pin => Err(Problem::new(
            ProblemCode::Conflict,
            format!("this node has joined another server as {}", identity.name),
        )
        .why("the token was made by a server with another key")
        .fix("leave first (ovd leave, ovsap leave), or give another --state-dir")),
        (Some(identity), token) => {
            Ok(Start::Resume { identity: Box::new(identity), ignored: token.is_some() })
        }
    }
}

/// What a node brings along when it joins.
#[derive(Clone, Debug)]
pub struct Joiner {
    /// Entity or SaP.
    pub kind: NodeKind,
    /// The token.
    pub token: JoinToken,
    /// Whether the token stood in an argument, where every user of the host could read it.
    pub is_exposed: bool,
    /// `--name`.
    pub name: Option<Name>,
    /// The host's name; see [`valid_name`].
    pub host_name: Option<Name>,
    /// What the host uses already; empty for a SaP, which has no route into an overlay.
    pub host_ranges: Vec<HostRange>,
}

/// What came of joining.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Who this node is; it is on disk.
    pub identity: Identity,
    /// Its addresses; empty for a SaP.
    pub memberships: Vec<Membership>,
}

/// Joins, and keeps the identity in `state`. The token is used up by the last step but one only;
/// `endpoints` are asked for with the server's URL once that has answered.
///
/// # Errors
///
/// Whatever stands in the way; nothing is kept, and up to the join itself the token stays unused.
pub async fn join(
    joiner: &Joiner,
    state: &StateDir,
    endpoints: impl AsyncFnOnce(&str) -> Result<Vec<SocketAddr>, Problem>,
) -> Result<Joined, Problem> {
    let JoinToken { urls, pin, secret } = &joiner.token;
    let client = Client::new(urls.clone(), pin)?;
    let check = JoinCheck { secret: secret.clone(), kind: joiner.kind };
    let preview = client.check(&check).await?;
    if joiner.is_exposed && preview.reusable {
        return Err(exposed());
    }
    if let (Some(wanted), Some(given)) = (&joiner.name, &preview.name)
        && wanted != given
    {
        return Err(Problem::new(
            ProblemCode::Conflict,
            format!("this token joins as {given}, not as {wanted}"),
        )
        .why("the token was made with --name")
        .fix(format!("leave out --name, or: ovctl token create --name {wanted}")));
    }
    underlay::check_overlaps(&preview.overlays, &joiner.host_ranges)?;
    let endpoints = endpoints(client.url()).await?;
    if !preview.clear_underlay {
        underlay::check_endpoints(&endpoints)?;
    }

    let credential = new_credential();
    let request = JoinRequest {
        secret: secret.clone(),
        kind: joiner.kind,
        name: joiner.name.clone(),
        host_name: joiner.host_name.clone(),
        endpoints,
        credential_hash: hash(&credential),
    };
    let answer = repeat_join(&client, &request).await?;
    let identity = Identity {
        api_version: ApiVersion::V1,
        id: answer.id,
        kind: joiner.kind,
        name: answer.name,
        credential,
        urls: urls.clone(),
        pin: pin.clone(),
        incarnation: answer.incarnation,
        clear_underlay: preview.clear_underlay,
    };
    if let Err(problem) = state.save_identity(&identity) {
        // The server must not keep a node that nobody can be.
        if let Err(also) = client.leave(&identity.credential).await {
            tracing::warn!(why = %also, "could not undo the join at the server");
        }
        return Err(problem);
    }
    Ok(Joined { identity, memberships: answer.memberships })
}

/// A token that others can still use has no place in the process list.
fn exposed() -> Problem {
    Problem::new(ProblemCode::Usage, "a reusable token must not be an argument")
        .why("every user of this host could read it in the process list, and join with it")
        .fix("revoke it (ovctl token revoke), and give the next one as @FILE, or as - on stdin")
}

/// Joins; asks again when the answer is lost. The server was there a moment ago, and the same
/// credential joins once.
async fn repeat_join(client: &Client, request: &JoinRequest) -> Result<JoinAnswer, Problem> {
    let mut failures = 0;
    loop {
        match client.join(request).await {
            Err(problem) if problem.code == ProblemCode::Unreachable && failures < REPEATS => {
                failures += 1;
                tokio::time::sleep(backoff(failures)).await;
            }
            answer => return answer,
        }
    }
}

/// How often a join without an answer is repeated.
const REPEATS: u32 = 4;

fn new_credential() -> Secret {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    Secret::new(bytes)
}

/// What the server keeps of a credential: the SHA-256 of its 32 bytes.
fn hash(credential: &Secret) -> Secret {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest::digest(&digest::SHA256, credential.expose()).as_ref());
    Secret::new(bytes)
}

/// Makes a name of a host name: its first label in lower case, anything else a `-`. None when nothing
/// usable is left.
#[must_use]
pub fn valid_name(host_name: &str) -> Option<Name> {
    let label = host_name.trim().split('.').next()?.to_ascii_lowercase();
    let replaced: String = label
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(Name::MAX_LEN)
        .collect();
    Name::new(replaced.trim_matches('-')).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{EntityName, Incarnation, NodeId};

    fn token(pin: u8) -> JoinToken {
        JoinToken {
            urls: vec!["https://192.0.2.1:7443".to_owned()],
            pin: Secret::new([pin; 32]),
            secret: Secret::new([8; 32]),
        }
    }

    fn identity(pin: u8) -> Identity {
        Identity {
            api_version: ApiVersion::V1,
            id: NodeId(3),
            kind: NodeKind::Entity,
            name: EntityName { namespace: Name::default(), name: Name::new("web").unwrap() },
            credential: Secret::new([1; 32]),
            urls: Vec::new(),
            pin: Secret::new([pin; 32]),
            incarnation: Incarnation("aa".to_owned()),
            clear_underlay: false,
        }
    }

    #[test]
    fn truth_table_of_starts() {
        let dir = Path::new("/state");
        let entity = NodeKind::Entity;

        let nothing = decide(None, None, entity, dir).unwrap_err();
        assert_eq!(nothing.code, ProblemCode::Usage);
        assert!(matches!(decide(None, Some(token(1)), entity, dir), Ok(Start::Join(_))));
        assert!(matches!(
            decide(Some(identity(1)), None, entity, dir),
            Ok(Start::Resume { ignored: false, .. })
        ));
        assert!(matches!(
            decide(Some(identity(1)), Some(token(1)), entity, dir),
            Ok(Start::Resume { ignored: true, .. })
        ));
        let other = decide(Some(identity(1)), Some(token(2)), entity, dir).unwrap_err();
        assert_eq!(other.code, ProblemCode::Conflict);
        let program = decide(Some(identity(1)), None, NodeKind::Sap, dir).unwrap_err();
        assert_eq!(program.code, ProblemCode::Conflict);
    }

    #[test]
    fn host_names_become_valid_names_or_none() {
        let table = [
            ("web-1", Some("web-1")),
            ("Web_1.example.org\n", Some("web-1")),
            ("--x--", Some("x")),
            ("ünï", Some("n")),
            ("...", None),
            ("", None),
        ];
        for (host_name, expected) in table {
            let expected = expected.map(|text| Name::new(text).unwrap());
            assert_eq!(valid_name(host_name), expected, "{host_name}");
        }
        assert_eq!(valid_name(&"a".repeat(99)).unwrap().as_str().len(), Name::MAX_LEN);
    }

    #[test]
    fn credentials_are_fresh_and_only_their_hash_is_sent() {
        let (a, b) = (new_credential(), new_credential());

        assert_ne!(a, b);
        assert_ne!(hash(&a), a);
        assert_ne!(hash(&a), hash(&b));
    }
}
