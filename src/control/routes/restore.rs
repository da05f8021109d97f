//! `restore --accept`: nodes may follow this life of the server.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::{Answer, Params};
use crate::api::admin::{Change, ChangeOptions};
use crate::api::backup::Acceptance;
use crate::control::auth::Admin;
use crate::control::live::NodeState;
use crate::control::publish::{Hold, Published};
use crate::control::server::Server;
use crate::control::store::{Done, lives, to_value};
use crate::control::{enforce, rotation};
use crate::types::Incarnation;

pub(super) async fn accept(
    State(server): State<Arc<Server>>,
    admin: Admin,
    Params(options): Params<ChangeOptions>,
) -> Answer<Change<Acceptance>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let before = lives::read(draft.conn()).await?;
    let (kept, seen): (Vec<String>, BTreeSet<Incarnation>) = {
        let live = server.live();
        let keepers = live.keepers().map(|(id, keeps)| {
            (rotation::name_of(&live.world, id).to_string(), keeps.incarnation.clone())
        });
        keepers.unzip()
    };
    let result = Acceptance { kept };
    if !before.waits && seen.is_empty() {
        return Ok(Json(draft.unchanged(result).await?));
    }
    lives::accept(draft.conn(), &seen).await?;
    let done = Done {
        before: to_value(&before.accepted),
        after: to_value(&lives::read(draft.conn()).await?.accepted),
        action: "restore accept".to_owned(),
        result,
    };
    let mut change = draft.finish(done, Hold::Nobody, Vec::new()).await?;
    if let (false, Some(wait)) = (change.dry_run, options.wait) {
        let connected: Published = {
            let live = server.live();
            let online = live.nodes.iter().filter(|(_, node)| node.is_online());
            online.map(|(id, node)| (*id, NodeState::newest_serial(node))).collect()
        };
        change.enforcement = enforce::wait(&server, &connected, &[], Some(wait.0)).await;
    }
    Ok(Json(change))
}
