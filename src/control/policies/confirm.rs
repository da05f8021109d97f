//! Changes that undo themselves: live at once, and taken back at their deadline unless confirmed. The
//! deadline is in the database, so a server that restarts keeps it.

use std::sync::Arc;

use super::{Policies, PolicyDraft, plan::Plan};
use crate::api::admin::ChangeOptions;
use crate::api::policy::Unconfirmed;
use crate::api::{Problem, ProblemCode};
use crate::control::auth::Admin;
use crate::control::routes::Refusal;
use crate::control::selection;
use crate::control::server::{Server, now};
use crate::control::store::{self, Done, confirmations, policies, to_value};
use crate::policy::World;
use crate::types::{OverlayId, Revision};

/// The changes that wait, for people.
pub(crate) async fn pending(
    conn: &mut store::Connection,
    world: &World,
) -> Result<Vec<Unconfirmed>, Problem> {
    let rows = confirmations::all(conn).await?;
    let shown = |row: confirmations::Row| Unconfirmed {
        overlay: selection::overlay_name(world, row.overlay),
        revision: row.revision,
        deadline: row.deadline,
        actor: row.actor,
    };
    Ok(rows.into_iter().map(shown).collect())
}

/// Refuses to change a policy whose last change waits to be confirmed.
pub(crate) async fn refuse_pending(
    conn: &mut store::Connection,
    world: &World,
    overlay: OverlayId,
) -> Result<(), Problem> {
    let rows = confirmations::all(conn).await?;
    let Some(row) = rows.into_iter().find(|row| row.overlay == overlay) else { return Ok(()) };
    let name = selection::overlay_name(world, overlay);
    let what = format!("the policy of the overlay {name} waits to be confirmed");
    Err(Problem::new(ProblemCode::Conflict, what)
        .why(format!(
            "revision {} by {} is undone at {} unless it is confirmed",
            row.revision, row.actor, row.deadline
        ))
        .fix(format!(
            "ovctl policy confirm --overlay {name}, or ovctl policy rollback {} --overlay {name}",
            row.revision.0.saturating_sub(1)
        )))
}

/// Why there is nothing to confirm.
pub(crate) fn nothing_waits() -> Problem {
    Problem::new(ProblemCode::NotFound, "no change waits to be confirmed")
        .why("none was made with --confirm-within, or its time is over and it was undone")
        .fix("ovctl policy history")
}

/// Keeps the change that waits in `overlay`.
///
/// # Errors
///
/// `NotFound` when none waits.
pub(crate) async fn confirm(
    server: &Arc<Server>,
    admin: &Admin,
    overlay: OverlayId,
) -> Result<Revision, Refusal> {
    let gate = Arc::clone(&server.gate).lock_owned().await;
    let mut transaction = server.store.write().await?;
    let rows = confirmations::all(&mut transaction).await?;
    let found = rows.into_iter().find(|row| row.overlay == overlay).ok_or_else(nothing_waits)?;
    if found.actor != admin.actor {
        admin.everywhere()?;
    }
    confirmations::forget(&mut transaction, overlay).await?;
    let done = Done {
        result: (),
        action: format!("policy confirm {}", found.revision),
        before: serde_json::Value::Null,
        after: serde_json::Value::Null,
    };
    let revision = store::revision(&mut transaction).await?;
    store::audit::record(&mut transaction, revision, now(), &admin.actor, &done).await?;
    transaction.commit().await?;
    drop(gate);
    Ok(found.revision)
}

/// The overlays whose change was not confirmed in time.
pub(crate) async fn expired(server: &Server) -> Result<Vec<OverlayId>, Problem> {
    let at = now();
    let rows = confirmations::all(&mut *server.store.read().await?).await?;
    Ok(rows.into_iter().filter(|row| row.deadline <= at).map(|row| row.overlay).collect())
}

/// Takes back the change that was not confirmed in `overlay`.
pub(crate) async fn roll_back_expired(
    server: &Arc<Server>,
    overlay: OverlayId,
) -> Result<(), Refusal> {
    let admin = Admin::itself("confirmation timer");
    let mut change = PolicyDraft::begin(server, admin, &ChangeOptions::default()).await?;
    let rows = confirmations::all(change.draft.conn()).await?;
    // It may have been confirmed while we waited for our turn.
    let Some(row) = rows.into_iter().find(|row| row.overlay == overlay && row.deadline <= now())
    else {
        return Ok(());
    };
    confirmations::forget(change.draft.conn(), overlay).await?;
    let target = Revision(row.revision.0.saturating_sub(1));
    let newest = change.draft.newest;
    let mut policy = policies::as_of(change.draft.conn(), overlay, newest, target).await?;
    Plan::keep_bindings(&change.world, &change.policy(overlay), &mut policy);
    // Whatever it was before must come back, also when a SaP of one of its paths is gone.
    change.is_forced = true;
    change.draft.guards_tests = false;
    let action = format!("policy rollback {target} (revision {} was not confirmed)", row.revision);
    tracing::warn!(%action, "a change of policy was not confirmed and is undone");
    let before = to_value(&row.revision);
    let done = Done { result: (), action, before, after: to_value(&target) };
    change
        .finish(Policies::from([(overlay, policy)]), &std::collections::BTreeMap::new(), |_| done)
        .await?;
    Ok(())
}
