//! `sap drain` and `undrain`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::views::sap_view;
use super::{Answer, Body, Params, Words};
use crate::api::admin::{Change, ChangeOptions, Sap, Switch};
use crate::control::auth::Admin;
use crate::control::drain::refuse_needed;
use crate::control::publish::Hold;
use crate::control::server::Server;
use crate::control::store::{Done, nodes, to_value};
use crate::policy::Drain;
use crate::types::{EntityName, Name, NodeKind};

pub(super) async fn drain(
    State(server): State<Arc<Server>>,
    admin: Admin,
    Params(options): Params<ChangeOptions>,
    Words(name): Words<Name>,
    Body(switch): Body<Switch>,
) -> Answer<Change<Sap>> {
    admin.everywhere()?;
    let full = EntityName { namespace: Name::default(), name };
    let mut draft = server.begin(&admin, &options).await?;
    let before = nodes::named(draft.conn(), NodeKind::Sap, &full).await?;
    let mut after = before.clone();
    after.drain = match (switch.on, before.drain) {
        (true, Drain::No) => Drain::Leaving,
        (true, far) => far,
        (false, _) => Drain::No,
    };
    if switch.on {
        let world = draft.world().await?;
        refuse_needed(&world, before.id)?;
    }
    let id = before.id;
    let view = sap_view(&server.live(), &after);
    let mut change = if before.drain == after.drain {
        draft.unchanged(view).await?
    } else {
        nodes::set_drain(draft.conn(), id, after.drain).await?;
        let word = if switch.on { "drain" } else { "undrain" };
        let [before, after] =
            [&before, &after].map(|record| sap_view(&server.live(), record).drain);
        let done = Done {
            result: view,
            action: format!("sap {word} {}", full.name),
            before: to_value(&before),
            after: to_value(&after),
        };
        draft.finish(done, Hold::Nobody, Vec::new()).await?
    };
    if let (true, false, Some(wait)) = (switch.on, change.dry_run, options.wait) {
        change.enforcement = server.drained_within(id, wait.0).await;
        let record = nodes::named(&mut *server.store.read().await?, NodeKind::Sap, &full).await?;
        change.result = sap_view(&server.live(), &record);
    }
    Ok(Json(change))
}
