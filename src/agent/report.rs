//! Tells the server how this node is: at the start, when something changed, and every 30 s.

use std::time::Duration;

use super::client::Client;
use super::health::Health;
use crate::api::ProblemCode;
use crate::api::node::NodeReport;
use crate::types::{Secret, Timestamp};

/// Between reports when nothing changes.
const INTERVAL: Duration = Duration::from_secs(30);

/// At least so long between two reports, so that something that flaps does not flood the server.
const PAUSE: Duration = Duration::from_millis(500);

/// Reports for ever; stops when it is dropped. `make` is asked anew for each report.
pub async fn run(
    client: &Client,
    credential: &Secret,
    health: &Health,
    clock: fn() -> Timestamp,
    make: impl Fn() -> NodeReport,
) {
    let mut failures = 0_u32;
    loop {
        if health.is_copy() {
            // The server takes nothing of it; it is asked for tables from time to time.
            tokio::time::sleep(INTERVAL).await;
            continue;
        }
        let wait = match client.report(credential, &make()).await {
            Ok(()) => {
                // A long-poll may hold for a minute before it says as much.
                health.server_answered(client.url(), None, clock());
                failures = 0;
                INTERVAL
            }
            Err(problem) => {
                if problem.code == ProblemCode::Unreachable {
                    health.server_answered(client.url(), Some(problem.why.clone()), clock());
                }
                tracing::debug!(what = %problem.what, why = %problem.why, "report not delivered");
                failures = failures.saturating_add(1);
                super::sync::backoff(failures).max(PAUSE)
            }
        };
        tokio::time::sleep(PAUSE).await;
        // Elapsing is the ordinary case.
        let _ = tokio::time::timeout(wait, health.changed()).await;
    }
}
