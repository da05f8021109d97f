//! Keeps this machine's programs asking us for names, as its operator wants: follows its resolver
//! configuration and the overlays' devices.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use super::daemon::Shared;
use crate::agent::health::Topic;
use crate::api::local::{NamesStatus, OverlayStatus};
use crate::dns::{Names, System, Upstream, resolved};
use crate::sys::SysError;
use crate::sys::redirect::{Detour, Redirect};
use crate::types::{DnsHook, Prefix};

/// Where names are answered when nobody says.
const PORT: u16 = 6053;

/// How often the configuration is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How long to wait before what was refused is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How long systemd-resolved may take.
const RESOLVED_WITHIN: Duration = Duration::from_secs(5);

/// The addresses to answer at: the one that was asked for, and those that a hook needs. Only the first must be.
pub(crate) fn places(wanted: Option<SocketAddr>, hook: DnsHook) -> Vec<SocketAddr> {
    let port = wanted.map_or(PORT, |wanted| wanted.port());
    let hooked = match hook {
        DnsHook::Off => None,
        DnsHook::Auto | DnsHook::Redirect | DnsHook::Resolved => Some(
            [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
                .map(|ip| SocketAddr::new(ip, port))
                .into_iter()
                .filter(|place| wanted.is_none_or(|wanted| !covers(wanted, *place))),
        ),
    };
    wanted.into_iter().chain(hooked.into_iter().flatten()).collect()
}

/// Whether what is sent to `place` comes to a socket that is bound to `bound`.
fn covers(bound: SocketAddr, place: SocketAddr) -> bool {
    let is_everywhere =
        bound.ip().is_unspecified() && (bound.is_ipv6() || bound.is_ipv4() == place.is_ipv4());
    bound.port() == place.port() && (bound == place || is_everywhere)
}

/// The hook of this process's machine.
#[derive(Debug)]
pub(crate) struct Naming {
    wanted: DnsHook,
    names: Names,
    redirect: Option<Redirect>,
    /// Devices with their ranges, as systemd-resolved was told or refused.
    attached: Vec<(String, Prefix)>,
    attach_refused: Option<Refusal>,
    redirect_refused: Option<Refusal>,
}

/// What did not work, and when.
#[derive(Debug)]
struct Refusal {
    at: Instant,
    error: SysError,
}

impl Refusal {
    fn of(done: Result<(), SysError>) -> Option<Self> {
        done.err().map(|error| Self { at: Instant::now(), error })
    }

    fn is_old(&self) -> bool {
        self.at.elapsed() >= AGAIN_AFTER
    }
}

impl Naming {
    pub(crate) fn new(wanted: DnsHook, names: Names) -> Self {
        Self {
            wanted,
            names,
            redirect: None,
            attached: Vec::new(),
            attach_refused: None,
            redirect_refused: None,
        }
    }

    /// Where names are to be put.
    pub(crate) fn names(&self) -> &Names {
        &self.names
    }

    /// Follows for ever. By itself: nothing that a node does waits for it.
    pub(crate) async fn run(mut self, shared: &Shared) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let devices = devices(&shared.facts().overlays);
            let hook = self.follow(&System::read(), devices).await;
            shared.health.set(Topic::Names, self.problem(hook).into_iter().collect());
            let detours = self.redirect.as_ref().map(Redirect::detours).unwrap_or_default();
            let redirected = detours.iter().map(|detour| detour.server).collect();
            let listeners = self.names.listeners().to_vec();
            shared.facts().resolver = Some(NamesStatus { hook, listeners, redirected });
        }
    }

    /// Makes the machine ask as `system` and `devices` need it; says by what hook it does.
    async fn follow(&mut self, system: &System, devices: Vec<(String, Prefix)>) -> DnsHook {
        let by_resolved = match self.wanted {
            DnsHook::Off | DnsHook::Redirect => false,
            DnsHook::Resolved => true,
            DnsHook::Auto => system.has_resolved(),
        };
        if by_resolved && self.attach(devices).await {
            self.redirect = None;
            self.names.pass_on_to(system.upstream());
            return DnsHook::Resolved;
        }
        match self.wanted {
            DnsHook::Off | DnsHook::Resolved => {
                self.names.pass_on_to(system.upstream());
                DnsHook::Off
            }
            DnsHook::Auto | DnsHook::Redirect => self.redirect(system),
        }
    }

    /// Whether systemd-resolved knows of `devices`.
    async fn attach(&mut self, devices: Vec<(String, Prefix)>) -> bool {
        let Some(port) = self.port_of(true) else { return false };
        let resolver = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let is_due = self.attach_refused.as_ref().is_some_and(Refusal::is_old);
        if self.attached == devices && !is_due {
            return self.attach_refused.is_none();
        }
        let told = devices.clone();
        let telling = tokio::task::spawn_blocking(move || {
            told.iter().try_for_each(|(device, range)| resolved::attach(device, *range, resolver))
        });
        let what = "cannot hook names into systemd-resolved";
        let done = match tokio::time::timeout(RESOLVED_WITHIN, telling).await {
            Ok(Ok(done)) => done,
            Ok(Err(error)) => Err(SysError::new(what, error)),
            Err(_) => Err(SysError::new(what, "it does not answer")),
        };
        self.attached = devices;
        self.attach_refused = Refusal::of(done);
        if let Some(Refusal { error, .. }) = &self.attach_refused {
            tracing::warn!(%error, "systemd-resolved is not told");
        }
        self.attach_refused.is_none()
    }

    /// Redirects what programs ask their resolvers, and passes the rest on to these very resolvers.
    fn redirect(&mut self, system: &System) -> DnsHook {
        let detours: Vec<Detour> = system
            .asked()
            .into_iter()
            .filter_map(|server| Some(Detour { server, port: self.port_of(server.is_ipv4())? }))
            .collect();
        // They are passed on past the redirect, also before there is one.
        self.names.pass_on_to(Upstream::of(system.asked()).redirected());
        let is_so = self.redirect.as_ref().is_some_and(|table| table.detours() == detours);
        if !is_so && self.redirect_refused.as_ref().is_none_or(Refusal::is_old) {
            let table = self.redirect.take().map_or_else(Redirect::new, Ok);
            let done = table.and_then(|mut table| {
                let done = table.replace(&detours);
                self.redirect = Some(table);
                done
            });
            self.redirect_refused = Refusal::of(done);
        }
        match &self.redirect {
            Some(table) if !table.detours().is_empty() => DnsHook::Redirect,
            Some(_) | None => DnsHook::Off,
        }
    }

    /// Why nobody is brought here who should be.
    fn problem(&self, hook: DnsHook) -> Option<String> {
        let refusals = [&self.redirect_refused, &self.attach_refused];
        let refusal = refusals.into_iter().flatten().next()?;
        let is_hooked = hook != DnsHook::Off || self.wanted == DnsHook::Off;
        (!is_hooked).then(|| format!("names: {}", refusal.error))
    }

    /// The port on loopback where questions by that family are answered.
    fn port_of(&self, is_ipv4: bool) -> Option<u16> {
        let loopback: IpAddr =
            if is_ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        let mut listeners = self.names.listeners().iter();
        let ours = listeners.find(|at| covers(**at, SocketAddr::new(loopback, at.port())));
        ours.map(SocketAddr::port)
    }
}

/// The devices that are there, with what their overlays' addresses are.
fn devices(overlays: &[OverlayStatus]) -> Vec<(String, Prefix)> {
    let devices =
        overlays.iter().filter_map(|overlay| Some((overlay.device.clone()?, overlay.cidr)));
    devices.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_of_both_families_is_answered_where_a_hook_needs_it() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let both = [at("127.0.0.1:6053"), at("[::1]:6053")];

        assert_eq!(places(None, DnsHook::Auto), both);
        assert_eq!(places(None, DnsHook::Off), []);
        assert_eq!(places(Some(both[0]), DnsHook::Off), [both[0]]);
        assert_eq!(places(Some(both[0]), DnsHook::Redirect), both);
        assert_eq!(places(Some(at("[::]:53")), DnsHook::Auto), [at("[::]:53")]);
        let other = at("192.0.2.1:53");
        let all = [other, at("127.0.0.1:53"), at("[::1]:53")];
        assert_eq!(places(Some(other), DnsHook::Auto), all);
        assert_eq!(places(Some(at("0.0.0.0:53")), DnsHook::Auto), [at("0.0.0.0:53"), all[2]]);
    }
}
