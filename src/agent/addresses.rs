//! Where the server is.
//!
//! A name is looked up whenever the server is asked, and what came of it is kept: a guard that lets
//! nothing out but to the server must know its addresses, and may itself stand before the name servers.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// How long the system's resolver may take, for all names together: the tables wait for it.
const RESOLVE_WITHIN: Duration = Duration::from_secs(1);

/// How many addresses of a name are kept.
const KEPT_MAX: usize = 16;

/// The last known addresses of each name.
pub type Known = BTreeMap<String, Vec<IpAddr>>;

/// The places of one server.
#[derive(Debug)]
pub struct Addresses {
    places: Vec<Place>,
    known: Mutex<Known>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    url: String,
    host: String,
    port: u16,
}

impl Addresses {
    /// Those behind `urls`, each `https://HOST:PORT`; what is no such thing has none.
    #[must_use]
    pub fn new(urls: &[String]) -> Self {
        let places = urls.iter().filter_map(|url| Place::parse(url)).collect();
        Self { places, known: Mutex::default() }
    }

    /// Takes what an earlier process found.
    pub fn remember(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = known;
    }

    /// What was found by name, sorted: name servers like to turn the order.
    #[must_use]
    pub fn known(&self) -> Known {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner).clone();
        known.values_mut().for_each(|found| found.sort_unstable());
        known
    }

    /// All that are known.
    #[must_use]
    pub fn all(&self) -> Vec<SocketAddr> {
        self.places.iter().flat_map(|place| self.at(place)).collect()
    }

    /// The best one of `url`.
    #[must_use]
    pub fn first(&self, url: &str) -> Option<SocketAddr> {
        let place = self.places.iter().find(|place| place.url == url)?;
        self.at(place).into_iter().next()
    }

    /// Looks all names up.
    pub async fn refresh(&self) {
        let names = self.places.iter().filter(|place| place.literal().is_none());
        let all = async {
            for place in names {
                self.look_up(&place.host).await;
            }
        };
        // What is not found in time is where it was.
        let _ = tokio::time::timeout(RESOLVE_WITHIN, all).await;
    }

    /// The addresses of a name; those of before where nobody knows it now.
    async fn look_up(&self, name: &str) -> Vec<IpAddr> {
        let found = tokio::net::lookup_host((name, 0)).await.into_iter().flatten();
        let mut found: Vec<IpAddr> = found.map(|found| found.ip()).collect();
        found.truncate(KEPT_MAX);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if found.is_empty() {
            return known.get(name).cloned().unwrap_or_default();
        }
        known.insert(name.to_owned(), found.clone());
        found
    }

    fn at(&self, place: &Place) -> Vec<SocketAddr> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let ips = match place.literal() {
            Some(ip) => vec![ip],
            None => known.get(&place.host).cloned().unwrap_or_default(),
        };
        ips.into_iter().map(|ip| SocketAddr::new(ip, place.port)).collect()
    }
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok().filter(|url| url.scheme() == "https")?;
        let host = url.host_str()?.trim_matches(['[', ']']).to_owned();
        Some(Self { url: text.to_owned(), host, port: url.port_or_known_default()? })
    }

    fn literal(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// Tells a client of HTTP.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<Addresses>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(resolve(Arc::clone(&self.0), name))
    }
}

async fn resolve(
    addresses: Arc<Addresses>,
    name: Name,
) -> Result<Addrs, Box<dyn Error + Send + Sync>> {
    let found = addresses.look_up(name.as_str()).await;
    if found.is_empty() {
        return Err(format!("nobody knows the name {}", name.as_str()).into());
    }
    Ok(Box::new(found.into_iter().map(|ip| SocketAddr::new(ip, 0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn urls_give_addresses() {
        let urls = ["https://127.0.0.1:7443", "https://[::1]:7443/", "http://127.0.0.1:1"];
        let addresses = Addresses::new(&urls.map(str::to_owned));

        assert_eq!(addresses.first(urls[0]), Some("127.0.0.1:7443".parse().unwrap()));
        assert_eq!(addresses.first(urls[1]), Some("[::1]:7443".parse().unwrap()));
        assert_eq!(addresses.first(urls[2]), None);
        assert_eq!(addresses.all().len(), 2);
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_any_more_is_where_it_was() {
        let url = "https://server.invalid:7443".to_owned();
        let addresses = Addresses::new(std::slice::from_ref(&url));
        addresses.refresh().await;
        assert_eq!(addresses.first(&url), None);

        addresses
            .remember([("server.invalid".to_owned(), vec!["192.0.2.1".parse().unwrap()])].into());
        addresses.refresh().await;

        assert_eq!(addresses.first(&url), Some("192.0.2.1:7443".parse().unwrap()));
        let resolver = Resolver(Arc::new(addresses));
        let resolved = resolver.resolve("server.invalid".parse().unwrap()).await.unwrap();
        assert_eq!(resolved.collect::<Vec<_>>(), ["192.0.2.1:0".parse().unwrap()]);
    }
}
