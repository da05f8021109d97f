//! What nodes say to the server: joining, pulling tables, reporting.
//!
//! | request | who | answer |
//! |---|---|---|
//! | `POST /v1/join/check` [`JoinCheck`] | holder of a token | [`JoinPreview`]; consumes nothing |
//! | `POST /v1/join` [`JoinRequest`] | holder of a token | [`JoinAnswer`]; consumes the token |
//! | `GET /v1/node/table?after=SERIAL&incarnation=I` | node | [`super::table::NodeTable`], or 204 after [`POLL_SECS`]; 409 when it keeps a table (below) |
//! | `POST /v1/node/report` [`NodeReport`] | node | 204 |
//! | `POST /v1/node/leave` | node | 204 |
//!
//! A node authenticates with `Authorization: Bearer CREDENTIAL`. Asking for what comes after a
//! serial says that this serial is applied and persisted: it is the acknowledgement.
//!
//! A node that was offered a table of another incarnation, which does not succeed its own, says so with
//! `&refused=I&revision=R` (the revision that it keeps) and waits for an operator's word: it gets a table when
//! that has fallen, 409 when its time is over.
//!
//! A process says with each request which one it is ([`INSTANCE_HEADER`]). Of two that are there at the same
//! time one is a copy: it gets 409 ([`USED_TWICE`]).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use super::{Problem, ProblemCode};
use crate::types::{
    ApiVersion, EntityName, Incarnation, Name, NodeId, NodeKind, OverlayId, Prefix, Secret,
};

/// How long the server holds a request for a table open, in seconds. Below the 60 s after which many
/// proxies and load balancers close an idle connection.
pub const POLL_SECS: u64 = 50;

/// The header by which a process says which of its node's it is: a [`crate::types::Instance`].
pub const INSTANCE_HEADER: &str = "ovmesh-instance";

/// In the problem (409) for a process whose node is spoken for by another one that is there.
pub const USED_TWICE: &str = "is used twice";

/// A join token: `ovt1.` and the base64url (no padding) of this as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinToken {
    /// Where the server can be reached, `https://HOST:PORT`, best first.
    pub urls: Vec<String>,
    /// SHA-256 of the server certificate's SubjectPublicKeyInfo.
    pub pin: Secret,
    /// The secret that entitles to join; the server keeps only its hash.
    pub secret: Secret,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        write!(f, "{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(json))
    }
}

impl FromStr for JoinToken {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let malformed = |why: &str| {
            Problem::new(ProblemCode::Usage, "the join token is malformed")
                .why(why)
                .fix("copy the whole line that `ovctl token create` printed")
        };
        let encoded = text
            .trim()
            .strip_prefix(TOKEN_PREFIX)
            .ok_or_else(|| malformed("it does not start with `ovt1.`"))?;
        if encoded.len() > TOKEN_MAX_LEN {
            return Err(malformed("it is too long"));
        }
        let json = URL_SAFE_NO_PAD
            .decode(encoded)
            .map_err(|_| malformed("it has a character that tokens do not have, or was cut"))?;
        let token: Self =
            serde_json::from_slice(&json).map_err(|_| malformed("it was cut or changed"))?;
        if token.urls.is_empty() || !token.urls.iter().all(|url| url.starts_with("https://")) {
            return Err(malformed("it names no https:// address of a server"));
        }
        Ok(token)
    }
}

/// How every join token starts.
const TOKEN_PREFIX: &str = "ovt1.";

/// Longest encoded part that is looked at: room for a dozen URLs.
const TOKEN_MAX_LEN: usize = 8192;

/// Asks what a token is good for, without using it up.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinCheck {
    /// From the token.
    pub secret: Secret,
    /// What wants to join.
    pub kind: NodeKind,
}

/// What a token is good for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinPreview {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The overlays that would be joined; the joiner compares them with its own routes first.
    pub overlays: Vec<OverlayFacts>,
    /// The name that the token gives, if any.
    pub name: Option<Name>,
    /// Whether the token was made with `--clear-underlay`.
    pub clear_underlay: bool,
    /// Whether the token joins more than one node.
    #[serde(default)]
    pub reusable: bool,
}

/// The facts of an overlay that a joiner checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OverlayFacts {
    /// The overlay.
    pub id: OverlayId,
    /// Its name.
    pub name: Name,
    /// Its range.
    pub cidr: Prefix,
}

/// Joins. There is no field for namespace or labels on purpose: they come from the token alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JoinRequest {
    /// From the token.
    pub secret: Secret,
    /// What joins.
    pub kind: NodeKind,
    /// The wanted name; the token's name, if it has one, must agree.
    pub name: Option<Name>,
    /// The host name, made a valid name, for when neither the joiner nor the token says one.
    pub host_name: Option<Name>,
    /// Where this node receives data packets.
    pub endpoints: Vec<SocketAddr>,
    /// SHA-256 of the credential that the node made for itself. The server never sees the
    /// credential before its first use, and a lost answer can be repeated.
    pub credential_hash: Secret,
}

/// The outcome of joining.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JoinAnswer {
    /// Always `ovmesh/v1`.
    pub api_version: ApiVersion,
    /// The new id.
    pub id: NodeId,
    /// The full name.
    pub name: EntityName,
    /// The life of the server's database.
    pub incarnation: Incarnation,
    /// The addresses, one per overlay; empty for a SaP.
    pub memberships: Vec<Membership>,
}

/// One membership.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Membership {
    /// The overlay.
    pub overlay: Name,
    /// The address in it.
    pub address: IpAddr,
}

/// What a node tells the server when it changes, and every 30 s.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeReport {
    /// Program version.
    pub version: String,
    /// Where it receives data packets now; a change moves the endpoint in everybody's table.
    pub endpoints: Vec<SocketAddr>,
    /// What keeps it from doing its work, each a line for people.
    pub problems: Vec<String>,
    /// Round trips to SaPs, in microseconds.
    pub round_trips: Vec<RoundTrip>,
    /// Pairs that saw too many wrong keys since the last report: somebody guesses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guessed: Vec<Guessed>,
    /// At a SaP: entities that it hears from another address than those they say: somebody translates.
    #[serde(default)]
    pub translated: Vec<Translated>,
    /// At an entity: the overlays whose rules about addresses outside its guard holds it to.
    #[serde(default)]
    pub holds_egress: BTreeSet<OverlayId>,
}

/// A pair whose key somebody guesses at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Guessed {
    /// The overlay.
    pub overlay: OverlayId,
    /// The entity in whose name the packets came.
    pub from: NodeId,
    /// The entity that they were for.
    pub to: NodeId,
}

/// An entity behind a NAT, as a SaP sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Translated {
    /// The entity.
    pub entity: NodeId,
    /// Where its messages come from.
    pub from: SocketAddr,
}

/// A measured round trip to one SaP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RoundTrip {
    /// The SaP.
    pub sap: NodeId,
    /// Smoothed, in microseconds; none while it does not answer.
    pub micros: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_malformed_ones_say_so() {
        let token = JoinToken {
            urls: vec!["https://192.0.2.1:7443".to_owned()],
            pin: Secret::new([1; 32]),
            secret: Secret::new([2; 32]),
        };
        let text = token.to_string();

        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        for bad in ["", "ovt1.", "ovt2.abc", "ovt1.***", &text[..text.len() - 9], &text[5..]] {
            let problem = bad.parse::<JoinToken>().unwrap_err();
            assert_eq!(problem.code, ProblemCode::Usage, "{bad}");
            assert!(!problem.why.is_empty() && !problem.fix.is_empty());
        }
    }
}
