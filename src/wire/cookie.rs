//! What a SaP gives to the endpoint that an echo came from, and wants back from there: whoever returns it
//! has received it, so he is there. Nothing has to be remembered of cookies that are under way.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ring::hmac;
use subtle::ConstantTimeEq as _;

use crate::types::{LinkId, Secret};

/// Cookies are of such a period, and good until the end of the next. Twice the longest wait between two
/// echoes, so that who has proved where he is is not asked again; short, so that an endpoint that somebody
/// else has by now proves nothing.
const PERIOD: Duration = Duration::from_secs(10);

/// Makes cookies and knows its own again.
#[derive(Clone, Debug)]
pub struct Cookies(hmac::Key);

impl Cookies {
    /// With a secret of this process that nobody else knows.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret.expose()))
    }

    /// The cookie for an endpoint of a link, never 0. `now` is the time since any fixed moment.
    #[must_use]
    pub fn make(&self, link: LinkId, endpoint: SocketAddr, now: Duration) -> u64 {
        self.of_period(link, endpoint, period(now))
    }

    /// Whether `cookie` was made for that endpoint of that link lately.
    #[must_use]
    pub fn knows(&self, cookie: u64, link: LinkId, endpoint: SocketAddr, now: Duration) -> bool {
        let current = period(now);
        let is_of = |period| self.of_period(link, endpoint, period).ct_eq(&cookie);
        let is_current = is_of(current);
        bool::from(current.checked_sub(1).map_or(is_current, |before| is_current | is_of(before)))
    }

    fn of_period(&self, link: LinkId, endpoint: SocketAddr, period: u64) -> u64 {
        let address = match endpoint.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        };
        let mut context = hmac::Context::with_key(&self.0);
        context.update(&link.0.to_be_bytes());
        context.update(&address);
        context.update(&endpoint.port().to_be_bytes());
        context.update(&period.to_be_bytes());
        let tag = context.sign();
        let cookie = tag.as_ref().first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        cookie.max(1)
    }
}

fn period(now: Duration) -> u64 {
    now.as_secs() / PERIOD.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_cookie_is_good_for_its_endpoint_link_and_time_alone() {
        let cookies = Cookies::new(&Secret::new([3; 32]));
        let (link, here) = (LinkId(7), at("192.0.2.1:6080"));
        let secs = Duration::from_secs;
        for made in [0, 5, 9, 10, 1_004] {
            let cookie = cookies.make(link, here, secs(made));
            let knows = |link, endpoint, now| cookies.knows(cookie, link, endpoint, secs(now));

            assert!(knows(link, here, made) && knows(link, here, made + 10), "{made}");
            assert!(!knows(link, here, made + 20), "{made}: too old");
            assert!(!knows(LinkId(8), here, made));
            assert!(!knows(link, at("192.0.2.1:6081"), made));
            assert!(!knows(link, at("192.0.2.2:6080"), made));
            let others = Cookies::new(&Secret::new([4; 32]));
            assert!(!others.knows(cookie, link, here, secs(made)));
        }
        assert!(!cookies.knows(0, link, here, secs(0)), "no cookie is none");
    }
}
