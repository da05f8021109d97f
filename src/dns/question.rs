//! Asks a name server as a program on this host would: at its port 53, over UDP.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::message::{self, A, AAAA, NS, Query};
use super::upstream::by_udp;
use crate::sys::redirect::DNS_PORT;

/// How long a server is waited for: one that takes longer is of no use to programs.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether `server` answers at all: it is asked for the name servers of the root, which every one knows.
pub async fn answers(server: IpAddr) -> bool {
    ask(server, "", NS).await.is_some()
}

/// Whether `server` knows an address of `name`, of IPv4 or IPv6; none when it does not answer.
pub async fn has_address(server: IpAddr, name: &str, is_ipv4: bool) -> Option<bool> {
    let answer = ask(server, name, if is_ipv4 { A } else { AAAA }).await?;
    Some(message::has_records(&answer))
}

async fn ask(server: IpAddr, name: &str, kind: u16) -> Option<Vec<u8>> {
    let (query, message) = Query::new(rand::random(), name, kind)?;
    let answer = by_udp(SocketAddr::new(server, DNS_PORT), &query, &message, false);
    tokio::time::timeout(PATIENCE, answer).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::{Answer, Code, Record};

    #[test]
    fn a_question_is_one_that_we_understand_and_its_answer_is_told_apart() {
        let (query, message) = Query::new(7, "web.prod.ov.internal", A).unwrap();
        let parsed = Query::parse(&message).unwrap();
        assert_eq!((parsed.name.as_str(), parsed.kind), ("web.prod.ov.internal", A));

        let address = Record::Address("100.71.0.11".parse().unwrap());
        let answer = |code, records| {
            parsed.answer(&Answer { code, records, hosts: Vec::new() }, "ov.internal", 512)
        };
        let found = answer(Code::Ok, vec![address]);
        assert!(query.is_answered_by(&found) && message::has_records(&found));
        let unknown = answer(Code::NoName, Vec::new());
        assert!(query.is_answered_by(&unknown) && !message::has_records(&unknown));
        let (other, _) = Query::new(8, "web.prod.ov.internal", A).unwrap();
        assert!(!other.is_answered_by(&found));

        let (root, message) = Query::new(9, "", NS).unwrap();
        assert_eq!(message.len(), 12 + 1 + 4);
        assert!(root.is_answered_by(&root.refusal(Code::Failed)));
    }
}
