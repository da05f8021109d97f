//! How many connections there may be. Who has shown a good credential keeps its place; of strangers the
//! oldest gives way to a newcomer, so that connections that are opened and left keep nobody out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Connections that have shown no good credential yet: in all, and from one network. A thousand nodes that
/// sit behind one address come back in the same moment after a restart of the server, all of them strangers
/// until their handshakes are done: if they took each other's places, each would fail, wait, and come again.
pub(super) const STRANGERS_MAX: usize = 2_048;
pub(super) const STRANGERS_PER_NETWORK: usize = 1_024;

/// Connections that have, and are no polls: in all, and from one network. What is beyond has the place of
/// a stranger.
const KNOWN_MAX: usize = 4_096;
const KNOWN_PER_NETWORK: usize = 1_024;

/// Connections of nodes that wait for a table. They are counted apart, so that thousands of nodes do not
/// keep an admin out.
const POLLS_MAX: usize = 16_384;

/// All connections.
#[derive(Debug, Default)]
pub(super) struct Places(Mutex<Taken>);

/// By number, which grows: the oldest come first.
#[derive(Debug, Default)]
struct Taken {
    last: u64,
    strangers: BTreeMap<u64, Stranger>,
    known: BTreeMap<u64, IpAddr>,
    polls: BTreeSet<u64>,
}

#[derive(Debug)]
struct Stranger {
    network: IpAddr,
    gives_way: Arc<Notify>,
}

/// One connection's place; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    places: Arc<Places>,
    number: u64,
    /// Told when a newcomer has its place.
    gives_way: Arc<Notify>,
}

impl Places {
    /// Whoever panicked while it was held left whole values behind.
    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes the place of the oldest stranger, when there are too many.
    fn make_room(&mut self, network: IpAddr) {
        let mut neighbours = self.strangers.iter().filter(|(_, other)| other.network == network);
        let oldest = match neighbours.clone().count() >= STRANGERS_PER_NETWORK {
            true => neighbours.next(),
            false if self.strangers.len() >= STRANGERS_MAX => self.strangers.iter().next(),
            false => None,
        };
        let number = oldest.map(|(number, _)| *number);
        if let Some(stranger) = number.and_then(|number| self.strangers.remove(&number)) {
            stranger.gives_way.notify_one();
        }
    }
}

impl Slot {
    /// A place for a connection from `address`, of a stranger so far.
    pub(super) fn take(places: &Arc<Places>, address: IpAddr) -> Arc<Self> {
        let network = network_of(address);
        let gives_way: Arc<Notify> = Arc::default();
        let mut taken = places.taken();
        taken.make_room(network);
        taken.last += 1;
        let number = taken.last;
        taken.strangers.insert(number, Stranger { network, gives_way: Arc::clone(&gives_way) });
        drop(taken);
        Arc::new(Self { places: Arc::clone(places), number, gives_way })
    }

    /// A good credential was shown.
    pub(crate) fn becomes_known(&self) {
        let mut taken = self.places.taken();
        let Some(stranger) = taken.strangers.get(&self.number) else { return };
        let network = stranger.network;
        let neighbours = taken.known.values().filter(|other| **other == network).count();
        if taken.known.len() < KNOWN_MAX && neighbours < KNOWN_PER_NETWORK {
            taken.strangers.remove(&self.number);
            taken.known.insert(self.number, network);
        }
    }

    /// Counts this connection as a node's poll from here on.
    pub(crate) fn becomes_poll(&self) {
        let mut taken = self.places.taken();
        if taken.polls.len() < POLLS_MAX {
            let was_stranger = taken.strangers.remove(&self.number).is_some();
            if taken.known.remove(&self.number).is_some() || was_stranger {
                taken.polls.insert(self.number);
            }
        }
    }

    /// Runs what serves the connection, until it ends or has to give way.
    pub(super) async fn keep(self: Arc<Self>, serving: impl Future<Output = ()>) {
        tokio::select! {
            () = serving => {}
            () = self.gives_way.notified() => {
                tracing::debug!(number = self.number, "a stranger's connection gave way");
            }
        }
    }

    /// A place that counts for nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Arc<Self> {
        Self::take(&Arc::default(), IpAddr::from([192, 0, 2, 1]))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.places.taken();
        taken.strangers.remove(&self.number);
        taken.known.remove(&self.number);
        taken.polls.remove(&self.number);
    }
}

/// Whoever has one IPv6 address has its /64.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(six) => {
            let [a, b, c, d, ..] = six.segments();
            IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    fn counts(places: &Places) -> (usize, usize, usize) {
        let taken = places.taken();
        (taken.strangers.len(), taken.known.len(), taken.polls.len())
    }

    async fn has_given_way(slot: &Arc<Slot>) -> bool {
        let kept = Arc::clone(slot).keep(std::future::pending());
        tokio::time::timeout(std::time::Duration::ZERO, kept).await.is_ok()
    }

    #[tokio::test]
    async fn the_oldest_stranger_of_a_network_gives_way_and_who_is_known_never() {
        let places: Arc<Places> = Arc::default();
        let known = Slot::take(&places, HERE);
        known.becomes_known();
        let poll = Slot::take(&places, HERE);
        poll.becomes_poll();
        let elsewhere = Slot::take(&places, IpAddr::from([198, 51, 100, 7]));
        let strangers: Vec<_> =
            (0..STRANGERS_PER_NETWORK).map(|_| Slot::take(&places, HERE)).collect();
        assert!(!has_given_way(&strangers[0]).await, "there is room for it");

        let newcomer = Slot::take(&places, HERE);

        assert!(has_given_way(&strangers[0]).await);
        for slot in [&known, &poll, &elsewhere, &strangers[1], &newcomer] {
            assert!(!has_given_way(slot).await);
        }
    }

    #[tokio::test]
    async fn the_oldest_of_all_gives_way_when_strangers_come_from_everywhere() {
        let places: Arc<Places> = Arc::default();
        let strangers: Vec<_> = (0..u32::try_from(STRANGERS_MAX).unwrap())
            .map(|number| Slot::take(&places, IpAddr::V4(number.into())))
            .collect();
        assert!(!has_given_way(&strangers[0]).await);

        let newcomer = Slot::take(&places, HERE);

        assert!(has_given_way(&strangers[0]).await && !has_given_way(&strangers[1]).await);
        assert_eq!(counts(&places), (STRANGERS_MAX, 0, 0));
        drop((strangers, newcomer));
        assert_eq!(counts(&places), (0, 0, 0));
    }

    #[test]
    fn one_connection_has_one_place_and_gives_it_back() {
        let places: Arc<Places> = Arc::default();
        let slot = Slot::take(&places, HERE);
        assert_eq!(counts(&places), (1, 0, 0));
        slot.becomes_known();
        slot.becomes_known();
        assert_eq!(counts(&places), (0, 1, 0));
        slot.becomes_poll();
        slot.becomes_known();
        slot.becomes_poll();
        assert_eq!(counts(&places), (0, 0, 1));
        drop(slot);
        assert_eq!(counts(&places), (0, 0, 0));
    }

    #[test]
    fn a_network_of_ipv6_is_a_64() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::1"), network("2001:db8:1:3::1"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
    }
}
