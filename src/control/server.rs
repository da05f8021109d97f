//! The server's heart: one change at a time, from transaction to tables.

use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};

use super::auth::Admin;
use super::enforce::{self, Touched};
use super::errands::Errands;
use super::flows::Inbox;
use super::listen::Way;
use super::live::Live;
use super::publish::Hold;
use super::risk;
use super::store::changes::Changes;
use super::store::policies::Policies;
use super::store::{self, Done, Store};
use crate::api::admin::{Change, ChangeOptions, Enforcement};
use crate::api::{Problem, ProblemCode};
use crate::policy::World;
use crate::types::{ApiVersion, Incarnation, NodeId, Revision, Secret, Timestamp};

/// Longest that a change may ask to wait, so that a client cannot park connections.
const WAIT_MAX: Duration = Duration::from_secs(300);

/// What the server is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long an old key is accepted after its last sender has the new one.
    pub key_grace: Duration,
    /// How often keys rotate by themselves.
    pub key_interval: Duration,
    /// How long an ephemeral node may be away before it is deleted.
    pub ephemeral_rest: Duration,
    /// How long flow records are kept.
    pub flow_keep: Duration,
    /// The URLs that tokens carry.
    pub urls: Vec<String>,
    /// The pin that tokens carry.
    pub pin: Secret,
    /// The host's own addresses: no overlay may cover them.
    pub host_addresses: Vec<IpAddr>,
}

#[cfg(test)]
impl Settings {
    /// Those of a server that tests start.
    pub(crate) fn of_tests() -> Self {
        Self {
            key_grace: Duration::from_secs(1),
            key_interval: Duration::from_secs(86_400),
            ephemeral_rest: Duration::from_secs(300),
            flow_keep: Duration::from_secs(86_400),
            urls: vec!["https://192.0.2.1:7443".to_owned()],
            pin: Secret::new([5; 32]),
            host_addresses: Vec::new(),
        }
    }
}

/// The coordination server without its listeners.
#[derive(Debug)]
pub struct Server {
    pub(crate) store: Store,
    pub(crate) settings: Settings,
    pub(crate) incarnation: Incarnation,
    pub(crate) started: Timestamp,
    live: Mutex<Live>,
    flows: Mutex<Inbox>,
    errands: Mutex<Errands>,
    /// Held while a live test runs: one at a time.
    pub(crate) tracing: AsyncMutex<()>,
    /// Held from a change's begin until its tables are published.
    pub(crate) gate: Arc<AsyncMutex<()>>,
    /// Something is committed that no table says yet. A client that goes away takes its request's
    /// future along, also between the two; then `driver` publishes.
    pub(crate) is_stale: AtomicBool,
    /// Counts acknowledgements and publications; whoever waits for one looks again.
    pub(crate) ticks: watch::Sender<u64>,
    /// True when the server stops: polls end.
    pub(crate) stopping: watch::Sender<bool>,
}

impl Server {
    /// Opens the database in `data_dir`, makes what a first start makes, and compiles all tables.
    ///
    /// # Errors
    ///
    /// When the database cannot be used.
    pub async fn open(data_dir: &Path, settings: Settings) -> Result<Arc<Self>, Problem> {
        let path = data_dir.join("server.db");
        super::files::ensure_private_file(&path)?;
        let store = Store::open(&path).await?;
        let mut transaction = store.write().await?;
        store::initialise(&mut transaction, &settings.host_addresses, now()).await?;
        let incarnation = store::incarnation(&mut transaction).await?;
        transaction.commit().await?;
        let server = Arc::new(Self {
            store,
            settings,
            incarnation,
            started: now(),
            live: Mutex::default(),
            flows: Mutex::default(),
            errands: Mutex::default(),
            tracing: AsyncMutex::default(),
            gate: Arc::default(),
            is_stale: AtomicBool::new(false),
            ticks: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
        });
        server.restore_serials().await?;
        let gate = Arc::clone(&server.gate).lock_owned().await;
        server.publish(Hold::Nobody).await?;
        drop(gate);
        Ok(server)
    }

    /// What is in memory. Never hold it across an await.
    pub(crate) fn live(&self) -> MutexGuard<'_, Live> {
        // A panic while it was held left whole values behind: each writer assigns them at the end.
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What nodes reported and the database does not have yet. Never hold it across an await.
    pub(crate) fn flows(&self) -> MutexGuard<'_, Inbox> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What nodes were asked to do. Never hold it across an await.
    pub(crate) fn errands(&self) -> MutexGuard<'_, Errands> {
        self.errands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down what nodes reported.
    pub(crate) async fn save_flows(&self) -> Result<(), Problem> {
        if self.flows().is_empty() {
            return Ok(());
        }
        let mut transaction = self.store.write().await?;
        let (rows, hits) = self.flows().empty();
        store::flows::add(&mut transaction, &rows, &hits).await?;
        Ok(transaction.commit().await?)
    }

    /// Forgets old flow records, and what is over their bounds.
    pub(crate) async fn tidy_flows(&self) -> Result<(), Problem> {
        let mut transaction = self.store.write().await?;
        let keep = self.settings.flow_keep;
        let evicted = store::flows::tidy(&mut transaction, keep, now()).await?;
        transaction.commit().await?;
        self.flows().evicted += evicted;
        Ok(())
    }

    /// Says that something happened that others may wait for.
    pub(crate) fn tick(&self) {
        self.ticks.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Ends polls; listeners are stopped by their owner.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
        self.tick();
    }

    /// Writes everything back and closes the database.
    pub async fn close(&self) {
        if let Err(problem) = self.save_acknowledgements().await {
            tracing::warn!(%problem, "acknowledgements were not saved; nodes will repeat them");
        }
        if let Err(problem) = self.save_flows().await {
            tracing::warn!(%problem, "the last flow records were not saved");
        }
        self.store.close().await;
    }

    /// Commits what tables must say next.
    pub(crate) async fn commit(&self, transaction: store::WriteTransaction) -> Result<(), Problem> {
        self.is_stale.store(true, Ordering::Release);
        Ok(transaction.commit().await?)
    }

    /// Begins an operator's change.
    ///
    /// # Errors
    ///
    /// `Conflict` when `if_revision` is not the newest one.
    pub(crate) async fn begin(
        self: &Arc<Self>,
        admin: &Admin,
        options: &ChangeOptions,
    ) -> Result<Draft, Problem> {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let mut transaction = self.store.write().await?;
        let newest = store::revision(&mut transaction).await?;
        if let Some(wanted) = options.if_revision
            && wanted != newest
        {
            return Err(Problem::new(
                ProblemCode::Conflict,
                format!("the policy is at revision {newest}, not {wanted}"),
            )
            .why("somebody changed it since you looked; nothing was changed")
            .fix("look at it (ovctl policy list) and try again with the newest revision"));
        }
        let revision = store::next_revision(&mut transaction).await?;
        Ok(Draft {
            server: Arc::clone(self),
            transaction,
            gate,
            actor: admin.actor.clone(),
            way: admin.way,
            guards_tests: true,
            options: options.clone(),
            newest,
            revision,
        })
    }
}

/// A change under way: its transaction, and the gate that keeps others out. Dropping it changes nothing.
#[derive(Debug)]
pub(crate) struct Draft {
    server: Arc<Server>,
    transaction: store::WriteTransaction,
    gate: OwnedMutexGuard<()>,
    /// Who changes.
    pub(crate) actor: String,
    /// The connection that it asks by.
    way: Option<Way>,
    /// Whether tests of policies that hold must hold afterwards.
    pub(crate) guards_tests: bool,
    options: ChangeOptions,
    /// The revision before this change.
    pub(crate) newest: Revision,
    /// The revision that this change makes.
    pub(crate) revision: Revision,
}

impl Draft {
    /// The connection to change things on.
    pub(crate) fn conn(&mut self) -> &mut store::Connection {
        &mut self.transaction
    }

    /// The world, with what this change did so far, and the policies in it.
    pub(crate) async fn intent(&mut self) -> Result<(World, Policies), Problem> {
        let known = {
            let live = self.server.live();
            let is_whole = live.source.is_some();
            is_whole.then(|| (Arc::clone(&live.world), Arc::clone(&live.policies)))
        };
        // What was committed and is not published yet is among what is pending.
        let (world, policies, changes) = match known {
            Some((world, policies)) => {
                (world, policies, store::changes::pending(&mut self.transaction).await?)
            }
            None => (Arc::default(), Arc::default(), Changes::All),
        };
        store::world::load_changed(&mut self.transaction, (&world, &policies), &changes).await
    }

    /// Refuses a direct path to or from an entity that sits behind a NAT.
    ///
    /// # Errors
    ///
    /// Which one does.
    pub(crate) fn refuse_translated(
        &self,
        entities: impl IntoIterator<Item = NodeId>,
    ) -> Result<(), Problem> {
        self.server.live().refuse_translated(entities)
    }

    /// As [`Self::intent`], the world alone.
    pub(crate) async fn world(&mut self) -> Result<World, Problem> {
        Ok(self.intent().await?.0)
    }

    /// Changes nothing, because nothing has to be changed.
    pub(crate) async fn unchanged<T>(self, result: T) -> Result<Change<T>, Problem> {
        let dry_run = self.options.dry_run == Some(true);
        self.undone(result, dry_run).await
    }

    async fn undone<T>(self, result: T, dry_run: bool) -> Result<Change<T>, Problem> {
        self.transaction.rollback().await?;
        Ok(Change {
            api_version: ApiVersion::V1,
            revision: self.newest,
            dry_run,
            result,
            enforcement: Enforcement { enforced: true, ..Enforcement::default() },
        })
    }

    /// Refuses a change that cuts the way of who asks, or breaks tests that hold.
    async fn refuse_risks(&mut self) -> Result<(), Problem> {
        let before = Arc::clone(&self.server.live().world);
        let way = self.way.filter(|_| self.options.accept_risk != Some(true));
        let concerned = way.and_then(|way| risk::road(&before, way));
        let policies = if self.guards_tests {
            store::policies::with_tests(&mut self.transaction).await?
        } else {
            Vec::new()
        };
        if concerned.is_none() && policies.is_empty() {
            return Ok(());
        }
        let after = self.world().await?;
        if let Some(road) = &concerned {
            risk::refuse_cut(&before, &after, road, now())?;
        }
        for (overlay, tests) in &policies {
            risk::refuse_broken(&before, &after, *overlay, tests, now())?;
        }
        Ok(())
    }

    /// Commits (or, for a dry run, undoes) the change, publishes tables, waits as asked.
    pub(crate) async fn finish<T>(
        mut self,
        done: Done<T>,
        hold: Hold,
        touched: Vec<Touched>,
    ) -> Result<Change<T>, Problem> {
        self.refuse_risks().await?;
        if self.options.dry_run == Some(true) {
            return self.undone(done.result, true).await;
        }
        store::audit::record(&mut self.transaction, self.revision, now(), &self.actor, &done)
            .await?;
        self.server.commit(self.transaction).await?;
        tracing::info!(revision = self.revision.0, actor = %self.actor, action = %done.action, "changed");
        let published = self.server.publish(hold).await.map_err(|problem| Problem {
            what: format!(
                "committed as revision {}; not yet enforced: {}",
                self.revision, problem.what
            ),
            ..problem
        })?;
        drop(self.gate);
        let wait = self.options.wait.map(|wait| wait.0.min(WAIT_MAX));
        let enforcement = enforce::wait(&self.server, &published, &touched, wait).await;
        Ok(Change {
            api_version: ApiVersion::V1,
            revision: self.revision,
            dry_run: false,
            result: done.result,
            enforcement,
        })
    }
}

/// The wall clock, in whole seconds.
pub(crate) fn now() -> Timestamp {
    Timestamp(now_millis() / 1000)
}

/// The wall clock, in milliseconds since 1970.
pub(crate) fn now_millis() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}
