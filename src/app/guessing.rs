//! Looks after key guessing: from the hallways to the log and to the server.

use std::time::Duration;

use super::daemon::Shared;
use crate::sys::clock;

/// How often the hallways are asked.
const EVERY: Duration = Duration::from_millis(250);

/// Runs for ever.
pub(crate) async fn run(shared: &Shared) {
    loop {
        tokio::time::sleep(EVERY).await;
        let pairs = shared.flows().take_guessed();
        if pairs.is_empty() {
            continue;
        }
        let news = shared.guesses().note(&pairs, clock::wall());
        for pair in news {
            tracing::warn!(
                overlay = %pair.overlay,
                from = %pair.from,
                to = %pair.to,
                "somebody guesses at a key: new flows of this pair are refused for seconds at a time"
            );
        }
        shared.report_soon();
    }
}
