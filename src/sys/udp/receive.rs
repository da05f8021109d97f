//! Datagrams from the kernel, many in one call, and several of one sender in one buffer.

use std::os::fd::AsRawFd as _;
use std::{io, ptr};

use super::{EMPTY_VECTOR, UdpSocket, is_nothing_now};
use crate::sys::batch::{DatagramBatch, Meta, SLOTS};
use crate::sys::cmsg::Control;
use crate::sys::sockaddr::RawAddress;

impl UdpSocket {
    /// Replaces what is in `batch` by the datagrams that are waiting, as many as make a batch; waits for
    /// the first one. An empty batch means that the wait was interrupted ([`crate::sys::wake`]), or that
    /// there is an error to look at ([`Self::take_too_long`]).
    ///
    /// # Errors
    ///
    /// What the kernel says; the socket stays usable.
    pub fn receive_batch(&self, batch: &mut DatagramBatch) -> io::Result<()> {
        batch.clear();
        let wanted = batch.wanted().min(self.at_once(SLOTS));
        let mut vectors = [EMPTY_VECTOR; SLOTS];
        // SAFETY: `mmsghdr` is a C struct of integers and pointers, for which all zeros is a value.
        let mut messages: [libc::mmsghdr; SLOTS] = unsafe { std::mem::zeroed() };
        for ((message, vector), (buffer, address, control)) in
            messages.iter_mut().zip(&mut vectors).zip(batch.parts_mut()).take(wanted)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            let header = &mut message.msg_hdr;
            header.msg_name = address.as_mut_ptr();
            header.msg_namelen = RawAddress::CAPACITY;
            header.msg_control = control.as_mut_ptr();
            header.msg_controllen = Control::CAPACITY as _;
            header.msg_iov = ptr::from_mut(vector);
            header.msg_iovlen = 1;
        }
        let fd = self.socket.as_raw_fd();
        let flags = libc::MSG_WAITFORONE;
        // SAFETY: the first `wanted` of `messages` hold pointers to a vector of this stack frame and to
        // a buffer, an address and ancillary data of `batch`, each its own, all of the lengths written
        // beside them, all alive and otherwise unused until the call returns.
        let received = unsafe {
            libc::recvmmsg(fd, messages.as_mut_ptr(), wanted as _, flags, ptr::null_mut())
        };
        let Ok(received) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            let is_harmless = is_nothing_now(&error) || self.is_of_another(&error);
            return if is_harmless { Ok(()) } else { Err(error) };
        };
        for (index, message) in messages.iter().enumerate().take(received) {
            let header = &message.msg_hdr;
            let said =
                batch.controls.get(index).map(|control| control.decode(header.msg_controllen));
            let said = said.unwrap_or_default();
            let from = batch.addresses.get(index).and_then(RawAddress::decode);
            batch.fill(Meta {
                from: from.unwrap_or(Meta::EMPTY.from),
                len: message.msg_len as usize,
                tos: said.tos,
                ttl: said.ttl,
                segment: said.segment,
                // Without its ancillary data nobody knows what a buffer is: one datagram or many.
                is_truncated: header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0,
            });
        }
        batch.filled();
        Ok(())
    }
}
