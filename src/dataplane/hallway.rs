//! What the three hallways have in common: the frame of their threads.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use super::publish::Reader;
use crate::forward::{FlowTable, Now, Snapshot};
use crate::sys::batch::PacketBatch;
use crate::sys::clock;
use crate::sys::udp::UdpSocket;
use crate::sys::wake::Wake;

/// How long a hallway rests after the kernel refused to read, so that a lasting error does not spin.
const REST: Duration = Duration::from_millis(20);

/// What every hallway works with.
pub(super) struct Common {
    pub(super) udp: Arc<UdpSocket>,
    pub(super) snapshot: Reader<Snapshot>,
    pub(super) flows: Arc<FlowTable>,
    pub(super) wake: Arc<Wake>,
}

/// The time for one batch.
pub(super) fn now() -> Now {
    Now { monotonic_millis: clock::monotonic_millis(), wall: clock::wall() }
}

/// Fills `batch` from the UDP socket or waits for more; `false` when there is nothing to do now.
pub(super) fn receive(udp: &UdpSocket, wake: &Wake, batch: &mut PacketBatch) -> bool {
    let result = udp
        .receive_batch(batch)
        .and_then(|()| if batch.is_empty() { wake.wait(udp.as_fd(), None) } else { Ok(()) });
    if result.is_err() {
        rest(wake);
    }
    !batch.is_empty()
}

/// Waits a little, unless somebody calls.
pub(super) fn rest(wake: &Wake) {
    // Without poll there is no way to wait; the next round tries again.
    let _: io::Result<()> = wake.pause(REST);
}
