//! Changes that operators make: each one draft, one operation, one answer.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;

use super::views::{entity_view, sap_view};
use super::{Answer, Body, Params, Words};
use crate::api::admin::{
    Change, ChangeOptions, CreatedToken, Entity, KeyRotate, KeyStatus, LabelChange, Overlay,
    OverlayCreate, Sap, Switch, Token, TokenCreate,
};
use crate::api::node::JoinToken;
use crate::api::policy::Namespace;
use crate::control::auth::Admin;
use crate::control::enforce::Touched;
use crate::control::keyset::Keys;
use crate::control::publish::Hold;
use crate::control::rotation;
use crate::control::selection;
use crate::control::server::{Server, now, now_millis};
use crate::control::store::{self, Done, namespaces, nodes, overlays, tokens};
use crate::policy::World;
use crate::types::{EntityName, Name, NodeId, NodeKind};

type Shared = State<Arc<Server>>;
type Options = Params<ChangeOptions>;

pub(super) async fn create_overlay(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<OverlayCreate>,
) -> Answer<Change<Overlay>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let host = &server.settings.host_addresses;
    let done = overlays::create(draft.conn(), &request, host, now()).await?;
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn delete_overlay(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words(name): Words<Name>,
) -> Answer<Change<Overlay>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let done = overlays::delete(draft.conn(), &name).await?;
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn create_token(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<TokenCreate>,
) -> Answer<Change<CreatedToken>> {
    admin.everywhere()?;
    let secret = store::random_secret()?;
    let text = if request.role.joins_as().is_some() {
        let token = JoinToken {
            urls: server.settings.urls.clone(),
            pin: server.settings.pin.clone(),
            secret: secret.clone(),
        };
        token.to_string()
    } else {
        // The pin stays with the client; only the secret is ever sent.
        let pin = server.settings.pin.clone();
        format!("ova1.{}.{}", String::from(secret.clone()), String::from(pin))
    };
    let mut draft = server.begin(&admin, &options).await?;
    let done = tokens::create(draft.conn(), &request, &secret, now()).await?;
    // A dry run makes no token, so that nobody shall try to use its text.
    let text = if options.dry_run == Some(true) { String::new() } else { text };
    let done = map(done, |token| CreatedToken { text, token });
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn revoke_token(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words(id): Words<String>,
) -> Answer<Change<Token>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let done = tokens::revoke(draft.conn(), &id).await?;
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn delete_entity(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words((namespace, name)): Words<(Name, Name)>,
) -> Answer<Change<Entity>> {
    admin.everywhere()?;
    let full = EntityName { namespace, name };
    let mut draft = server.begin(&admin, &options).await?;
    let before = draft.world().await?;
    let done = nodes::delete_named(draft.conn(), NodeKind::Entity, &full, now()).await?;
    let touched = around(&before, done.result.id);
    let done = map(done, |record| entity_view(&server.live(), &record));
    Ok(Json(draft.finish(done, Hold::Nobody, touched).await?))
}

pub(super) async fn change_labels(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words((namespace, name)): Words<(Name, Name)>,
    Body(change): Body<LabelChange>,
) -> Answer<Change<Entity>> {
    admin.everywhere()?;
    let full = EntityName { namespace, name };
    let mut draft = server.begin(&admin, &options).await?;
    let done = nodes::change_labels(draft.conn(), &full, &change).await?;
    let after = draft.world().await?;
    let touched = around(&after, done.result.id);
    let done = map(done, |record| entity_view(&server.live(), &record));
    // It may take rights away as well as give some: nobody waits.
    Ok(Json(draft.finish(done, Hold::Nobody, touched).await?))
}

pub(super) async fn delete_sap(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words(name): Words<Name>,
) -> Answer<Change<Sap>> {
    admin.everywhere()?;
    let full = EntityName { namespace: Name::default(), name };
    let mut draft = server.begin(&admin, &options).await?;
    let done = nodes::delete_named(draft.conn(), NodeKind::Sap, &full, now()).await?;
    let done = map(done, |record| sap_view(&server.live(), &record));
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn quarantine(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words((namespace, name)): Words<(Name, Name)>,
    Body(switch): Body<Switch>,
) -> Answer<Change<Entity>> {
    admin.everywhere()?;
    let full = EntityName { namespace, name };
    let mut draft = server.begin(&admin, &options).await?;
    // Quarantine is for emergencies: no test of a policy stands in its way.
    draft.guards_tests = false;
    let done = nodes::set_quarantine(draft.conn(), &full, switch.on).await?;
    let after = draft.world().await?;
    let touched = around(&after, done.result.id);
    let done = map(done, |record| entity_view(&server.live(), &record));
    Ok(Json(draft.finish(done, Hold::Nobody, touched).await?))
}

pub(super) async fn audit_overlay(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words(name): Words<Name>,
    Body(switch): Body<Switch>,
) -> Answer<Change<Overlay>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    // Tests are of the policy, and audit mode passes what it refuses.
    draft.guards_tests = false;
    let done = overlays::set_audit(draft.conn(), &name, switch.on).await?;
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn label_namespace(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Words(name): Words<Name>,
    Body(change): Body<LabelChange>,
) -> Answer<Change<Namespace>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let before = draft.world().await?;
    let done = namespaces::change_labels(draft.conn(), &before, &name, &change).await?;
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

pub(super) async fn rotate_keys(
    State(server): Shared,
    admin: Admin,
    Params(options): Options,
    Body(request): Body<KeyRotate>,
) -> Answer<Change<Vec<KeyStatus>>> {
    admin.everywhere()?;
    let mut draft = server.begin(&admin, &options).await?;
    let world = draft.world().await?;
    let keys = Keys::load(draft.conn()).await?;
    let changed = rotation::start(draft.conn(), &world, &keys, &request, now_millis()).await?;
    let statuses = {
        let live = server.live();
        let id = |row: &store::keys::RingRow| (row.overlay, row.source, row.destination);
        changed.iter().map(|row| rotation::status(&live, id(row), row)).collect()
    };
    let done = Done {
        result: statuses,
        action: rotation_text(&request),
        before: serde_json::Value::Null,
        after: store::to_value(&request),
    };
    Ok(Json(draft.finish(done, Hold::Nobody, Vec::new()).await?))
}

/// A rotation as it was typed.
fn rotation_text(request: &KeyRotate) -> String {
    let mut text = "key rotate".to_owned();
    for name in [&request.from, &request.to].into_iter().flatten() {
        text.push_str(&format!(" {name}"));
    }
    if let Some(overlay) = &request.overlay {
        text.push_str(&format!(" --overlay {overlay}"));
    }
    for (is_set, word) in [(request.all, " --all"), (request.now, " --now")] {
        text.push_str(if is_set { word } else { "" });
    }
    text
}

/// The same operation with another result.
fn map<T, U>(done: Done<T>, change: impl FnOnce(T) -> U) -> Done<U> {
    Done {
        result: change(done.result),
        action: done.action,
        before: done.before,
        after: done.after,
    }
}

/// All pairs of an entity.
fn around(world: &World, id: NodeId) -> Vec<Touched> {
    let overlays = world.nodes.get(&id).map(|node| node.addresses.keys().copied());
    overlays
        .into_iter()
        .flatten()
        .map(|overlay| {
            let mut others =
                selection::selected(world, overlay, &crate::policy::BoundSelector::Any);
            others.remove(&id);
            // Quarantine is not for the entity's own guard to enforce.
            let outside = BTreeSet::new();
            Touched { overlay, from: BTreeSet::from([id]), to: others, both: true, outside }
        })
        .collect()
}
