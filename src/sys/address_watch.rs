//! Says when addresses or routes of this host change.

use std::fmt;

use futures_util::{Stream, StreamExt as _};
use rtnetlink::MulticastGroup;

use super::SysError;

/// What is listened to.
const GROUPS: [MulticastGroup; 4] = [
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

/// Listens to the kernel. Lives on the tokio runtime that opened it.
pub struct AddressWatch {
    messages: Box<dyn Stream<Item = ()> + Send + Unpin>,
    task: tokio::task::JoinHandle<()>,
}

impl AddressWatch {
    /// Opens it; must be called on a tokio runtime. Needs no right.
    ///
    /// # Errors
    ///
    /// When there is no netlink here.
    pub fn open() -> Result<Self, SysError> {
        let (connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|error| SysError::from_io("cannot listen to changes of addresses", &error))?;
        Ok(Self { messages: Box::new(messages.map(drop)), task: tokio::spawn(connection) })
    }

    /// Waits for a change; several that were not waited for count as one.
    pub async fn changed(&mut self) {
        if self.messages.next().await.is_none() {
            // The kernel says no more.
            return std::future::pending().await;
        }
        while let Some(Some(())) = futures_util::FutureExt::now_or_never(self.messages.next()) {}
    }
}

impl Drop for AddressWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for AddressWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressWatch(…)")
    }
}
