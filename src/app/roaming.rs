//! A laptop goes from Wi-Fi to the phone: SaPs are asked at once from the new address, which proves it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::daemon::Shared;
use crate::sys::address_watch::AddressWatch;
use crate::sys::net;
use crate::types::NodeKind;

/// An address comes with routes, one message after the other.
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// Watches an entity's addresses and routes for ever.
pub(crate) async fn run(shared: &Shared) {
    if shared.identity.kind == NodeKind::Sap {
        // It asks nobody.
        return std::future::pending().await;
    }
    let mut watch = match AddressWatch::open() {
        Ok(watch) => watch,
        Err(error) => {
            tracing::warn!(%error, "a change of addresses is noticed some seconds late");
            return std::future::pending().await;
        }
    };
    let mut before = sources(shared);
    loop {
        watch.changed().await;
        tokio::time::sleep(BETWEEN_LOOKS).await;
        let now = sources(shared);
        // A SaP that is new, or one to which there is no way at the moment, is no news.
        let has_moved = now.iter().any(|(sap, source)| {
            source.is_some() && before.get(sap).is_some_and(|before| before != source)
        });
        before = now;
        if has_moved {
            tracing::info!("this host has another address towards its SaPs");
            shared.probes().handle_moved(shared.now());
            shared.control_due.notify_one();
            shared.moved.notify_one();
        }
    }
}

/// From where this host speaks to each of its SaPs.
fn sources(shared: &Shared) -> BTreeMap<SocketAddr, Option<IpAddr>> {
    let targets: Vec<SocketAddr> = shared.probes().targets().collect();
    targets.into_iter().map(|sap| (sap, net::source_towards(sap).ok())).collect()
}
