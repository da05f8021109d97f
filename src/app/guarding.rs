//! Keeps the guard of this machine as tables say, and as its operator orders.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::outside;
use crate::agent::health::{Health, Topic};
use crate::api::local::{GuardRule, GuardStatus, Order};
use crate::api::table::{NodeTable, OverlayTable};
use crate::guard::{self, Condition, Egress, Intent, Member, Services, Sockets, Table};
use crate::sys::SysError;
use crate::sys::clock;
use crate::sys::net::Network;
use crate::types::{GuardEgress, GuardMode, OverlayId, Service, Tier, Timestamp};

/// How often it is asked whether somebody touched the guard: half of what it may be away for.
pub(crate) const KEEP_EVERY: Duration = Duration::from_millis(500);

/// How many endpoints are asked which interface leads to them.
const ASKED_MAX: usize = 16;

/// What the operator of this machine decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuardSettings {
    pub(crate) mode: GuardMode,
    /// None: as [`outside::judged`] has it.
    pub(crate) egress: Option<GuardEgress>,
    pub(crate) lock_ssh: bool,
    /// Where others ask for the health of programs.
    pub(crate) health_port: Option<u16>,
}

/// The guard as the tasks of a node share it.
#[derive(Debug, Default)]
pub(crate) struct SharedGuard {
    table: tokio::sync::Mutex<Table>,
    status: Mutex<Option<GuardStatus>>,
    /// The overlays whose rules about addresses outside are in force.
    judged: Mutex<BTreeSet<OverlayId>>,
    is_broken: AtomicBool,
    put_back: AtomicU64,
}

impl SharedGuard {
    /// What `status` shows; rules are counted when it is asked.
    pub(crate) fn status(&self) -> Option<GuardStatus> {
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        status.put_back = self.put_back.load(Ordering::Relaxed);
        status.in_force = status.in_force && self.holds();
        if status.in_force {
            // A status without counts is better than none; what is wrong is a problem of its own.
            status.rules = guard::counts().unwrap_or_default().into_iter().map(shown).collect();
        }
        Some(status)
    }

    /// The overlays whose rules about addresses outside what leaves is held to.
    pub(crate) fn holds_egress(&self) -> BTreeSet<OverlayId> {
        let judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        if self.holds() { judged.clone() } else { BTreeSet::new() }
    }

    /// Whether packets of overlays may flow: the guard is in force, or is not wanted.
    pub(crate) fn holds(&self) -> bool {
        !self.is_broken.load(Ordering::Relaxed)
    }

    /// Puts the guard back whenever somebody touched it, for ever. By itself, because nothing that a node
    /// may wait for (a server's name, a device) may hold it up.
    pub(crate) async fn watch(&self, health: &Health) {
        loop {
            tokio::time::sleep(KEEP_EVERY).await;
            match self.table.lock().await.keep().await {
                Ok(Condition::Whole) => {}
                Ok(Condition::PutBack) => {
                    self.put_back.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("somebody changed or removed the table inet ovmesh; it is back");
                }
                // Following it again is the way to mend it.
                Err(error) => {
                    self.is_broken.store(true, Ordering::Relaxed);
                    health.set(Topic::Guard, vec![format!("guard: {error}")]);
                }
            }
        }
    }
}

fn shown(count: guard::Count) -> GuardRule {
    let guard::Count { rule, packets, bytes } = count;
    let (name, about) = (rule.name().to_owned(), rule.explanation().to_owned());
    GuardRule { name, packets, bytes, about }
}

/// The guard of this process's machine.
#[derive(Debug)]
pub(crate) struct Guarding {
    settings: GuardSettings,
    data_port: u16,
    network: Network,
    shared: Arc<SharedGuard>,
    /// What was there when the guard came; looked at once, because later there is only what it let in.
    sockets: Option<Sockets>,
    /// When something that may leave may not any more.
    next_end: Option<Timestamp>,
    ordered_off: Option<Off>,
}

/// For how long the operator wants no guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Off {
    Until(Timestamp),
    UntilOrdered,
}

impl Guarding {
    pub(crate) fn new(
        settings: GuardSettings,
        data_port: u16,
        network: Network,
        shared: Arc<SharedGuard>,
    ) -> Self {
        Self {
            settings,
            data_port,
            network,
            shared,
            sockets: None,
            next_end: None,
            ordered_off: None,
        }
    }

    /// Whether packets of overlays may flow.
    pub(crate) fn holds(&self) -> bool {
        self.shared.holds()
    }

    /// Whether it is to be followed now: it is broken, the time without it is over, or a rule has ended.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = clock::wall();
        if let Some(Off::Until(until)) = self.ordered_off
            && until <= now
        {
            self.order(Order::GuardOn);
            return true;
        }
        !self.holds() || self.next_end.is_some_and(|end| end <= now)
    }

    /// Makes the guard what `table` asks for; without one it knows no overlay yet. `devices` are the names
    /// that overlays have or will have.
    pub(crate) async fn follow(
        &mut self,
        table: Option<&NodeTable>,
        devices: &BTreeMap<OverlayId, String>,
        servers: &[SocketAddr],
        health: &Health,
    ) {
        let mode = if self.ordered_off.is_some() { GuardMode::Off } else { self.settings.mode };
        let judged = outside::judged(table, self.settings.egress);
        let egress = self.egress(&judged);
        let (let_out, next_end) = match egress {
            GuardEgress::Off => (None, None),
            GuardEgress::Rules => {
                let now = clock::wall();
                let let_out = outside::egress(table, &judged, servers, now);
                (Some(let_out), outside::next_end(&judged, now))
            }
        };
        self.next_end = next_end;
        let intent = self.intent(mode, table, devices, servers, let_out).await;
        let held_egress = self.shared.holds_egress();
        let mut kept = self.shared.table.lock().await;
        let done = match mode {
            // One of an earlier start, or one that was ordered away just now.
            GuardMode::Off => match kept.remove().await {
                Err(error) if guard::is_missing(&error) => Ok(()),
                removed => removed,
            },
            GuardMode::Ports | GuardMode::All => {
                kept.put(guard::render(&guard::rules(&intent))).await
            }
        };
        let in_force = kept.is_kept();
        drop(kept);
        self.shared.is_broken.store(done.is_err(), Ordering::Relaxed);
        health.set(Topic::Guard, self.problems(done.err().as_ref()));
        let status = GuardStatus {
            mode: self.settings.mode,
            egress,
            in_force,
            underlay_open: is_open(mode, &intent),
            off_until: match self.ordered_off {
                Some(Off::Until(until)) => Some(until),
                Some(Off::UntilOrdered) | None => None,
            },
            services: intent.services.iter().collect(),
            ssh_peers: intent.ssh_peers,
            put_back: 0,
            rules: Vec::new(),
        };
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        *self.shared.judged.lock().unwrap_or_else(PoisonError::into_inner) = match in_force {
            true => judged.iter().map(|overlay| overlay.id).collect(),
            false => BTreeSet::new(),
        };
        if self.shared.holds_egress() != held_egress {
            health.poke();
        }
    }

    /// Notes an order; [`Self::follow`] carries it out.
    pub(crate) fn order(&mut self, order: Order) {
        self.ordered_off = match order {
            Order::GuardOff(Some(time)) => {
                Some(Off::Until(Timestamp(clock::wall().0.saturating_add(time.0.as_secs()))))
            }
            Order::GuardOff(None) => Some(Off::UntilOrdered),
            Order::GuardOn => None,
            Order::Down => return,
        };
        // What came in meanwhile is older than the guard that comes back.
        self.sockets = None;
        tracing::warn!(?order, "the operator of this machine ordered the guard");
    }

    /// In the reports, too: the server's operators see what the operator of this machine ordered.
    fn problems(&self, error: Option<&SysError>) -> Vec<String> {
        let by_order =
            |until: String| format!("guard: off until {until}, by order on this machine");
        let ordered = self.ordered_off.map(|off| match off {
            Off::Until(until) => by_order(until.to_string()),
            Off::UntilOrdered => by_order("`ovd guard on`".to_owned()),
        });
        error.map(|error| format!("guard: {error}")).into_iter().chain(ordered).collect()
    }

    fn egress(&self, judged: &[&OverlayTable]) -> GuardEgress {
        match self.settings.mode {
            GuardMode::Off => GuardEgress::Off,
            GuardMode::Ports | GuardMode::All => self.settings.egress.unwrap_or(match judged {
                [] => GuardEgress::Off,
                [_, ..] => GuardEgress::Rules,
            }),
        }
    }

    async fn intent(
        &mut self,
        mode: GuardMode,
        table: Option<&NodeTable>,
        devices: &BTreeMap<OverlayId, String>,
        servers: &[SocketAddr],
        egress: Option<Egress>,
    ) -> Intent {
        let uplinks = match mode {
            GuardMode::Off => Vec::new(),
            GuardMode::Ports | GuardMode::All => {
                let towards: Vec<IpAddr> = hops(table)
                    .chain(servers.iter().copied())
                    .map(|to| to.ip().to_canonical())
                    .collect();
                self.network.uplinks(&towards).await.unwrap_or_default()
            }
        };
        let typed = std::env::var("SSH_CONNECTION").ok();
        let sockets = self.sockets.get_or_insert_with(|| guard::sockets(typed.as_deref()));
        let spared = if self.settings.lock_ssh { Vec::new() } else { sockets.ssh_peers.clone() };
        Intent {
            mode,
            members: table.map(|table| members(table, devices)).unwrap_or_default(),
            services: table.map(services).unwrap_or_default(),
            data_port: self.data_port,
            health_port: self.settings.health_port,
            uplinks,
            ssh_peers: spared,
            ssh_ports: sockets.ssh_ports.clone(),
            egress,
            listening: sockets.listening.clone(),
        }
    }
}

/// Where this node sends wrapped packets.
fn hops(table: Option<&NodeTable>) -> impl Iterator<Item = SocketAddr> {
    let body = table.map(|table| &table.body);
    let saps = body.into_iter().flat_map(|body| &body.saps).flat_map(|sap| &sap.endpoints);
    saps.copied().take(ASKED_MAX)
}

fn members(table: &NodeTable, devices: &BTreeMap<OverlayId, String>) -> Vec<Member> {
    let overlays = table.body.overlays.iter();
    overlays
        .filter_map(|overlay| {
            let device = devices.get(&overlay.id)?.clone();
            Some(Member { device, range: overlay.cidr, address: overlay.address? })
        })
        .collect()
}

/// What this machine serves: the ports that it was given names for, and those that rules let anybody open
/// flows to.
fn services(table: &NodeTable) -> Services {
    let opened = table.body.overlays.iter().flat_map(|overlay| {
        let own = overlay.members.iter().position(|member| member.id == table.body.node.id);
        let own = own.and_then(|index| u32::try_from(index).ok());
        let is_for_us = move |set: u32| {
            let set = usize::try_from(set).ok().and_then(|set| overlay.sets.get(set));
            own.is_some_and(|own| set.is_some_and(|set| set.contains(&own)))
        };
        overlay.rules.iter().filter(move |rule| opens(rule.tier) && is_for_us(rule.to))
    });
    let opened = opened.flat_map(|rule| &rule.services);
    opened.chain(&table.body.node.ports).cloned().collect::<Vec<Service>>().into_iter().collect()
}

/// Whether rules of a tier let flows in.
fn opens(tier: Tier) -> bool {
    match tier {
        Tier::Allow | Tier::AuditAllow | Tier::Ingress => true,
        Tier::Deny | Tier::AuditDeny | Tier::Egress => false,
    }
}

fn is_open(mode: GuardMode, intent: &Intent) -> bool {
    match mode {
        GuardMode::Off => true,
        GuardMode::Ports => intent.services.is_empty(),
        GuardMode::All => false,
    }
}
