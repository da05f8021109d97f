//! Packets to the host: runs of one flow in one write, where the device takes them.

use std::io;
use std::iter::once;
use std::ops::Range;
use std::sync::Arc;

use super::counters::Tally;
use crate::sys::offload::coalesce::{Coalescer, Run, Takes, as_large};
use crate::sys::offload::split::Split;
use crate::sys::offload::vnet::VnetHeader;
use crate::sys::tun::Tun;
use crate::types::DropReason;
use crate::wire::gue;

/// Packets that were judged and wait for the end of their batch.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) coalescer: Coalescer,
    pub(super) tally: Tally,
}

impl Delivery {
    /// Adds the packet at `packet` of `buffer` for the device of `overlay`.
    pub(super) fn add<'a>(
        &mut self,
        buffer: &[u8],
        packet: Range<usize>,
        overlay: usize,
        device: impl Fn(usize) -> Option<&'a Arc<Tun>>,
    ) {
        let takes = device(overlay).map_or(Takes { tcp: false, udp: false }, |tun| tun.takes());
        if !self.coalescer.push(buffer, packet.clone(), overlay, takes) {
            self.finish(buffer, device);
            // The coalescer is empty, so that there is room.
            let _ = self.coalescer.push(buffer, packet, overlay, takes);
        }
    }

    /// Writes the large packet at `packet` of `buffer`, which nobody cut, behind what waits.
    pub(super) fn add_large<'a>(
        &mut self,
        buffer: &mut [u8],
        packet: Range<usize>,
        size: u16,
        overlay: usize,
        device: impl Fn(usize) -> Option<&'a Arc<Tun>>,
    ) {
        self.finish(buffer, &device);
        let Some(packet) = buffer.get_mut(packet) else { return };
        let result = device(overlay)
            .ok_or(DropReason::SendFailed)
            .and_then(|tun| write_large(tun, packet, size));
        match result {
            Ok(()) => self.tally.passed(1, packet.len()),
            Err(reason) => self.tally.dropped(reason),
        }
    }

    /// Writes everything that waits.
    pub(super) fn finish<'a>(
        &mut self,
        buffer: &[u8],
        device: impl Fn(usize) -> Option<&'a Arc<Tun>>,
    ) {
        for (run, packets) in self.coalescer.runs() {
            match device(run.device) {
                Some(tun) => write_run(tun, run, buffer, packets, &mut self.tally),
                // The device may have gone while the table that names it is still in force.
                None => self.tally.dropped_many(DropReason::SendFailed, packets.len()),
            }
        }
        self.coalescer.clear();
    }
}

fn write_run(tun: &Tun, run: &Run, buffer: &[u8], packets: &[Range<usize>], tally: &mut Tally) {
    let at = |range: &Range<usize>| buffer.get(range.clone()).unwrap_or(&[]);
    let (Some(first), header) = (packets.first().map(at), run.header()) else { return };
    let mut single = |header: &VnetHeader, packet: &[u8]| match tun.write(header, 0, [packet]) {
        Ok(()) => tally.passed(1, packet.len()),
        Err(_) => tally.dropped(DropReason::SendFailed),
    };
    if packets.len() == 1 {
        single(&header, first);
        return;
    }
    let (head, skip) = (run.head(first), run.headers_len());
    let payloads = packets.iter().map(|range| at(range).get(skip..).unwrap_or(&[]));
    match tun.write(&header, skip, once(head.as_slice()).chain(payloads)) {
        Ok(()) => tally.passed(packets.len(), packets.iter().map(ExactSizeIterator::len).sum()),
        // The kernel said that it takes large packets, and does not.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tun.refuse_large();
            packets.iter().for_each(|range| single(&VnetHeader::PLAIN, at(range)));
        }
        Err(_) => tally.dropped_many(DropReason::SendFailed, packets.len()),
    }
}

fn write_large(tun: &Tun, packet: &mut [u8], size: u16) -> Result<(), DropReason> {
    let failed = |_| DropReason::SendFailed;
    let takes = tun.takes();
    if takes.tcp && takes.udp {
        let (header, header_len) = as_large(packet, size).ok_or(DropReason::InnerLength)?;
        return tun.write(&header, header_len.into(), [&*packet]).map_err(failed);
    }
    for (head, payload) in Split::of_size([0; gue::HEADER_LEN], packet, size)? {
        let head = head.as_slice().get(gue::HEADER_LEN..).unwrap_or(&[]);
        tun.write(&VnetHeader::PLAIN, 0, [head, payload]).map_err(failed)?;
    }
    Ok(())
}
