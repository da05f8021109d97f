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

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::sys::offload::vnet::{Gso, GsoKind, VNET_LEN};

    const SIZE: u16 = 100;
    const ALL: Takes = Takes { tcp: true, udp: true };
    const NOTHING: Takes = Takes { tcp: false, udp: false };

    /// A device, and what it was given: headers and packets.
    struct Device {
        tun: Arc<Tun>,
        host: UnixDatagram,
        header_len: usize,
    }

    impl Device {
        fn new(takes: Takes) -> Self {
            Self::made(takes, VNET_LEN, |tun| tun)
        }

        fn made(takes: Takes, header_len: usize, like: impl FnOnce(Tun) -> Tun) -> Self {
            let (ours, host) = UnixDatagram::pair().unwrap();
            host.set_nonblocking(true).unwrap();
            let tun = Arc::new(like(Tun::over(File::from(OwnedFd::from(ours)), takes)));
            Self { tun, host, header_len }
        }

        fn given(&self) -> Vec<(Option<VnetHeader>, Vec<u8>)> {
            let mut buffer = vec![0; 1 << 16];
            let next = || {
                let len = self.host.recv(&mut buffer).ok()?;
                let (header, packet) = buffer[..len].split_at(self.header_len);
                let header = header.first_chunk().and_then(|header| VnetHeader::decode(*header));
                Some((header, packet.to_vec()))
            };
            std::iter::from_fn(next).collect()
        }

        fn packets(&self) -> Vec<Vec<u8>> {
            self.given().into_iter().map(|(_, packet)| packet).collect()
        }
    }

    /// A TCP packet of 350 bytes of payload, without its checksum.
    fn large() -> Vec<u8> {
        let mut packet =
            vec![0x45, 0, 1, 134, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend([0x30, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 4, 0, 0, 0, 0, 0]);
        packet.extend((0..350).map(|n| n as u8));
        packet
    }

    fn segments() -> Vec<Vec<u8>> {
        let (packet, prefix) = (large(), [0; gue::HEADER_LEN]);
        let split = Split::of_size(prefix, &packet, SIZE).unwrap();
        split.map(|(head, payload)| [&head.as_slice()[prefix.len()..], payload].concat()).collect()
    }

    fn deliver(device: &Device) -> Tally {
        let (segments, tun) = (segments(), &device.tun);
        let mut delivery = Delivery { coalescer: Coalescer::new(), tally: Tally::new() };
        let (buffer, mut start) = (segments.concat(), 0);
        for segment in &segments {
            delivery.add(&buffer, start..start + segment.len(), 0, |_| Some(tun));
            start += segment.len();
        }
        delivery.finish(&buffer, |_| Some(tun));
        delivery.tally
    }

    fn deliver_large(device: &Device) {
        let (mut buffer, tun) = (large(), &device.tun);
        let mut delivery = Delivery { coalescer: Coalescer::new(), tally: Tally::new() };
        let whole = 0..buffer.len();
        delivery.add_large(&mut buffer, whole, SIZE, 0, |_| Some(tun));
    }

    fn is_large(given: &[(Option<VnetHeader>, Vec<u8>)]) -> bool {
        let gso = Some(Gso { kind: GsoKind::TcpV4, size: SIZE });
        given.len() == 1
            && given[0].0.is_some_and(|header| header.gso == gso && header.partial.is_some())
            && given[0].1.len() == large().len()
            && given[0].1[40..] == large()[40..]
    }

    #[test]
    fn a_run_is_one_write_where_the_device_takes_it() {
        assert_eq!(segments().len(), 4);
        let device = Device::new(ALL);
        deliver(&device);
        assert!(is_large(&device.given()));

        let device = Device::new(NOTHING);
        deliver(&device);
        assert_eq!(device.packets(), segments());
    }

    #[test]
    fn a_device_that_takes_less_than_it_said_gets_single_packets_from_then_on() {
        let device = Device::made(ALL, 0, Tun::without_header);
        deliver(&device);
        assert_eq!(device.packets(), segments());
        assert_eq!(device.tun.takes(), NOTHING);

        deliver(&device);
        assert_eq!(device.packets(), segments());
    }

    #[test]
    fn a_large_packet_that_nobody_cut_is_cut_where_the_device_does_not() {
        let device = Device::new(ALL);
        deliver_large(&device);
        assert!(is_large(&device.given()));

        for takes in [NOTHING, Takes { tcp: true, udp: false }] {
            let device = Device::new(takes);
            deliver_large(&device);
            assert_eq!(device.packets(), segments());
        }
    }
}
